"""How the time of generation grows: with the batch, the source, the output, the beams, the layers.

Starting from one point, each of these is varied alone, for all engines by turns. A line, seconds = fixed + each * x, is
fitted to the points of each by least squares of relative errors; the largest relative error is printed with it. Ids are
random, since their values do not affect the time. Tokens are compared as in `generate`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from bertgen.compare import MARGINS
from bertgen.errors import ConfigError

from . import generate, machine, output
from .agreement import Judge
from .generate import Race, engines
from .result import OURS, Row
from .workload import Case, made_up

ENGINES = (OURS, "transformers sdpa", "CTranslate2")
AXES: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 4, 8, 16, 32), "source": (16, 32, 64, 128, 256), "target": (8, 16, 32, 64, 128),
    "beams": (1, 2, 4, 8), "layers": (1, 2, 4, 8, 16, 24),
}  # fmt: skip
POINT = {"batch": 8, "source": 32, "target": 32, "beams": 1}


class Line(NamedTuple):
    """seconds = fixed + each * x; `error` is the largest relative error of a point."""

    fixed: float
    each: float
    error: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, the axes, the number of turns."""
    output.add_arguments(parser, device=True)
    generate.add_model(parser)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), metavar="AXIS", help=", ".join(AXES))
    parser.add_argument("--most", type=int, default=10**9, metavar="N", help="leave out values above N")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--engines", nargs="+", choices=generate.ENGINES, default=ENGINES, metavar="NAME")
    parser.add_argument(
        "--same-process", action="store_true", help="run all engines in one process, with shared threads"
    )


def run(args: argparse.Namespace) -> int:
    """Print points and lines, and return the exit code."""
    if args.model is not None and "layers" in args.axes:
        raise ConfigError("--axes layers: the layers of given weights cannot be varied")
    device = torch.device(args.device)
    result = output.begin("scale", args, device)
    name, plan = generate.plan(args)
    limit = result.environment["limits"] = machine.limits(device, getattr(torch, plan.dtype))
    output.head()
    for layers, points in by_layers(args.axes, args.most, plan.size.layers).items():
        model = plan._replace(size=plan.size._replace(layers=layers))
        present, missing = engines(args.engines, model, apart=not args.same_process)
        judge = Judge(model.build().float(), MARGINS[model.dtype])
        try:
            for axis, group in itertools.groupby(points, key=lambda pair: pair[0]):
                along = [point for _, point in group]
                races = [Race(made(point, model.size.vocabulary), present, judge) for point in along]
                for _ in range(args.repeats):  # by turns, so that drift of the machine does not look like growth
                    for point, race in zip(along, races):
                        race.turn([point["batch"]])
                for point, race in zip(along, races):
                    params = {"model": name, "axis": axis, "layers": layers, **point}
                    rows = [told(row, params) for row in race.rows(name, model, limit)]
                    rows += [Row("scale", params, one, absent=why) for one, why in missing.items()]
                    output.add(result, rows)
        finally:
            for one in present.values():
                one.close()
    print("\n| varied | engine | fixed | each | largest error |\n|---|---|---|---|---|")
    for (axis, engine), points in series(result.rows).items():
        line = fitted(points)
        cells = [output.time_text(line.fixed), output.time_text(line.each), f"{line.error:.0%}"]
        print(f"| {axis} | {engine} | {' | '.join(cells)} |")
    return output.end(result, args)


def by_layers(axes: Sequence[str], most: int, own: int) -> dict[int, list[tuple[str, dict[str, int]]]]:
    """Number of layers -> (axis, point) of all points that need a model of that depth."""
    points_by_depth: dict[int, list[tuple[str, dict[str, int]]]] = {}
    for axis in axes:
        for value in AXES[axis]:
            if value <= (min(most, own) if axis == "layers" else most):
                layers = value if axis == "layers" else own
                point = POINT if axis == "layers" else POINT | {axis: value}
                points_by_depth.setdefault(layers, []).append((axis, point))
    return dict(sorted(points_by_depth.items()))


def made(point: dict[str, int], vocabulary: int) -> Case:
    """Requests of random ids, all of one length."""
    sources, _ = made_up(1, vocabulary)
    ids = sources[0]
    length = point["source"]
    shifted = [[ids[(i + j) % len(ids)] for j in range(length)] for i in range(point["batch"])]
    return Case("fixed", point["beams"], shifted, [point["target"]] * point["batch"])


def told(row: Row, params: dict[str, Any]) -> Row:
    row.name, row.params = "scale", params
    return row


def series(rows: Sequence[Row]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(axis, engine) -> points of value and seconds."""
    by_engine: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        if row.name == "scale" and row.seconds:
            axis = row.params["axis"]
            by_engine.setdefault((axis, row.contender), []).append((row.params[axis], row.median))
    return {key: sorted(points) for key, points in by_engine.items() if len(points) > 1}


def fitted(points: Sequence[tuple[float, float]]) -> Line:
    """Fit a line by least squares of relative errors, so that small values count as much as large ones."""
    x, y = torch.tensor(points, dtype=torch.float64).unbind(1)
    terms = torch.stack((torch.ones_like(x), x), 1) / y[:, None]
    fixed, each = torch.linalg.lstsq(terms, torch.ones_like(y)[:, None]).solution[:, 0].tolist()
    return Line(fixed, each, float(((fixed + each * x) / y - 1).abs().max()))
