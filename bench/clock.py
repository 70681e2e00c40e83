"""Timing of short calls: contenders take turns, and every sample is kept.

On a CPU a sample is as many calls as take some hundred microseconds, after one call that does not count, because the
previous contender has left its data in the caches and the TLB. On a GPU a call is captured in a CUDA graph where
possible, so that launches from Python do not count; the L2 cache is flushed before each call, and CUDA events measure
the time.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bertgen.model.cuda_device import CudaDevice

from . import output

Call = Callable[[], Any]
SHORTEST = 3e-4  # seconds of a sample
FLUSHED = 2**28  # bytes, several times the largest L2


def race(
    contenders: Mapping[str, Sequence[Call]], device: torch.device, seconds: float = 0.2, least: int = 5
) -> dict[str, list[float]]:
    """Seconds of one call of each contender, by turns.

    Args:
        contenders: name -> calls that do the same on different tensors; they are used in turn.
        seconds: approximate time per contender. least: minimum number of samples of each.
    """
    samplers = {name: _sampler(name, calls, device) for name, calls in contenders.items()}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    start = time.perf_counter()
    while len(next(iter(taken.values()), [0] * least)) < least or (
        time.perf_counter() - start < seconds * len(contenders)
    ):
        for name, sample in samplers.items():
            taken[name].append(sample())
    return taken


def _sampler(name: str, calls: Sequence[Call], device: torch.device) -> Callable[[], float]:
    if device.type == "cuda":
        call, why_not = captured(calls[0], device)
        if why_not is not None:
            output.say(f"{name}: no CUDA graph of it, so its launches from Python count: {why_not}")
        return functools.partial(on_device, call)
    for call in calls:
        call()
    start = time.perf_counter()
    for call in calls:
        call()
    once = (time.perf_counter() - start) / len(calls)
    rounds = max(1, math.ceil(SHORTEST / max(once, 1e-9) / len(calls)))
    state = {"next": 0}

    def sample() -> float:
        """Seconds of one call, averaged over enough calls for the resolution of the clock."""
        if once > SHORTEST:  # a long call: time one, a different one each time
            state["next"] += 1
            calls[(state["next"] - 1) % len(calls)]()
            call = calls[state["next"] % len(calls)]
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        calls[-1]()
        start = time.perf_counter()
        for _ in range(rounds):
            for call in calls:
                call()
        return (time.perf_counter() - start) / (rounds * len(calls))

    return sample


def on_device(call: Call) -> float:
    """Seconds of a call on a GPU, after a flush of its L2 cache."""
    _flush().zero_()
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


@functools.cache
def _flush() -> torch.Tensor:
    return torch.empty(FLUSHED, device="cuda", dtype=torch.uint8)


def captured(call: Call, device: torch.device) -> tuple[Call, str | None]:
    """The replay of a CUDA graph of the call, and None; the call itself, and why, where it cannot be captured."""
    graphs = CudaDevice(device)
    for _ in range(3):
        graphs.run_beside(call)
    try:
        return graphs.capture(call), None
    except RuntimeError as error:  # it reads a value, say
        graphs.synchronize()
        return call, f"{type(error).__name__}: {error}".splitlines()[0]
