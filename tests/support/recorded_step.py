"""The recorded step: what a CUDA graph does with the steps of a StaticDecoder, on a CPU.

`RecordedStep` runs a step under a dispatch mode and keeps every operation with the storages of its tensors. `replay`
runs the operations again, and copies each result into the storage that the result had in the recording. So a replay
reads and writes addresses and knows no Python: a number that the host read, or a tensor in a new place, is stale in it.

A step that a graph could not hold is refused with a `CaptureError`: the host reads a value, values are copied from the
host to the device, a shape depends on values, a tensor of the step outlives it, a buffer is another one than before.
Tensors that were on the device before the step, and all that is computed from them, count as on the device; any other
tensor comes from the host. The operators of bertgen are recorded as one operation each, since their references read
lengths on the host; they run as they do without a recording. An operator without a Triton kernel runs its reference on
CUDA, so that one is checked, too.
"""

from __future__ import annotations

import enum
import functools
import gc
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from bertgen.cache.block_allocator import BlockAllocator
from bertgen.model.static_decoder import StaticDecoder
from bertgen.ops.operators import DecoderStep, Int4Matmuls, Linear, Linears
from bertgen.ops.registry import KernelOp
from bertgen.quantization.int4 import CODEBOOKS, codebook

OPERATORS = (KernelOp, Linear, Linears, Int4Matmuls, DecoderStep)
_PARAMETERS: weakref.WeakKeyDictionary[Any, list[torch.Tensor]] = weakref.WeakKeyDictionary()
HOST_TABLES = ("_known", "_limits")  # of a StaticCache

# Composites arrive whole in inference mode. `resolve_*` is all that shows of `tolist`.
READS = frozenset("item _local_scalar_dense is_nonzero equal allclose resolve_conj resolve_neg".split())
SIZES = frozenset((
    "nonzero nonzero_numpy nonzero_static argwhere masked_select _unique _unique2 unique_dim unique_consecutive "
    "unique_dim_consecutive bincount tensor_split"
).split())  # fmt: skip
MOVES = frozenset(("to", "_to_copy"))


class Reason(enum.Enum):
    """Why a step cannot be recorded."""

    HOST_READ = "the host reads a value"
    HOST_COPY = "values are copied from the host to the device"
    SHAPE = "a shape depends on values"
    OUTLIVES = "a tensor of the step is still in use after it"
    MOVED = "a buffer is another one than before the step"


class CaptureError(Exception):
    """A step that cannot be recorded."""

    def __init__(self, reason: Reason, what: str):
        super().__init__(f"{reason.value}: {what}")
        self.reason = reason


class RecordedStep(TorchDispatchMode):
    """The operations of a call, recorded while it runs.

    Args:
        step: the call.
        tensors: all that is on the device before it.

    Raises:
        CaptureError: the call cannot be recorded.
    """

    def __init__(self, step: Callable[[], None], tensors: Iterable[torch.Tensor]):
        super().__init__()
        self._on_device = {_storage(t): alias(t) for t in tensors}
        self._nodes: list[tuple[Callable[..., Any], Any, Any, list[tuple[int, torch.Tensor]]]] = []
        self._made: set[int] = set()  # storages
        self._fresh: list[tuple[Any, weakref.ref[torch.Tensor]]] = []
        with ExitStack() as stack:
            for cls in OPERATORS:
                stack.enter_context(mock.patch.object(cls, "__call__", self._operator(cls)))
            stack.enter_context(self)
            step()
        if any(tensor() is not None for _, tensor in self._fresh):
            gc.collect()
        for name, tensor in self._fresh:
            if tensor() is not None:
                raise CaptureError(Reason.OUTLIVES, f"{name} -> {tuple(tensor().shape)}")

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled: torch need not import its compiler, nor ask it in each operation."""
        return False

    def __len__(self) -> int:
        return len(self._nodes)

    def replay(self) -> None:
        """Run all operations again."""
        for function, args, kwargs, outputs in self._nodes:
            result = function(*args, **kwargs)
            if outputs:
                results = leaves(result)
                for index, output in outputs:
                    output.copy_(results[index])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = self._inputs(func, args, kwargs)
        check(func, args, kwargs)
        out = func(*args, **kwargs)
        self._record(func, func, args, kwargs, inputs, out, func._schema.is_mutable)
        return out

    def _operator(self, cls: type) -> Callable[..., Any]:
        """`__call__` of a class of operators, as one operation."""
        call = cls.__call__

        @functools.wraps(call)
        def recorded(op: Any, *args: Any, **kwargs: Any) -> Any:
            if not torch._C._len_torch_dispatch_stack():  # inside of another operator
                return call(op, *args, **kwargs)
            with _disable_current_modes():
                inputs = self._inputs(op.name, args, kwargs)
            if isinstance(op, KernelOp) and op.triton is None:  # on CUDA the reference runs
                self._check_reference(op, args, kwargs)
            with _disable_current_modes():
                out = call(op, *args, **kwargs)
                self._record(op.name, functools.partial(call, op), args, kwargs, inputs, out, True)
            return out

        return recorded

    def _check_reference(self, op: KernelOp, args: Any, kwargs: Any) -> None:
        """Raise CaptureError where the reference of an operator needs the host; nothing of it is recorded."""
        if op.name == "select" and (*args, 1, False)[1:3] == (1, False):  # `best_tokens` does this by a kernel on CUDA
            return
        nodes, fresh = len(self._nodes), len(self._fresh)
        op.reference(*args, **kwargs)
        del self._nodes[nodes:], self._fresh[fresh:]

    def _inputs(self, name: Any, args: Any, kwargs: Any) -> set[int]:
        """The storages of all tensors among the arguments; CaptureError if some are not on the device."""
        storages = set()
        for t in (*leaves(args), *leaves(kwargs)):
            if isinstance(t, torch.Tensor):
                storages.add(storage := _storage(t))
                if storage not in self._on_device and t.dim():
                    raise CaptureError(Reason.HOST_COPY, f"{name} of a tensor {t.dtype} {tuple(t.shape)}")
        return storages

    def _record(
        self, name: Any, function: Any, args: Any, kwargs: Any, inputs: set[int], out: Any, writes: bool
    ) -> None:
        outputs = []
        for index, t in enumerate(leaves(out)):
            if isinstance(t, torch.Tensor):
                storage = _storage(t)
                if storage not in inputs:
                    outputs.append((index, alias(t)))
                    self._made.add(storage)
                if storage in self._made:
                    self._fresh.append((name, weakref.ref(t)))
        for _, t in outputs:
            self._on_device[_storage(t)] = t
        if outputs or writes:  # else it is a view
            self._nodes.append((function, aliases(args), aliases(kwargs), outputs))


def check(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Raise CaptureError for an operation of torch that needs the host."""
    name = func._opname
    if name in READS:
        raise CaptureError(Reason.HOST_READ, str(func))
    if name in SIZES or (name == "where" and len(args) == 1):
        raise CaptureError(Reason.SHAPE, str(func))
    if name == "repeat_interleave" and any(isinstance(x, torch.Tensor) for x in args[1:]):
        raise CaptureError(Reason.SHAPE, str(func))
    if name in ("index", "index_put", "index_put_"):
        if any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]):
            raise CaptureError(Reason.SHAPE, f"{func} by a mask")
    if name == "isin" and isinstance(args[1], torch.Tensor) and args[1].numel() >= 10:  # it may sort, with `unique`
        raise CaptureError(Reason.SHAPE, str(func))
    if name == "lift_fresh":
        raise CaptureError(Reason.HOST_COPY, "a tensor made from values of the host")
    if name in MOVES and kwargs.get("device") is not None:  # a move does nothing on a CPU, in either direction
        raise CaptureError(Reason.HOST_READ, f"{func} to a device")


def alias(t: torch.Tensor) -> torch.Tensor:
    """A tensor over the same memory that keeps no other object alive."""
    return torch.empty(0, dtype=t.dtype, device=t.device).set_(
        t.untyped_storage(), t.storage_offset(), t.shape, t.stride()
    )


def aliases(value: Any) -> Any:
    """Arguments with an alias of each tensor."""
    if isinstance(value, torch.Tensor):
        return alias(value)
    if isinstance(value, dict):
        return {key: aliases(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [aliases(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def leaves(value: Any) -> list[Any]:
    """The values in nested lists, tuples and dictionaries, in a fixed order."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return [value]
    found = []
    for item in value:
        if isinstance(item, (tuple, list, dict)):
            found += leaves(item)
        else:
            found.append(item)
    return found


def _storage(t: torch.Tensor) -> int:
    return t.untyped_storage()._cdata


def device_tensors(root: Any) -> dict[str, torch.Tensor]:
    """The tensors on the device that an object holds, by their paths. The tables of an allocator are on the host."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()

    def walk(path: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[path] = value
            return
        if id(value) in seen or isinstance(value, (str, int, float, type, BlockAllocator)):
            return
        seen.add(id(value))
        if isinstance(value, functools.partial):
            walk(f"{path}()", (value.func, value.args, value.keywords))
        elif isinstance(value, types.MethodType):
            walk(f"{path}.self", value.__self__)
        elif isinstance(value, dict):
            for key, item in value.items():
                if key not in HOST_TABLES:
                    walk(f"{path}.{key}", item)
        elif isinstance(value, (list, tuple, set)):
            for key, item in enumerate(value):
                walk(f"{path}.{key}", item)
        elif hasattr(value, "__dict__") and not isinstance(value, types.ModuleType):
            walk(path, vars(value))

    walk("decoder", root)
    return found


def parameters(model: Any) -> list[torch.Tensor]:
    """The tensors of a model on the device, and the codebooks of 4-bit weights."""
    key = model if isinstance(model, torch.nn.Module) and type(model) is not weakref.CallableProxyType else None
    found = None if key is None else _PARAMETERS.get(key)
    if found is None:
        found = [t.detach() for t in device_tensors(model).values()]
        found += [codebook(format, found[0].device) for format in CODEBOOKS]
        if key is not None:
            _PARAMETERS[key] = found
    return found


def buffers(decoder: StaticDecoder) -> dict[str, torch.Tensor]:
    """The tensors of a static decoder that must stay where they are, without the parameters of the model."""
    model = decoder.decoder
    own = {name: part for name, part in vars(decoder).items() if part is not model}
    return device_tensors(own)


class RecordedSteps:
    """Steps of a StaticDecoder as replays of a recording of two steps; flags are those of the run before the last.

    The recording is made in the first run, after two steps that only warm up. None of these steps counts: the buffers
    get their contents back, as a CUDA graph only records. It is made again where pools have grown, which they do on a
    CPU only.
    """

    def __init__(self, decoder: StaticDecoder):
        self.decoder = decoder
        self.captures = 0
        self._recording: RecordedStep | None = None
        self._pools: list[tuple[int, torch.Size]] = []
        self._flags = [(0, [False] * decoder.units)] * 2

    def run(self, count: int, stop_when_over: bool = False) -> int:
        """As `Steps.run`."""
        assert count % 2 == 0
        self.decoder.cache.prepare(count)
        pools = [(t.data_ptr(), t.shape) for t in self._pool_tensors()]  # they may grow where they are
        if pools != self._pools:
            self._recording, self._pools = None, pools
        if self._recording is None:
            self._recording = self._captured()
        for _ in range(count // 2):
            self._recording.replay()
        self._flags = [self._flags[1], (self._flags[1][0] + 1, self.decoder.over.tolist())]
        return count

    def flags(self) -> tuple[int, list[bool]]:
        """As `Steps.flags`."""
        return self._flags[0]

    def _pool_tensors(self) -> list[torch.Tensor]:
        pools = self.decoder.cache.pool, self.decoder.cache.cross_pool
        return [t for pool in pools for t in (*pool.keys, *pool.values)]

    def _captured(self) -> RecordedStep:
        decoder = self.decoder
        self.captures += 1
        with self._restored():
            two_steps(decoder)
            before = {path: (_storage(t), t.data_ptr()) for path, t in buffers(decoder).items()}
            tensors = [*buffers(decoder).values(), *parameters(decoder.decoder)]
            recording = RecordedStep(functools.partial(two_steps, decoder), tensors)
            after = {path: (_storage(t), t.data_ptr()) for path, t in buffers(decoder).items()}
            moved = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
            if moved:
                raise CaptureError(Reason.MOVED, ", ".join(moved))
        return recording

    @contextmanager
    def _restored(self) -> Iterator[None]:
        kept = {_storage(t): alias(t) for t in [*buffers(self.decoder).values(), *self._pool_tensors()]}
        contents = [(t.untyped_storage(), t.untyped_storage().clone()) for t in kept.values()]
        yield
        for storage, content in contents:
            storage.copy_(content)


def two_steps(decoder: StaticDecoder) -> None:
    """As many as it takes until the double buffer of the cache is as before."""
    decoder.step()
    decoder.step()
