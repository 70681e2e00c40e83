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
from ..model.cpp_steps import CppSteps, CurrentWeights, why_not_cpp_steps
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

    def clear(self) -> None:
        """Forget the weights; they are collected again when they are needed."""
        self._weights = CurrentWeights(self._model.decoder)

    def why_not(self, rows: int) -> str | None:
        """Why static steps of so many rows do not run, as one clause; None where they do."""
        model = self._model
        if model.device.type == "cpu":
            return why_not_cpp_steps(model.decoder, rows, self._weights)
        return f"there are no static steps on {model.device.type}"

    def explain(self) -> str:
        """What runs static steps."""
        return f"several steps run as one call of the C++ extension while at most {few_rows()} rows run"

    def new_batch(self, cache: Cache) -> StaticBatch:
        """An empty batch over the pools of this cache."""
        return StaticBatch(
            partial(self._open, cache), partial(_release, cache), self._limits(),
            synchronize=partial(_synchronize, self._model.device),
        )  # fmt: skip

    def _limits(self) -> StaticLimits:
        positions = self._model.config.encoder.max_tokens
        # Free units and wide tables cost nothing: a step gathers the rows that are in use.
        return StaticLimits(
            min(self._max_rows, few_rows()), positions, source_width=512, least_units=16, compacts=False, stages=8,
            waiting_steps=8, even=False, seconds=SECONDS,
        )  # fmt: skip

    def _open(
        self, cache: Cache, groups: Sequence[tuple[SearchKey, int]], source_width: int
    ) -> tuple[StaticDecoder, Steps]:
        model = self._model
        searches = [(_search(key, model), units) for key, units in groups]
        positions = model.config.decoder.max_tokens + 1  # the last token of an output is not fed to the decoder
        decoder = StaticDecoder(model.decoder, cache, searches, positions, source_width)
        return decoder, CppSteps(decoder, self._weights)


def _search(key: SearchKey, model: EncoderDecoderModel) -> decoding.Search:
    """A search without units of these options, which call no function of a request and read no source."""
    return SearchGroup(Request((0,), key.options, scored=key.scored), model).search


def _release(cache: Cache, admission: Admission) -> None:
    cache.allocator.release(admission.request)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
