"""Optional packages, imported only by the functions that need them: transformers, CTranslate2, matplotlib, triton.

Where one is missing, the error has the command that installs it into the environment of this Python.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module, util
from pathlib import Path
from typing import Any

from .errors import BackendError

# What to install for each, as in the extras of pyproject.toml.
REQUIREMENTS = {
    "transformers": "transformers>=5.16",
    "ctranslate2": "ctranslate2>=4.8",
    "matplotlib": "matplotlib>=3.8",
    "triton": "triton>=3.6,<3.10",
}


def load_transformers(purpose: str) -> Any:
    """Import transformers.

    Args:
        purpose: the operation that needs it, for the error.

    Raises:
        BackendError: it is not installed or cannot be imported; the message has the command that installs it.
    """
    return _load("transformers", purpose)


def load_ctranslate2(purpose: str) -> Any:
    """Import CTranslate2 with its converters; as `load_transformers`."""
    _load("ctranslate2.converters", purpose)
    return _load("ctranslate2", purpose)


def load_matplotlib(purpose: str) -> Any:
    """Import matplotlib; as `load_transformers`."""
    return _load("matplotlib", purpose)


def load_triton(purpose: str) -> Any:
    """Import triton; as `load_transformers`."""
    return _load("triton", purpose)


def _load(module: str, purpose: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        requirement = REQUIREMENTS[module.partition(".")[0]]
        raise BackendError(
            f"{purpose} needs a package that cannot be imported: {error}; {install_command(requirement)}"
        ) from error


def install_command(requirement: str) -> str:
    """The shell command that installs a package into this environment."""
    return f"{installer()[1]} {quoted(requirement)}"


def installer() -> tuple[str, str]:
    """ "pip" or "uv", and its command that installs into this environment, which need not be the one of the shell."""
    found, python = shutil.which("pip"), quoted(sys.executable)
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return "pip", "pip install"
    if util.find_spec("pip") is not None:
        return "pip", f"{python} -m pip install"
    return "uv", f"uv pip install --python {python}"  # its environments have no pip


def quoted(argument: str) -> str:
    """An argument as the shell of this system reads it."""
    return subprocess.list2cmdline([argument]) if os.name == "nt" else shlex.quote(argument)


@contextmanager
def silence(transformers: Any) -> Iterator[None]:
    """Switch off the warnings and progress bars of transformers inside the block."""
    log = transformers.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
