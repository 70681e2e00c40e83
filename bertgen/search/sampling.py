"""Greedy search and sampling: each row goes its own way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..config import GenerationConfig
from ..outputs import GenerateOutput
from ..processors import Processors
from ..stopping import Criteria
from .draws import Draws, Keys
from .histories import done, keeps_rows, limits_of, process, recorded, widened


class Sampling:
    """Greedy search, or sampling with `do_sample`.

    Args:
        options: settled.
        scored: add up the model's own log-probabilities of what is chosen.

    Attributes:
        owners: of each row, as given to `join`; with several return sequences (owner, which of them).
        tokens: int64 [R, T], what the decoder is fed next.
        parents: always None; rows keep their histories.
        width: rows of a unit that leaves as one.
    """

    parents, width = None, 1
    # What is known of each row; `lengths` is on the host.
    sequences: torch.Tensor
    tokens: torch.Tensor
    seeds: torch.Tensor
    numbers: torch.Tensor
    alive: torch.Tensor
    gained: torch.Tensor
    final: torch.Tensor
    limits: torch.Tensor
    lengths: torch.Tensor

    def __init__(
        self, options: GenerationConfig, processors: Processors, criteria: Criteria, draws: Draws, scored: bool = False
    ):
        self.options, self.processors, self.criteria, self.draws = options, processors, criteria, draws
        self.scored, self.fill = scored, options.pad_token_id if options.pad_token_id is not None else 0
        self.owners: list[Any] = []
        # As in transformers, a row goes on behind a stop where there is no end token.
        self.keeps_rows = not options.end_tokens or keeps_rows(options, processors, criteria)
        self.scores: list[torch.Tensor] = []
        self.logits: list[torch.Tensor] = []
        self._left: list[tuple[list[Any], torch.Tensor]] = []  # rows that have left, and what they hold

    def join(
        self,
        prefix: torch.Tensor,
        owners: Sequence[Any],
        seeds: torch.Tensor | None = None,
        numbers: torch.Tensor | None = None,
        limits: torch.Tensor | None = None,
    ) -> None:
        """Sources join, behind those that are here.

        Args:
            prefix: int64 [n, P]; P is 1 where others are here.
            owners: of each source.
            seeds, numbers: int64 [n] on the device of the prefix, for draws by key.
            limits: int64 [n] there, the longest output of each with its prefix; by default `max_length`.
        """
        count, device = self.options.num_return_sequences, prefix.device
        rows = prefix.repeat_interleave(count, 0)
        nothing = torch.zeros(len(prefix), dtype=torch.int64, device=device)
        number = nothing if numbers is None else numbers
        number = (number[:, None] + (torch.arange(count, device=device) << 40)).flatten()
        seed = (nothing if seeds is None else seeds).repeat_interleave(count)
        fresh = dict(
            sequences=widened(rows, rows.shape[1] + 1, self.fill),
            tokens=rows,
            seeds=seed,
            numbers=number,
            alive=torch.ones(len(rows), dtype=torch.bool, device=device),
            gained=torch.zeros(len(rows), dtype=torch.float64, device=device),
            limits=limits_of(limits, self.options, prefix).repeat_interleave(count),
            final=torch.full((len(rows),), rows.shape[1], device=device),
            lengths=torch.full((len(rows),), rows.shape[1]),  # on the host
        )
        if self.owners:
            width = max(self.sequences.shape[1], fresh["sequences"].shape[1])
            self.sequences = widened(self.sequences, width, self.fill)
            fresh["sequences"] = widened(fresh["sequences"], width, self.fill)
            fresh = {name: torch.cat((getattr(self, name), new)) for name, new in fresh.items()}
        vars(self).update(fresh)
        self.prefix, self.end = prefix.shape[1], prefix.new_tensor(self.options.end_tokens)
        self.owners += list(owners) if count == 1 else [(one, i) for one in owners for i in range(count)]

    def advance(self, logits: torch.Tensor) -> bool:
        """Choose the next token of each row from logits [R, V]; False when every row has ended."""
        options, scores, lengths = self.options, logits.float(), self.lengths.to(logits.device)
        if options.output_logits:
            self.logits.append(scores)
        if self.processors:
            scores = process(self.processors, self.sequences, self.lengths, scores)
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
        self.sequences = widened(self.sequences, int(self.lengths.max()) + 1, self.fill)
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
        """int64, the places of the rows that have ended, on the host."""
        return (~self.alive).nonzero().squeeze(1).cpu()

    def take(self, places: torch.Tensor) -> list[tuple[list[list[int]], list[float | None]]]:
        """For some rows: their one output, without the prefix, and its score, as that of a beam, where it is scored."""
        places = places.to(self.tokens.device)
        rows, lengths = self.sequences[places].tolist(), (self.final[places] - self.prefix).tolist()
        if not self.scored:
            scores = [None] * len(rows)
        else:
            totals, penalty = self.gained[places].tolist(), self.options.length_penalty
            scores = [total / max(n, 1) ** penalty for total, n in zip(totals, lengths)]
        return [([row[self.prefix :][:n]], [score]) for row, n, score in zip(rows, lengths, scores)]

    def keep(self, places: torch.Tensor) -> torch.Tensor:
        """Only the rows at these places (int64, on the host) stay; returns them, for the decoder."""
        device = self.tokens.device
        for name in ("sequences", "tokens", "seeds", "numbers", "alive", "gained", "final", "limits"):
            setattr(self, name, getattr(self, name)[places.to(device)])
        self.lengths = self.lengths[places]
        self.owners = [self.owners[place] for place in places.tolist()]
        return places

    def thinned(self) -> torch.Tensor | None:
        """Rows to go on with once half of them have ended; None to go on with all."""
        if self.keeps_rows or 2 * int(self.alive.sum()) > self.alive.numel():
            return None
        self._leave(self.ended())
        return self.keep(self.alive.nonzero().squeeze(1).cpu())

    def _leave(self, places: torch.Tensor) -> None:
        owners = [self.owners[place] for place in places.tolist()]
        self._left.append((owners, self.sequences[places.to(self.sequences.device)]))

    def output(self) -> GenerateOutput:
        """All sequences up to the longest, padded behind their ends."""
        length = int(self.lengths.max())
        self._leave(torch.arange(len(self.owners)))
        owners = [owner for part, _ in self._left for owner in part]
        rows = torch.cat([widened(rows, length, self.fill)[:, :length] for _, rows in self._left])
        order = sorted(range(len(owners)), key=owners.__getitem__)
        return GenerateOutput(
            sequences=rows[torch.tensor(order, device=rows.device)],
            scores=recorded(self.scores, self.options),
            logits=tuple(self.logits) if self.options.output_logits else None,
        )
