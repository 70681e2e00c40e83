"""The wheel of `make wheel`, which runs on every Python from 3.10 on; `make test-wheel` runs these tests."""

import base64
import csv
import hashlib
import os
import platform
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
from packaging.utils import parse_wheel_filename

import bertgen

DIST = os.environ.get("BERTGEN_DIST")
LIMIT = 20_000_000  # bytes; the demo model is most of them
GLIBC_OF_TORCH = (2, 28)  # of the wheels of torch 2.10 and later
NEWEST_KNOWN = (2, 36)  # the newest glibc whose compiler is known to give such wheels; the release is built with 2.28

pytestmark = pytest.mark.skipif(DIST is None, reason="BERTGEN_DIST does not name the folder of a finished `make wheel`")


@pytest.fixture(scope="module")
def wheel():
    (path,) = Path(DIST).glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The wheel, unpacked."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_there_is_one_sdist_and_one_wheel_of_this_version(wheel):
    (sdist,) = Path(DIST).glob("*.tar.gz")
    assert sdist.name == f"bertgen-{bertgen.__version__}.tar.gz"
    assert str(parse_wheel_filename(wheel.name)[1]) == bertgen.__version__
    assert {path.name for path in Path(DIST).iterdir()} == {sdist.name, wheel.name}


def test_tags_are_those_of_the_limited_api(wheel):
    tags = parse_wheel_filename(wheel.name)[3]
    assert {(tag.interpreter, tag.abi) for tag in tags} == {("cp310", "abi3")}
    assert not any(tag.platform.startswith("linux") for tag in tags), "a tag that package indexes refuse"


def test_the_wheel_installs_wherever_torch_does(wheel):
    """It needs no newer glibc than the wheels of torch."""
    kind, version = platform.libc_ver()
    if kind != "glibc" or tuple(map(int, version.split("."))) > NEWEST_KNOWN:
        pytest.skip(f"{kind or platform.system()} {version} sets another tag")
    names = [tag.platform for tag in parse_wheel_filename(wheel.name)[3]]
    versions = [tuple(map(int, name.split("_")[1:3])) for name in names if name.startswith("manylinux_")]
    assert min(versions) <= GLIBC_OF_TORCH, names


def test_size(wheel):
    assert 10_000_000 < wheel.stat().st_size <= LIMIT


def test_content(site):
    """One compiled file, no library of another project, the demo model, no sources in C++ and no tests."""
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert {name.split("/")[0] for name in files} == {"bertgen", f"bertgen-{bertgen.__version__}.dist-info"}
    compiled = {name for name in files if Path(name).suffix in {".so", ".pyd", ".dll", ".dylib"}}
    assert len(compiled) == 1 and compiled.pop().startswith("bertgen/_C.")
    suffixes = {Path(name).suffix for name in files if ".dist-info/" not in name}
    assert suffixes <= {".py", ".typed", ".so", ".pyd", ".json", ".model", ".safetensors"}
    assert {"bertgen/demo/model.safetensors", "bertgen/kernels/attention.py", "bertgen/bench/figures.py"} <= files


def test_record_has_every_file_with_its_hash_and_size(site):
    (record,) = site.glob("*.dist-info/RECORD")
    rows = csv.reader(record.read_text(encoding="utf-8").splitlines())
    lines = {name: (digest, size) for name, digest, size in rows}
    files = {path.relative_to(site).as_posix(): path for path in site.rglob("*") if path.is_file()}
    assert lines.keys() == files.keys()
    for name, (digest, size) in lines.items():
        if files[name] == record:
            assert (digest, size) == ("", "")
            continue
        content = files[name].read_bytes()
        expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        assert (digest, size) == (f"sha256={expected}", str(len(content))), name


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13", "3.14", "3.15"])
def test_the_extension_imports_without_torch(version, site):
    """Under each Python that the machine has: the module needs nothing but the interpreter."""
    interpreter = shutil.which(f"python{version}")
    if interpreter is None or subprocess.run([interpreter, "-c", ""], capture_output=True).returncode:
        pytest.skip(f"there is no python{version}")
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import bertgen._C as module; print(module.__file__)"
    done = subprocess.run([interpreter, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == site / "bertgen"
