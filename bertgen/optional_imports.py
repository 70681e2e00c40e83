"""Optional packages (transformers, CTranslate2), imported only by the functions that need them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import BackendError


def load_transformers(purpose: str) -> Any:
    """Import transformers.

    Args:
        purpose: the operation that needs it, for the error.

    Raises:
        BackendError: it is not installed or cannot be imported.
    """
    try:
        import transformers
    except ImportError as error:
        raise _import_error(purpose, error, "'bertgen[transformers]'") from error
    return transformers


def load_ctranslate2(purpose: str) -> Any:
    """Import CTranslate2 with its converters; as `load_transformers`."""
    try:
        import ctranslate2.converters
    except ImportError as error:
        raise _import_error(purpose, error, "ctranslate2") from error
    return ctranslate2


def _import_error(purpose: str, error: ImportError, packages: str) -> BackendError:
    return BackendError(f"{purpose} needs a package that cannot be imported: {error}; pip install {packages}")


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
