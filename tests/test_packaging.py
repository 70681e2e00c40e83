"""What is installed, what importing does, and which modules import which."""

import ast
import configparser
import email
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import bertgen
from bertgen.optional_imports import REQUIREMENTS
from tests.support import requirements

ROOT = Path(__file__).parents[1]
COMPILER = os.environ.get("CXX", "g++")


def dotted(path):
    """bertgen/trainer/loop.py -> bertgen.trainer.loop; kernels/attention.py -> bertgen.kernels.attention"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("bertgen",) * (parts[0] != "bertgen") + parts).removesuffix(".__init__")


PATHS = sorted([*(ROOT / "bertgen").rglob("*.py"), *(ROOT / "kernels").glob("*.py"), *(ROOT / "bench").glob("*.py")])
SOURCES = {dotted(path): path for path in PATHS if path.stem != "__main__"}


def module_statements(tree):
    """The statements that run when a module is imported: not those of functions, nor what is for type checkers."""
    for node in ast.iter_child_nodes(tree):
        typing = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        if not typing and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
            yield from module_statements(node)


def imports_transformers(path):
    """Whether importing the file imports transformers, by itself."""
    for node in module_statements(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if any(name.partition(".")[0] == "transformers" for name in names):
            return True
    return False


# Modules whose classes are those of transformers; all others can be imported without it.
OF_TRANSFORMERS = {name for name, path in SOURCES.items() if imports_transformers(path)}


def run(*command, cwd, **environment):
    """Run a command that leaves no files in the tree, and return its output."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": "", **environment}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(code, *, cwd, interpreter=sys.executable, **environment):
    return run(interpreter, "-c", textwrap.dedent(code), cwd=cwd, **environment).strip()


FOLDERS = [".ci", ".github", "bench", "bertgen", "csrc", "docs", "kernels", "tests"]
FILES = [".dockerignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CONTRIBUTING.md", "Dockerfile", "LICENSE"]
FILES += ["MANIFEST.in", "Makefile", "README.md", "SECURITY.md", "constraints.txt", "pyproject.toml", "setup.py"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the tracked files of the tree, to build in."""
    copy = tmp_path_factory.mktemp("checkout") / "bertgen"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for file in FILES:
        shutil.copy(ROOT / file, copy)
    return copy


@pytest.fixture(scope="module")
def distributions(checkout, tmp_path_factory):
    """The sdist, and the wheel without the extension that is built from the sdist."""
    return build(checkout, tmp_path_factory.mktemp("dist"), BERTGEN_WITHOUT_EXT="1")


def build(source, out, **environment):
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=source, **environment)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def site(distributions, tmp_path_factory):
    """The wheel unpacked as pip does it, next to another package named kernels."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(distributions[1]) as wheel:
        wheel.extractall(folder)
    (folder / "kernels").mkdir()
    (folder / "kernels/__init__.py").write_text("raise ImportError('not the kernels of bertgen')\n")
    (folder / "kernels/stranger.py").write_text("")
    return folder


def files_under(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# What is installed


@pytest.mark.parametrize("folder", ["kernels", "bench"])
def test_a_folder_of_sources_is_no_package_of_its_own(folder):
    assert not (ROOT / folder / "__init__.py").exists()


def test_sdist_holds_the_whole_checkout(checkout, distributions):
    with tarfile.open(distributions[0]) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    assert {name for name in files_under(checkout) if not name.startswith("bertgen.egg-info/")} - held == set()


def test_wheel_holds_the_package_and_nothing_else(checkout, distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = {f"bertgen/{name}" for name in files_under(checkout / "bertgen")}
    kernels = {f"bertgen/kernels/{name}" for name in files_under(checkout / "kernels")}
    bench = {f"bertgen/bench/{path.name}" for path in (checkout / "bench").glob("*.py")}
    assert held == package | kernels | bench
    assert {"bertgen/py.typed", "bertgen/kernels/attention.py", "bertgen/demo/model.safetensors"} < held


@pytest.mark.long
@pytest.mark.skipif(shutil.which(COMPILER) is None, reason="no C++ compiler")
def test_wheel_with_the_extension(checkout, distributions, tmp_path):
    """One file more, under a tag for every Python from 3.10 on."""
    _, wheel = build(checkout, tmp_path, BERTGEN_REQUIRE_EXT="1")
    assert "-cp310-abi3-" in wheel.name and distributions[1].name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as new, zipfile.ZipFile(distributions[1]) as old:
        more = {name for name in set(new.namelist()) ^ set(old.namelist()) if ".dist-info/" not in name}
        new.extractall(tmp_path / "site")
    assert len(more) == 1 and more.pop().startswith("bertgen/_C.abi3.")
    code = "from bertgen.ops import extension; extension.require()\nimport bertgen; print(bertgen.__file__)"
    assert python(code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")) == str(tmp_path / "site/bertgen/__init__.py")


@pytest.mark.long
def test_without_a_compiler_there_is_no_extension_and_the_build_says_so(checkout, tmp_path):
    source = shutil.copytree(checkout, tmp_path / "source")
    command = [sys.executable, "setup.py", "build", "--build-lib", str(tmp_path / "out")]
    for required, code in (("0", 0), ("1", 1)):
        environment = {**os.environ, **NO_COMPILER, "BERTGEN_REQUIRE_EXT": required}
        done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        message = "but it does not compile" if code else "installing without the C++ extension: it does not compile"
        assert message in done.stderr
    assert not list((tmp_path / "out").rglob("_C*"))


NO_COMPILER = {"CXX": "no-such-compiler", "CC": "no-such-compiler"}


def test_a_build_holds_nothing_of_an_earlier_one(checkout, tmp_path):
    """Neither modules that are gone, nor extensions for another Python or of other sources."""
    extensions = ["_C.abi3.so", "_C.cpython-310-x86_64-linux-gnu.so", "_C.cp310-win_amd64.pyd"]
    for name in ["gone.py", "ops/gone.py", "kernels/gone.py", "demo/gone.json", *extensions]:
        path = tmp_path / "bertgen" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    run(sys.executable, "setup.py", "build", "--build-lib", tmp_path, cwd=checkout, **NO_COMPILER)
    held = files_under(tmp_path / "bertgen")
    assert {"py.typed", "kernels/attention.py", "demo/model.safetensors"} < held
    assert not [name for name in held if "gone" in name or name.startswith("_C")]


@pytest.mark.parametrize("options", [[], ["--inplace"]])
def test_a_build_leaves_no_earlier_extension_in_the_checkout(options, checkout):
    """The file name of one Python comes before that of the limited API on the path."""
    earlier = checkout / f"bertgen/_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    earlier.touch()
    run(sys.executable, "setup.py", "build_ext", *options, cwd=checkout, **NO_COMPILER)
    assert not earlier.exists()


@pytest.mark.skipif(os.name == "nt", reason="a script as the compiler")
def test_the_extension_is_in_the_checkout_too(checkout, tmp_path):
    """After `pip install .`, a Python that is started in the checkout imports the package from there."""
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; echo compiled > "$2"\n')
    compiler.chmod(0o755)
    run(sys.executable, "setup.py", "build", "--build-lib", tmp_path / "out", cwd=checkout, CXX=str(compiler))
    for folder in (tmp_path / "out", checkout):
        (extension,) = (folder / "bertgen").glob("_C.*")
        assert extension.read_text() == "compiled\n"
    extension.unlink()


@pytest.mark.skipif(os.name == "nt", reason="a script as the compiler")
@pytest.mark.parametrize("installed, set_by_user, used", [("clang++", None, "clang++"), ("g++", "mine", "mine")])
def test_a_compiler_other_than_that_of_python_is_found(installed, set_by_user, used, checkout, tmp_path):
    """The compiler that built Python may not be there; CXX goes before all others."""
    for name in {installed, set_by_user} - {None}:
        (tmp_path / name).write_text(f"#!/bin/sh\necho this is {name}\nexit 3\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": str(tmp_path), "BERTGEN_REQUIRE_EXT": "1"}
    environment.pop("CXX", None)
    if set_by_user:
        environment["CXX"] = set_by_user
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "does not compile" in done.stderr
    assert set(re.findall("this is (.+)", done.stdout)) == {used}


def test_wheel_metadata(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
        metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
        scripts = configparser.ConfigParser()
        scripts.read_string(wheel.read(f"{info}/entry_points.txt").decode())
        assert b"Apache License" in wheel.read(f"{info}/licenses/LICENSE")
    assert metadata["Version"] == bertgen.__version__
    assert dict(scripts["console_scripts"]) == {"bertgen": "bertgen.cli:main"}
    required = {line.name for line in map(Requirement, metadata.get_all("Requires-Dist")) if line.marker is None}
    assert required == requirements.core().keys()
    assert (
        set(metadata.get_all("Provides-Extra"))
        == requirements.extras().keys()
        == {"transformers", "plot", "bench", "test"}
    )


def test_bounds():
    """torch is bounded by what the tests run with, and triton by torch; the others have no upper bound."""
    core, optional = requirements.core(), requirements.optional()
    for name, versions in {**core, **optional}.items():
        operators = sorted(one.operator for one in versions)
        assert operators == (["<", ">="] if name in ("torch", "triton") else [">="]), name
    assert "triton" not in core, "a build of torch brings its own"
    pins = re.findall(r"^(\w+)==([\w.]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert {"torch", "triton"} < dict(pins).keys()
    for name, version in pins:
        assert version in {**core, **optional}.get(name, SpecifierSet()), f"constraints.txt: {name}=={version}"


def test_triton_is_for_the_systems_that_it_has_wheels_for():
    (triton,) = (line for line in requirements.extras()["bench"] if line.name == "triton")
    systems = [("linux", "x86_64"), ("linux", "aarch64"), ("win32", "AMD64"), ("darwin", "arm64")]
    found = [
        triton.marker.evaluate({"sys_platform": system, "platform_machine": machine}) for system, machine in systems
    ]
    assert found == [True, True, False, False]


def test_version_is_written_once():
    literal = re.compile(rf"(?<![\w.]){re.escape(bertgen.__version__)}(?![\w.])")
    code = [ROOT / "pyproject.toml", ROOT / "setup.py", *(ROOT / "bertgen").glob("*.py")]
    assert [path.name for path in code if literal.search(path.read_text(encoding="utf-8"))] == ["__init__.py"]
    assert f"## {bertgen.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


IMPORT_EVERYTHING = f"""
    import importlib
    import bertgen, bertgen.bench, bertgen.kernels
    for name in {sorted(SOURCES.keys() - OF_TRANSFORMERS)!r}:
        importlib.import_module(name)
    for name, module in bertgen._MODULE_OF.items():
        if f"bertgen.{{module}}" not in {sorted(OF_TRANSFORMERS)!r}:
            assert getattr(bertgen, name) is not None
    assert importlib.util.find_spec("bertgen.kernels.stranger") is None
    print(bertgen.__file__, bertgen.kernels.attention.__file__, sep="\\n")
"""


def test_wheel_works_from_any_directory(site, tmp_path):
    package, kernel = python(IMPORT_EVERYTHING, cwd=tmp_path, PYTHONPATH=str(site)).splitlines()
    assert Path(package) == site / "bertgen/__init__.py"
    assert Path(kernel) == site / "bertgen/kernels/attention.py"


def test_every_module_imports_without_the_optional_packages(site, tmp_path):
    missing = f"""
    import sys
    sys.modules.update(dict.fromkeys({sorted(REQUIREMENTS)!r}))
    """
    python(missing + IMPORT_EVERYTHING, cwd=tmp_path, PYTHONPATH=str(site))


@pytest.mark.long
@pytest.mark.parametrize("mode", ["default", "strict", "compat"])
def test_editable_install(mode, checkout, tmp_path):
    """In a new environment with the libraries of this one, but without its editable install of bertgen."""
    source = shutil.copytree(checkout, tmp_path / "source")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    paths = {"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}
    interpreter = Path(sysconfig.get_path("scripts", vars=paths)) / Path(sys.executable).name
    libraries = Path(sysconfig.get_path("purelib", vars=paths)) / "libraries.pth"
    libraries.write_text(sysconfig.get_path("purelib") + "\n")
    option = [] if mode == "default" else ["--config-settings", f"editable_mode={mode}"]
    pip = [sys.executable, "-m", "pip", "--python", interpreter, "install", "--no-index", "--no-deps"]
    options = ["--no-build-isolation", *option, "--editable"]
    run(*pip, *options, source, cwd=tmp_path, BERTGEN_WITHOUT_EXT="1")
    for folder in (tmp_path, source):
        package, kernel = python(IMPORT_EVERYTHING, cwd=folder, interpreter=interpreter).splitlines()
        assert Path(package).resolve() == source / "bertgen/__init__.py"
        assert Path(kernel).resolve() == source / "kernels/attention.py"
    run(interpreter.with_name("bertgen"), "--help", cwd=tmp_path)


# What importing does


WATCH = """
    import os, sys

    def watch(event, arguments):
        writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        if event == "open" and arguments[2] & writes:
            seen.append((event, str(arguments[0])))
        elif event.startswith(("socket.", "subprocess.", "os.system", "os.fork", "os.mkdir", "os.remove", "os.rename")):
            seen.append((event, str(arguments)))

    seen = []
    sys.addaudithook(watch)
"""


def test_import_bertgen_loads_nothing_and_does_nothing(checkout):
    python(
        WATCH
        + """
    import time
    before = set(sys.modules)
    start = time.process_time()
    import bertgen
    seconds = time.process_time() - start
    dir(bertgen)
    standard = set(sys.stdlib_module_names)
    loaded = {name.partition(".")[0] for name in set(sys.modules) - before} - standard
    assert loaded == {"bertgen"}, loaded
    assert not seen, seen
    assert seconds < 0.05, seconds
    """,
        cwd=checkout,
    )


def test_importing_every_module_of_the_tree_does_nothing(checkout):
    """Beyond what torch, numpy, sentencepiece and safetensors do themselves."""
    package, kernel = python(
        "    import numpy, safetensors.torch, sentencepiece, torch"
        + WATCH
        + IMPORT_EVERYTHING
        + """
    assert not seen, seen
    assert not torch.cuda.is_initialized()
    late = {"ctranslate2", "huggingface_hub", "matplotlib", "rich", "sacrebleu", "transformers"} & set(sys.modules)
    assert not late, late
    """,
        cwd=checkout,
    ).splitlines()
    assert Path(package) == checkout / "bertgen/__init__.py"
    assert Path(kernel) == checkout / "kernels/attention.py"


HUGGING_FACE_KERNELS = """
    HUGGING_FACE = True

    class Anything:
        def __init__(self, *options, **named):
            pass

        def __call__(self, decorated):
            return decorated

    def __getattr__(name):
        return type(name, (Anything,), {})
"""


IMPORT_BOTH = """
    import json, os, sys
    import torch._dynamo, torch.distributed.tensor  # most of what transformers imports, once for all of them

    def ours():
        from bertgen import EncoderDecoderModel
        import bertgen.kernels.attention

    def theirs():
        from transformers import BertGenerationDecoder, BertGenerationEncoder, EncoderDecoderModel
        import transformers.integrations.hub_kernels

    for folder in sys.argv[1:]:
        for order in ((ours, theirs), (theirs, ours)):
            sys.stdout.flush()
            if child := os.fork():
                assert os.waitpid(child, 0)[1] == 0, (folder, order)
                continue
            os.chdir(folder)  # the first entry of the path is "", as of any `python -c`
            for both in order:
                both()
            import bertgen, transformers
            try:
                import kernels
            except ImportError:
                kernels = None
            found = transformers.utils.is_kernels_available(), hasattr(kernels, "HUGGING_FACE")
            print(json.dumps([order[0].__name__, bertgen.__file__, *found]))
            sys.stdout.flush()
            os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("installed", [True, False])
def test_both_import_with_and_without_the_kernels_of_hugging_face(installed, checkout, distributions, tmp_path):
    """From the root, where our folder of that name is on the path, and from elsewhere, with the wheel; in either order.

    The package is there as far as an import of transformers looks: a name, a version that it wants, and its attributes.
    """
    from transformers.utils.import_utils import KERNELS_MIN_VERSION

    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(distributions[1]) as wheel:
        wheel.extractall(site)
    if installed:
        (site / "kernels").mkdir()
        (site / "kernels/__init__.py").write_text(textwrap.dedent(HUGGING_FACE_KERNELS))
        info = site / f"kernels-{KERNELS_MIN_VERSION}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    code = [sys.executable, "-c", textwrap.dedent(IMPORT_BOTH), checkout, elsewhere]
    printed = [json.loads(line) for line in run(*code, cwd=elsewhere, PYTHONPATH=str(site)).splitlines()]
    assert printed == [
        [first, str(home / "bertgen/__init__.py"), installed, installed]
        for home in (checkout, site)
        for first in ("ours", "theirs")
    ]


# The public names


def test_public_names_resolve_and_are_declared_for_type_checkers():
    for name in bertgen.__all__:
        assert name in dir(bertgen)
        assert getattr(bertgen, name) is not None
    tree = ast.parse(Path(bertgen.__file__).read_text(encoding="utf-8"))
    (declared,) = (node.body for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    declared = {alias.asname: statement.module for statement in declared for alias in statement.names}
    assert declared == bertgen._MODULE_OF


def test_unknown_name():
    with pytest.raises(AttributeError, match="'bertgen' has no attribute 'GPT2Model'"):
        bertgen.GPT2Model  # noqa: B018


# Which modules import which


def ladders():
    """Package -> its ladder (name -> rung), read from CONTRIBUTING.md: a name imports only names of higher numbers."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^    ([a-z_]+): (\S(?:.|\n        )*)", text, re.MULTILINE)
    return {
        package: {name.strip(): rung for rung, names in enumerate(line.split(">")) for name in names.split(",")}
        for package, line in blocks
    }


def imported_names(tree, package):
    """The absolute dotted names of all that a module imports, wherever in it that stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            base = ".".join([*parents, *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def modules_of(package):
    """The modules and folders of a package, by their names in it."""
    depth = package.count(".") + 1
    return {name.split(".")[depth] for name in SOURCES if name.startswith(f"{package}.")}


FOLDERS_WITH_A_LADDER = sorted({name.split(".")[1] for name in SOURCES if name.count(".") == 2} - {"bench", "kernels"})


def test_every_module_has_one_place_on_a_ladder():
    held = ladders()
    assert held.keys() == {"bertgen", *FOLDERS_WITH_A_LADDER}
    for folder, rungs in held.items():
        assert rungs.keys() == modules_of("bertgen" if folder == "bertgen" else f"bertgen.{folder}"), folder


def test_the_top_level_holds_few_plain_modules():
    assert len([path for path in (ROOT / "bertgen").glob("*.py") if not path.stem.startswith("__")]) <= 14


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "bertgen"])
def test_ladder(name):
    """Imports go down: between the top-level names, and between the modules of one folder."""
    rungs, path = ladders(), SOURCES[name]
    _, own, inner, *_ = [*name.split("."), None]
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for imported in imported_names(ast.parse(path.read_text(encoding="utf-8")), package):
        top, module, *rest = [*imported.split("."), ""]
        if name != "bertgen.optional_imports" and own != "dropin":
            assert top != "transformers", "only optional_imports and dropin import transformers"
        assert top not in ("kernels", "bench"), f"{top} is imported as bertgen.{top}"
        if module == "_C":
            assert name == "bertgen.kernels.cpp", "the functions of the extension are those of kernels.cpp"
            continue
        if top != "bertgen" or module == "__version__":
            continue
        if module != own:
            assert module in rungs["bertgen"], f"{imported}: import from the module, not from the package"
            assert rungs["bertgen"][own] < rungs["bertgen"][module], f"{own} imports {module}, which is not below it"
        elif inner is not None and own in FOLDERS_WITH_A_LADDER:
            assert rest[0] in rungs[own], f"{imported}: import from the module, not from the package"
            below = rungs[own][inner] < rungs[own][rest[0]]
            assert below, f"{own}.{inner} imports {own}.{rest[0]}, which is not below it"


def test_modules_of_transformers_are_imported_inside_functions():
    assert OF_TRANSFORMERS >= {"bertgen.dropin.attention", "bertgen.dropin.quantizer"}
    for name, path in SOURCES.items():
        if name in OF_TRANSFORMERS:
            continue
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_import = ast.Module([node for node in module_statements(tree) if not hasattr(node, "body")], [])
        for imported in imported_names(at_import, package):
            assert not {imported, imported.rpartition(".")[0]} & OF_TRANSFORMERS, f"{name} imports {imported}"


def test_ladder_sees_every_kind_of_import():
    source = """
        import torch.nn.functional as F
        def f():
            from . import layers
            from .. import cli, ops
            from ..kernels.attention import attention_reference
            from bertgen.jobs import run
    """
    assert list(imported_names(ast.parse(textwrap.dedent(source)), "bertgen.trainer")) == [
        "torch.nn.functional",
        "bertgen.trainer.layers",
        "bertgen.cli",
        "bertgen.ops",
        "bertgen.kernels.attention.attention_reference",
        "bertgen.jobs.run",
    ]
