"""How weights are stored in fewer bits."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedError


class BitsAndBytesConfig:
    """The name under which transformers asks for 4-bit or 8-bit weights.

    Raises:
        UnsupportedError: always, so far.
    """

    def __init__(self, **options: Any):
        asked = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise UnsupportedError(f"BitsAndBytesConfig({asked}): 4-bit weights are not there yet; they come with int4")
