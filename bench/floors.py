"""Minimum speed-ups of bertgen over other engines, for `bertgen bench check` and the option `--check` of each part.

A floor is below the measured speed-up by the drift of a machine's speed. A raised floor is a commitment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Floor:
    """A minimum ratio of times.

    Attributes:
        name, params: of its cases. Parameters not in params (the batch) are settings: each contender's best counts.
        against: the contender whose time is divided by that of `ours`.
        ratio: the minimum.
        ours: bertgen's contender.
        device: type of device to which it applies.
    """

    name: str
    against: str
    ratio: float
    params: dict[str, Any] = field(default_factory=dict)
    ours: str = "bertgen"
    device: str = "cpu"


def _generate(requests: str, beams: int, transformers: float, ctranslate2: float) -> tuple[Floor, ...]:
    """Floors for the model of base size; transformers with sdpa attention."""
    params = {"model": "base", "requests": requests, "beams": beams}
    return (
        Floor("generate", "transformers sdpa", transformers, params),
        Floor("generate", "CTranslate2", ctranslate2, params),
    )


FLOORS: tuple[Floor, ...] = (
    *_generate("fixed", 1, 1.6, 0.9),
    *_generate("fixed", 4, 1.7, 0.9),
    *_generate("mixed", 1, 2.2, 1.0),
    *_generate("mixed", 4, 2.5, 1.3),
    *_generate("single", 1, 1.5, 0.8),
    *_generate("single", 4, 2.8, 1.3),
    Floor("decode_attention", "eager", 1.5, {"rows": 64, "past": 128}),
    Floor("cross_decode_attention", "eager", 1.8, {"sources": 16, "beams": 4, "length": 512}),
    Floor("beam_reorder", "eager", 100.0, {"sources": 16, "beams": 4, "positions": 256}),
    Floor("linear", "eager", 1.3, {"rows": 4, "n": 3072, "k": 768}),
)
