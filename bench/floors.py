"""How many times faster than others bertgen has to be: `bertgen bench check`, and `--check` behind each part.

A floor lies below what was measured by as much as a machine's speed drifts. One that is raised is a promise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Floor:
    """A ratio of times that has to be reached.

    Attributes:
        name, params: of the cases that it holds for; params names those that tell them from others, so that what is
            compared differs in a setting (the batch) only.
        against: contender whose time is divided by ours.
        ratio: the least.
        ours: contender of bertgen's.
        device: kind of device that it holds on.
    """

    name: str
    against: str
    ratio: float
    params: dict[str, Any] = field(default_factory=dict)
    ours: str = "bertgen"
    device: str = "cpu"


def _generate(requests: str, beams: int, transformers: float, ctranslate2: float) -> tuple[Floor, ...]:
    """Of the model of base size; transformers' attention is sdpa."""
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
