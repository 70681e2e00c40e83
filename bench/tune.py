"""Measures launches on a GPU and writes the fastest ones to kernels/tuned.py.

    python -m bertgen.bench.tune [--op NAME] [--output FILE]

A rule of kernels/tuning.py gives a launch; its neighbours (other tiles, warps, stages) are tried against it. A
neighbour is first compiled for the device, and dropped where it spills, exceeds shared memory or loses its tensor-core
instructions. Then its output is compared with the reference, and it is timed by turns with the others. A launch that is
not at least 3% faster than that of the rule gets no entry. Constants that determine the order of a row's sum (splits of
K, chunks of keys) are never changed.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import multiprocessing
import pprint
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from bertgen.kernels.all_cases import CHECKS
from bertgen.kernels.checks import as_float64, difference

from bertgen.kernels import tuning

from . import machine, offline
from .clock import on_device
from .ops import cloned
from .shapes import Shape, shapes

# Tiles that are varied, by rule; warps and stages are always varied.
TILES: dict[str, dict[str, tuple[int, ...]]] = {
    "attention": {"BLOCK_M": (64, 128), "BLOCK_N": (32, 64, 128)},
    "attention_dq": {"BLOCK_M": (64, 128), "BLOCK_N": (32, 64)},
    "attention_dkv": {"BLOCK_M": (16, 32, 64), "BLOCK_N": (64, 128)},
    "int4_matmul": {"BLOCK_N": (64, 128), "UNROLL": (1, 2, 4)},
    "linear_gelu_tiles": {"BLOCK_M": (64, 128), "BLOCK_N": (128, 256)},
    "norm": {"ROWS": (1, 2, 4)},
    "bias_gelu": {"ROWS": (2, 4, 8)},
}
WARPS, STAGES = (1, 2, 4, 8), (1, 2, 3, 4, 6)
TUNED = Path(__file__).parents[1] / "kernels/tuned.py"
TURNS = 7
GAIN = 0.97  # an entry must take less than this share of the time of the rule's launch
Key = tuple[str, tuple[Any, ...]]


def neighbours(name: str, launch: tuning.Launch) -> Iterator[tuning.Launch]:
    """Launches that differ from the rule's in one or two constants."""
    choices = {**TILES.get(name, {}), "num_warps": WARPS, "num_stages": STAGES}
    now = {**launch.tiles, "num_warps": launch.num_warps, "num_stages": launch.num_stages}
    for changed in itertools.chain(*(itertools.combinations(choices, n) for n in (1, 2))):
        for values in itertools.product(*(choices[constant] for constant in changed)):
            if all(now[constant] != value for constant, value in zip(changed, values)):
                chosen = now | dict(zip(changed, values))
                warps, stages = chosen.pop("num_warps"), chosen.pop("num_stages")
                yield tuning.Launch(chosen, num_warps=warps, num_stages=stages)


def usable(key: Key, launches: list[tuning.Launch], processes: int | None = None) -> list[tuning.Launch]:
    """The launches that compile without problems; all of them where no variant names this rule."""
    places = [
        (op, index)
        for op, check in CHECKS.items()
        for index, variant in enumerate(check.variants)
        if variant.launch == (key[0], key[1][1:]) and key[1][0] in variant.architectures
    ]
    if not places or not launches:
        return launches
    jobs = [(places, key[1][0], launch) for launch in launches]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return [launch for launch, wrong in zip(launches, pool.map(_problems, jobs)) if not wrong]


def _problems(job: tuple[list[tuple[str, int]], int, tuning.Launch]) -> list[str]:
    places, arch, launch = job
    for op, index in places:
        variant = with_launch(CHECKS[op].variants[index], launch)
        try:
            wrong = offline.problems(variant, arch, offline.compiled(variant, arch))
        except Exception as error:  # the compiler raises any type for unsupported tiles
            wrong = [f"{type(error).__name__}: {error}"]
        if wrong:
            return wrong
    return []


def with_launch(variant: Any, launch: tuning.Launch) -> Any:
    """A variant with other tiles, warps and stages."""
    ours = {**launch.tiles, "WARPS": launch.num_warps, "STAGES": launch.num_stages}
    constants = {name: ours.get(name, value) for name, value in variant.constants.items()}
    return dataclasses.replace(
        variant, constants=constants, num_warps=launch.num_warps, num_stages=launch.num_stages, per=None
    )


def tuned(
    call: Callable[[], Any], right: Callable[[], bool], seconds: Callable[[Callable[[], Any]], float]
) -> dict[Key, tuning.Launch]:
    """The launches of one call that are faster than those of the rules.

    Args:
        call: the call to tune. right: whether its output is accepted. seconds: measures the time of a call.
    """
    with tuning.record_keys() as keys:
        call()
    better: dict[Key, tuning.Launch] = {}
    for key in dict.fromkeys(keys):
        name, arguments = key
        own = tuning.RULES[name](*arguments)
        if own is None:
            continue
        times = {own: seconds(call)}
        for launch in usable(key, list(dict.fromkeys(neighbours(name, own)))):
            with tuning.override_launches({key: launch}):
                try:
                    if right():
                        times[launch] = seconds(call)
                except Exception:  # it does not launch on this device
                    continue
        # Time the best candidates again, by turns.
        leaders = sorted(times, key=times.__getitem__)[:4]
        for launch in {*leaders, own}:
            with tuning.override_launches({key: launch}):
                times[launch] = min(times[launch], *(seconds(call) for _ in range(3)))
        best = min(leaders, key=times.__getitem__)
        if times[best] < GAIN * times[own]:
            better[key] = best
    return better


def source(entries: dict[Key, tuning.Launch], device: str, commit: str) -> str:
    """The text of kernels/tuned.py."""
    table = {
        key: (launch.tiles, launch.num_warps, launch.num_stages) for key, launch in sorted(entries.items(), key=str)
    }
    origin = f"Measured on {device}, commit {commit}." if entries else "Empty."
    return (
        '"""Launches that were measured: (rule of tuning.py, its arguments) -> tiles, warps, stages.\n\n'
        f"`python -m bertgen.bench.tune` writes this file. {origin}\n"
        '"""\n\nfrom typing import Any\n\n'
        "MEASURED: dict[tuple[str, tuple[Any, ...]], tuple[dict[str, int], int, int]] = "
        f"{pprint.pformat(table, width=110, sort_dicts=False)}\n"
    )


def of_shape(shape: Shape, seconds: Callable[[Callable[[], Any]], float]) -> dict[Key, tuning.Launch]:
    """The launches that are faster than the rules for bertgen's call of a shape."""
    contender = shape.contenders["bertgen"]
    call = contender.make(**shape.arguments)
    plain, exact = shape.reference(**cloned(shape.arguments)), shape.reference(**as_float64(cloned(shape.arguments)))
    return tuned(call, lambda: difference(contender.view(call()), plain, exact) is None, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", help="one operator only")
    parser.add_argument("--output", type=Path, default=TUNED)
    args = parser.parse_args()
    device = torch.device("cuda")
    with torch.no_grad(), tuning.override_launches({}) as launches:
        for shape in shapes("full", device, torch.bfloat16, args.op):
            better = of_shape(shape, lambda call: statistics.median(on_device(call) for _ in range(TURNS)))
            launches.update(better)
            print(f"{shape.op} {shape.params}: {len(better)} launches are faster than the rules'", flush=True)
    where = machine.environment(device)
    args.output.write_text(source(launches, where["gpu"], where["commit"] or "unknown"))


if __name__ == "__main__":
    main()
