"""Overhead of a decode step: its time minus that of its operators, for 24 + 24 very small layers.

    python -m bertgen.bench.overhead [--repeats 9] [--json FILE]

One source, one thread, in a separate process. Two runs are timed, of which one decodes STEPS more tokens; their
difference divided by STEPS is the time of a step. A recording has all operators of both runs with their tensors, and
replays them one after the other without anything in between. The difference of the replays divided by STEPS is the time
of the operators of a step. The rest of a step is overhead: Python, modules, bookkeeping, the search. Several steps of
bertgen are one call of its extension, which counts as an operator.

The recording has the operators that pass torch's dispatcher (a TorchDispatchMode sees them) and the functions of
bertgen's extension, but not those of allocators (`allocator_step` ..), which are bookkeeping. A step of transformers is
recorded under no_grad, where `linear` decomposes into `t`, `addmm` and views; a step of bertgen's engine in inference
mode, where it does not. A call from Python costs more than a call inside an operator, so the share of operators is
overestimated and overhead underestimated, the more the more operators there are. Tensors that operators write in place
(a cache, a count of positions) are restored before each replay, since indices would otherwise grow out of range.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from bertgen.config import EngineConfig, GenerationConfig
from bertgen.decoding import resolve_generation_config
from bertgen.engine import Engine, Request
from bertgen.errors import BackendError
from bertgen.kernels import cpp
from bertgen.model import EncoderDecoderModel

from . import child, output
from .contenders import Transformers
from .machine import seconds
from .result import Row
from .workload import END, FIRST, PAD, START, Size, build

DEEP = Size(hidden=64, layers=24, intermediate=128, heads=4, vocabulary=500)
STEPS = 16
SPECIAL = dict(pad_token_id=PAD, eos_token_id=END)
WRITTEN = ("pools", "key_pool", "value_pool", "states", "tables")  # arguments of the extension's functions
Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


def compare(size: Size, repeats: int) -> list[Row]:
    """One row per engine, greedy and with four beams; times in seconds per step."""
    return child.call(measured, size, repeats)


def measured(size: Size, repeats: int) -> list[Row]:
    torch.set_num_threads(1)
    model = build(size)
    source = [FIRST + i for i in range(16)]
    rows = []
    for beams in (1, 4):
        runs = {
            "bertgen model.generate": of_generate(model, source, beams),
            "bertgen Engine": of_engine(model, source, beams),
        }
        missing = None
        try:
            theirs = Transformers(model).model
            runs["transformers"] = of_generate(theirs, source, beams, decoder_start_token_id=START)
        except BackendError as error:
            missing = Row("step", {"beams": beams}, "transformers", absent=str(error))
        for name, step in steps(runs, repeats).items():
            rows.append(Row("step", {"beams": beams}, name, [step.pop("step")], extra=step))
        rows += [missing] if missing else []
    return rows


def of_generate(model: Any, source: list[int], beams: int, **options: Any) -> Callable[[int], Any]:
    ids = torch.tensor([source])
    call = dict(input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=beams, do_sample=False, **SPECIAL)
    return lambda tokens: model.generate(max_new_tokens=tokens, **call, **options)


def of_engine(model: EncoderDecoderModel, source: list[int], beams: int) -> Callable[[int], Any]:
    engine = Engine(model, EngineConfig(max_rows=beams))

    def run(tokens: int) -> None:
        options = GenerationConfig(max_new_tokens=tokens, num_beams=beams, bos_token_id=START, **SPECIAL)
        engine.submit([Request(source, resolve_generation_config(options))], lambda request: None)
        while engine.busy:
            engine.step()

    return run


def steps(runs: dict[str, Callable[[int], Any]], repeats: int) -> dict[str, dict[str, Any]]:
    """Of each run: time of a step, of its operators, and their number. Runs take turns, and the fastest turn counts:
    noise only adds to such short times."""
    lengths = 1, 1 + STEPS
    recorded: dict[str, list[Recording]] = {}
    for name, run in runs.items():
        run(max(lengths))  # warm-up: what is created at the first call
        recorded[name] = [Recording(run, tokens) for tokens in lengths]
    whole: dict[str, list[tuple[float, ...]]] = {name: [] for name in runs}
    bare: dict[str, list[tuple[float, ...]]] = {name: [] for name in runs}
    gc.disable()
    try:
        for _ in range(repeats):
            for name, run in runs.items():
                whole[name].append(tuple(seconds(lambda run=run, n=n: run(n)) for n in lengths))
                bare[name].append(tuple(recording.replayed() for recording in recorded[name]))
                gc.collect()
    finally:
        gc.enable()
    costs = {}
    for name, (short, long) in recorded.items():
        step, operators = per_step(whole[name]), per_step(bare[name])
        calls = (len(long.calls) - len(short.calls)) / STEPS
        costs[name] = dict(step=step, operators=operators, overhead=step - operators, calls=calls)
    return costs


def is_kernel(name: str) -> bool:
    """Whether a name of kernels.cpp is that of a function that computes with tensors."""
    function = inspect.unwrap(getattr(cpp, name))
    if not inspect.isbuiltin(function):
        return False
    return name == "decode_steps" or "out" in re.findall(r"\w+", function.__text_signature__ or "")


def per_step(taken: list[tuple[float, ...]]) -> float:
    short, long = (min(side) for side in zip(*taken))
    return (long - short) / STEPS


class Recording(TorchDispatchMode):
    """The operators that a run calls, with their arguments, and the contents of tensors before they were written.

    The run calls kernels as it does without a recording: a dispatch mode would otherwise stop them.
    """

    def __init__(self, run: Callable[[int], Any], tokens: int):
        super().__init__()
        self.calls: list[Call] = []
        self.inference = False
        self._before: dict[int, tuple[Any, Any]] = {}
        functions = {name: self._recorded(function) for name, function in vars(cpp).items() if is_kernel(name)}
        with (
            mock.patch.multiple(cpp, **functions),
            mock.patch.object(torch._C, "_len_torch_dispatch_stack", return_value=0),
            self,
        ):
            run(tokens)

    def _recorded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the extension that is recorded as an operator is."""
        parameters = inspect.signature(function).parameters

        def record(*args: Any) -> Any:
            with _disable_current_modes():  # the copies are no operators of the run
                for name, value in zip(parameters, args, strict=True):
                    if name in WRITTEN:
                        self._keep(value)
            self.calls.append((function, args, {}))
            return function(*args)

        return record

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        arguments = func._schema.arguments
        self.inference |= torch.is_inference_mode_enabled()
        values = dict(zip([argument.name for argument in arguments], args)) | kwargs
        for argument in arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(values.get(argument.name))
        self.calls.append((func, args, kwargs))
        return func(*args, **kwargs)

    def _keep(self, written: Any) -> None:
        if isinstance(written, (list, tuple)):
            for one in written:
                self._keep(one)
        elif isinstance(written, torch.Tensor):
            storage = written.untyped_storage()
            if storage.data_ptr() not in self._before:
                self._before[storage.data_ptr()] = storage, storage.clone()

    def replayed(self) -> float:
        """Seconds of a replay of all calls."""
        for storage, before in self._before.values():
            storage.copy_(before)
        with torch.inference_mode() if self.inference else torch.no_grad():
            return seconds(self._replay)

    def _replay(self) -> None:
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    output.add_arguments(parser)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    result = output.begin("overhead", args, torch.device("cpu"))
    output.head()
    rows = compare(DEEP, args.repeats)
    output.add(result, rows)
    for row in rows:
        if row.seconds:
            overhead, calls = 1e3 * row.extra["overhead"], row.extra["calls"]
            print(f"{row.title}, {row.contender}: {overhead:.3f} ms beside {calls:.1f} operators")
    raise SystemExit(output.end(result, args))


if __name__ == "__main__":
    main()
