"""A file that appears whole or not at all."""

from __future__ import annotations

import os
import secrets

from ..errors import ConfigError, OutputError
from .atomic import behind_links, sync_folder
from .text_input import reported


class NewFile:
    """A file that appears under its name when the `with` block ends well, whole and on the disk, or not at all.

    A device or a pipe is written to directly.

    Raises:
        ConfigError: the file is there already and `overwrite` is not set.
        OutputError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike, overwrite: bool = False):
        self.path, self.overwrite = path, overwrite
        self._target = behind_links(path)
        special = self._target.exists() and not self._target.is_file()
        self._temporary = None if special else self._target.with_name(f".bertgen-{secrets.token_hex(4)}.tmp")

    def __enter__(self) -> NewFile:
        self._refuse_existing()
        with reported(self.path):
            self._file = open(self._temporary or self._target, "xb" if self._temporary else "wb")
        return self

    def write(self, data: bytes) -> None:
        """Append to the file."""
        with reported(self.path):
            self._file.write(data)
            if not self._temporary:  # whoever reads it waits for each record
                self._file.flush()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with reported(self.path), self._file:
                if kind is None:
                    self._file.flush()
                    if self._temporary:
                        os.fsync(self._file.fileno())
            if kind is None and self._temporary:
                self._refuse_existing()
                with reported(self.path):
                    os.replace(self._temporary, self._target)
                    sync_folder(self._target.parent)
        except OutputError:
            if kind is None:
                raise
        finally:
            if self._temporary:
                self._temporary.unlink(missing_ok=True)

    def _refuse_existing(self) -> None:
        if self._temporary and self._target.exists() and not self.overwrite:
            raise ConfigError(f"{self.path} is there already; overwrite replaces it")
