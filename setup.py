"""Everything declarative is in pyproject.toml; this file only says where the sources of bertgen.kernels lie."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Takes the modules of bertgen.kernels from the top-level folder kernels/, which is not a package itself."""

    def find_package_modules(self, package, package_dir):
        modules = super().find_package_modules(package, package_dir)
        if package == "bertgen.kernels":
            modules += [(package, path.stem, str(path)) for path in sorted(Path("kernels").glob("*.py"))]
        return modules


setup(cmdclass={"build_py": BuildPy})
