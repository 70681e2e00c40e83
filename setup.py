"""What pyproject.toml cannot declare: where the sources of bertgen.kernels and .bench lie, and the C++ extension.

The extension needs torch and a compiler here and now, so it is built where `--no-build-isolation` lets the build see
the torch that is installed. Without either bertgen is pure Python and says so. BERTGEN_REQUIRE_EXT=1 makes that an
error, BERTGEN_WITHOUT_EXT=1 builds none.
"""

import os
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CSRC = Path("csrc")
REQUIRED = os.environ.get("BERTGEN_REQUIRE_EXT") == "1"


class BuildPy(build_py):
    """Takes the modules of bertgen.kernels and bertgen.bench from folders beside bertgen/, which are no packages."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        if package in ("bertgen.kernels", "bertgen.bench"):
            folder = Path(package.removeprefix("bertgen."))
            modules += [(package, path.stem, str(path)) for path in sorted(folder.glob("*.py"))]
        return modules


def without(reason):
    """Say that there will be no extension, or stop where one is required."""
    if REQUIRED:
        sys.exit(f"bertgen: BERTGEN_REQUIRE_EXT=1, but {reason}")
    sys.stderr.write(f"bertgen: installing without the C++ extension: {reason}\n")
    return {}


def extension_arguments():
    """The arguments of `setup` that build bertgen._C."""
    if os.environ.get("BERTGEN_WITHOUT_EXT") == "1":
        return without("BERTGEN_WITHOUT_EXT=1")
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError as error:
        return without(f"{error} (in a build of its own pip hides torch: install torch, then --no-build-isolation)")

    class BuildExt(BuildExtension):
        def build_extensions(self):
            try:
                super().build_extensions()
            except Exception as error:  # whatever a compiler and its search can fail with
                without(f"it does not compile: {error}")
                for extension in self.extensions:
                    extension.optional = True  # what was not built need not be copied

    module = CppExtension(
        "bertgen._C",
        [str(path) for path in sorted(CSRC.glob("**/*.cpp")) if not path.stem.startswith("fuzz_")],
        depends=[str(path) for path in sorted(CSRC.glob("**/*.h"))],
        define_macros=[
            ("TORCH_STABLE_ONLY", None),
            ("TORCH_TARGET_VERSION", "0x020a000000000000"),  # 2.10, and every later one
        ],
        extra_compile_args=["-std=c++17", "-O3", "-g0", "-ffp-contract=fast", "-fvisibility=hidden"],
        py_limited_api=True,
    )
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": BuildExt.with_options(use_ninja=False)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


arguments = extension_arguments()
setup(**{**arguments, "cmdclass": {"build_py": BuildPy, **arguments.get("cmdclass", {})}})
