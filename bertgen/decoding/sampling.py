"""Greedy search and sampling: each row goes its own way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..config import GenerationConfig
from ..outputs import GenerateOutput
from .history import done, process, recorded, widened
from .logits_processors import Processors
from .rng import Draws, Keys
from .search import Search
from .stopping_criteria import Criteria


class Sampling(Search):
    """Greedy search, or sampling with `do_sample`. A unit is a row; with several return sequences its owner is (the
    source's, which of them). Where scored, the model's own log-probabilities of what is chosen are added up.
    """

    STATE = ("sequences", "seeds", "numbers", "alive", "gained", "final", "limits")

    sequences: torch.Tensor
    seeds: torch.Tensor
    numbers: torch.Tensor
    alive: torch.Tensor
    gained: torch.Tensor
    final: torch.Tensor
    limits: torch.Tensor

    def __init__(
        self, options: GenerationConfig, processors: Processors, criteria: Criteria, draws: Draws, scored: bool = False
    ):
        super().__init__(options, processors, criteria, draws, scored)
        self.fill = options.pad_token_id if options.pad_token_id is not None else 0
        self.histories = {"sequences": self.fill}
        # As in transformers, a row goes on behind a stop where there is no end token.
        self.keeps_rows |= not options.end_tokens
        self._left: list[tuple[list[Any], torch.Tensor]] = []  # rows that have left, and what they hold

    def _begun(
        self, prefix: torch.Tensor, seeds: torch.Tensor, numbers: torch.Tensor, limits: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        count, device = self.options.num_return_sequences, prefix.device
        rows = prefix.repeat_interleave(count, 0)
        return dict(
            sequences=widened(rows, rows.shape[1] + 1, self.fill),
            tokens=rows,
            seeds=seeds.repeat_interleave(count),
            numbers=(numbers[:, None] + (torch.arange(count, device=device) << 40)).flatten(),
            alive=torch.ones(len(rows), dtype=torch.bool, device=device),
            gained=torch.zeros(len(rows), dtype=torch.float64, device=device),
            limits=limits.repeat_interleave(count),
            final=torch.full((len(rows),), rows.shape[1], dtype=torch.int64, device=device),
            lengths=torch.full((len(rows),), rows.shape[1], dtype=torch.int64, device="cpu"),
        )

    def _units(self, sources: Sequence[Any]) -> Sequence[Any]:
        count = self.options.num_return_sequences
        return sources if count == 1 else [(one, i) for one in sources for i in range(count)]

    def advance(self, logits: torch.Tensor) -> bool:
        """As `Search.advance`: False when every row has ended."""
        options, scores, lengths = self.options, logits.float(), self.lengths.to(logits.device)
        if options.output_logits:
            self.logits.append(scores)
        if self.processors:
            kept = self.scored or options.output_logits  # a caller's processor may change what it is given
            given = scores.clone() if kept and self.processors.custom else scores
            scores = process(self.processors, self.sequences, self.lengths, given, self.alive)
        if options.output_scores:
            self.scores.append(scores)
        keys = Keys(self.seeds, self.numbers, lengths)
        tokens = self.draws.choose(scores, 1, options.do_sample, keys).squeeze(1)
        if self.scored:
            own = logits.float()
            gained = own.gather(1, tokens[:, None]).squeeze(1) - own.logsumexp(-1)
            self.gained += gained.masked_fill(~self.alive, 0.0)
        if options.end_tokens:
            tokens = torch.where(self.alive, tokens, self.fill)
        self._widen(int(self.lengths.max()) + 1)
        self.sequences.scatter_(1, lengths[:, None], tokens[:, None])
        self.lengths = self.lengths + 1
        self.final = torch.where(self.alive, lengths + 1, self.final)
        self.tokens = tokens[:, None]
        self.alive = self.alive & ~torch.isin(tokens, self.end)
        if self.criteria:
            stopped = done(self.criteria, self.sequences, self.lengths, recorded(self.scores, options))
            self.alive = self.alive & ~stopped
        self.alive = self.alive & (lengths + 1 < self.limits)
        return bool(self.alive.any())

    def ended(self) -> torch.Tensor:
        """As `Search.ended`."""
        return (~self.alive).nonzero().squeeze(1).cpu()

    def take(self, places: torch.Tensor) -> list[tuple[list[list[int]], list[float | None]]]:
        """As `Search.take`: the one output of each row, and its score where it is scored."""
        places = places.to(self.tokens.device)
        rows, lengths = self.sequences[places].tolist(), (self.final[places] - self.prefix).tolist()
        scores: list[float | None] = [None] * len(rows)
        if self.scored:
            totals, penalty = self.gained[places].tolist(), self.options.length_penalty
            scores = [per_length(total, n, penalty) for total, n in zip(totals, lengths)]
        return [([row[self.prefix :][:n]], [score]) for row, n, score in zip(rows, lengths, scores)]

    def _set_aside(self, places: torch.Tensor) -> None:
        owners = [self.owners[place] for place in places.tolist()]
        self._left.append((owners, self.sequences[places.to(self.sequences.device)]))

    def output(self) -> GenerateOutput:
        """As `Search.output`: all sequences up to the longest."""
        length = int(self.lengths.max())
        self._set_aside(torch.arange(len(self.owners), device="cpu"))
        owners = [owner for part, _ in self._left for owner in part]
        rows = torch.cat([widened(rows, length, self.fill)[:, :length] for _, rows in self._left])
        order = sorted(range(len(owners)), key=owners.__getitem__)
        return GenerateOutput(
            sequences=rows[torch.tensor(order, dtype=torch.int64, device=rows.device)],
            scores=recorded(self.scores, self.options),
            logits=tuple(self.logits) if self.options.output_logits else None,
        )


def per_length(total: float, length: int, penalty: float) -> float:
    """A log-probability / length ** penalty; beyond the numbers there are it is 0 or -inf, as that of beams."""
    try:
        divisor = max(length, 1) ** penalty
    except OverflowError:
        divisor = math.inf
    if divisor == 0.0:
        return -math.inf if total < 0 else total
    return total / divisor
