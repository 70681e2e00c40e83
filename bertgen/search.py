"""Search: from the logits of each step to sequences. Greedy, sampling and beam search, and the one decode loop.

Nothing here knows a model: a `Decoder` gives logits for tokens. Beam search is that of transformers 5 (after
Vijayakumar et al. 2016 and Wu et al. 2016 for the length penalty), stated on tensors [sources, beams].
"""

from __future__ import annotations

from typing import Protocol

import torch

from . import ops
from .config import GenerationConfig
from .errors import ConfigError, UnsupportedError
from .outputs import GenerateOutput

DEAD = -1.0e9  # added to the score of a hypothesis that may not go on


class Decoder(Protocol):
    """What the decode loop drives: R rows with a history each; the rows of a source are adjacent."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [R, T], the newest tokens of each row -> logits [R, vocab] of the next."""

    def reorder(self, rows: torch.Tensor) -> None:
        """Row r goes on from the history of row rows[r] (int64 [R])."""

    def select(self, rows: torch.Tensor, sources: torch.Tensor) -> None:
        """Only these rows, of these sources, go on (int64)."""


def decode(decoder: Decoder, search: Sampling | BeamSearch) -> torch.Tensor | GenerateOutput:
    """The decode loop: feed tokens, take logits, until the search is done."""
    tokens = search.tokens
    while search.advance(decoder.step(tokens)):
        if search.parents is not None:
            decoder.reorder(search.parents)
        survivors = search.survivors()
        if survivors is not None:
            decoder.select(*survivors)
        tokens = search.tokens
    output = search.output()
    return output if search.options.return_dict_in_generate else output.sequences


def begin(
    prefix: torch.Tensor, options: GenerationConfig, generator: torch.Generator | None = None
) -> Sampling | BeamSearch:
    """The search that settled `options` ask for, over prefix int64 [sources, P]."""
    if options.num_beams > 1:
        return BeamSearch(prefix, options)
    return Sampling(prefix, options, generator)


def settle(call: GenerationConfig, passed: GenerationConfig | None, own: GenerationConfig) -> GenerationConfig:
    """One configuration out of the levels, every option set; ConfigError where they contradict each other."""
    options = call.over(passed).over(own)
    options.check_supported()
    values = options.to_dict()
    for name in ("max", "min"):  # lengths without the start token, where given, win over those with it
        if values.get(f"{name}_new_tokens") is not None:
            values[f"{name}_length"] = 1 + values[f"{name}_new_tokens"]
    values.setdefault("max_length", 1 + GenerationConfig.DEFAULT_NEW_TOKENS)
    values.setdefault("decoder_start_token_id", values.get("bos_token_id"))
    if values.get("eos_token_id") is not None and values.get("pad_token_id") is None:
        values["pad_token_id"] = options.end_tokens[0]
    options = GenerationConfig.from_dict({**GenerationConfig.DEFAULTS, **values})

    beams, outputs = options.num_beams, options.num_return_sequences
    if options.decoder_start_token_id is None:
        raise ConfigError("generation needs decoder_start_token_id or bos_token_id")
    if beams > 1 and outputs > beams:
        raise ConfigError(f"num_return_sequences {outputs} is more than num_beams {beams}")
    if beams == 1 and outputs > 1 and not options.do_sample:
        raise ConfigError(f"num_return_sequences {outputs} needs beams or sampling: greedy search has one output")
    if beams > 1 and options.do_sample:
        raise UnsupportedError("do_sample=True together with num_beams > 1 is not supported")
    if options.max_length < 2:
        raise ConfigError(f"max_length {options.max_length} leaves no room behind the start token")
    if options.min_length > options.max_length:
        raise ConfigError(f"min_length {options.min_length} is more than max_length {options.max_length}")
    return options


def process(scores: torch.Tensor, history: torch.Tensor, options: GenerationConfig) -> torch.Tensor:
    """Apply repetition penalty, n-gram blocking and minimum lengths, in transformers' order.

    Args:
        scores: float32 [R, V], logits or (under beams) log-probabilities; not changed in place.
        history: int64 [R, L], the tokens of each row so far.
    """
    length = history.shape[1]
    penalty, size = options.repetition_penalty, options.no_repeat_ngram_size
    if penalty != 1.0:
        seen = scores.gather(1, history)
        scores = scores.scatter(1, history, torch.where(seen < 0, seen * penalty, seen / penalty))
    if 0 < size <= length:
        ngrams = history.unfold(1, size, 1)
        repeats = (ngrams[..., :-1] == history[:, None, length - size + 1 :]).all(-1)
        rows, places = repeats.nonzero(as_tuple=True)
        scores = scores.index_put((rows, ngrams[rows, places, -1]), scores.new_tensor(-torch.inf))
    end = options.end_tokens
    if end and length < options.min_length:
        scores = scores.index_fill(1, torch.tensor(end, device=scores.device), -torch.inf)
    return scores


def _processes(options: GenerationConfig) -> bool:
    return options.min_length > 0 or options.repetition_penalty != 1.0 or options.no_repeat_ngram_size > 0


class Sampling:
    """Greedy search, or sampling with `do_sample`: each row goes its own way.

    Attributes:
        tokens: int64 [R, T], what the decoder is fed next.
        parents: always None; rows keep their histories.
    """

    parents = None

    def __init__(self, prefix: torch.Tensor, options: GenerationConfig, generator: torch.Generator | None):
        self.options, self.generator = options, generator
        rows = prefix.repeat_interleave(options.num_return_sequences, 0)
        self.length = prefix.shape[1]
        fill = options.pad_token_id if options.pad_token_id is not None else 0
        self.sequences = rows.new_full((rows.shape[0], options.max_length), fill)
        self.sequences[:, : self.length] = rows
        self.fill, self.tokens = fill, rows
        self.end = rows.new_tensor(options.end_tokens)
        self.alive = torch.ones(rows.shape[0], dtype=torch.bool, device=rows.device)
        self.rows = torch.arange(rows.shape[0], device=rows.device)  # which sequence each decoder row writes
        self.scores: list[torch.Tensor] = []

    def advance(self, logits: torch.Tensor) -> bool:
        """Choose the next token of each row from logits [R, V]; False when every row has ended."""
        options = self.options
        scores = process(logits.float(), self.sequences[self.rows, : self.length], options)
        if options.do_sample:
            scores = ops.warp(scores, options.temperature, options.top_k, options.top_p, options.min_p)
        if options.output_scores:
            self.scores.append(scores)
        tokens = ops.select(scores, options.do_sample, self.generator)
        tokens = torch.where(self.alive, tokens, self.fill)
        self.sequences[self.rows, self.length] = tokens
        self.length += 1
        self.tokens = tokens[:, None]
        self.alive = self.alive & ~torch.isin(tokens, self.end)
        return self.length < options.max_length and bool(self.alive.any())

    def survivors(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(rows, sources) to go on with once half of them have ended; None to go on with all.

        Sampling goes on with all, so that the random numbers a row gets do not depend on the others' lengths.
        """
        if self.options.do_sample or self.options.output_scores or 2 * int(self.alive.sum()) > self.alive.numel():
            return None
        rows = self.alive.nonzero().squeeze(1)
        self.tokens, self.alive, self.rows = self.tokens[rows], self.alive[rows], self.rows[rows]
        return rows, rows

    def output(self) -> GenerateOutput:
        """Sequences up to the longest, padded behind their ends."""
        return GenerateOutput(
            sequences=self.sequences[:, : self.length],
            scores=tuple(self.scores) if self.options.output_scores else None,
        )


class BeamSearch:
    """Keep the best `num_beams` open hypotheses per source, and the best finished ones beside them.

    Attributes:
        tokens: int64 [sources * beams, T], what the decoder is fed next.
        parents: int64 [sources * beams], the row whose history each row continues.
    """

    def __init__(self, prefix: torch.Tensor, options: GenerationConfig):
        self.options = options
        sources, self.prefix = prefix.shape
        beams, device = options.num_beams, prefix.device
        self.beams, self.length = beams, self.prefix
        self.end = prefix.new_tensor(options.end_tokens)
        self.candidates = max(2, 1 + self.end.numel()) * beams
        # Behind the last token of a shorter hypothesis: the pad id, and the end id where the pad id is 0 or unset.
        self.fill = options.pad_token_id or (int(self.end[0]) if self.end.numel() else 0)

        shape = (sources, beams, options.max_length)
        self.open = prefix.new_full(shape, self.fill)
        self.open[:, :, : self.length] = prefix[:, None]
        self.open_scores = torch.full((sources, beams), DEAD, device=device)
        self.open_scores[:, 0] = 0.0
        self.open_rows = torch.full(
            (sources, beams, options.max_length - self.prefix), -1, dtype=torch.int32, device=device
        )
        self.closed = self.open.clone()
        self.closed_scores = torch.full((sources, beams), DEAD, device=device)
        self.closed_rows = self.open_rows.clone()
        self.is_closed = torch.zeros(sources, beams, dtype=torch.bool, device=device)
        self.improvable = torch.ones(sources, dtype=torch.bool, device=device)

        self.active = torch.arange(sources, device=device)  # the sources whose search goes on
        self.results = (self.closed, self.closed_scores, self.closed_rows)
        self.tokens = prefix.repeat_interleave(beams, 0)
        self.parents: torch.Tensor | None = None
        self.scores: list[torch.Tensor] = []

    def advance(self, logits: torch.Tensor) -> bool:
        """Extend the hypotheses by one token from logits [sources * beams, V]; False when no source can improve."""
        beams, options = self.beams, self.options
        total, beam, token = self._best_extensions(logits.float())
        self.length += 1
        generated = self.length - self.prefix

        ends = torch.isin(token, self.end)
        if self.length >= options.max_length:
            ends = torch.ones_like(ends)
        extended = self.open.gather(1, _over(beam, self.open))
        extended[:, :, self.length - 1] = token
        rows = self.open_rows.gather(1, _over(beam, self.open_rows))
        rows[:, :, generated - 1] = beam + self.active[:, None] * beams

        # Open hypotheses: the best that did not end.
        going = total + ends * DEAD
        self.open_scores, best = going.topk(beams)
        self.open = extended.gather(1, _over(best, extended))
        self.open_rows = rows.gather(1, _over(best, rows))
        parent = beam.gather(1, best) + torch.arange(beam.shape[0], device=beam.device)[:, None] * beams
        self.parents, self.tokens = parent.flatten(), token.gather(1, best).view(-1, 1)

        # Finished hypotheses: those of the first `beams` candidates that ended, among the finished so far.
        score = total / generated**options.length_penalty
        full = self.is_closed.all(1, keepdim=True) if options.early_stopping is True else torch.zeros_like(ends[:, :1])
        closes = ends & (torch.arange(ends.shape[1], device=ends.device) < beams)
        score = score + full * DEAD + ~self.improvable[:, None] * DEAD + ~closes * DEAD
        self.closed_scores, best = torch.cat((self.closed_scores, score), 1).topk(beams)
        self.is_closed = torch.cat((self.is_closed, closes), 1).gather(1, best)
        self.closed = _pick(self.closed, extended, best)
        self.closed_rows = _pick(self.closed_rows, rows, best)

        # A source is worth going on with while its best open hypothesis could still beat its worst finished one.
        horizon = generated
        if options.early_stopping == "never" and options.length_penalty > 0.0:
            horizon = options.max_length - self.prefix
        hope = self.open_scores[:, :1] / horizon**options.length_penalty
        worst = torch.where(self.is_closed, self.closed_scores.amin(1, keepdim=True), DEAD)
        self.improvable = self.improvable & (hope > worst).any(1)
        self._record()
        return bool(self._goes_on().any()) and not bool(ends.all())

    def _best_extensions(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probability, beam and token, each [sources, candidates], of the best one-token extensions."""
        beams, options, vocabulary = self.beams, self.options, logits.shape[-1]
        count = min(self.candidates, vocabulary)
        if _processes(options) or options.output_scores:
            history = self.open[:, :, : self.length].flatten(0, 1)
            logits = process(logits.log_softmax(-1), history, options)
            if options.output_scores:
                self.scores.append(logits)
            values, tokens = logits.topk(count)
        else:  # the best of each row first: the full table of log-probabilities is never written
            values, tokens = logits.topk(count)
            values = values - logits.logsumexp(-1, keepdim=True)
        total = values.view(-1, beams, count) + self.open_scores[:, :, None]
        total, index = total.flatten(1).topk(self.candidates)
        return total, index // count, tokens.view(-1, beams * count).gather(1, index)

    def _goes_on(self) -> torch.Tensor:
        done = self.is_closed.all(1) if self.options.early_stopping is True else torch.zeros_like(self.improvable)
        return self.improvable & ~done

    def _record(self) -> None:
        for result, now in zip(self.results, (self.closed, self.closed_scores, self.closed_rows)):
            result[self.active] = now

    def survivors(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(rows, sources) to go on with once half of the sources are done; None to go on with all."""
        going = self._goes_on()
        if self.options.output_scores or 2 * int(going.sum()) > going.numel():
            return None
        sources = going.nonzero().squeeze(1)
        rows = (sources[:, None] * self.beams + torch.arange(self.beams, device=sources.device)).flatten()
        for name in ("open", "open_scores", "open_rows", "closed", "closed_scores", "closed_rows", "is_closed"):
            setattr(self, name, getattr(self, name)[sources])
        self.improvable, self.active = self.improvable[sources], self.active[sources]
        self.tokens, self.parents = self.tokens[rows], None
        return rows, sources

    def output(self) -> GenerateOutput:
        """The `num_return_sequences` best of each source, best first."""
        count, options = self.options.num_return_sequences, self.options
        sequences, scores, rows = (x[:, :count].flatten(0, 1) for x in self.results)
        width = int((rows >= 0).sum(1).max())
        return GenerateOutput(
            sequences=sequences[:, : self.prefix + width],
            sequences_scores=scores,
            scores=tuple(self.scores) if options.output_scores else None,
            beam_indices=rows[:, :width],
        )


def _over(index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Index [B, n] for gathering whole rows of `like` [B, m, L]."""
    return index[..., None].expand(*index.shape, like.shape[-1])


def _pick(first: torch.Tensor, second: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows [B, k] of two tensors [B, m, L] and [B, n, L] laid one behind the other."""
    joined = torch.cat((first, second), 1)
    return joined.gather(1, _over(index, joined))
