"""Files of the user's that are read."""

from __future__ import annotations

import os
from typing import BinaryIO

from .errors import InputError


def open_input(path: str | os.PathLike) -> BinaryIO:
    """Open a file for reading bytes; InputError where that fails."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
