"""Optional packages: tests that need one which is not installed are skipped."""

from __future__ import annotations

from pathlib import Path
from traceback import walk_tb
from typing import Any

NAMES = frozenset({"accelerate", "bitsandbytes", "ctranslate2", "peft", "transformers", "triton"})
# Where such a package may be imported without a check: by tests, and by what only runs inside transformers.
ROOT = Path(__file__).parents[2]
PLACES = (ROOT / "tests", ROOT / "bertgen" / "dropin")


def absent_package(excinfo: Any) -> str | None:
    """The optional package whose absence raised an exception; None if bertgen itself imports it, or for other errors.

    Args:
        excinfo: pytest's `ExceptionInfo` of a test, or of the import of a file of tests; or None.
    """
    error = None if excinfo is None else excinfo.value.__cause__ or excinfo.value
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    *_, (frame, _) = walk_tb(error.__traceback__)
    name, place = error.name.partition(".")[0], Path(frame.f_code.co_filename)
    return name if name in NAMES and any(place.is_relative_to(folder) for folder in PLACES) else None
