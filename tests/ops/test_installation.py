"""The commands that install what is missing."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from importlib import metadata, util
from pathlib import Path

import pytest

from bertgen.ops import installation
from bertgen.ops.installation import extension_command, triton_command

REINSTALL = ["pip", "install", "--force-reinstall", "--no-deps", "--no-cache-dir"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Distribution:
    """Metadata of an installed package."""

    def __init__(self, origin=None, requires=None):
        self.origin, self.requires = origin, requires

    def read_text(self, name):
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


def set_distribution(monkeypatch, distribution):
    def find(name):
        if distribution is None:
            raise metadata.PackageNotFoundError(name)
        return distribution

    monkeypatch.setattr(metadata, "distribution", find)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """bertgen is imported from a folder of installed packages."""
    monkeypatch.setattr(installation, "__file__", str(tmp_path / "site-packages/bertgen/ops/installation.py"))


@pytest.fixture(autouse=True)
def pip(monkeypatch):
    """The pip of the shell is that of this environment."""
    monkeypatch.setattr(shutil, "which", lambda name: str(Path(sys.executable).with_name(name)))


def words(command):
    required, *rest = shlex.split(command)
    assert required == "BERTGEN_REQUIRE_EXT=1" and rest[:5] == REINSTALL
    return rest[5:]


def test_a_checkout_is_built_in_place():
    root = Path(__file__).parents[2]
    assert words(extension_command()) == ["--editable", str(root)] and (root / "setup.py").is_file()


@pytest.mark.parametrize(
    "origin, source",
    [
        ({"url": "file:///home/me/my%20clone", "dir_info": {}}, "/home/me/my clone"),
        (
            {"url": "https://example.org/bertgen.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}},
            f"git+https://example.org/bertgen.git@{COMMIT}",
        ),
        ({"url": "https://example.org/bertgen-0.1.0.tar.gz", "archive_info": {}}, None),
        ({"url": "file:///tmp/bertgen-0.1.0.tar.gz", "archive_info": {}}, "/tmp/bertgen-0.1.0.tar.gz"),
        ({"url": "file:///tmp/bertgen-0.1.0-py3-none-any.whl", "archive_info": {}}, "SOURCE"),
        (None, "SOURCE"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="paths of another form")
def test_an_installation_is_built_from_its_source(origin, source, installed, monkeypatch):
    set_distribution(monkeypatch, Distribution(origin))
    assert words(extension_command()) == [origin["url"] if source is None else source]


@pytest.mark.parametrize("found", [None, "/elsewhere/bin/pip"])
def test_the_environment_of_this_python_is_named_where_the_shell_has_another(found, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: found)
    monkeypatch.setattr(sys, "executable", "/my env/bin/python")
    python, *rest = shlex.split(extension_command().removeprefix("BERTGEN_REQUIRE_EXT=1 "))
    assert python == "/my env/bin/python" and rest[:6] == ["-m", *REINSTALL]
    assert shlex.split(triton_command())[:4] == ["/my env/bin/python", "-m", "pip", "install"]


@pytest.mark.skipif(os.name == "nt", reason="no variable goes before a command")
def test_uv_installs_where_there_is_no_pip(installed, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    set_distribution(monkeypatch, Distribution({"url": "file:///home/me/clone", "dir_info": {}}))
    uv = ["uv", "pip", "install", "--python", sys.executable]
    expected = ["BERTGEN_REQUIRE_EXT=1", *uv, "--reinstall", "--no-deps", "/home/me/clone"]
    assert shlex.split(extension_command()) == expected
    assert shlex.split(triton_command()) == [*uv, "triton>=3.6,<3.10"]


def test_without_any_metadata(installed, monkeypatch):
    set_distribution(monkeypatch, None)
    assert words(extension_command()) == ["SOURCE"]
    assert triton_command() == "pip install 'triton>=3.6,<3.10'"


@pytest.mark.parametrize(
    "requires, command",
    [
        (["filelock", 'triton==3.6.0; platform_system == "Linux"'], "pip install triton==3.6.0"),
        (["triton (==3.7.1) ; platform_system == 'Linux'"], "pip install triton==3.7.1"),
        (['triton~=3.9.0; platform_system == "Linux"'], "pip install 'triton~=3.9.0'"),
        (["pytorch-triton-rocm==3.4.0"], "pip install pytorch-triton-rocm==3.4.0"),
        (["triton-rocm==3.6.0"], "pip install triton-rocm==3.6.0"),
        (["filelock", "sympy>=1.13.3"], "pip install 'triton>=3.6,<3.10'"),
        (None, "pip install 'triton>=3.6,<3.10'"),
    ],
)
def test_the_triton_of_this_torch(requires, command, monkeypatch):
    set_distribution(monkeypatch, Distribution(requires=requires))
    assert triton_command() == command
