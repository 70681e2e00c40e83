"""Greedy search and sampling: rows are independent of each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..config import GenerationConfig
from ..outputs import GenerateOutput
from .logits_processors import LogitsProcessorList
from .rng import Rng, RngKeys, SampleLimits
from .search import Search
from .stopping_criteria import StoppingCriteriaList
from .token_history import pad_histories, process_scores, returned_scores, stopped_rows


class Sampling(Search):
    """Greedy search, or sampling with `do_sample`.

    Where the RNG takes limits, and `ops.sample` can do all of the warpers, it does them instead of a processor.

    A unit is a row. With several return sequences its owner is (owner of the source, index of the sequence). With
    `scored` the sum of the model's own log-probabilities of the chosen tokens is kept.
    """

    STATE: tuple[str, ...] = ("sequences", "seeds", "numbers", "running", "log_probs", "final_lengths", "limits")

    sequences: torch.Tensor
    seeds: torch.Tensor
    numbers: torch.Tensor
    running: torch.Tensor
    log_probs: torch.Tensor
    final_lengths: torch.Tensor
    limits: torch.Tensor
    temperature: torch.Tensor  # to min_p: the limits of each row, for an RNG that takes them
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor

    def __init__(
        self,
        options: GenerationConfig,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        rng: Rng,
        scored: bool = False,
    ):
        self.has_limits = bool(options.do_sample and rng.takes_limits)
        self.warpers: dict[str, Any] = {}  # options of `ops.warp` that are limits
        if self.has_limits:
            self.STATE += SampleLimits._fields
            warpers = None if options.output_scores else processors.sample_options()
            if warpers is not None:
                self.warpers, processors = warpers, processors.without_last()
        super().__init__(options, processors, criteria, rng, scored)
        self.fill = options.pad_token_id if options.pad_token_id is not None else 0
        self.histories = {"sequences": self.fill}
        # As in transformers: without an end token, rows that a stopping criterion ended still get tokens.
        self.keeps_rows |= not options.end_tokens
        self._stored: list[tuple[list[Any], torch.Tensor]] = []  # owners and sequences of rows that have left

    def _initial_state(
        self, prefix: torch.Tensor, seeds: torch.Tensor, numbers: torch.Tensor, limits: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        count, device = self.options.num_return_sequences, prefix.device
        rows = prefix.repeat_interleave(count, 0)
        return dict(
            **self.new_limits(len(rows), device),
            sequences=pad_histories(rows, rows.shape[1] + 1, self.fill),
            tokens=rows,
            seeds=seeds.repeat_interleave(count),
            numbers=(numbers[:, None] + (torch.arange(count, device=device) << 40)).flatten(),
            running=torch.ones(len(rows), dtype=torch.bool, device=device),
            log_probs=torch.zeros(len(rows), dtype=torch.float64, device=device),
            limits=limits.repeat_interleave(count),
            final_lengths=torch.full((len(rows),), rows.shape[1], dtype=torch.int64, device=device),
            lengths=torch.full((len(rows),), rows.shape[1], dtype=torch.int64, device="cpu"),
        )

    def new_limits(self, rows: int, device: torch.device) -> dict[str, torch.Tensor]:
        """The state of SampleLimits for rows with the options of this search; empty where it has none."""
        if not self.has_limits:
            return {}
        return {
            name: torch.full((rows,), value, dtype=torch.int64 if name == "top_k" else torch.float32, device=device)
            for name, value in sample_limits(self.warpers).items()
        }

    def _unit_owners(self, owners: Sequence[Any]) -> Sequence[Any]:
        count = self.options.num_return_sequences
        return owners if count == 1 else [(owner, i) for owner in owners for i in range(count)]

    def advance(self, logits: torch.Tensor) -> bool:
        """As `Search.advance`: False when every row has ended."""
        options, scores, lengths = self.options, logits.float(), self.lengths.to(logits.device)
        if options.output_logits:
            self.logits.append(scores)
        if self.processors:
            logits_needed = self.scored or options.output_logits
            if logits_needed and self.processors.has_custom:  # a caller's processor may change its input in place
                scores = scores.clone()
            scores = process_scores(self.processors, self.sequences, self.lengths, scores, self.running)
        if options.output_scores:
            self.scores.append(scores)
        tokens, log_probs, ends = self.choose(logits, scores, lengths)
        if log_probs is not None:
            self.log_probs += log_probs.masked_fill(~self.running, 0.0)
        if options.end_tokens:
            tokens = torch.where(self.running, tokens, self.fill)
        self._grow_histories(int(self.lengths.max()) + 1)
        self.sequences.scatter_(1, lengths[:, None], tokens[:, None])
        self.lengths = self.lengths + 1
        self.final_lengths = torch.where(self.running, lengths + 1, self.final_lengths)
        self.tokens = tokens[:, None]
        self.running = self.running & ~ends
        if self.criteria:
            stopped = stopped_rows(self.criteria, self.sequences, self.lengths, returned_scores(self.scores, options))
            self.running = self.running & ~stopped
        return bool(self.running.any())

    def choose(
        self, logits: torch.Tensor, scores: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """The next token of each row. It reads nothing on the host and changes no state.

        Args:
            logits: [n, V].
            scores: float32 [n, V], the logits after the processors.
            lengths: int64 [n] on the device, of the histories.

        Returns:
            The tokens, int64 [n]; with `scored` their log-probabilities by the logits, float32 [n]; and whether the
            output ends with them, bool [n].
        """
        sample = bool(self.options.do_sample)
        keys = RngKeys(self.seeds, self.numbers, lengths) if sample else None
        limits = SampleLimits(self.temperature, self.top_k, self.top_p, self.min_p) if self.has_limits else None
        tokens = self.rng.choose(scores, 1, sample, keys, limits).squeeze(1)
        log_probs = None
        if self.scored:
            unprocessed = logits.float()
            log_probs = unprocessed.gather(1, tokens[:, None]).squeeze(1) - unprocessed.logsumexp(-1)
        return tokens, log_probs, self.ends_by_token(tokens) | (lengths + 1 >= self.limits)

    def ended(self) -> torch.Tensor:
        """As `Search.ended`."""
        return (~self.running).nonzero().squeeze(1).cpu()

    def results(self, units: torch.Tensor) -> list[tuple[list[list[int]], list[float | None]]]:
        """As `Search.results`: one output per row; its score is None unless `scored`."""
        units = units.to(self.tokens.device)
        rows, lengths = self.sequences[units].tolist(), (self.final_lengths[units] - self.prefix).tolist()
        scores: list[float | None] = [None] * len(rows)
        if self.scored:
            totals, penalty = self.log_probs[units].tolist(), self.options.length_penalty
            scores = [length_normalized(total, n, penalty) for total, n in zip(totals, lengths)]
        return [([row[self.prefix :][:n]], [score]) for row, n, score in zip(rows, lengths, scores)]

    def _store_results(self, units: torch.Tensor) -> None:
        owners = [self.owners[unit] for unit in units.tolist()]
        self._stored.append((owners, self.sequences[units.to(self.sequences.device)]))

    def output(self) -> GenerateOutput:
        """As `Search.output`: all sequences up to the longest."""
        length = int(self.lengths.max())
        self._store_results(torch.arange(len(self.owners), device="cpu"))
        owners = [owner for part, _ in self._stored for owner in part]
        rows = torch.cat([pad_histories(rows, length, self.fill)[:, :length] for _, rows in self._stored])
        order = sorted(range(len(owners)), key=owners.__getitem__)
        return GenerateOutput(
            sequences=rows[torch.tensor(order, dtype=torch.int64, device=rows.device)],
            scores=returned_scores(self.scores, self.options),
            logits=tuple(self.logits) if self.options.output_logits else None,
        )


def sample_limits(options: Mapping[str, Any]) -> dict[str, float]:
    """The values of SampleLimits for options of these names; one that is absent or None limits nothing."""
    values: dict[str, float] = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    values |= {name: options[name] for name in SampleLimits._fields if options.get(name) is not None}
    values["top_k"] = min(values["top_k"], 1 << 31)  # more than any vocabulary
    return values


def length_normalized(total: float, length: int, penalty: float) -> float:
    """A log-probability / length ** penalty; 0 or -inf where the power overflows or underflows, as for beams."""
    try:
        divisor = max(length, 1) ** penalty
    except OverflowError:
        divisor = math.inf
    if divisor == 0.0:
        return -math.inf if total < 0 else total
    return total / divisor
