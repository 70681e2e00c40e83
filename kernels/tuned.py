"""Launches that were measured: (rule of tuning.py, its arguments) -> tiles, warps, stages.

`python -m bertgen.bench.tune` writes this file. Empty.
"""

from typing import Any

MEASURED: dict[tuple[str, tuple[Any, ...]], tuple[dict[str, int], int, int]] = {}
