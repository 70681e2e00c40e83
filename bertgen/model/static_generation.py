"""`generate` of an encoder-decoder in static steps: several run as one call of the C++ extension."""

from __future__ import annotations

from typing import Any

import torch

from .. import decoding
from ..cache.block_allocator import BlockAllocator
from ..cache.cache import Cache
from ..config import GenerationConfig
from ..decoding.static_search import why_not_static
from .cpp_steps import CppSteps, CurrentWeights, why_not_cpp_steps
from .generation_inputs import GenerationInputs
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
    weights = CurrentWeights(decoder)
    if _why_not(inputs, options, search) is not None:
        return None
    if why_not_cpp_steps(decoder, len(inputs.prefix) * search.width, weights) is not None:
        return None
    with torch.inference_mode():
        results = _results(decoder, inputs, options, search, weights)
    return _padded(inputs, options.num_return_sequences, search.fill, results)


def _why_not(inputs: GenerationInputs, options: GenerationConfig, search: decoding.Search) -> str | None:
    """Why steps of these inputs are not static, as one clause; None where they may be."""
    if not inputs.is_encoder_decoder or inputs.source is None:
        return "there is no source to encode"
    if inputs.prefix.shape[1] != 1 or inputs.prefix.device.type != "cpu":
        return "the outputs begin with more than one token" if inputs.prefix.shape[1] != 1 else "it is not on a CPU"
    if given := [name for name in _OF_DECODER if getattr(inputs, name) is not None]:
        return f"the decoder has {given[0]} of the caller"
    if options.return_dict_in_generate or not options.use_cache:
        return "more than tokens is returned (return_dict_in_generate)" if options.use_cache else "use_cache is False"
    if not len(inputs.prefix) or not bool(inputs.source[1].cu_seqlens.diff().all()):
        return "a source is empty"
    return why_not_static(search)


def _padded(
    inputs: GenerationInputs, count: int, fill: int, results: list[tuple[list[list[int]], list[float | None]]]
) -> torch.Tensor:
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


def _results(
    decoder: Any, inputs: GenerationInputs, options: GenerationConfig, search: decoding.Search, weights: CurrentWeights
) -> list[tuple[list[list[int]], list[float | None]]]:
    """Outputs and scores of each source."""
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
        steps.run(STEPS)
        over = all(steps.flags()[1])
    return static.searches[0].results(torch.arange(len(units), device="cpu"))
