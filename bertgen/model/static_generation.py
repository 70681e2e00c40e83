"""`generate` in static steps: several run as one call of the C++ extension, on a GPU as replays of a CUDA graph."""

from __future__ import annotations

from typing import Any

import torch

from .. import decoding
from ..cache.block_allocator import BlockAllocator
from ..cache.cache import Cache
from ..config import GenerationConfig
from ..decoding.static_search import why_not_static
from ..errors import UnsupportedError
from ..out_of_memory import attempt
from .captured_calls import why_not_captured
from .cpp_steps import CppSteps, CurrentWeights, why_not_cpp_steps
from .generation_inputs import GenerationInputs
from .graph_pool import why_not_graphs
from .kept_decoders import Result, Shape, drop_kept_decoders, kept_decoders
from .static_decoder import StaticDecoder

STEPS = 16  # of a call, during which no signal handler runs
_OF_DECODER = ("embeds", "mask", "positions", "types", "cache")


def static_sequences(
    decoder: Any, inputs: GenerationInputs, options: GenerationConfig, search: decoding.Search
) -> torch.Tensor | None:
    """int64 [outputs, L], as `Search.output` has them; None, with nothing done, where steps are not static.

    Args:
        options: resolved. search: without units.
    """
    if _why_not(inputs, options, search) is not None:
        return None
    device = inputs.prefix.device
    with torch.inference_mode():
        if why_not_graphs(device) is None:
            results = _by_graphs(decoder, inputs, options, search)
        elif device.type == "cpu":
            results = _by_cpp(decoder, inputs, options, search)
        else:
            results = None
            drop_kept_decoders(decoder)  # BERTGEN_GRAPHS or the backend has changed
    return None if results is None else _padded(inputs, options.num_return_sequences, search.fill, results)


def _why_not(inputs: GenerationInputs, options: GenerationConfig, search: decoding.Search) -> str | None:
    """Why steps of these inputs are not static, as one clause; None where they may be."""
    if not inputs.is_encoder_decoder or inputs.source is None:
        return "there is no source to encode"
    if inputs.prefix.shape[1] != 1:
        return "the outputs begin with more than one token"
    if given := [name for name in _OF_DECODER if getattr(inputs, name) is not None]:
        return f"the decoder has {given[0]} of the caller"
    if options.return_dict_in_generate or not options.use_cache:
        return "more than tokens is returned (return_dict_in_generate)" if options.use_cache else "use_cache is False"
    if not len(inputs.prefix) or not bool(inputs.source[1].cu_seqlens.diff().all()):
        return "a source is empty"
    return why_not_static(search)


def _padded(inputs: GenerationInputs, count: int, fill: int, results: list[Result]) -> torch.Tensor:
    """int64 [outputs, L], `count` outputs of each source with their first token, padded."""
    first = inputs.prefix[:, 0].tolist()
    rows = [
        [token, *output]
        for token, (outputs, _) in zip(first, results, strict=True)
        # A source with fewer outputs than wanted has empty ones.
        for output in [*outputs, *[[]] * (count - len(outputs))]
    ]
    length = max(map(len, rows))
    rows = [[*row, *[fill] * (length - len(row))] for row in rows]
    return torch.tensor(rows, dtype=torch.int64, device=inputs.prefix.device)


def _by_graphs(
    decoder: Any, inputs: GenerationInputs, options: GenerationConfig, search: decoding.Search
) -> list[Result] | None:
    """Outputs and scores of each source; None where no graph suits the call, or memory ran out."""
    assert inputs.source is not None
    states, packing = inputs.source
    device, lengths = inputs.prefix.device, packing.cu_seqlens.diff().tolist()
    if options.max_length < 2 or why_not_captured(decoder) is not None:
        return None
    shape = Shape.of(lengths, search.width, options.max_length, decoder.config.max_tokens + 1)
    kept = kept_decoders(decoder, device)

    def run() -> tuple[list[Result] | None]:
        with kept.borrowed(decoder, options, search, shape) as one:
            if one is None:
                return (None,)
            return (one.results(decoder, states, lengths, inputs.prefix, options.max_length),)

    outcome = attempt(run, device)
    if outcome is None:
        drop_kept_decoders(decoder)
    return None if outcome is None else outcome[0]


def _by_cpp(
    decoder: Any, inputs: GenerationInputs, options: GenerationConfig, search: decoding.Search
) -> list[Result] | None:
    """Outputs and scores of each source; None where C++ does not run the steps."""
    drop_kept_decoders(decoder)  # of a GPU that the model has left
    weights = CurrentWeights(decoder)
    if why_not_cpp_steps(decoder, len(inputs.prefix) * search.width, weights) is not None:
        return None
    assert inputs.source is not None
    states, packing = inputs.source
    config, stack = decoder.config, decoder.body.encoder
    lengths, page = packing.cu_seqlens.diff().tolist(), BlockAllocator.PAGE
    cache = Cache(
        len(stack.layer), config.num_attention_heads, config.head_dim, decoder.dtype, inputs.prefix.device,
        rows=len(lengths) * search.width, positions=options.max_length - 1, source_positions=max(lengths),
        source_slots=sum(-(-length // page) * page for length in lengths),
    )  # fmt: skip
    admitted = [cache.admit(search.width, options.max_length - 1, i, length) for i, length in enumerate(lengths)]
    admissions = [admission for admission in admitted if admission is not None]
    cache.begin_sources(admissions)
    stack.write_sources(cache, states)
    units = [*range(len(lengths))]
    static = StaticDecoder(decoder, cache, [(search, len(units))], options.max_length, max(lengths))
    static.join(0, units, admissions, inputs.prefix, units)
    steps, over = CppSteps(static, weights), False
    while not over:
        try:
            steps.run(STEPS)
        except UnsupportedError:  # another thread has changed the model
            return None
        over = all(steps.flags()[1])
    return static.searches[0].results(torch.arange(len(units), device="cpu"))
