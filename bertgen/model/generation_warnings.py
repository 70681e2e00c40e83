"""What ends an output."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Container
from typing import Any

from ..config import GenerationConfig

logger = logging.getLogger(__name__)

_told: weakref.WeakSet[Any] = weakref.WeakSet()  # models whose users have been told


def warn_of_no_end(model: Any, settled: GenerationConfig, asked: Container[str]) -> None:
    """Log once per model that its outputs run to the limit, as it has no end token, unless that is what was asked for.

    Args:
        asked: names of what the call itself gave.
    """
    if settled.end_tokens or model in _told or any(name in asked for name in ("eos_token_id", "stopping_criteria")):
        return
    if settled.stop_strings is None and settled.max_time is None:
        _told.add(model)
        logger.warning(
            "this %s has no end token (eos_token_id): its outputs run to max_length, here %s tokens. If it was trained "
            "with one, model.config.eos_token_id = ... names it",
            type(model).__name__,
            settled.max_length,
        )
