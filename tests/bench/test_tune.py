"""The tuner: which launches it tries, drops and keeps. Times come from a table; calls run on a CPU."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from bertgen.kernels.all_cases import CHECKS
from bertgen.kernels.language import HAS_TRITON

from bertgen.bench import tune
from bertgen.kernels import tuning

ROOT = Path(__file__).parents[2]
KEY = ("attention", (90, 64, 2, False))


def test_a_measured_launch_overrules_a_rule():
    own = tuning.attention(*KEY[1])
    other = tuning.Launch({"BLOCK_M": 128, "BLOCK_N": 128}, 8, 3)
    with tuning.record_keys() as keys, tuning.override_launches({KEY: other}) as table:
        assert tuning.attention(*KEY[1]) == other and keys == [KEY]
        assert tuning.RULES["attention"](*KEY[1]) == own
        table[("norm", (90, 64))] = other
        assert tuning.norm(90, 64) == other
    assert tuning.attention(*KEY[1]) == own and tuning.norm(90, 64) != other and len(keys) == 2


def test_neighbours_differ_in_one_or_two_things():
    own = tuning.attention(*KEY[1])
    found = list(tune.neighbours("attention", own))
    assert own not in found and len(set(found)) == len(found) > 20
    for launch in found:
        pairs = [(launch.tiles[name], own.tiles[name]) for name in own.tiles]
        pairs += [(launch.num_warps, own.num_warps), (launch.num_stages, own.num_stages)]
        assert 1 <= sum(a != b for a, b in pairs) <= 2
    # What fixes the order of a sum across batches is never among the changes.
    split = tuning.Launch({"BLOCK_M": 16, "BLOCK_N": 64, "SPLITS": 4, "UNROLL": 1})
    assert {launch.tiles["SPLITS"] for launch in tune.neighbours("int4_matmul", split)} == {4}


def test_the_fastest_right_launch_is_kept(monkeypatch):
    monkeypatch.setattr(tune, "usable", lambda key, launches: launches)
    own = tuning.attention(*KEY[1])
    right, wrong, broken = [
        tuning.Launch(own.tiles, num_warps=warps, num_stages=stages) for warps, stages in ((8, 2), (2, 2), (4, 1))
    ]
    times = {own: 10.0, right: 8.0, wrong: 1.0, broken: 2.0}

    def now():
        return tuning.attention(*KEY[1])

    def call():
        if now() == broken:
            raise RuntimeError("out of resource: shared memory")

    def judge():
        call()
        return now() != wrong

    assert tune.tuned(call, judge, lambda call: times.get(now(), 20.0)) == {KEY: right}
    times[right] = 9.9  # not worth an entry
    assert tune.tuned(call, judge, lambda call: times.get(now(), 20.0)) == {}


def test_what_is_written_can_be_read(tmp_path):
    path = tmp_path / "tuned.py"
    path.write_text(tune.source({KEY: tuning.Launch({"BLOCK_M": 128, "BLOCK_N": 64}, 8, 3)}, "a device", "abc"))
    assert runpy.run_path(str(path))["MEASURED"] == {KEY: ({"BLOCK_M": 128, "BLOCK_N": 64}, 8, 3)}
    assert tune.source({}, "", "") == (ROOT / "kernels/tuned.py").read_text() or tuning.MEASURED


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_variants_are_what_the_rules_say():
    """So that the tuner drops launches by compiling the right kernel."""
    named = {v.launch for check in CHECKS.values() for v in check.variants if v.launch}
    assert {name for name, _ in named} == set(tune.TILES) - {"linear_gelu_tiles"}
    for check in CHECKS.values():
        for variant in check.variants:
            if variant.launch:
                name, arguments = variant.launch
                rebuilt = tune.with_launch(variant, tuning.RULES[name](variant.architectures[0], *arguments))
                assert rebuilt.constants == variant.constants, variant.name
                assert (rebuilt.num_warps, rebuilt.num_stages) == (variant.num_warps, variant.num_stages)


@pytest.mark.long
@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
def test_launches_that_spill_are_dropped():
    own = tuning.attention(*KEY[1])
    spilling = tuning.Launch({"BLOCK_M": 128, "BLOCK_N": 128}, num_warps=1, num_stages=2)
    greedy = tuning.Launch(own.tiles, num_warps=4, num_stages=12)
    assert tune.usable(KEY, [own, spilling, greedy], processes=1) == [own]
