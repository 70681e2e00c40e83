"""Overhead of a decode step."""

from __future__ import annotations

import pytest
import torch

from bertgen.bench import overhead, result
from tests.support.benchmarks import run_module


@pytest.mark.parametrize("operator", ["add_", "_foreach_add_"])
def test_a_recording_is_replayed_from_the_same_state(operator):
    """A step increments a tensor (or a list of them) in place: without a restore, replays would go on counting."""
    table, place = torch.arange(4), torch.zeros((), dtype=torch.int64)

    def run(steps):
        for _ in range(steps):
            place.add_(1) if operator == "add_" else torch._foreach_add_([place], 1)
            table[place]

    recording = overhead.Recording(run, 3)
    assert int(place) == 3 and [call[0].overloadpacket.__name__ for call in recording.calls].count(operator) == 3
    for _ in range(3):
        assert recording.replayed() > 0 and int(place) == 3


@pytest.mark.long
def test_overhead_of_a_step(tmp_path):
    run_module("overhead", "--repeats", 1, "--json", tmp_path / "a.json")
    steps = {(row.contender, row.params["beams"]): row for row in result.load(tmp_path / "a.json").rows}
    assert len(steps) == 6 and all(row.extra["calls"] > 0 and row.extra["operators"] > 0 for row in steps.values())
