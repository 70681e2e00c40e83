"""Search: from the logits of each step to sequences. Greedy, sampling and beam search, and the one decode loop.

Nothing here knows a model: a `Decoder` gives logits for tokens. Beam search is that of transformers 5 (with the length
penalty of Wu et al. 2016, arXiv 1609.08144), stated on tensors [sources, beams]. Diverse groups of beams (Vijayakumar
et al. 2016, arXiv 1610.02424) are so many sources each with its share of the beams.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from . import ops
from .config import GenerationConfig
from .config.generation import as_list
from .errors import ConfigError
from .outputs import GenerateOutput
from .processors import Processors
from .stopping import Criteria, Scores

DEAD = -1.0e9  # added to the score of a hypothesis that may not go on


class Decoder(Protocol):
    """What the decode loop drives: R rows with a history each; the rows of a source are adjacent."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 [R, T], the newest tokens of each row -> logits [R, vocab] of the next."""

    def reorder(self, rows: torch.Tensor) -> None:
        """Row r goes on from the history of row rows[r] (int64 [R])."""

    def select(self, rows: torch.Tensor, sources: torch.Tensor) -> None:
        """Only these rows, of these sources, go on (int64)."""


def decode(decoder: Decoder, search: Sampling | BeamSearch, streamer: Any = None) -> GenerateOutput:
    """The decode loop: feed tokens, take logits, until the search is done.

    Args:
        streamer: gets the tokens on the CPU, first the prefix [R, P], then those of each step [R].
    """
    tokens, going = search.tokens, True
    if streamer is not None:
        streamer.put(tokens.cpu())
    while going:
        going = search.advance(decoder.step(tokens))
        if search.parents is not None:
            decoder.reorder(search.parents)
        if streamer is not None:
            streamer.put(search.tokens.flatten().cpu())
        survivors = search.survivors() if going and streamer is None else None
        if survivors is not None:
            decoder.select(*survivors)
        tokens = search.tokens
    if streamer is not None:
        streamer.end()
    return search.output()


def begin(
    prefix: torch.Tensor,
    options: GenerationConfig,
    processors: Processors | None = None,
    criteria: Criteria | None = None,
    generator: torch.Generator | None = None,
) -> Sampling | BeamSearch:
    """The search that settled `options` ask for, over prefix int64 [sources, P]."""
    kind = BeamSearch if options.num_beams > 1 else Sampling
    return kind(prefix, options, processors or Processors(), criteria or Criteria(), generator)


def settle(
    options: GenerationConfig, prefix: int = 1, embedded: int = 0, positions: int | None = None
) -> GenerationConfig:
    """Options with every one set; ConfigError where they contradict each other.

    Args:
        options: the levels of one call, one over the other (`GenerationConfig.over`).
        prefix: tokens that an output begins with: the start token, a prompt.
        embedded: positions in front of them that are part of no output, but that the given lengths count.
        positions: what the model has; the default length stays within.
    """
    values = options.to_dict()
    if "max_new_tokens" in values:  # lengths without the prefix, where given, win over those with it
        values["max_length"] = prefix + values["max_new_tokens"]
    elif "max_length" in values:
        values["max_length"] -= embedded
    else:
        values["max_length"] = prefix + GenerationConfig.DEFAULT_NEW_TOKENS
        if positions is not None:
            values["max_length"] = min(values["max_length"], positions)
    if values["max_length"] <= prefix:
        raise ConfigError(f"max_length {values['max_length']} leaves no room behind {prefix} tokens to begin with")
    if "min_new_tokens" in values:
        values["min_length"] = prefix + values["min_new_tokens"]
    elif "min_length" in values:
        values["min_length"] = max(0, values["min_length"] - embedded)
    if "bos_token_id" in values:
        values.setdefault("decoder_start_token_id", values["bos_token_id"])
    if options.end_tokens and "pad_token_id" not in values:
        values["pad_token_id"] = options.end_tokens[0]
    if not values.get("return_dict_in_generate"):
        values.update(output_scores=False, output_logits=False, output_attentions=False, output_hidden_states=False)
    options = GenerationConfig.from_dict({**GenerationConfig.DEFAULTS, **values})

    beams, groups, outputs = options.num_beams, options.num_beam_groups, options.num_return_sequences
    if beams > 1 and outputs > beams:
        raise ConfigError(f"num_return_sequences {outputs} is more than num_beams {beams}")
    if beams == 1 and outputs > 1 and not options.do_sample:
        raise ConfigError(f"num_return_sequences {outputs} needs beams or sampling: greedy search has one output")
    if beams % groups:
        raise ConfigError(f"num_beams {beams} cannot be shared among num_beam_groups {groups}")
    if groups > 1 and options.do_sample:
        raise ConfigError(f"num_beam_groups {groups} needs do_sample=False: groups take their best tokens")
    if groups == 1 and options.diversity_penalty:
        raise ConfigError(f"diversity_penalty {options.diversity_penalty} needs num_beam_groups of at least 2, got 1")
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        forced = as_list(getattr(options, name))
        if forced and set(forced) <= set(options.suppress_tokens or ()):
            raise ConfigError(f"{name} {forced} is among suppress_tokens: no token would be left")
    if options.min_length > options.max_length:
        raise ConfigError(f"min_length {options.min_length} is more than max_length {options.max_length}")
    return options


def _keeps_rows(options: GenerationConfig, processors: Processors, criteria: Criteria) -> bool:
    """Whether rows stay when they are done: because the random numbers of others, what is returned or what a caller's
    function sees would change."""
    returns_rows = options.return_dict_in_generate and (
        options.use_cache
        or options.output_scores
        or options.output_logits
        or options.output_attentions
        or options.output_hidden_states
    )
    return options.do_sample or returns_rows or processors.by_row or criteria.by_row


class Sampling:
    """Greedy search, or sampling with `do_sample`: each row goes its own way.

    Attributes:
        tokens: int64 [R, T], what the decoder is fed next.
        parents: always None; rows keep their histories.
    """

    parents = None

    def __init__(
        self,
        prefix: torch.Tensor,
        options: GenerationConfig,
        processors: Processors,
        criteria: Criteria,
        generator: torch.Generator | None,
    ):
        self.options, self.processors, self.criteria, self.generator = options, processors, criteria, generator
        rows = prefix.repeat_interleave(options.num_return_sequences, 0)
        self.length = prefix.shape[1]
        fill = options.pad_token_id if options.pad_token_id is not None else 0
        self.sequences = rows.new_full((rows.shape[0], options.max_length), fill)
        self.sequences[:, : self.length] = rows
        self.fill, self.tokens = fill, rows
        self.end = rows.new_tensor(options.end_tokens)
        self.alive = torch.ones(rows.shape[0], dtype=torch.bool, device=rows.device)
        self.rows = torch.arange(rows.shape[0], device=rows.device)  # which sequence each decoder row writes
        # As in transformers, a row goes on behind a stop where there is no end token.
        self.keeps_rows = not options.end_tokens or _keeps_rows(options, processors, criteria)
        self.scores: list[torch.Tensor] = []
        self.logits: list[torch.Tensor] = []

    def advance(self, logits: torch.Tensor) -> bool:
        """Choose the next token of each row from logits [R, V]; False when every row has ended."""
        options, scores = self.options, logits.float()
        if options.output_logits:
            self.logits.append(scores)
        if self.processors:
            scores = self.processors(self._history(), scores)
        if options.output_scores:
            self.scores.append(scores)
        tokens = ops.select(scores, 1, options.do_sample, self.generator).squeeze(1)
        if options.end_tokens:
            tokens = torch.where(self.alive, tokens, self.fill)
        self.sequences[self.rows, self.length] = tokens
        self.length += 1
        self.tokens = tokens[:, None]
        self.alive = self.alive & ~torch.isin(tokens, self.end)
        if self.criteria:
            self.alive = self.alive & ~self.criteria(self._history(), _recorded(self.scores, options))
        return self.length < options.max_length and bool(self.alive.any())

    def _history(self) -> torch.Tensor:
        return self.sequences[self.rows, : self.length]

    def survivors(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(rows, sources) to go on with once half of them have ended; None to go on with all."""
        if self.keeps_rows or 2 * int(self.alive.sum()) > self.alive.numel():
            return None
        rows = self.alive.nonzero().squeeze(1)
        self.tokens, self.alive, self.rows = self.tokens[rows], self.alive[rows], self.rows[rows]
        return rows, rows

    def output(self) -> GenerateOutput:
        """Sequences up to the longest, padded behind their ends."""
        return GenerateOutput(
            sequences=self.sequences[:, : self.length],
            scores=_recorded(self.scores, self.options),
            logits=tuple(self.logits) if self.options.output_logits else None,
        )


class BeamSearch:
    """Keep the best open hypotheses per source and group of beams, and the best finished ones beside them.

    Below, "a source" is one group of a source: its beams see those of other groups only by the diversity penalty.

    Attributes:
        tokens: int64 [sources * beams, T], what the decoder is fed next.
        parents: int64 [sources * beams], the row whose history each row continues.
    """

    def __init__(
        self,
        prefix: torch.Tensor,
        options: GenerationConfig,
        processors: Processors,
        criteria: Criteria,
        generator: torch.Generator | None,
    ):
        self.options, self.processors, self.criteria, self.generator = options, processors, criteria, generator
        self.groups, self.beams = options.num_beam_groups, options.num_beams // options.num_beam_groups
        self.tokens = prefix.repeat_interleave(options.num_beams, 0)
        self.parents: torch.Tensor | None = None
        prefix = prefix.repeat_interleave(self.groups, 0)
        (sources, self.prefix), beams, device = prefix.shape, self.beams, prefix.device
        self.length = self.prefix
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
        self.keeps_rows = self.groups > 1 or _keeps_rows(options, processors, criteria)
        # Nobody looks at all scores: the best of each row are enough.
        self.plain = not (processors or options.do_sample or options.output_scores or self.groups > 1)
        self.scores: list[torch.Tensor] = []
        self.logits: list[torch.Tensor] = []

    def advance(self, logits: torch.Tensor) -> bool:
        """Extend the hypotheses by one token from logits [sources * beams, V]; False when no source can improve."""
        beams, options = self.beams, self.options
        total, beam, token, extended, ends, best = self._extensions(logits.float())
        self.length += 1
        generated = self.length - self.prefix
        rows = self.open_rows.gather(1, _over(beam, self.open_rows))
        rows[:, :, generated - 1] = beam + self.active[:, None] * beams

        # Open hypotheses: the best that did not end.
        self.open_scores = (total + ends * DEAD).gather(1, best)
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
        for result, now in zip(self.results, (self.closed, self.closed_scores, self.closed_rows)):
            result[self.active] = now
        # Where rows are kept, as many steps as transformers takes, which goes on until the last source has enough.
        more = self.improvable & ~self._full().all() if self.keeps_rows else self._goes_on()
        return bool(more.any()) and not bool(ends.all())

    def _extensions(self, logits: torch.Tensor) -> list[torch.Tensor]:
        """The best one-token extensions of each source, its candidates.

        Returns:
            Log-probability, beam and token, each [sources, candidates]; the extended hypotheses [.., max_length];
            whether each of them ends here; and which of them go on, int64 [sources, beams].
        """
        options, vocabulary = self.options, logits.shape[1]
        if options.output_logits:
            self.logits.append(logits)
        scores = logits
        if not self.plain:
            scores = logits.log_softmax(-1)
            if self.processors:
                scores = self.processors(self.open[:, :, : self.length].flatten(0, 1), scores)
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
            total, beam, token = self._best(scores[:, group], self.open_scores[mine])
            extended = self.open[mine].gather(1, _over(beam, self.open))
            extended[:, :, self.length] = token
            ends = self._ends(extended)
            best = (total + ends * DEAD).topk(self.beams).indices
            if chosen is not None:
                counts = self._goes_on()[mine, None].to(chosen.dtype)
                chosen.scatter_add_(1, token.gather(1, best), counts.expand(-1, self.beams))
            if self.length + 1 >= options.max_length:
                ends = torch.ones_like(ends)
            parts.append((total, beam, token, extended, ends, best))
        if self.groups == 1:
            return list(parts[0])
        return [torch.stack(pieces, 1).flatten(0, 1) for pieces in zip(*parts)]

    def _best(self, scores: torch.Tensor, open_scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Log-probability, beam and token, each [n, candidates], for scores [n, beams, V] of the next token."""
        if self.plain:  # the best of each row first: the full table of log-probabilities is never written
            count = min(self.candidates, scores.shape[-1])
            values, tokens = scores.topk(count)
            total = values - scores.logsumexp(-1, keepdim=True) + open_scores[:, :, None]
            total, index = total.flatten(1).topk(self.candidates)
            return total, index // count, tokens.flatten(1).gather(1, index)
        total = (scores + open_scores[:, :, None]).flatten(1)
        index = ops.select(total, self.candidates, self.options.do_sample, self.generator)
        return total.gather(1, index), index // scores.shape[-1], index % scores.shape[-1]

    def _ends(self, extended: torch.Tensor) -> torch.Tensor:
        """bool [n, candidates]: which hypotheses [n, candidates, max_length] end whatever the length."""
        ends = torch.isin(extended[:, :, self.length], self.end)
        if self.criteria:
            history = extended[:, :, : self.length + 1].flatten(0, 1)
            ends = ends | self.criteria(history, _recorded(self.scores, self.options)).view(ends.shape)
        return ends

    def _full(self) -> torch.Tensor:
        """bool [sources]: as many finished hypotheses as `early_stopping` is content with."""
        return self.is_closed.all(1) & (self.options.early_stopping is True)

    def _goes_on(self) -> torch.Tensor:
        return self.improvable & ~self._full()

    def survivors(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """(rows, sources) to go on with once half of the sources are done; None to go on with all."""
        going = self._goes_on()
        if self.keeps_rows or 2 * int(going.sum()) > going.numel():
            return None
        sources = going.nonzero().squeeze(1)
        rows = (sources[:, None] * self.beams + torch.arange(self.beams, device=sources.device)).flatten()
        for name in ("open", "open_scores", "open_rows", "closed", "closed_scores", "closed_rows", "is_closed"):
            setattr(self, name, getattr(self, name)[sources])
        self.improvable, self.active = self.improvable[sources], self.active[sources]
        self.tokens, self.parents = self.tokens[rows], None
        return rows, sources

    def output(self) -> GenerateOutput:
        """The `num_return_sequences` best of each source, all its groups together, best first."""
        options = self.options
        sequences, scores, rows = (x.unflatten(0, (-1, self.groups)).flatten(1, 2) for x in self.results)
        best = scores.argsort(dim=1, descending=True, stable=True)[:, : options.num_return_sequences]
        sequences, rows = (x.gather(1, _over(best, x)).flatten(0, 1) for x in (sequences, rows))
        width = int((rows >= 0).sum(1).max())
        return GenerateOutput(
            sequences=sequences[:, : self.prefix + width],
            sequences_scores=scores.gather(1, best).flatten(),
            scores=_recorded(self.scores, options),
            logits=tuple(self.logits) if options.output_logits else None,
            beam_indices=rows[:, :width],
        )


def _recorded(scores: list[torch.Tensor], options: GenerationConfig) -> Scores:
    return tuple(scores) if options.output_scores else None


def _over(index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Index [B, n] for gathering whole rows of `like` [B, m, L]."""
    return index[..., None].expand(*index.shape, like.shape[-1])


def _pick(first: torch.Tensor, second: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows [B, k] of two tensors [B, m, L] and [B, n, L] laid one behind the other."""
    joined = torch.cat((first, second), 1)
    return joined.gather(1, _over(index, joined))
