"""The commands that install what is missing beside this bertgen and this torch.

bertgen is on no package index. A command that builds it again needs the source of this installation, which pip and uv
record (PEP 610).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..kernels.language import OLDEST_TRITON

UNKNOWN_SOURCE = "SOURCE"  # stands for bertgen's checkout, git URL or source archive where no record names it

# Without these options an installer leaves the same version as it is, or takes the wheel that it built before.
_REINSTALL = {"pip": "--force-reinstall --no-deps --no-cache-dir", "uv": "--reinstall --no-deps"}


def extension_command() -> str:
    """The shell command that installs this bertgen again with its C++ extension, or fails with the compiler's error."""
    require = "" if os.name == "nt" else "BERTGEN_REQUIRE_EXT=1 "
    installer, command = _installer()
    return f"{require}{command} {_REINSTALL[installer]} {_source()}"


def triton_command() -> str:
    """The shell command that installs the Triton of this torch, or a new one where torch's metadata names none."""
    requirement = _triton_of_torch() or f"triton>={OLDEST_TRITON}"
    return f"{_installer()[1]} {_quote(requirement)}"


def _installer() -> tuple[str, str]:
    """ "pip" or "uv", and its command that installs into this environment, which need not be the one of the shell."""
    found, python = shutil.which("pip"), _quote(sys.executable)
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return "pip", "pip install"
    if util.find_spec("pip") is not None:
        return "pip", f"{python} -m pip install"
    return "uv", f"uv pip install --python {python}"  # its environments have no pip


def _quote(argument: str) -> str:
    """An argument as the shell of this system reads it."""
    return subprocess.list2cmdline([argument]) if os.name == "nt" else shlex.quote(argument)


def _source() -> str:
    """The source of this bertgen, as an argument of `pip install`."""
    root = Path(__file__).parents[2]
    if (root / "setup.py").is_file():
        return f"--editable {_quote(str(root))}"
    distribution = _distribution("bertgen")
    origin: dict[str, Any] = json.loads((distribution and distribution.read_text("direct_url.json")) or "{}")
    url = origin.get("url", "")
    if (repository := origin.get("vcs_info")) is not None:
        return _quote(f"{repository['vcs']}+{url}@{repository['commit_id']}")
    if not url or url.endswith(".whl"):  # a wheel holds no sources
        return UNKNOWN_SOURCE
    parts = urlsplit(url)
    return _quote(url2pathname(parts.path) if parts.scheme == "file" else url)


def _triton_of_torch() -> str | None:
    """The requirement by which torch's metadata names its Triton, such as "triton==3.6.0" or "triton~=3.9.0"."""
    distribution = _distribution("torch")
    for requirement in (distribution and distribution.requires) or ():
        if match := re.match(r"((?:pytorch-)?triton[\w-]*)\s*\(?((?:==|~=)[^\s;)]+)", requirement):
            return "".join(match.groups())
    return None


def _distribution(name: str) -> metadata.Distribution | None:
    """The metadata of a package; None where it was put there without an installer."""
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
