"""Beam search: that of transformers 5, stated on tensors [sources, beams] (length penalty of Wu et al. 2016, arXiv
1609.08144). Diverse groups of beams (Vijayakumar et al. 2016, arXiv 1610.02424) are so many sources each with its share
of the beams.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import ops
from ..config import GenerationConfig
from ..outputs import GenerateOutput
from .history import done, process, recorded, widened
from .logits_processors import Processors
from .rng import Draws, Keys
from .search import Search
from .stopping_criteria import Criteria

DEAD = -1.0e9  # added to the score of a hypothesis that may not go on
ALIVE = DEAD / 2  # scores above are those of hypotheses that may: nothing forbids any of their tokens
MOST_BEAMS, MOST_CANDIDATES = 16, 64  # of `ops.top_log_probs`


class BeamSearch(Search):
    """Keep the best open hypotheses per source and group of beams, and the best finished ones beside them.

    A unit is a source. Below, "a source" is one group of a source: its beams see those of other groups only by the
    diversity penalty.
    """

    STATE = (
        "open", "open_scores", "open_rows", "closed", "closed_scores", "closed_rows", "closed_lengths", "is_closed",
        "improvable", "over", "active", "seeds", "numbers", "limits",
    )  # fmt: skip

    open: torch.Tensor
    open_scores: torch.Tensor
    open_rows: torch.Tensor
    closed: torch.Tensor
    closed_scores: torch.Tensor
    closed_rows: torch.Tensor
    closed_lengths: torch.Tensor
    is_closed: torch.Tensor
    improvable: torch.Tensor
    over: torch.Tensor
    active: torch.Tensor
    seeds: torch.Tensor
    numbers: torch.Tensor
    limits: torch.Tensor

    def __init__(
        self, options: GenerationConfig, processors: Processors, criteria: Criteria, draws: Draws, scored: bool = False
    ):
        super().__init__(options, processors, criteria, draws, scored)
        self.groups, self.beams = options.num_beam_groups, options.num_beams // options.num_beam_groups
        ends = options.end_tokens
        self.candidates = max(2, 1 + len(ends)) * self.beams
        # Behind the last token of a shorter hypothesis: the pad id, and the end id where the pad id is 0 or unset.
        self.fill = options.pad_token_id or (ends[0] if ends else 0)
        self.keeps_rows |= self.groups > 1
        # Nobody looks at all scores: the best of each row are enough.
        self.plain = not (processors or options.do_sample or options.output_scores or self.groups > 1)
        self.plain &= self.beams <= MOST_BEAMS and self.candidates <= MOST_CANDIDATES
        self.traced = bool(options.return_dict_in_generate)  # from which row each token came
        self.histories = {"open": self.fill, "closed": self.fill}
        if self.traced:
            self.histories.update(open_rows=-1, closed_rows=-1)
        self._left: dict[Any, tuple[torch.Tensor, ...]] = {}  # what was found for sources that have left

    def _begun(
        self, prefix: torch.Tensor, seeds: torch.Tensor, numbers: torch.Tensor, limits: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        device, (count, length) = prefix.device, prefix.shape
        sources, beams = count * self.groups, self.beams
        first = prefix.repeat_interleave(self.groups, 0)[:, None].expand(-1, beams, -1)
        hypotheses = widened(first, length + 1, self.fill).contiguous()
        traces = torch.full(
            hypotheses.shape if self.traced else (sources, beams, 0), -1, dtype=torch.int32, device=device
        )
        scores = torch.full((sources, beams), DEAD, dtype=torch.float32, device=device)
        open_scores = scores.clone()
        open_scores[:, 0] = 0.0
        return dict(
            open=hypotheses,
            open_scores=open_scores,
            open_rows=traces,
            closed=hypotheses,
            closed_scores=torch.full_like(scores, -math.inf),
            closed_rows=traces,
            closed_lengths=torch.full((sources, beams), length, dtype=torch.int64, device=device),
            is_closed=torch.zeros(sources, beams, dtype=torch.bool, device=device),
            improvable=torch.ones(sources, dtype=torch.bool, device=device),
            over=torch.zeros(sources, dtype=torch.bool, device=device),
            active=torch.arange(sources, device=device) + len(self.owners) * self.groups,
            seeds=seeds.repeat_interleave(self.groups),
            numbers=numbers.repeat_interleave(self.groups),
            limits=limits.repeat_interleave(self.groups),
            lengths=torch.full((sources,), length, dtype=torch.int64, device="cpu"),
            tokens=prefix.repeat_interleave(self.width, 0),
        )

    def advance(self, logits: torch.Tensor) -> bool:
        """As `Search.advance`: extend the hypotheses by one token; False when no source can improve."""
        beams, options, device = self.beams, self.options, logits.device
        self._widen(int(self.lengths.max()) + 1)
        before = self.lengths.to(device)
        total, beam, token, extended, ends, best = self._extensions(logits.float(), before)
        self.lengths = self.lengths + 1
        generated = before[:, None] + 1 - self.prefix
        rows = self.open_rows
        if self.traced:
            rows = rows.gather(1, _over(beam, rows))
            came_from = (beam + self.active[:, None] * beams).int()[..., None]
            rows.scatter_(2, (generated - 1)[..., None].expand(came_from.shape), came_from)

        # Open hypotheses: the best that did not end.
        self.open_scores = torch.add(total, ends, alpha=DEAD).gather(1, best)
        self.open = extended.gather(1, _over(best, extended))
        self.open_rows = rows.gather(1, _over(best, rows)) if self.traced else rows
        parent = beam.gather(1, best) + torch.arange(beam.shape[0], device=device)[:, None] * beams
        self.parents, self.tokens = parent.flatten(), token.gather(1, best).view(-1, 1)

        # Finished hypotheses: those of the first `beams` candidates that ended, among the finished so far. A place
        # that no hypothesis has taken has the score -inf: what may not go on may not end either.
        closes = ends & (total > ALIVE) & self._goes_on()[:, None]
        closes &= torch.arange(ends.shape[1], device=device) < beams
        score = (total / _power(generated, options.length_penalty)).masked_fill(~closes, -math.inf)
        self.closed_scores, best = torch.cat((self.closed_scores, score), 1).topk(beams)
        self.is_closed = torch.cat((self.is_closed, closes), 1).gather(1, best)
        grown = (generated + self.prefix).expand_as(token)
        self.closed_lengths = torch.cat((self.closed_lengths, grown), 1).gather(1, best)
        self.closed = _pick(self.closed, extended, best)
        if self.traced:
            self.closed_rows = _pick(self.closed_rows, rows, best)

        # A source is worth going on with while its best open hypothesis could still beat its worst finished one.
        horizon = generated
        if options.early_stopping == "never" and options.length_penalty > 0.0:
            horizon = self.limits[:, None] - self.prefix
        best_open = self.open_scores[:, :1]
        hope = best_open / _power(horizon, options.length_penalty)
        worst = self.closed_scores.amin(1, keepdim=True)
        self.improvable = self.improvable & ((hope > worst) & (best_open > ALIVE)).squeeze(1)
        self.over = ~self._goes_on() | ends.all(1)
        if self.keeps_rows:  # as many steps as transformers takes, which goes on until the last source has enough
            return bool((self.improvable & ~self._full().all()).any()) and not bool(ends.all())
        return not bool(self.over.all())

    def _extensions(self, logits: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
        """The best one-token extensions of each source, its candidates.

        Returns:
            Log-probability, beam and token, each [sources, candidates]; the extended hypotheses [.., width]; whether
            each of them ends here; and which of them go on, int64 [sources, beams].
        """
        options, vocabulary = self.options, logits.shape[1]
        if options.output_logits:
            self.logits.append(logits)
        scores = logits
        if not self.plain:
            scores = logits.log_softmax(-1)
            if self.processors:
                beams = self.lengths.repeat_interleave(self.beams)
                going = self._goes_on().repeat_interleave(self.beams) if self.processors.custom else None
                scores = process(self.processors, self.open.flatten(0, 1), beams, scores, going)
            if options.diversity_penalty:
                scores = scores.clone(memory_format=torch.contiguous_format)  # what follows changes it in place
        if options.output_scores:
            self.scores.append(scores)
        scores = scores.reshape(-1, self.groups, self.beams, vocabulary)
        chosen = scores.new_zeros(scores.shape[0], vocabulary) if options.diversity_penalty else None
        parts = []
        for group in range(self.groups):
            mine = slice(group, None, self.groups)  # this group of every source
            if chosen is not None:
                scores[:, group] -= options.diversity_penalty * chosen[:, None]
            keys = Keys(self.seeds[mine], self.numbers[mine], lengths[mine])
            total, beam, token = self._best(scores[:, group], self.open_scores[mine], keys)
            extended = self.open[mine].gather(1, _over(beam, self.open))
            extended.scatter_(2, lengths[mine, None, None].expand(*token.shape, 1), token[..., None])
            ends = self._ends(token, extended, self.lengths[mine])
            best = torch.add(total, ends, alpha=DEAD).topk(self.beams).indices
            if chosen is not None:
                counts = self._goes_on()[mine, None].to(chosen.dtype)
                chosen.scatter_add_(1, token.gather(1, best), counts.expand(-1, self.beams))
            ends = ends | (lengths[mine, None] + 1 >= self.limits[mine, None])
            parts.append((total, beam, token, extended, ends, best))
        if self.groups == 1:
            return list(parts[0])
        return [torch.stack(pieces, 1).flatten(0, 1) for pieces in zip(*parts)]

    def _best(
        self, scores: torch.Tensor, open_scores: torch.Tensor, keys: Keys
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probability, beam and token, each [n, candidates], for scores [n, beams, V] of the next token."""
        vocabulary = scores.shape[-1]
        if self.plain:
            count = min(self.candidates, self.beams * vocabulary)
            total, index = ops.top_log_probs(scores.flatten(0, 1), count, open_scores.flatten(), self.beams)
        else:
            all_ = (scores + open_scores[:, :, None]).flatten(1)
            given = all_
            if self.options.do_sample and self.processors:  # where nothing may come next, anything is drawn: it is dead
                given = all_.masked_fill(all_.amax(1, keepdim=True).isneginf(), 0.0)
            index = self.draws.choose(given, self.candidates, bool(self.options.do_sample), keys)
            total = all_.gather(1, index)
        return total, index // vocabulary, index % vocabulary

    def _ends(self, token: torch.Tensor, extended: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """bool [n, candidates]: which hypotheses [n, candidates, width] end whatever the length, `token` their last."""
        ends = torch.isin(token, self.end)
        if self.criteria:
            lengths = (lengths + 1).repeat_interleave(token.shape[1])
            stopped = done(self.criteria, extended.flatten(0, 1), lengths, recorded(self.scores, self.options))
            ends = ends | stopped.view(ends.shape)
        return ends

    def _full(self) -> torch.Tensor:
        """bool [sources]: as many finished hypotheses as `early_stopping` is content with."""
        return self.is_closed.all(1) & (self.options.early_stopping is True)

    def _goes_on(self) -> torch.Tensor:
        return self.improvable & ~self._full()

    def ended(self) -> torch.Tensor:
        """As `Search.ended`."""
        return self.over.view(-1, self.groups).all(1).nonzero().squeeze(1).cpu()

    def take(self, places: torch.Tensor) -> list[tuple[list[list[int]], list[float | None]]]:
        """As `Search.take`."""
        found = []
        sequences, scores, lengths, _ = (x.tolist() for x in self._found(places))
        for rows, totals, ends in zip(sequences, scores, lengths):
            count = max(1, sum(total > -math.inf for total in totals))
            found.append(([row[self.prefix : n] for row, n in zip(rows, ends)][:count], totals[:count]))
        return found

    def _found(self, places: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Sequences [n, outputs, width], scores and lengths [n, outputs] and traces, best first, of all groups.

        Where there are fewer hypotheses than outputs, the last are nothing but the prefix, with the score -inf.
        """
        some = self._groups(places).to(self.tokens.device)
        none = ~self.is_closed[some]
        closed, rows = self.closed[some], self.closed_rows[some].masked_fill(none[..., None], -1)
        closed[..., self.prefix :] = closed[..., self.prefix :].masked_fill(none[..., None], self.fill)
        lengths = self.closed_lengths[some].masked_fill(none, self.prefix)
        state = (closed, self.closed_scores[some], lengths, rows)
        sequences, scores, lengths, rows = (x.unflatten(0, (-1, self.groups)).flatten(1, 2) for x in state)
        best = scores.argsort(dim=1, descending=True, stable=True)[:, : self.options.num_return_sequences]
        sequences, rows = (x.gather(1, _over(best, x)) for x in (sequences, rows))
        return sequences, scores.gather(1, best), lengths.gather(1, best), rows

    def _set_aside(self, places: torch.Tensor) -> None:
        found = self._found(places)
        for i, place in enumerate(places.tolist()):
            self._left[self.owners[place]] = tuple(x[i] for x in found)

    def output(self) -> GenerateOutput:
        """As `Search.output`: the `num_return_sequences` best of each source, all its groups together, best first."""
        self._set_aside(torch.arange(len(self.owners), device="cpu"))
        found = [self._left[owner] for owner in sorted(self._left)]
        lengths = torch.cat([lengths for _, _, lengths, _ in found])
        width = int(lengths.max())
        sequences = torch.cat([widened(rows, width, self.fill)[:, :width] for rows, _, _, _ in found])
        traces = None
        if self.traced:
            traces = torch.cat([widened(rows, width - self.prefix, -1)[:, : width - self.prefix] for *_, rows in found])
        return GenerateOutput(
            sequences=sequences,
            sequences_scores=torch.cat([scores for _, scores, _, _ in found]),
            scores=recorded(self.scores, self.options),
            logits=tuple(self.logits) if self.options.output_logits else None,
            beam_indices=traces,
        )


def _power(length: torch.Tensor, exponent: float) -> torch.Tensor:
    """length ** exponent in float64, rounded to float32."""
    return (length.double() ** exponent).float()


def _over(index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Index [B, n] for gathering whole rows of `like` [B, m, L]."""
    return index[..., None].expand(*index.shape, like.shape[-1])


def _pick(first: torch.Tensor, second: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows [B, k] of two tensors [B, m, L] and [B, n, L] laid one behind the other."""
    joined = torch.cat((first, second), 1)
    return joined.gather(1, _over(index, joined))
