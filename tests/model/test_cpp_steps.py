"""The steps of a static decoder in C++: the same state as from Python, on every kind of search and of weights."""

from __future__ import annotations

import random

import pytest
import torch

from bertgen.model.cpp_steps import CppSteps, why_not_cpp_steps
from bertgen.model.static_decoder import EagerSteps
from bertgen.ops import extension
from tests.support.static_runs import StaticRun, live_state, make_groups, make_model

pytestmark = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def assert_equal(expected: list[dict], got: list[dict], exact: bool) -> None:
    for search, (a, b) in enumerate(zip(expected, got, strict=True)):
        assert a.keys() == b.keys()
        for name, value in a.items():
            other = b[name]
            assert value.shape == other.shape, (search, name, value, other)
            if value.is_floating_point() and not exact:
                torch.testing.assert_close(other, value, rtol=1e-4, atol=1e-4, equal_nan=True)
            else:
                assert torch.equal(value.nan_to_num(), other.nan_to_num()), (search, name, value, other)


def compare(seed: int, quantized: bool) -> tuple[int, int]:
    """Runs of equal requests in Python and in C++; returns the numbers of option sets and of steps."""
    r = random.Random(seed)
    model = make_model(r, quantized)
    groups = make_groups(r, model, r.randint(1, 3), 24)
    runs = [StaticRun(model, groups, seed) for _ in range(2)]
    assert why_not_cpp_steps(model.decoder, 24) is None
    python, cpp = EagerSteps(runs[0].decoder), CppSteps(runs[1].decoder)
    for run in runs:
        run.join(0.8)
    steps = 0
    for turn in range(40):
        count, stops = r.choice([2, 2, 4, 8]), r.random() < 0.5
        done = [python.run(count, stops), cpp.run(count, stops)]
        if runs[1].has_live:
            assert done[0] == done[1]
        assert cpp._weights is not None
        steps += done[1]
        assert_equal(live_state(runs[0]), live_state(runs[1]), exact=False)
        assert python.flags() == cpp.flags()
        results = [run.leave_ended() for run in runs]
        assert [(i, unit, rows) for i, unit, (rows, _) in results[0]] == [
            (i, unit, rows) for i, unit, (rows, _) in results[1]
        ]
        for run in runs:
            run.join(0.4 if turn < 6 else 0.0)
        if turn >= 6 and not runs[0].has_live:
            break
    return len(groups), steps


@pytest.mark.parametrize("seed", range(6))
def test_some(seed):
    compare(seed, False)
