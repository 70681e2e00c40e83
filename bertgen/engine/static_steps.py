"""Static steps of an engine's model: whether they run on its device, how many at a time, and what runs them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from .. import decoding
from ..cache.block_allocator import Admission
from ..cache.cache import Cache
from ..decoding.static_search import why_not_static
from ..kernels.linear import few_rows
from ..model import EncoderDecoderModel
from ..model.cpp_steps import CppSteps, why_not_cpp_steps
from ..model.static_decoder import StaticDecoder, Steps
from .request import Request, SearchKey
from .search_group import SearchGroup
from .static_batch import SECONDS, StaticBatch, StaticLimits


def why_not_static_steps(model: EncoderDecoderModel, rows: int) -> str | None:
    """Why static steps of so many rows do not run on the model's device, as one clause; None where they do."""
    if model.device.type == "cpu":
        return why_not_cpp_steps(model.decoder, rows)
    return f"there are no static steps on {model.device.type}"


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
    return f"several steps run as one call of the C++ extension while at most {few_rows()} rows run"


def static_batch(model: EncoderDecoderModel, cache: Cache, max_rows: int) -> StaticBatch:
    """An empty batch over the pools of this cache."""
    return StaticBatch(
        partial(_open, model, cache),
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
    model: EncoderDecoderModel, cache: Cache, groups: Sequence[tuple[SearchKey, int]], source_width: int
) -> tuple[StaticDecoder, Steps]:
    searches = [(_search(key, model), units) for key, units in groups]
    positions = model.config.decoder.max_tokens + 1  # the last token of an output is not fed to the decoder
    decoder = StaticDecoder(model.decoder, cache, searches, positions, source_width)
    return decoder, CppSteps(decoder)


def _search(key: SearchKey, model: EncoderDecoderModel) -> decoding.Search:
    """A search without units of these options, which call no function of a request and read no source."""
    return SearchGroup(Request((0,), key.options, scored=key.scored), model).search


def _release(cache: Cache, admission: Admission) -> None:
    cache.allocator.release(admission.request)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
