"""CppSteps: the steps of a static decoder in one call of the C++ extension on a CPU.

A step of a small model takes some hundred microseconds, and from Python as much again for the calls. One call here runs
several steps, from the embeddings to the choice of the tokens. It computes what `StaticDecoder.step` computes, which
stays the definition, in the same tensors; rows that have ended cost nothing. Parameters in float32, bfloat16, float16
or 4 bits are read as they are stored, and so are keys and values; everything else is float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..decoding.beam_search import BeamSearch
from ..decoding.static_search import StaticSearch
from ..errors import UnsupportedError
from ..kernels import cpp
from ..kernels.linear import few_rows
from ..kernels.plain import is_intercepted
from ..layers.decoder_step import Unsupported
from ..ops.decode_steps_layout import BEAM_STATE, SAMPLING_STATE, StaticTables
from ..ops.registry import why_not_extension
from ..ops.step_layout import PROCESSORS
from .decoder_weights import DecoderWeights
from .static_decoder import StaticDecoder

_EARLY_STOPPING = {False: 0, True: 1, "never": 2}


class CurrentWeights:
    """The weights of a decoder: collected once, and again when the model has changed.

    Args:
        cross: with its cross-attention; None where it has one.
    """

    def __init__(self, decoder: nn.Module, cross: bool | None = None):
        if cross is None:
            layers = getattr(getattr(getattr(decoder, "body", None), "encoder", None), "layer", ())
            cross = any(hasattr(layer, "crossattention") for layer in layers)
        self._decoder, self._cross = decoder, cross
        self._weights: DecoderWeights | None = None

    def get(self) -> DecoderWeights:
        """The weights as they are.

        Raises:
            Unsupported: C++ cannot compute with them; the reason.
        """
        if self._weights is None or not self._weights.are_current():
            self._weights = None
            self._weights = DecoderWeights(self._decoder, self._cross)
        return self._weights

    def most_rows(self) -> int:
        """Number of rows up to which C++ runs the steps faster than operators do; raises Unsupported as `get`."""
        return few_rows(self.get().dtype)


def why_not_cpp_steps(decoder: nn.Module, rows: int, weights: CurrentWeights | None = None) -> str | None:
    """Why `CppSteps` does not run the steps of a decoder for so many rows, as one clause; None where it does.

    Args:
        weights: of the decoder, for a caller that keeps them.
    """
    reason = _why_not_here()
    if reason is not None:
        return reason
    try:
        most = (weights or CurrentWeights(decoder)).most_rows()
    except Unsupported as error:
        return str(error)
    return None if rows <= most else f"{rows} rows are more than {most}, up to which the extension is faster"


def _why_not_here() -> str | None:
    """Why C++ does not run steps of any decoder here and now; None where it does."""
    reason = why_not_extension()
    if reason is not None:
        return reason
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses other dtypes"
    if torch.compiler.is_compiling() or is_intercepted():
        return "operators are traced or intercepted"
    return None


class CppSteps:
    """The steps of a static decoder whose `why_not_cpp_steps` is None.

    Weights that change take effect in the next run.

    Args:
        weights: of the decoder, for a caller that keeps them.
    """

    def __init__(self, decoder: StaticDecoder, weights: CurrentWeights | None = None):
        self._decoder, self._runs = decoder, 0
        self._weights = weights or CurrentWeights(decoder.decoder, decoder.cache.has_cross)
        self._workspace = cpp.steps_workspace()
        vocabulary = decoder.decoder.config.vocab_size
        self._plans = tuple(_plan(search, vocabulary) for search in decoder.searches)
        self._states = tuple(_state(search) for search in decoder.searches)

    def run(self, count: int, stop_when_over: bool = False) -> int:
        """As `Steps.run`; `count` may be any number.

        Raises:
            UnsupportedError: the model has changed, for example a layer has got a hook, or gradients are enabled; then
                nothing has run.
        """
        decoder, cache = self._decoder, self._decoder.cache
        weights = self._current_weights()
        self._runs += 1
        cache.prepare(count)
        source = cache.cross_pool if cache.has_cross else None
        tables = StaticTables(
            over=decoder.over,
            tokens=decoder.tokens,
            parents=decoder.parents,
            own_slots=cache.own_slots,
            slot_table=cache.slot_table,
            lengths=cache.lengths,
            source_table=cache.source_table,
            source_lengths=cache.source_lengths,
            cu_rows=cache.cu_rows,
        )
        return cpp.decode_steps(
            weights.capsule, self._plans, self._states, (*cache.pool.keys, *cache.pool.values),
            () if source is None else (*source.keys, *source.values), tables, self._workspace, count, stop_when_over,
        )  # fmt: skip

    def flags(self) -> tuple[int, list[bool]]:
        """As `Steps.flags`: of the newest run."""
        return self._runs, self._decoder.over.tolist()

    def _current_weights(self) -> DecoderWeights:
        """The weights of the decoder as they are; raises UnsupportedError where C++ cannot compute with them."""
        reason = "gradients are enabled" if torch.is_grad_enabled() else _why_not_here()
        if reason is None:
            try:
                return self._weights.get()
            except Unsupported as error:
                reason = str(error)
        raise UnsupportedError(f"steps in C++: {reason}")


def _plan(search: StaticSearch, vocabulary: int) -> Any:
    """What a search does, as a capsule."""
    options, kind = search.search.options, search.search
    codes = [processor.code for processor in search.processors]
    is_beams = isinstance(kind, BeamSearch)
    return cpp.search_plan(
        search.units,
        search.width,
        is_beams,
        bool(options.do_sample),
        bool(kind.scored),
        list(options.end_tokens),
        kind.candidates if isinstance(kind, BeamSearch) else 0,
        isinstance(kind, BeamSearch) and bool(kind.uses_top_log_probs),
        _EARLY_STOPPING[options.early_stopping],
        float(options.length_penalty),
        [PROCESSORS.index(code.kind) for code in codes],
        [list(code.integers) for code in codes],
        [list(code.floats) for code in codes],
        vocabulary,
    )


def _state(search: StaticSearch) -> tuple[torch.Tensor, ...]:
    """The tensors of a search in their order; greedy search lacks the last ones."""
    names = BEAM_STATE if isinstance(search.search, BeamSearch) else SAMPLING_STATE
    return tuple(search.state[name] for name in names if name in search.state)
