"""Every function of the C++ extension with arguments that no caller should give: a typed error or a result, never a
signal. A process of its own calls them, so that a crash is a failed test.

    python tests/kernels/test_cpp_fuzz.py SEED CALLS    calls them here, and prints how many calls had a result
"""

from __future__ import annotations

import inspect
import random
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bertgen.kernels import cpp
from bertgen.ops import extension

H, HEADS, ROWS, SLOTS, POSITIONS, SOURCES = 64, 2, 3, 8, 4, 2
INT32 = torch.int32
ERRORS = (RuntimeError, TypeError, ValueError, OverflowError, MemoryError)  # NotImplementedError is a RuntimeError
kept: list[list[torch.Tensor]] = []


class Subclass(torch.Tensor):
    """Without memory: elements come from a method in Python."""

    @staticmethod
    def __new__(cls, like: torch.Tensor) -> Subclass:
        return torch.Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype)

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), named=None):
        raise NotImplementedError(function)


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def indices(below: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, max(1, below), shape, dtype=INT32)


def longs(below: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, max(1, below), shape)


def slot_tables() -> list[torch.Tensor]:
    return [torch.arange(ROWS, dtype=INT32), indices(SLOTS, ROWS, POSITIONS), indices(POSITIONS, ROWS)]


def source_tables() -> list[torch.Tensor]:
    return [indices(SLOTS, SOURCES, POSITIONS), indices(POSITIONS, SOURCES), torch.tensor([0, 1, ROWS], dtype=INT32)]


def int4(outputs: int, inputs: int) -> list[torch.Tensor]:
    """packed, scale and zero."""
    packed = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8)
    return [packed, floats(outputs, inputs // 32), floats(outputs, inputs // 32)]


def layer() -> list[torch.Tensor]:
    """The parameters of a layer with cross-attention; some in 4 bits."""
    norm = [torch.ones(H), torch.zeros(H)]

    def dense(outputs: int, inputs: int) -> list[torch.Tensor]:
        return random.choice(([floats(outputs, inputs)], int4(outputs, inputs))) + [floats(outputs)]

    attention = [*dense(H, H), *dense(H, H), *dense(H, H), *dense(H, H), *norm]
    return [*attention, *dense(H, H), *dense(H, H), *norm, *dense(2 * H, H), *dense(H, 2 * H), *norm]


def decoder() -> list[Any]:
    """The arguments of decoder_weights. Its tensors must live as long as the weights, so they are kept."""
    norm, absent = [torch.ones(H), torch.zeros(H)], torch.zeros(0)
    parts = [floats(H, H), floats(40, H), absent, *norm, floats(H, H), floats(H), absent]
    kept.append([*parts, *layer(), *layer()])
    return [kept[-1], None, 2, True, HEADS, 0, 1e-12, 1e-12, 0.0, False]


def plan(units: int, beams: bool) -> list[Any]:
    """The arguments of search_plan."""
    kind = [units, 2 if beams else 1, beams, False, not beams, [1], 4 if beams else 0, beams, 0, 1.0]
    processors = [[], [], []] if beams else [[1, 3], [[], [0, 9, 5]], [[2.0], []]]
    return [*kind, *processors, H]


def static_steps() -> list[Any]:
    """The arguments of decode_steps: a unit of greedy search, and one of two beams."""
    zero = torch.zeros
    greedy = [longs(H, 1, 12), longs(1, 1) + 2, longs(1, 1) + 11, longs(9, 1), longs(9, 1), zero(1).double()]
    beams = [longs(H, 1, 2, 12), longs(H, 1, 2, 12), floats(1, 2), floats(1, 2), longs(1, 1, 2) + 2]
    beams += [zero(1, 2).bool(), torch.ones(1).bool(), longs(1, 1) + 2, longs(1, 1) + 11]
    tables = [zero(2).bool(), longs(H, ROWS, 1), longs(1, ROWS), indices(SLOTS, ROWS, 12), indices(SLOTS, ROWS, 12)]
    tables += [indices(2, ROWS), indices(SLOTS, 2, POSITIONS), indices(POSITIONS, 2)]
    tables += [torch.tensor([0, 1, ROWS], dtype=INT32)]
    plans = [cpp.search_plan(*plan(1, False)), cpp.search_plan(*plan(1, True))]
    weights = cpp.decoder_weights(*decoder())
    return [weights, plans, [greedy, beams], pools(4), pools(4), tables, cpp.steps_workspace(), 2, False]


def modules() -> list[Any]:
    """The arguments of watch_modules."""
    return [[torch.nn.Linear(2, 3), torch.nn.LayerNorm(2), torch.nn.GELU()], ["training", "eps", "bias"]]


def allocator() -> Any:
    created = cpp.allocator_create(ROWS, 32, 96, 4, 16, 64, 4)
    cpp.allocator_admit(created, ROWS, 16, 1, 9)
    return created


def pools(count: int = 2) -> list[torch.Tensor]:
    return [floats(SLOTS, HEADS, H // HEADS) for _ in range(count)]


def heads(count: int = 1) -> list[torch.Tensor]:
    return [floats(ROWS, HEADS, H // HEADS) for _ in range(count)]


def arguments(name: str) -> list[Any]:
    """Arguments that the function takes."""
    table, sources = torch.zeros(ROWS, 32, dtype=INT32), torch.zeros(ROWS, 16, dtype=INT32)
    rows = torch.arange(ROWS, dtype=INT32)
    return {
        "linear": lambda: [floats(ROWS, H), floats(5, H), floats(5), floats(ROWS, 5)],
        "linears": lambda: [floats(ROWS, H), [floats(5, H) for _ in "ab"], [floats(5) for _ in "ab"], floats(ROWS, 10)],
        "int4_matmul": lambda: [
            floats(ROWS, H), *int4(5, H), floats(5), random.choice((None, floats(16))), False, floats(ROWS, 5),
        ],
        "int4_matmuls": lambda: [
            floats(ROWS, H), *map(list, zip(int4(5, H), int4(5, H))), [], None, True, floats(ROWS, 10),
        ],
        "int4_dequantize": lambda: [*int4(5, H), None, floats(5, H)],
        "add_layer_norm": lambda: [
            floats(ROWS, H), random.choice((None, floats(ROWS, H))), floats(H), floats(H), 1e-12, floats(ROWS, H),
        ],
        "gelu_layer_norm": lambda: [floats(ROWS, H), floats(H), floats(H), 1e-12, floats(ROWS, H)],
        "best": lambda: [floats(ROWS, H), longs(9, ROWS)],
        "log_softmax": lambda: [floats(ROWS, H), floats(ROWS, H)],
        "top_log_probs": lambda: [floats(4, H), 5, floats(4), 2, floats(2, 5), longs(9, 2, 5)],
        "sample": lambda: [
            floats(ROWS, H), *(longs(9, ROWS) for _ in "abc"), floats(ROWS).abs(), longs(H, ROWS), floats(ROWS),
            floats(ROWS), longs(9, ROWS), floats(ROWS),
        ],
        "process": lambda: [
            floats(ROWS, H), longs(H, ROWS, POSITIONS), longs(POSITIONS, ROWS), floats(ROWS), longs(4, ROWS),
            longs(9, ROWS), longs(H, ROWS, 2), torch.zeros(H, dtype=torch.uint8),
        ],
        "processors": lambda: [
            [0, 1, 3], [torch.tensor([1, 2, 7, 8]), longs(1, 0), torch.tensor([0, 9, 5])],
            [torch.ones(1).double(), torch.ones(1).double(), torch.ones(0).double()], longs(H, ROWS, POSITIONS),
            longs(POSITIONS, ROWS), floats(ROWS, H),
        ],
        "decode_attention": lambda: [*heads(3), *pools(), *slot_tables(), *heads()],
        "cross_decode_attention": lambda: [*heads(), *pools(), *source_tables(), *heads()],
        "packed_attention": lambda: [
            *heads(3), *[torch.tensor([0, 1, ROWS], dtype=INT32) for _ in "qk"], True, longs(ROWS, SOURCES),
            longs(ROWS, SOURCES), longs(2, SOURCES, ROWS).bool(), *heads(),
        ],
        "decoder_step": lambda: [
            floats(ROWS, H), [*layer(), *layer()], pools(4), pools(4), [*slot_tables(), *source_tables()], None, HEADS,
            1e-12, False, floats(ROWS, H),
        ],
        "decoder_weights": decoder,
        "search_plan": lambda: plan(2, random.random() < 0.5),
        "steps_workspace": lambda: [],
        "decode_steps": static_steps,
        "watch_modules": modules,
        "are_unchanged": lambda: [cpp.watch_modules(*modules())],
        "allocator_create": lambda: [4, 32, 96, 4, 16, 64, 4],
        "allocator_admit": lambda: [allocator(), 1, 16, 7, 9],
        "allocator_step": lambda: [allocator(), rows, rows * 0, table, rows * 0],
        "allocator_extend": lambda: [allocator(), 1, 5, table],
        "allocator_fill_source": lambda: [allocator(), 0, sources],
        "allocator_finish_row": lambda: [allocator(), 1],
        "allocator_release": lambda: [allocator(), 0],
        "allocator_statistics": lambda: [allocator()],
        "allocator_check": lambda: [allocator(), table, sources],
        "use_instruction_set": lambda: [-1],
    }[name]()  # fmt: skip


def other_tensor(tensor: torch.Tensor) -> Any:
    """A tensor like this one in most respects."""
    with FakeTensorMode():
        fake = torch.empty(tensor.shape, dtype=tensor.dtype)
    whole = torch.zeros(2 * tensor.numel() + 7, dtype=tensor.dtype)
    numbers = torch.randint(-(2**31), 2**31 - 1, tensor.shape) if random.random() < 0.5 else tensor - 1
    return random.choice([
        lambda: tensor.clone().requires_grad_(tensor.is_floating_point()),
        lambda: torch.nn.Buffer(tensor),
        lambda: tensor.double(),
        lambda: tensor.to(random.choice((torch.int64, torch.bfloat16, torch.bool, torch.complex64, torch.uint8))),
        lambda: tensor[..., :-1],
        lambda: tensor[:0],
        lambda: tensor[None],
        lambda: tensor.flatten(),
        lambda: tensor.transpose(0, -1),
        lambda: tensor.new_empty(tuple(reversed(tensor.shape))),
        lambda: tensor.flatten()[:1].expand(tensor.numel()).view(tensor.shape),
        lambda: tensor.flatten()[:1].as_strided((2**31, 2**29), (0, 0)),
        lambda: tensor.new_empty(2**40, 0),
        lambda: whole[7 : 7 + tensor.numel()].view(tensor.shape),
        lambda: whole[::2][: tensor.numel()].view(tensor.shape),
        lambda: tensor.to("meta"),
        lambda: fake,
        lambda: Subclass(tensor),
        lambda: tensor.to_sparse(),
        lambda: torch._to_functional_tensor(tensor),
        lambda: torch._efficientzerotensor(tensor.shape, dtype=tensor.dtype),
        lambda: torch.nested.nested_tensor([tensor, tensor]),
        lambda: torch.nn.UninitializedParameter(),
        lambda: numbers.to(tensor.dtype),
        lambda: torch.full_like(tensor, 2**30 if tensor.dtype == INT32 else 1),
        lambda: without_memory(tensor),
    ])()  # fmt: skip


def without_memory(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def other(value: Any, given: list[Any]) -> Any:
    """Something else than this argument."""
    if random.random() < 0.15:
        return random.choice([
            None, 0, -1, 1, 2**31, 2**63 - 1, -(2**63), 2**64, True, 0.5, float("nan"), "x", (), [], {}, object(),
            [None], [[]], torch.zeros(0), allocator(), torch.float32, torch.Tensor, *given,
        ])  # fmt: skip
    if isinstance(value, torch.Tensor):
        alike = [t for t in given if isinstance(t, torch.Tensor) and t.numel() >= value.numel()]
        if alike and random.random() < 0.25:  # memory of another argument
            shared = random.choice(alike).flatten()[: value.numel()]
            if shared.element_size() == value.element_size():
                return shared.view(value.dtype).view(value.shape)
        return other_tensor(value)
    if isinstance(value, list) and value:
        place, items = random.randrange(len(value)), list(value)
        changed = [[*items[:place], other(items[place], given), *items[place + 1 :]]] * 4
        return random.choice([*changed, items[:place], items[::-1], items + items, tuple(items)])
    if isinstance(value, int) and not isinstance(value, bool):
        return random.choice([-1, 0, 1, 2, value - 1, value + 1, 2**31 - 1, 2**31, 2**62, -(2**63)])
    return random.choice([None, -1, True, 1e300, "x"])


def calls(seed: int, count: int) -> int:
    """Call functions with some arguments replaced; how many calls had a result."""
    random.seed(seed)
    torch.manual_seed(seed)
    warnings.simplefilter("ignore")  # of tensors of prototypes
    names, results = functions(), 0
    for _ in range(count):
        name = random.choice(names)
        given = arguments(name)
        for place in random.sample(range(len(given)), min(len(given), random.choice((0, 1, 1, 1, 2, 3)))):
            try:
                given[place] = other(given[place], given)
            except (*ERRORS, IndexError):
                continue  # there is no such tensor
        if random.random() < 0.05:
            given = random.choice([given[:-1], [*given, None], []])
        if name == "allocator_create" and any(isinstance(size, int) and 2**16 < size < 2**31 for size in given):
            continue  # such an allocator has gigabytes
        try:
            getattr(cpp, name)(*given)
        except ERRORS:
            continue
        results += 1
    return results


def functions() -> list[str]:
    """All but use_torch, whose arguments are addresses that nobody can check."""
    return [name for name, f in vars(cpp).items() if inspect.isbuiltin(inspect.unwrap(f)) and name != "use_torch"]


needs_extension = pytest.mark.skipif(not extension.available(), reason=f"no C++ extension: {extension.why_not()}")


@needs_extension
def test_arguments_that_are_not_replaced_are_taken():
    for name in functions():
        getattr(cpp, name)(*arguments(name))


@needs_extension
@pytest.mark.parametrize("seed", range(2))
def test_wrong_arguments_are_errors(seed):
    count = 600
    done = subprocess.run([sys.executable, __file__, str(seed), str(count)], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-3000:]}"
    assert count // 10 < int(done.stdout) < count


if __name__ == "__main__":
    extension.require()
    print(calls(*map(int, sys.argv[1:])))
