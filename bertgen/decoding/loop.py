"""The decode loop, and what it drives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ..config import GenerationConfig
from ..outputs import GenerateOutput
from .beam_search import BeamSearch
from .logits_processors import Processors
from .rng import TorchDraws
from .sampling import Sampling
from .search import Search
from .stopping_criteria import Criteria


class Decoder(Protocol):
    """What the decode loop drives: R rows with a history each; the rows of a source are adjacent."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [R, T], the newest tokens of each row -> logits [R, vocab] of the next."""

    def reorder(self, rows: torch.Tensor) -> None:
        """Row r goes on from the history of row rows[r] (int64 [R])."""

    def select(self, rows: torch.Tensor) -> None:
        """Only these rows go on (int64), in this order; those of a source stay adjacent."""


class Rows(Protocol):
    """What a step advances: a search, or what stands for one."""

    @property
    def tokens(self) -> torch.Tensor:
        """int64 [rows, T], what the decoder is fed next."""

    @property
    def parents(self) -> torch.Tensor | None:
        """int64 [rows], the row whose history each row continues; None where each continues its own."""

    def advance(self, logits: torch.Tensor) -> bool:
        """Choose the next token of each row from logits [rows, V]; False when the search is done."""


def step(decoder: Decoder, searches: Sequence[Rows]) -> bool:
    """One step of searches whose rows the decoder holds one search behind the other; whether one of them goes on."""
    tokens = [search.tokens for search in searches]
    logits = decoder.step(tokens[0] if len(tokens) == 1 else torch.cat(tokens))
    start, going, parents = 0, False, []
    for search in searches:
        end = start + len(search.tokens)
        going |= search.advance(logits[start:end])
        if search.parents is not None:
            parents.append(search.parents + start)
        else:
            parents.append(torch.arange(start, end, device=logits.device))
        start = end
    if any(search.parents is not None for search in searches):
        decoder.reorder(parents[0] if len(parents) == 1 else torch.cat(parents))
    return going


def decode(decoder: Decoder, search: Search, streamer: Any = None) -> GenerateOutput:
    """The decode loop of one batch: feed tokens, take logits, until the search is done.

    Args:
        streamer: gets the tokens on the CPU, first the prefix [R, P], then those of each step [R].
    """
    if streamer is not None:
        streamer.put(search.tokens.cpu())
    while step(decoder, [search]):
        if streamer is not None:
            streamer.put(search.tokens.flatten().cpu())
        elif (rows := search.thinned()) is not None:
            decoder.select(rows)
    if streamer is not None:
        streamer.put(search.tokens.flatten().cpu())
        streamer.end()
    return search.output()


def begin(
    prefix: torch.Tensor,
    options: GenerationConfig,
    processors: Processors | None = None,
    criteria: Criteria | None = None,
    generator: torch.Generator | None = None,
) -> Search:
    """The search that settled `options` ask for, over prefix int64 [sources, P]; draws come from `generator`."""
    kind = BeamSearch if options.num_beams > 1 else Sampling
    search = kind(options, processors or Processors(), criteria or Criteria(), TorchDraws(generator))
    search.join(prefix, range(len(prefix)))
    return search
