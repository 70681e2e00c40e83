"""Static steps of an engine's model: whether they run on its device, how many at a time, and what runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from .. import decoding
from ..cache.block_allocator import Admission
from ..cache.cache import Cache
from ..decoding.static_search import why_not_static
from ..errors import UnsupportedError
from ..model import EncoderDecoderModel
from ..model.captured_calls import why_not_captured
from ..model.cpp_steps import CppSteps, CurrentWeights, why_not_cpp_steps
from ..model.cuda_device import CudaDevice
from ..model.graph_pool import GraphPool, why_not_graphs
from ..model.graph_steps import GraphSteps
from ..model.static_decoder import StaticDecoder, Steps
from .request import Request, SearchKey
from .search_group import SearchGroup
from .static_batch import SECONDS, StaticBatch, StaticLimits


def why_not_static_request(request: Request, search: decoding.Search) -> str | None:
    """Why a request does not run as static steps on any device, as one clause; None where it does.

    Args:
        search: without units, of the request's options.
    """
    if request.on_tokens is not None:
        return "on_tokens is called after every step"
    return why_not_static(search)


class StaticSteps:
    """Static steps of a model.

    Args:
        max_rows: of the engine.
    """

    def __init__(self, model: EncoderDecoderModel, max_rows: int):
        self._model, self._max_rows = model, max_rows
        self._weights = CurrentWeights(model.decoder)
        self._graphs: GraphPool | None = None  # of a CUDA device, from the first batch on

    def clear(self) -> None:
        """Free the weights and graphs; they are made again when they are needed."""
        self._weights = CurrentWeights(self._model.decoder)
        if self._graphs is not None and self._graphs.failure is None:  # the first failure is the last
            self._graphs = None

    def why_not(self, rows: int) -> str | None:
        """Why static steps of so many rows do not run, as one clause; None where they do."""
        model = self._model
        if model.device.type == "cpu":
            return why_not_cpp_steps(model.decoder, rows, self._weights)
        reason = why_not_graphs(model.device) or why_not_captured(model.decoder)
        return reason or self.failure

    def check_replays(self) -> None:
        """Raise UnsupportedError where the model has changed, and replays would not show it; C++ checks it itself."""
        if self._graphs is not None and self._graphs.failure is None:
            reason = self.why_not(1)
            if reason is not None:
                raise UnsupportedError(reason)

    @property
    def failure(self) -> str | None:
        """Why a capture has failed: the steps of what runs then go on from Python, in the same tensors."""
        return None if self._graphs is None else self._graphs.failure

    def explain(self) -> str:
        """What runs static steps."""
        if self._model.device.type == "cuda":
            return "several steps run as replays of a CUDA graph"
        return f"several steps run as one call of the C++ extension while at most {self._most_rows()} rows run"

    def new_batch(self, cache: Cache) -> StaticBatch:
        """An empty batch over the pools of this cache."""
        device = self._model.device
        if device.type == "cuda" and (self._graphs is None or self._graphs.device.device != device):
            self._graphs = GraphPool(CudaDevice(device))
        batch = partial(StaticBatch, partial(self._open, cache), partial(_release, cache), self._limits())
        if self._graphs is None:
            return batch()
        return batch(synchronize=self._graphs.device.synchronize, reading=self._graphs.device.reading)

    @contextmanager
    def beside(self, batch: StaticBatch | None) -> Iterator[None]:
        """On a GPU a prefill inside runs beside the queued runs of the batch; what is queued later waits for it."""
        steps = None if batch is None else batch.newest_steps
        if not isinstance(steps, GraphSteps):
            yield
            return
        with steps.beside() as wait:
            yield
        wait()

    def _limits(self) -> StaticLimits:
        positions = self._model.config.encoder.max_tokens
        if self._graphs is not None:
            return StaticLimits(self._max_rows, positions)
        # Free units and wide tables cost nothing: a step gathers the rows that are in use.
        return StaticLimits(
            self._most_rows(), positions, source_width=512, least_units=16, compacts=False, stages=8, waiting_steps=8,
            even=False, seconds=SECONDS,
        )  # fmt: skip

    def _most_rows(self) -> int:
        """Rows of the steps that run as one call of the C++ extension; those of the engine where none does."""
        return self._max_rows if self.why_not(1) is not None else min(self._max_rows, self._weights.most_rows())

    def _open(
        self, cache: Cache, groups: Sequence[tuple[SearchKey, int]], source_width: int
    ) -> tuple[StaticDecoder, Steps]:
        model = self._model
        searches = [(_search(key, model), units) for key, units in groups]
        positions = model.config.decoder.max_tokens + 1  # the last token of an output is not fed to the decoder
        decoder = StaticDecoder(model.decoder, cache, searches, positions, source_width)
        if self._graphs is not None:
            return decoder, GraphSteps(decoder, self._graphs)
        return decoder, CppSteps(decoder, self._weights)


def _search(key: SearchKey, model: EncoderDecoderModel) -> decoding.Search:
    """A search without units of these options, which call no function of a request and read no source."""
    return SearchGroup(Request((0,), key.options, scored=key.scored), model).search


def _release(cache: Cache, admission: Admission) -> None:
    cache.allocator.release(admission.request)
