"""Warnings of `generate`."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Container
from typing import Any

from ..config import GenerationConfig

logger = logging.getLogger(__name__)

_warned: weakref.WeakSet[Any] = weakref.WeakSet()  # models with a warning in the log


def warn_without_end_token(model: Any, options: GenerationConfig, call_options: Container[str]) -> None:
    """Log once per model that its outputs run to the maximum length because it has no end token.

    Args:
        options: resolved.
        call_options: names of the options of the call itself; no warning where they choose how outputs end.
    """
    if options.end_tokens or model in _warned:
        return
    if any(name in call_options for name in ("eos_token_id", "stopping_criteria")):
        return
    if options.stop_strings is None and options.max_time is None:
        _warned.add(model)
        logger.warning(
            "this %s has no end token (eos_token_id): its outputs run to max_length, here %s tokens. If it was trained "
            "with one, set model.config.eos_token_id",
            type(model).__name__,
            options.max_length,
        )
