"""The commands that install what is missing beside this bertgen and this torch.

bertgen is on no package index. A command that builds it again needs the source of this installation, which pip and uv
record (PEP 610).
"""

from __future__ import annotations

import json
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..optional_imports import REQUIREMENTS, install_command, installer, quoted

UNKNOWN_SOURCE = "SOURCE"  # stands for bertgen's checkout, git URL or source archive where no record names it

# Without these options an installer leaves the same version as it is, or takes the wheel that it built before.
_REINSTALL = {"pip": "--force-reinstall --no-deps --no-cache-dir", "uv": "--reinstall --no-deps"}


def extension_command() -> str:
    """The shell command that installs this bertgen again with its C++ extension, or fails with the compiler's error."""
    require = "" if os.name == "nt" else "BERTGEN_REQUIRE_EXT=1 "
    name, command = installer()
    return f"{require}{command} {_REINSTALL[name]} {_source()}"


def triton_command() -> str:
    """The shell command that installs the Triton of this torch, or a supported one where torch names none."""
    return install_command(_triton_of_torch() or REQUIREMENTS["triton"])


def _source() -> str:
    """The source of this bertgen, as an argument of `pip install`."""
    root = Path(__file__).parents[2]
    if (root / "setup.py").is_file():
        return f"--editable {quoted(str(root))}"
    distribution = _distribution("bertgen")
    origin: dict[str, Any] = json.loads((distribution and distribution.read_text("direct_url.json")) or "{}")
    url = origin.get("url", "")
    if (repository := origin.get("vcs_info")) is not None:
        return quoted(f"{repository['vcs']}+{url}@{repository['commit_id']}")
    if not url or url.endswith(".whl"):  # a wheel holds no sources
        return UNKNOWN_SOURCE
    parts = urlsplit(url)
    return quoted(url2pathname(parts.path) if parts.scheme == "file" else url)


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
