"""Static steps of an engine's model: whether they run on its device, how many at a time, and what runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from .. import decoding
from ..cache.block_allocator import Admission
from ..cache.cache import Cache
from ..decoding.static_search import why_not_static
from ..kernels.linear import few_rows
from ..model import EncoderDecoderModel
from ..model.cpp_steps import CppSteps, why_not_cpp_steps
from ..model.cuda_device import CudaDevice
from ..model.graph_pool import GraphPool, why_not_graphs
from ..model.graph_steps import GraphSteps
from ..model.static_decoder import StaticDecoder, Steps
from .request import Request, SearchKey
from .search_group import SearchGroup
from .static_batch import SECONDS, StaticBatch, StaticLimits


def why_not_static_steps(model: EncoderDecoderModel, rows: int) -> str | None:
    """Why static steps of so many rows do not run on the model's device, as one clause; None where they do."""
    if model.device.type == "cpu":
        return why_not_cpp_steps(model.decoder, rows)
    return why_not_graphs(model.device)


def why_not_static_request(request: Request, search: decoding.Search) -> str | None:
    """Why a request does not run as static steps on any device, as one clause; None where it does.

    Args:
        search: without units, of the request's options.
    """
    if request.on_tokens is not None:
        return "on_tokens is called after every step"
    return why_not_static(search)


def explain_static(model: EncoderDecoderModel) -> str:
    """What runs static steps on the model's device."""
    if model.device.type == "cuda":
        return "steps run as replays of CUDA graphs"
    return f"several steps run as one call of the C++ extension while at most {few_rows()} rows run"


def static_batch(model: EncoderDecoderModel, cache: Cache, max_rows: int) -> StaticBatch:
    """An empty batch over the pools of this cache."""
    graphs = GraphPool(CudaDevice(model.device)) if model.device.type == "cuda" else None
    return StaticBatch(
        partial(_open, model, cache, graphs),
        partial(_release, cache),
        _limits(model, max_rows),
        synchronize=partial(_synchronize, model.device),
    )


def _limits(model: EncoderDecoderModel, max_rows: int) -> StaticLimits:
    positions = model.config.encoder.max_tokens
    if model.device.type == "cuda":
        return StaticLimits(max_rows, positions)
    # Free units and wide tables cost nothing: a step gathers the rows that are in use.
    return StaticLimits(
        min(max_rows, few_rows()), positions, source_width=512, least_units=16, compacts=False, stages=8,
        waiting_steps=8, even=False, seconds=SECONDS,
    )  # fmt: skip


def _open(
    model: EncoderDecoderModel,
    cache: Cache,
    graphs: GraphPool | None,
    groups: Sequence[tuple[SearchKey, int]],
    source_width: int,
) -> tuple[StaticDecoder, Steps]:
    searches = [(_search(key, model), units) for key, units in groups]
    positions = model.config.decoder.max_tokens + 1  # the last token of an output is not fed to the decoder
    decoder = StaticDecoder(model.decoder, cache, searches, positions, source_width)
    return decoder, CppSteps(decoder) if graphs is None else GraphSteps(decoder, graphs)


@contextmanager
def beside(batch: StaticBatch | None) -> Iterator[None]:
    """On a GPU a prefill inside runs beside the runs that are queued; what is queued later waits for it."""
    steps = None if batch is None else batch.newest_steps
    if not isinstance(steps, GraphSteps):
        yield
        return
    with steps.beside() as wait:
        yield
    wait()


def _search(key: SearchKey, model: EncoderDecoderModel) -> decoding.Search:
    """A search without units of these options, which call no function of a request and read no source."""
    return SearchGroup(Request((0,), key.options, scored=key.scored), model).search


def _release(cache: Cache, admission: Admission) -> None:
    cache.allocator.release(admission.request)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
