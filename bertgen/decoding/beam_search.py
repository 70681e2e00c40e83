"""Beam search as in transformers 5, on tensors [sources, beams].

Length penalty of Wu et al. 2016 (arXiv 1609.08144). With diverse groups of beams (Vijayakumar et al. 2016, arXiv
1610.02424) each group of a source is handled as a source with its share of the beams.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import ops
from ..config import GenerationConfig
from ..outputs import GenerateOutput
from .logits_processors import LogitsProcessorList
from .rng import Rng, RngKeys
from .search import Search
from .stopping_criteria import StoppingCriteriaList
from .token_history import pad_histories, process_scores, returned_scores, stopped_rows

DEAD_SCORE = -1.0e9  # added to the score of a hypothesis that cannot continue
LIVE_THRESHOLD = DEAD_SCORE / 2  # hypotheses with scores above have only allowed tokens
MAX_FAST_BEAMS, MAX_FAST_CANDIDATES = 16, 64  # limits of `ops.top_log_probs`


class BeamSearch(Search):
    """Beam search: keeps the best running and the best finished hypotheses of each source and group of beams.

    A unit is a source. In the comments and shapes below, "a source" is one group of a source: groups affect each other
    by the diversity penalty only.
    """

    STATE = (
        "running_sequences", "running_scores", "running_beam_indices",
        "finished_sequences", "finished_scores", "finished_beam_indices", "finished_lengths", "is_finished",
        "can_improve", "is_done", "group_indices", "seeds", "numbers", "limits",
    )  # fmt: skip

    running_sequences: torch.Tensor
    running_scores: torch.Tensor
    running_beam_indices: torch.Tensor
    finished_sequences: torch.Tensor
    finished_scores: torch.Tensor
    finished_beam_indices: torch.Tensor
    finished_lengths: torch.Tensor
    is_finished: torch.Tensor
    can_improve: torch.Tensor
    is_done: torch.Tensor
    group_indices: torch.Tensor
    seeds: torch.Tensor
    numbers: torch.Tensor
    limits: torch.Tensor

    def __init__(
        self,
        options: GenerationConfig,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        rng: Rng,
        scored: bool = False,
    ):
        super().__init__(options, processors, criteria, rng, scored)
        self.groups, self.beams = options.num_beam_groups, options.num_beams // options.num_beam_groups
        ends = options.end_tokens
        self.candidates = max(2, 1 + len(ends)) * self.beams
        # After the last token of a shorter hypothesis: the pad id, or the end id where the pad id is 0 or unset.
        self.fill = options.pad_token_id or (ends[0] if ends else 0)
        self.keeps_rows |= self.groups > 1
        # Where no option needs all scores, the fused operator returns the best of each row.
        self.uses_top_log_probs = not (processors or options.do_sample or options.output_scores or self.groups > 1)
        self.uses_top_log_probs &= self.beams <= MAX_FAST_BEAMS and self.candidates <= MAX_FAST_CANDIDATES
        self.records_beams = bool(options.return_dict_in_generate)  # keep the row that each token came from
        self.histories = {"running_sequences": self.fill, "finished_sequences": self.fill}
        if self.records_beams:
            self.histories.update(running_beam_indices=-1, finished_beam_indices=-1)
        self._stored: dict[Any, tuple[torch.Tensor, ...]] = {}  # results of sources that have left

    def _initial_state(
        self, prefix: torch.Tensor, seeds: torch.Tensor, numbers: torch.Tensor, limits: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        device, (count, length) = prefix.device, prefix.shape
        sources, beams = count * self.groups, self.beams
        first = prefix.repeat_interleave(self.groups, 0)[:, None].expand(-1, beams, -1)
        hypotheses = pad_histories(first, length + 1, self.fill).contiguous()
        beam_indices = torch.full(
            hypotheses.shape if self.records_beams else (sources, beams, 0), -1, dtype=torch.int32, device=device
        )
        scores = torch.full((sources, beams), DEAD_SCORE, dtype=torch.float32, device=device)
        running_scores = scores.clone()
        running_scores[:, 0] = 0.0
        return dict(
            running_sequences=hypotheses,
            running_scores=running_scores,
            running_beam_indices=beam_indices,
            finished_sequences=hypotheses,
            finished_scores=torch.full_like(scores, -math.inf),
            finished_beam_indices=beam_indices,
            finished_lengths=torch.full((sources, beams), length, dtype=torch.int64, device=device),
            is_finished=torch.zeros(sources, beams, dtype=torch.bool, device=device),
            can_improve=torch.ones(sources, dtype=torch.bool, device=device),
            is_done=torch.zeros(sources, dtype=torch.bool, device=device),
            group_indices=torch.arange(sources, device=device) + len(self.owners) * self.groups,
            seeds=seeds.repeat_interleave(self.groups),
            numbers=numbers.repeat_interleave(self.groups),
            limits=limits.repeat_interleave(self.groups),
            lengths=torch.full((sources,), length, dtype=torch.int64, device="cpu"),
            tokens=prefix.repeat_interleave(self.width, 0),
        )

    def advance(self, logits: torch.Tensor) -> bool:
        """As `Search.advance`: extend the hypotheses by one token; False when no source can improve."""
        self._grow_histories(int(self.lengths.max()) + 1)
        state, stuck = self.choose(self._scores(logits.float()), self.lengths.to(logits.device))
        vars(self).update(state)
        self.lengths = self.lengths + 1
        if self.keeps_rows:  # as many steps as transformers, which continues until the last source has enough
            return bool((self.can_improve & ~self._has_enough(self.is_finished).all()).any() & ~stuck.all())
        return not bool(self.is_done.all())

    def choose(self, scores: torch.Tensor, lengths: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The state after one more token. Without criteria it reads nothing on the host, and changes no state.

        Args:
            scores: float32 [rows, V], logits or processed log-probabilities as `uses_top_log_probs` says.
            lengths: int64 [sources] on the device, of the histories, which have room for one more token.

        Returns:
            New values of the tokens, the parents and the STATE that a step changes, by name; and bool [sources], where
            every hypothesis ends.
        """
        beams, options, device = self.beams, self.options, scores.device
        total, beam, token, extended, ends, best = self._extensions(scores, lengths)
        generated = lengths[:, None] + 1 - self.prefix
        state: dict[str, torch.Tensor] = {}

        # Running hypotheses: the best that did not end.
        running_scores = torch.add(total, ends, alpha=DEAD_SCORE).gather(1, best)
        parent = beam.gather(1, best) + torch.arange(beam.shape[0], device=device)[:, None] * beams
        state.update(
            running_scores=running_scores,
            running_sequences=extended.gather(1, _expand_index(best, extended)),
            parents=parent.flatten(),
            tokens=token.gather(1, best).view(-1, 1),
        )
        rows = self.running_beam_indices
        if self.records_beams:
            rows = rows.gather(1, _expand_index(beam, rows))
            came_from = (beam + self.group_indices[:, None] * beams).int()[..., None]
            rows.scatter_(2, (generated - 1)[..., None].expand(came_from.shape), came_from)
            state["running_beam_indices"] = rows.gather(1, _expand_index(best, rows))

        # Finished hypotheses: the best of the old ones and of those that ended among the first `beams` candidates. An
        # empty slot has the score -inf, and so has a hypothesis with a forbidden token.
        finishes = ends & (total > LIVE_THRESHOLD) & self._continues()[:, None]
        finishes &= torch.arange(ends.shape[1], device=device) < beams
        score = (total / _power(generated, options.length_penalty)).masked_fill(~finishes, -math.inf)
        finished_scores, best = torch.cat((self.finished_scores, score), 1).topk(beams)
        is_finished = torch.cat((self.is_finished, finishes), 1).gather(1, best)
        new_lengths = (generated + self.prefix).expand_as(token)
        state.update(
            finished_scores=finished_scores,
            is_finished=is_finished,
            finished_lengths=torch.cat((self.finished_lengths, new_lengths), 1).gather(1, best),
            finished_sequences=_gather_concatenated(self.finished_sequences, extended, best),
        )
        if self.records_beams:
            state["finished_beam_indices"] = _gather_concatenated(self.finished_beam_indices, rows, best)

        # A source continues while its best running hypothesis could still beat its worst finished one.
        horizon = generated  # the length at which a running hypothesis is scored
        if options.early_stopping == "never" and options.length_penalty > 0.0:
            horizon = self.limits[:, None] - self.prefix
        best_running = running_scores[:, :1]
        best_possible = best_running / _power(horizon, options.length_penalty)
        worst = finished_scores.amin(1, keepdim=True)
        can_improve = self.can_improve & ((best_possible > worst) & (best_running > LIVE_THRESHOLD)).squeeze(1)
        stuck = ends.all(1)
        state["can_improve"] = can_improve
        state["is_done"] = ~(can_improve & ~self._has_enough(is_finished)) | stuck
        return state, stuck

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        """What `choose` takes, from logits float32 [rows, V]."""
        options, scores = self.options, logits
        if options.output_logits:
            self.logits.append(logits)
        if not self.uses_top_log_probs:
            scores = ops.log_softmax(logits)
            if self.processors:
                row_lengths = self.lengths.repeat_interleave(self.beams)
                running = self._continues().repeat_interleave(self.beams) if self.processors.has_custom else None
                histories = self.running_sequences.flatten(0, 1)
                scores = process_scores(self.processors, histories, row_lengths, scores, running)
            if options.diversity_penalty:  # `choose` subtracts it in place, so that the returned scores have it
                scores = scores.clone(memory_format=torch.contiguous_format)
        if options.output_scores:
            self.scores.append(scores)
        return scores

    def _extensions(self, scores: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
        """The best one-token extensions of each source, its candidates.

        Returns:
            Log-probability, beam and token, each [sources, candidates]; the extended hypotheses [.., width]; whether
            each of them ends here; and the indices of those that continue, int64 [sources, beams].
        """
        options, vocabulary = self.options, scores.shape[1]
        scores = scores.reshape(-1, self.groups, self.beams, vocabulary)
        # How often earlier groups of the source chose each token in this step.
        chosen = scores.new_zeros(scores.shape[0], vocabulary) if options.diversity_penalty else None
        parts = []
        for group in range(self.groups):
            same_group = slice(group, None, self.groups)  # this group of every source
            if chosen is not None:
                scores[:, group] -= options.diversity_penalty * chosen[:, None]
            keys = None
            if options.do_sample:
                keys = RngKeys(self.seeds[same_group], self.numbers[same_group], lengths[same_group])
            total, beam, token = self._top_candidates(scores[:, group], self.running_scores[same_group], keys)
            extended = self.running_sequences[same_group].gather(1, _expand_index(beam, self.running_sequences))
            extended.scatter_(2, lengths[same_group, None, None].expand(*token.shape, 1), token[..., None])
            ends = self.ends_by_token(token)
            if self.criteria:
                ends = ends | self._stopped(extended, self.lengths[same_group])
            best = torch.add(total, ends, alpha=DEAD_SCORE).topk(self.beams).indices
            if chosen is not None:
                counts = self._continues()[same_group, None].to(chosen.dtype)
                chosen.scatter_add_(1, token.gather(1, best), counts.expand(-1, self.beams))
            ends = ends | (lengths[same_group, None] + 1 >= self.limits[same_group, None])
            parts.append((total, beam, token, extended, ends, best))
        if self.groups == 1:
            return list(parts[0])
        return [torch.stack(pieces, 1).flatten(0, 1) for pieces in zip(*parts)]

    def _top_candidates(
        self, scores: torch.Tensor, running_scores: torch.Tensor, keys: RngKeys | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probability, beam, token [n, candidates], best first, for scores [n, beams, V] of the next token."""
        vocabulary = scores.shape[-1]
        count = min(self.candidates, self.beams * vocabulary)
        if self.uses_top_log_probs:
            total, index = ops.top_log_probs(scores.flatten(0, 1), count, running_scores.flatten(), self.beams)
        else:
            totals = (scores + running_scores[:, :, None]).flatten(1)
            weights = totals
            if self.options.do_sample and self.processors:
                # Softmax needs a finite score. Where all tokens are forbidden the sampled ones keep the total -inf.
                weights = totals.masked_fill(totals.amax(1, keepdim=True).isneginf(), 0.0)
            index = self.rng.choose(weights, count, bool(self.options.do_sample), keys)
            total = totals.gather(1, index)
            if self.options.do_sample:  # in the order of their draws until here
                total, order = total.sort(1, descending=True)
                index = index.gather(1, order)
        return total, index // vocabulary, index % vocabulary

    def _stopped(self, extended: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """bool [n, candidates]: hypotheses that a stopping criterion ends.

        Args:
            extended: int64 [n, candidates, width], the hypotheses with their last tokens.
            lengths: int64 [n], on the host, without these tokens.
        """
        lengths = (lengths + 1).repeat_interleave(extended.shape[1])
        scores = returned_scores(self.scores, self.options)
        return stopped_rows(self.criteria, extended.flatten(0, 1), lengths, scores).view(extended.shape[:2])

    def _has_enough(self, is_finished: torch.Tensor) -> torch.Tensor:
        """bool [sources]: `early_stopping` is True and there are `beams` finished hypotheses."""
        return is_finished.all(1) & (self.options.early_stopping is True)

    def _continues(self) -> torch.Tensor:
        """bool [sources]: the source can still get better hypotheses, and needs them."""
        return self.can_improve & ~self._has_enough(self.is_finished)

    def ended(self) -> torch.Tensor:
        """As `Search.ended`."""
        return self.is_done.view(-1, self.groups).all(1).nonzero().squeeze(1).cpu()

    def results(self, units: torch.Tensor) -> list[tuple[list[list[int]], list[float | None]]]:
        """As `Search.results`."""
        results = []
        sequences, scores, lengths, _ = (x.tolist() for x in self._sorted_results(units))
        for rows, totals, ends in zip(sequences, scores, lengths):
            # A hypothesis has a token after the prefix; its score may be -inf under an extreme length penalty.
            found = [i for i, end in enumerate(ends) if end > self.prefix] or [0]
            results.append(([rows[i][self.prefix : ends[i]] for i in found], [totals[i] for i in found]))
        return results

    def _sorted_results(self, units: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Sequences [n, outputs, width], scores, lengths [n, outputs] and beam indices of all groups, best first.

        Where there are fewer hypotheses than outputs, the last outputs are the prefix alone, with the score -inf.
        """
        groups = self._groups_of(units).to(self.tokens.device)
        empty = ~self.is_finished[groups]
        sequences = self.finished_sequences[groups]
        sequences[..., self.prefix :] = sequences[..., self.prefix :].masked_fill(empty[..., None], self.fill)
        beam_indices = self.finished_beam_indices[groups].masked_fill(empty[..., None], -1)
        lengths = self.finished_lengths[groups].masked_fill(empty, self.prefix)
        per_group = (sequences, self.finished_scores[groups], lengths, beam_indices)
        sequences, scores, lengths, beam_indices = (x.unflatten(0, (-1, self.groups)).flatten(1, 2) for x in per_group)
        best = scores.argsort(dim=1, descending=True, stable=True)[:, : self.options.num_return_sequences]
        sequences, beam_indices = (x.gather(1, _expand_index(best, x)) for x in (sequences, beam_indices))
        return sequences, scores.gather(1, best), lengths.gather(1, best), beam_indices

    def _store_results(self, units: torch.Tensor) -> None:
        results = self._sorted_results(units)
        for i, unit in enumerate(units.tolist()):
            self._stored[self.owners[unit]] = tuple(x[i] for x in results)

    def output(self) -> GenerateOutput:
        """As `Search.output`: the `num_return_sequences` best of each source, of all its groups, best first."""
        self._store_results(torch.arange(len(self.owners), device="cpu"))
        results = [self._stored[owner] for owner in sorted(self._stored)]
        lengths = torch.cat([lengths for _, _, lengths, _ in results])
        width = int(lengths.max())
        sequences = torch.cat([pad_histories(rows, width, self.fill)[:, :width] for rows, _, _, _ in results])
        beam_indices = None
        if self.records_beams:
            steps = width - self.prefix
            beam_indices = torch.cat([pad_histories(rows, steps, -1)[:, :steps] for *_, rows in results])
        return GenerateOutput(
            sequences=sequences,
            sequences_scores=torch.cat([scores for _, scores, _, _ in results]),
            scores=returned_scores(self.scores, self.options),
            logits=tuple(self.logits) if self.options.output_logits else None,
            beam_indices=beam_indices,
        )


def _power(length: torch.Tensor, exponent: float) -> torch.Tensor:
    """length ** exponent in float64, rounded to float32."""
    return (length.double() ** exponent).float()


def _expand_index(index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Index [B, n], expanded to gather whole rows of `like` [B, m, L]."""
    return index[..., None].expand(*index.shape, like.shape[-1])


def _gather_concatenated(first: torch.Tensor, second: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows index [B, k] of the concatenation of two tensors [B, m, L] and [B, n, L]."""
    joined = torch.cat((first, second), 1)
    return joined.gather(1, _expand_index(index, joined))
