"""The checks of all operators that have a kernel."""

from __future__ import annotations

from .checks import Check

CHECKS: dict[str, Check] = {}
