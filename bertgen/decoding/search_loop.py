"""The decode loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ..config import GenerationConfig
from ..outputs import GenerateOutput
from .beam_search import BeamSearch
from .logits_processors import LogitsProcessorList
from .rng import TorchRng
from .sampling import Sampling
from .search import Search
from .stopping_criteria import StoppingCriteriaList


class Decoder(Protocol):
    """The model in the decode loop: R rows with a history each; the rows of a source are adjacent."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [R, T], the newest tokens of each row -> logits [R, vocab] of the next."""

    def reorder(self, rows: torch.Tensor) -> None:
        """Row r continues the history of row rows[r] (int64 [R])."""

    def select(self, rows: torch.Tensor) -> None:
        """Keep only these rows (int64), in this order; those of a source stay adjacent."""


class Steppable(Protocol):
    """Rows of the decoder that choose their next token together: a `Search`, or a wrapper of one."""

    @property
    def tokens(self) -> torch.Tensor:
        """int64 [rows, T], the next input of the decoder."""

    @property
    def parents(self) -> torch.Tensor | None:
        """int64 [rows], the row whose history each row continues; None where each continues its own."""

    def advance(self, logits: torch.Tensor) -> bool:
        """Choose the next token of each row from logits [rows, V]; False when the search is done."""


def step_searches(decoder: Decoder, searches: Sequence[Steppable]) -> bool:
    """Decode one token for all searches; the decoder holds their rows in the order of `searches`.

    Returns:
        Whether at least one search continues.
    """
    tokens = [search.tokens for search in searches]
    logits = decoder.step(tokens[0] if len(tokens) == 1 else torch.cat(tokens))
    start, running, parents = 0, False, []
    for search in searches:
        end = start + len(search.tokens)
        running |= search.advance(logits[start:end])
        if search.parents is not None:
            parents.append(search.parents + start)
        else:
            parents.append(torch.arange(start, end, device=logits.device))
        start = end
    if any(search.parents is not None for search in searches):
        decoder.reorder(parents[0] if len(parents) == 1 else torch.cat(parents))
    return running


def run_search(decoder: Decoder, search: Search, streamer: Any = None) -> GenerateOutput:
    """Decode one batch to its end.

    Args:
        streamer: receives the tokens on the CPU, first the prefix [R, P], then those of each step [R].
    """
    if streamer is not None:
        streamer.put(search.tokens.cpu())
    while step_searches(decoder, [search]):
        if streamer is not None:
            streamer.put(search.tokens.flatten().cpu())
        elif (rows := search.drop_ended()) is not None:
            decoder.select(rows)
    if streamer is not None:
        streamer.put(search.tokens.flatten().cpu())
        streamer.end()
    return search.output()


def search_class(options: GenerationConfig) -> type[Search]:
    """The kind of search that resolved `options` need."""
    return BeamSearch if options.num_beams > 1 else Sampling


def empty_search(
    options: GenerationConfig,
    processors: LogitsProcessorList | None = None,
    criteria: StoppingCriteriaList | None = None,
    generator: torch.Generator | None = None,
) -> Search:
    """The search for resolved `options`, without sources.

    Args:
        generator: random numbers for sampling; None is torch's default generator.
    """
    processors, criteria = processors or LogitsProcessorList(), criteria or StoppingCriteriaList()
    return search_class(options)(options, processors, criteria, TorchRng(generator))


def new_search(
    prefix: torch.Tensor,
    options: GenerationConfig,
    processors: LogitsProcessorList | None = None,
    criteria: StoppingCriteriaList | None = None,
    generator: torch.Generator | None = None,
) -> Search:
    """As `empty_search`, with one source per row of prefix int64 [sources, P]."""
    search = empty_search(options, processors, criteria, generator)
    search.join(prefix, range(len(prefix)))
    return search
