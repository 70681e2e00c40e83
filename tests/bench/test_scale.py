"""Growth of time along an axis."""

from __future__ import annotations

import pytest

from bertgen.bench import generate, scale
from tests.support.benchmarks import run_bench


def test_a_line_through_points_on_a_line():
    line = scale.fitted([(x, 0.5 + 0.25 * x) for x in (1, 2, 8, 32)])
    assert line == pytest.approx((0.5, 0.25, 0.0), abs=1e-9)
    assert scale.fitted([(1, 1.0), (2, 2.0), (4, 16.0)]).error > 0.5, "a curve is no line, and that is said"


def test_one_thing_is_varied_at_a_time():
    points = scale.by_layers(["batch", "layers"], 4, own=6)
    assert list(points) == [1, 2, 4, 6]
    assert [point["batch"] for axis, point in points[6]] == [1, 2, 4] and points[1] == [("layers", scale.POINT)]
    case = scale.made({**scale.POINT, "source": 300, "batch": 3}, 500)
    assert [len(ids) for ids in case.sources] == [300] * 3 and case.sources[0] != case.sources[1]


def test_values_along_an_axis_take_turns(monkeypatch):
    asked = []
    turn = generate.Race.turn
    monkeypatch.setattr(generate.Race, "turn", lambda race, sizes: asked.append(sizes) or turn(race, sizes))
    few = "--size smoke --axes batch --most 2 --repeats 2 --same-process --engines bertgen".split()
    assert run_bench("scale", *few) == 0
    assert asked == [[1], [2], [1], [2]]
