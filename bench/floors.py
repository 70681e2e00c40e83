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
        name, params: of the cases that it holds for; params names some of theirs.
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


FLOORS: tuple[Floor, ...] = ()
