"""Static decoders with their CUDA graphs that `generate` keeps from one call to the next, beside the model."""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import ops
from ..cache.block_allocator import BlockAllocator
from ..cache.cache import Cache
from ..config import GenerationConfig
from ..decoding.search import Search
from .cuda_device import CudaDevice
from .graph_pool import GraphPool
from .graph_steps import GraphSteps
from .static_decoder import StaticDecoder
from .tensor_addresses import TensorAddresses

LIMIT = 8  # static decoders of a model at a time
SHARE = 0.1  # of a GPU's free memory, for those of a model
STEPS = 4  # of a run: the end is known up to two runs late
_SEEN = 64  # shapes of calls that are remembered

Result = tuple[list[list[int]], list[float | None]]


class Shape(NamedTuple):
    """The sizes of a static decoder.

    Attributes:
        width: rows of a unit. positions: of histories.
    """

    units: int
    width: int
    positions: int
    source_width: int

    @classmethod
    def of(cls, sources: Sequence[int], width: int, length: int, longest: int) -> Shape:
        """The smallest that suits a call: units are powers of two, lengths multiples of 64.

        Args:
            sources: the length of each. length: of the longest output, with its prefix; longest: that the decoder has.
        """
        units = 1 << (len(sources) - 1).bit_length()
        return cls(units, width, max(length, min(_rounded(length, 64), longest)), _rounded(max(sources), 64))

    def bytes(self, decoder: Any) -> int:
        """Of the keys and values, the histories and the tables of slots, about."""
        rows, page = self.units * self.width, BlockAllocator.PAGE
        slots = rows * _rounded(self.positions, page) + self.units * _rounded(self.source_width, page)
        layers = len(decoder.body.encoder.layer)
        return 2 * layers * slots * decoder.config.hidden_size * decoder.dtype.itemsize + 28 * rows * self.positions


def _rounded(count: int, step: int) -> int:
    return -(-count // step) * step


class KeptDecoder:
    """A static decoder of one search with a cache of its own. It does not keep the model alive."""

    def __init__(self, decoder: nn.Module, search: Search, shape: Shape, graphs: GraphPool):
        model: Any = decoder
        config, rows = model.config, shape.units * shape.width
        self.cache = Cache(
            len(model.body.encoder.layer), config.num_attention_heads, config.head_dim, model.dtype, model.device,
            rows=rows, positions=shape.positions - 1, source_positions=shape.source_width,
            source_slots=shape.units * _rounded(shape.source_width, BlockAllocator.PAGE), full=True,
        )  # fmt: skip
        searches = [(copy.copy(search), shape.units)]  # the caller's stays without units
        self._static = StaticDecoder(weakref.proxy(decoder), self.cache, searches, shape.positions, shape.source_width)
        self.steps = GraphSteps(self._static, graphs)
        self._runs = 0
        self._sources = itertools.count()  # a number for each

    def results(self, model: Any, states: torch.Tensor, lengths: list[int], prefix: torch.Tensor, longest: int) -> list:
        """The outputs and scores of each source, as of `Search.results`; everything that was queued is then complete.

        Args:
            model: the decoder. states: of the sources, packed; lengths: of each.
            prefix: [n, 1], the first token of each output. longest: of an output, with its prefix.
        """
        cache, static, width = self.cache, self._static, self._static.searches[0].width
        admitted = [cache.admit(width, longest - 1, next(self._sources), length) for length in lengths]
        admissions = [admission for admission in admitted if admission is not None]
        assert len(admissions) == len(lengths)
        cache.begin_sources(admissions)
        model.body.encoder.write_sources(cache, states)
        units = [*range(len(lengths))]
        limits = torch.full((len(units),), longest, dtype=torch.int64, device="cpu")
        static.join(0, units, admissions, prefix, units, limits=limits)
        joined = self._runs
        for start in range(0, longest - 1, STEPS):  # no output has more tokens
            count = min(STEPS, longest - 1 - start)
            self.steps.run(count + count % 2)
            self._runs += 1
            run, over = self.steps.flags()
            if run > joined and all(over[: len(units)]):
                break
        results = static.searches[0].results(torch.arange(len(units), device="cpu"))  # waits for all runs
        static.leave(0, units)
        for admission in admissions:
            cache.allocator.release(admission.request)
        return results


class KeptDecoders:
    """The static decoders of one model on one device.

    One is made where a call comes for the second time: with an equal search, and sizes of the same `Shape`. A capture
    takes as long as some ten steps, and its memory stays. They are dropped, those unused for longest first, where there
    are more than LIMIT, or where they take more than SHARE of the free memory; and all of them where a parameter has
    got other memory, where a capture or a call fails, and with the model. Nothing is queued between calls.

    Args:
        decoder: is not kept alive.
    """

    def __init__(self, decoder: nn.Module, device: torch.device):
        self.device = CudaDevice(device)
        self._graphs = GraphPool(self.device)
        self._addresses = TensorAddresses(decoder)
        self._lock = threading.Lock()
        self._kept: OrderedDict[Any, tuple[KeptDecoder, int]] = OrderedDict()  # with its bytes, newest use last
        self._seen: OrderedDict[Any, bool] = OrderedDict()  # whether one may be made

    def __len__(self) -> int:
        return len(self._kept)

    @contextlib.contextmanager
    def borrowed(
        self, decoder: nn.Module, options: GenerationConfig, search: Search, shape: Shape
    ) -> Iterator[KeptDecoder | None]:
        """The kept decoder of such calls; None where none is to be made, and where another thread has one.

        Args:
            options: of the search, resolved. search: without units.
        """
        if not self._lock.acquire(blocking=False):
            yield None
            return
        try:
            kept = self._found(decoder, _key(options, search, shape), search, shape)
            try:
                yield kept
            except BaseException:
                self._drop_all()  # what was queued may have run in part
                raise
            if self._graphs.failure is not None:
                self._drop_all()
        finally:
            self._lock.release()

    def is_current(self, device: torch.device) -> bool:
        """Whether these are decoders of the model as it is, on this device."""
        return self.device.device == device and self._addresses.are_current()

    def clear(self) -> None:
        """Give all memory back, unless another thread uses it."""
        if self._lock.acquire(blocking=False):
            try:
                self._drop_all()
            finally:
                self._lock.release()

    def _found(self, decoder: nn.Module, key: Any, search: Search, shape: Shape) -> KeptDecoder | None:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key][0]
        if self._graphs.failure is not None or not self._comes_again(key):
            return None
        size = shape.bytes(decoder)
        if not self._make_room(size):
            self._seen[key] = False
            return None
        kept = KeptDecoder(decoder, search, shape, self._graphs)
        self._kept[key] = kept, size
        return kept

    def _comes_again(self, key: Any) -> bool:
        """Whether such a call was seen before, and a decoder of it did not need too much memory."""
        known = self._seen.get(key)
        if known is None:
            self._seen[key] = True
            if len(self._seen) > _SEEN:
                self._seen.popitem(last=False)
        return bool(known)

    def _make_room(self, size: int) -> bool:
        """Drop decoders until one of so many bytes may be made; False where it is too large."""
        held = sum(size for _, size in self._kept.values())
        most = SHARE * (self.device.free_memory() + held)
        if size > most:
            return False
        while self._kept and (len(self._kept) >= LIMIT or held + size > most):
            self.device.synchronize()
            _, (kept, its) = self._kept.popitem(last=False)
            kept.steps.close()
            held -= its
        return True

    def _drop_all(self) -> None:
        if self._kept:
            self.device.synchronize()
        while self._kept:
            self._kept.popitem()[1][0].steps.close()


def _key(options: GenerationConfig, search: Search, shape: Shape) -> Any:
    """What calls must have in common to use one graph."""
    values = options.to_dict()
    if options.forced_eos_token_id is None:  # its processor depends on the length
        values.pop("max_length", None), values.pop("max_new_tokens", None)
    codes = tuple(processor.code for processor in search.processors.tensor_processors or ())
    arithmetic = ops.backend(), torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    return type(search), repr(sorted(values.items())), codes, shape, arithmetic


_KEPT: weakref.WeakKeyDictionary[nn.Module, KeptDecoders] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def kept_decoders(decoder: nn.Module, device: torch.device) -> KeptDecoders:
    """Those of a decoder, without any where its parameters have moved."""
    with _LOCK:
        kept = _KEPT.get(decoder)
        if kept is None or not kept.is_current(device):
            drop_kept_decoders(decoder)
            kept = _KEPT[decoder] = KeptDecoders(decoder, device)
    return kept


def drop_kept_decoders(decoder: nn.Module) -> None:
    """Give back what is kept of a decoder; a call of another thread, which uses it, gives it back at its end."""
    kept = _KEPT.pop(decoder, None)
    if kept is not None:
        kept.clear()
