"""What pyproject.toml cannot declare: where the sources of bertgen.kernels and .bench lie, and the C++ extension.

The extension needs a compiler of C++17 and the headers of Python, nothing else. One binary serves every Python from
3.10 on. Without a compiler bertgen is installed as pure Python, and says so when it generates.
BERTGEN_REQUIRE_EXT=1 makes that an error, BERTGEN_WITHOUT_EXT=1 builds none.
"""

import os
import shlex
import shutil
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

REQUIRED = os.environ.get("BERTGEN_REQUIRE_EXT") == "1"
EXTENSION = "_C.*"  # its file has one name for each interface of CPython
COMPILERS = ("c++", "g++", "clang++")
# The limited API of CPython 3.10; builds of CPython without a GIL have none.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")
# Of GCC and Clang. A search of whole functions for common subexpressions takes GCC a quarter of the time and makes
# nothing faster. Clang does not know the options, and is told not to say so.
UNIX = ["-std=c++17", "-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden"]
UNIX += ["-fno-gcse", "-fno-gcse-after-reload", "-Wno-ignored-optimization-argument"]
OPTIONS = {"msvc": ["/std:c++17", "/O2", "/EHsc"], "unix": UNIX}


class BuildPy(build_py):
    """Takes the modules of bertgen.kernels and bertgen.bench from folders beside bertgen/, which are no packages."""

    def run(self):
        for path in Path(self.build_lib, "bertgen").rglob("*"):  # what an earlier build left would be installed too
            if path.is_file() and not path.match(EXTENSION):
                path.unlink()
        super().run()

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        if package in ("bertgen.kernels", "bertgen.bench"):
            folder = Path(package.removeprefix("bertgen."))
            modules += [(package, path.stem, str(path)) for path in sorted(folder.glob("*.py"))]
        return modules


class BuildExt(build_ext):
    """Chooses the compiler and its options, and compiles files side by side; where it fails, there is no extension."""

    def run(self):
        for folder in ("", self.build_lib):
            for path in Path(folder, "bertgen").glob(EXTENSION):  # for another interface, or of other sources
                path.unlink()
        use_an_installed_compiler()
        super().run()
        if not self.inplace:  # Python imports the package of a checkout when it is started there
            self.copy_extensions_to_source()

    def build_extensions(self):
        one_after_the_other = self.compiler.compile

        def compile(sources, **arguments):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [*chain(*pool.map(lambda source: one_after_the_other([source], **arguments), sources))]

        self.compiler.compile = compile
        for extension in self.extensions:
            extension.extra_compile_args = OPTIONS["msvc" if self.compiler.compiler_type == "msvc" else "unix"]
        try:
            super().build_extensions()
        except Exception as error:  # whatever a compiler and its search can fail with
            without(f"it does not compile: {error}")
            for extension in self.extensions:
                extension.optional = True  # what was not built need not be copied


def use_an_installed_compiler():
    """Set CXX where it is not set and the compiler that built this Python, which setuptools takes, is not installed."""
    if os.name == "nt" or "CXX" in os.environ or installed(sysconfig.get_config_var("CXX") or ""):
        return
    if found := next(filter(installed, COMPILERS), None):
        os.environ["CXX"] = found


def installed(command):
    """Whether the program of a command is found."""
    return shutil.which(next(iter(shlex.split(command)), "")) is not None


def without(reason):
    """Say that there will be no extension, or stop where one is required."""
    if REQUIRED:
        sys.exit(f"bertgen: BERTGEN_REQUIRE_EXT=1, but {reason}")
    sys.stderr.write(f"bertgen: installing without the C++ extension: {reason}\n")


def extensions():
    """The extension modules that are built."""
    if os.environ.get("BERTGEN_WITHOUT_EXT") == "1":
        without("BERTGEN_WITHOUT_EXT=1")
        return []
    sources, headers = ([str(path) for path in sorted(Path("csrc").glob(f"**/*.{end}"))] for end in ("cpp", "h"))
    return [
        Extension(
            "bertgen._C",
            [source for source in sources if not Path(source).name.startswith("fuzz_")],
            depends=headers,
            define_macros=[("Py_LIMITED_API", "0x030A0000")] if LIMITED else [],
            language="c++",
            py_limited_api=LIMITED,
        )
    ]


setup(
    ext_modules=extensions(),
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED else {},
)
