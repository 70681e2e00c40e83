"""Processors: what the options of a call do to the scores of a step before a token is chosen.

Each is a function of the tokens so far, history int64 [R, L], and the scores of the next, float32 [R, V] (logits, under
beams log-probabilities), that returns new scores. `build` makes those that a call asks for, in transformers' order.
"""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from .. import ops
from ..config import GenerationConfig
from ..config.generation import as_list
from ..config.validators import check_callable, check_callables
from ..errors import ConfigError, InputError

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
AllowedTokens = Callable[[int, torch.Tensor], Sequence[int]]

# The options of `ops.warp`, and the value that switches each of them off.
NO_WARP: dict[str, Any] = dict(
    temperature=1.0, top_h=None, top_k=0, top_p=1.0, min_p=None, typical_p=1.0, epsilon_cutoff=0.0, eta_cutoff=0.0
)


# transformers' processors, of which one that a caller passes takes the place of the one that the option makes.
_THEIRS = {
    "SequenceBiasLogitsProcessor": "sequence_bias",
    "EncoderRepetitionPenaltyLogitsProcessor": "encoder_repetition_penalty",
    "RepetitionPenaltyLogitsProcessor": "repetition_penalty",
    "NoRepeatNGramLogitsProcessor": "no_repeat_ngram_size",
    "EncoderNoRepeatNGramLogitsProcessor": "encoder_no_repeat_ngram_size",
    "NoBadWordsLogitsProcessor": "bad_words_ids",
    "MinLengthLogitsProcessor": "min_length",
    "MinNewTokensLengthLogitsProcessor": "min_new_tokens",
    "PrefixConstrainedLogitsProcessor": "prefix_allowed_tokens_fn",
    "ForcedBOSTokenLogitsProcessor": "forced_bos_token_id",
    "ForcedEOSTokenLogitsProcessor": "forced_eos_token_id",
    "InfNanRemoveLogitsProcessor": "remove_invalid_values",
    "ExponentialDecayLengthPenalty": "exponential_decay_length_penalty",
    "SuppressTokensLogitsProcessor": "suppress_tokens",
    "SuppressTokensAtBeginLogitsProcessor": "begin_suppress_tokens",
}


def replaced(process: Any) -> str | None:
    """The option whose processor a processor of transformers' takes the place of; None for any other callable."""
    kind = type(getattr(process, "__wrapped__", process))
    return _THEIRS.get(kind.__name__) if kind.__module__.startswith("transformers.") else None


class Processors:
    """Processors one after another.

    Args:
        chain: the processors, first to last.
        by_row: some of them know which row is which, so that no row may be left out once it is done.
        custom: behind so many of them stands the last of the caller's own, whose scores are looked at; 0 without any.
        beams: of each source. draws: tokens are drawn.
    """

    def __init__(
        self,
        chain: Sequence[Processor] = (),
        by_row: bool = False,
        custom: int = 0,
        beams: int = 1,
        draws: bool = False,
    ):
        self.chain, self.by_row = tuple(chain), by_row
        self.custom, self.beams, self.draws = custom, beams, draws

    def __bool__(self) -> bool:
        return bool(self.chain)

    def __call__(self, history: torch.Tensor, scores: torch.Tensor, going: torch.Tensor | None = None) -> torch.Tensor:
        """Scores [R, V], processed; rows where `going`, bool [R], is False are done and may hold anything."""
        for count, process in enumerate(self.chain, 1):
            scores = process(history, scores)
            if count == self.custom:
                scores = self._understood(history, scores, going)
        return scores

    def _understood(self, history: torch.Tensor, scores: torch.Tensor, going: torch.Tensor | None) -> torch.Tensor:
        """Scores of the caller's processors: -inf forbids a token, +inf leaves only those that have it.

        Raises:
            InputError: nan; without beams, nothing but -inf.
        """
        best = scores.amax(1)
        useless = best.isnan()
        if self.beams == 1:
            useless = useless | best.isneginf()  # a beam may come to its end, a single row may not
        wrong = useless if going is None else useless & going
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            what = "nan" if bool(best[row].isnan()) else "-inf for every token"
            raise InputError(f"logits_processor gave {what} behind {history.shape[1]} tokens (row {row})")
        if going is not None:
            scores = scores.masked_fill(useless[:, None], -torch.inf if self.beams > 1 else 0.0)
        if self.draws or self.beams > 1:  # the best token is the same without
            forced = scores.isposinf()
            only = torch.where(forced, 0.0, -torch.inf)
            scores = torch.where(forced.any(1, keepdim=True), only, scores)
        return scores


def build(
    options: GenerationConfig,
    vocabulary: int,
    prefix: torch.Tensor,
    *,
    prefix_mask: torch.Tensor | None = None,
    source_ids: torch.Tensor | None = None,
    allowed: AllowedTokens | None = None,
    custom: Sequence[Processor] | None = None,
) -> Processors:
    """The processors that settled `options` ask for.

    Args:
        vocabulary: how many scores a row has.
        prefix: int64 [B, P], where the rows begin; each stands for as many rows as the search makes of it.
        prefix_mask: bool [B, P], False at padding: what stands before the first token does not count as a repetition.
        source_ids: int64 [B, S], what the encoder (or a standalone decoder) was given; None where it was embeddings.
        allowed: `prefix_allowed_tokens_fn`.
        custom: `logits_processor`; one of transformers' classes takes the place of the processor of its option.

    Raises:
        ConfigError: ids outside the vocabulary; an option that needs an end token where there is none; what cannot be
            called.
    """
    start, end = prefix.shape[1], options.end_tokens
    custom = check_callables(custom, "logits_processor")
    check_callable(allowed, "prefix_allowed_tokens_fn")
    if options.pad_token_id is not None:  # what rows that are done go on with
        check_ids("pad_token_id", [options.pad_token_id], vocabulary)

    def ids_of(name: str, ids: Sequence[int] | None = None) -> torch.Tensor:
        ids = as_list(getattr(options, name)) if ids is None else ids
        check_ids(name, ids, vocabulary)
        return prefix.new_tensor(ids)

    given = custom or []
    own = [partial(given_scores, process=process) for process in given]
    places = {replaced(process): checked for process, checked in zip(reversed(given), reversed(own), strict=True)}
    chain: list[Processor] = []

    def add(option: str, process: Processor) -> None:
        chain.append(places.get(option, process))

    by_row = allowed is not None or bool(custom)
    if options.sequence_bias is not None:
        pairs = options.sequence_bias
        pairs = dict(pairs) if isinstance(pairs, dict) else {tuple(ids): bias for ids, bias in pairs}
        add("sequence_bias", SequenceBias("sequence_bias", pairs, vocabulary, prefix.device))
    if options.encoder_repetition_penalty != 1.0 and _has_ids("encoder_repetition_penalty", source_ids, vocabulary):
        by_row = True
        add(
            "encoder_repetition_penalty",
            partial(penalize_repetition, penalty=1 / options.encoder_repetition_penalty, tokens=source_ids),
        )
    if options.repetition_penalty != 1.0:
        first = None
        if prefix_mask is not None and not bool(prefix_mask[:, 0].all()):
            by_row, first = True, prefix_mask.int().argmax(1)
        add("repetition_penalty", partial(penalize_repetition, penalty=options.repetition_penalty, first=first))
    if options.no_repeat_ngram_size > 0:
        add("no_repeat_ngram_size", partial(block_ngrams, size=options.no_repeat_ngram_size))
    if options.encoder_no_repeat_ngram_size > 0 and _has_ids("encoder_no_repeat_ngram_size", source_ids, vocabulary):
        by_row = True
        add(
            "encoder_no_repeat_ngram_size",
            partial(block_ngrams, size=options.encoder_no_repeat_ngram_size, tokens=source_ids),
        )
    if options.bad_words_ids is not None:
        banned = {tuple(ids): -torch.inf for ids in options.bad_words_ids if len(ids) > 1 or ids[0] not in end}
        if banned:
            add("bad_words_ids", SequenceBias("bad_words_ids", banned, vocabulary, prefix.device))
    if options.min_length > start and end:
        ids = prefix.new_tensor([token for token in end if token < vocabulary])
        add("min_length", partial(suppress, tokens=ids, until=options.min_length))
        if options.min_new_tokens and places.keys() & {"min_length", "min_new_tokens"}:  # two processors there
            add("min_new_tokens", partial(suppress, tokens=ids, until=options.min_length))
    if allowed is not None:
        add("prefix_allowed_tokens_fn", partial(allow, allowed=allowed, beams=options.num_beams))
    if options.forced_bos_token_id is not None:
        add("forced_bos_token_id", partial(force, tokens=ids_of("forced_bos_token_id"), length=1))
    if options.forced_eos_token_id is not None:
        add("forced_eos_token_id", partial(force, tokens=ids_of("forced_eos_token_id"), length=options.max_length - 1))
    if options.remove_invalid_values:
        add("remove_invalid_values", remove_invalid)
    if options.exponential_decay_length_penalty is not None:
        if not end:
            raise ConfigError("exponential_decay_length_penalty needs eos_token_id")
        begin, factor = options.exponential_decay_length_penalty
        add(
            "exponential_decay_length_penalty",
            partial(decay, tokens=ids_of("eos_token_id", end), start=begin + start, factor=factor),
        )
    if options.suppress_tokens is not None:
        add("suppress_tokens", partial(suppress, tokens=ids_of("suppress_tokens")))
    if options.begin_suppress_tokens is not None:
        length = start + (start <= 1 and options.forced_bos_token_id is not None)
        add("begin_suppress_tokens", partial(suppress, tokens=ids_of("begin_suppress_tokens"), at=length))
    chain.extend(process for process in own if not any(process is one for one in chain))
    last = max((place for place, process in enumerate(chain, 1) if any(process is one for one in own)), default=0)
    if options.do_sample:
        limits = {name: getattr(options, name) for name in NO_WARP}
        if limits != NO_WARP:
            # Beams that sample need a token besides the end tokens to go on with.
            keep = 1 if options.num_beams == 1 else 1 + (len(end) or 1)
            chain.append(lambda history, scores: ops.warp(scores, **limits, keep=keep))
    if options.renormalize_logits:
        chain.append(lambda history, scores: scores.log_softmax(-1))
    return Processors(chain, by_row, last, options.num_beams, bool(options.do_sample))


class SequenceBias:
    """Add to the score of each token that completes one of some sequences.

    Args:
        name: the option, for errors.
        biases: sequence of ids -> what is added to the score of its last id where the others came before.
        vocabulary, device: of the scores.
    """

    def __init__(self, name: str, biases: dict[tuple[int, ...], float], vocabulary: int, device: torch.device):
        self.always = torch.zeros(vocabulary, dtype=torch.float32, device=device)
        by_length: dict[int, list[tuple[tuple[int, ...], float]]] = {}
        for ids, bias in biases.items():
            check_ids(name, ids, vocabulary)
            if len(ids) == 1:
                self.always[ids[0]] = bias
            else:
                by_length.setdefault(len(ids) - 1, []).append((ids, bias))
        self.after = [
            (
                torch.tensor([ids[:-1] for ids, _ in group], dtype=torch.int64, device=device),
                torch.tensor([ids[-1] for ids, _ in group], dtype=torch.int64, device=device),
                torch.tensor([bias for _, bias in group], dtype=torch.float32, device=device),
            )
            for group in by_length.values()
        ]

    def __call__(self, history: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        total = self.always.expand_as(scores).clone()
        for before, tokens, biases in self.after:
            length = before.shape[1]
            if length <= history.shape[1]:
                comes = (history[:, None, history.shape[1] - length :] == before).all(-1)
                total.index_add_(1, tokens, torch.where(comes, biases, 0.0))
        return scores + total


def given_scores(history: torch.Tensor, scores: torch.Tensor, *, process: Processor) -> torch.Tensor:
    """What a processor of the caller's makes of scores; InputError where these are no scores."""
    shape, device = scores.shape, scores.device
    found = process(history, scores)
    wanted = f"expected scores {tuple(shape)} of a floating dtype on {device}"
    if not isinstance(found, torch.Tensor):
        raise InputError(f"logits_processor {process} returned {type(found).__name__}; {wanted}")
    if found.layout != torch.strided or found.is_nested:
        raise InputError(f"logits_processor {process} returned a tensor of layout {found.layout}; {wanted}")
    if found.shape != shape or found.device != device or not found.is_floating_point():
        kind = f"{found.dtype} {tuple(found.shape)} on {found.device}"
        raise InputError(f"logits_processor {process} returned {kind}; {wanted}")
    return found.float()


def penalize_repetition(
    history: torch.Tensor,
    scores: torch.Tensor,
    *,
    penalty: float,
    tokens: torch.Tensor | None = None,
    first: torch.Tensor | None = None,
) -> torch.Tensor:
    """Divide the positive and multiply the negative scores of tokens by `penalty`.

    Args:
        tokens: int64 [B, S], the tokens of each source; by default those of the history.
        first: int64 [B], column of the history where each source's tokens begin; what stands before does not count.
    """
    tokens = history if tokens is None else _for_rows(tokens, scores)
    changed = scores.gather(1, tokens)
    changed = torch.where(changed < 0, changed * penalty, changed / penalty)
    if first is None:
        return scores.scatter(1, tokens, changed)
    # Columns that do not count write to one place behind the scores.
    place = torch.arange(tokens.shape[1], device=tokens.device)
    tokens = torch.where(place < _for_rows(first[:, None], scores), scores.shape[1], tokens)
    return torch.nn.functional.pad(scores, (0, 1)).scatter(1, tokens, changed)[:, :-1]


def block_ngrams(
    history: torch.Tensor, scores: torch.Tensor, *, size: int, tokens: torch.Tensor | None = None
) -> torch.Tensor:
    """Forbid tokens that complete an n-gram which has occurred, in `tokens` [B, S] or by default in the history."""
    tokens = history if tokens is None else _for_rows(tokens, scores)
    length = history.shape[1]
    if tokens.shape[1] < size or length < size - 1:
        return scores
    ngrams = tokens.unfold(1, size, 1)
    repeats = (ngrams[..., :-1] == history[:, None, length - size + 1 :]).all(-1)
    rows, places = repeats.nonzero(as_tuple=True)
    return scores.index_put((rows, ngrams[rows, places, -1]), scores.new_tensor(-torch.inf))


def suppress(
    history: torch.Tensor,
    scores: torch.Tensor,
    *,
    tokens: torch.Tensor,
    until: int | None = None,
    at: int | None = None,
) -> torch.Tensor:
    """Forbid tokens int64 [n]: always, under a length of `until`, or at a length of `at`."""
    length = history.shape[1]
    if (until is not None and length >= until) or (at is not None and length != at):
        return scores
    return scores.index_fill(1, tokens, -torch.inf)


def force(history: torch.Tensor, scores: torch.Tensor, *, tokens: torch.Tensor, length: int) -> torch.Tensor:
    """Forbid all but tokens int64 [n] where the history is of this length."""
    if history.shape[1] != length:
        return scores
    return torch.full_like(scores, -torch.inf).index_fill(1, tokens, 0.0)


def allow(history: torch.Tensor, scores: torch.Tensor, *, allowed: AllowedTokens, beams: int) -> torch.Tensor:
    """Forbid what `allowed(source, tokens so far)` does not name; rows of a source are its beams.

    Where every allowed token of all of a source's beams was forbidden already they get the score 0.

    Raises:
        InputError: nothing is allowed, or an id outside the vocabulary.
    """
    mask = torch.full_like(scores, -torch.inf)
    for row, tokens in enumerate(history):
        given = allowed(row // beams, tokens)
        try:
            named = [operator.index(token) for token in given]
        except TypeError:
            named = []
        if not named or max(named) >= scores.shape[1] or min(named) < 0:
            limit = f"must be ids from 0 to {scores.shape[1] - 1}, and not none"
            raise InputError(f"prefix_allowed_tokens_fn({row // beams}, {tokens.tolist()}) is {given}; {limit}")
        mask[row, named] = 0.0
    masked = scores + mask
    hopeless = masked.amax(1).isneginf().view(-1, beams).all(1).repeat_interleave(beams)
    return torch.where(hopeless[:, None], mask, masked)


def remove_invalid(history: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Nan becomes 0, infinite scores the largest and smallest number."""
    return scores.nan_to_num(0.0)


def decay(
    history: torch.Tensor, scores: torch.Tensor, *, tokens: torch.Tensor, start: int, factor: float
) -> torch.Tensor:
    """Raise the scores of tokens int64 [n] by |score| * (factor ** n - 1), n the length beyond `start`."""
    beyond = history.shape[1] - start
    if beyond <= 0:
        return scores
    ends = scores[:, tokens]
    growth = factor**beyond - 1 if beyond * math.log(factor) < 80 else torch.finfo(scores.dtype).max
    more = (ends.abs() * growth).masked_fill(~ends.isfinite(), 0.0)
    return scores.index_copy(1, tokens, ends + more)


def _for_rows(values: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Values [B, ...] of the sources for the rows of scores; the rows of a source are adjacent."""
    width = scores.shape[0] // values.shape[0]
    return values if width == 1 else values.repeat_interleave(width, 0)


def check_ids(name: str, ids: Sequence[int], vocabulary: int) -> None:
    """Raise ConfigError for an id that the decoder has not."""
    wrong = [token for token in (min(ids), max(ids)) if not 0 <= token < vocabulary]
    if wrong:
        raise ConfigError(f"{name} holds {wrong[-1]}; the ids of the decoder go from 0 to {vocabulary - 1}")


def _has_ids(name: str, ids: torch.Tensor | None, vocabulary: int) -> bool:
    """Whether there are input ids for the option to look at; without them it has no effect, as in transformers."""
    if ids is None:
        warnings.warn(f"{name} needs input_ids: without them it changes nothing", UserWarning, stacklevel=4)
        return False
    if int(ids.max()) >= vocabulary:
        raise ConfigError(
            f"{name} looks for ids of the input among those of the decoder: the input holds {int(ids.max())}, the "
            f"decoder has a vocabulary of {vocabulary}"
        )
    return True
