"""Logits processors: they change the scores of a step before a token is chosen.

Each is a function of the tokens so far, history int64 [R, L], and the scores of the next token, float32 [R, V] (logits;
with beams, log-probabilities). It returns new scores. `build_logits_processors` makes those of a call, in the order of
transformers. A new processor is a class in `tensor_processors`, or a function here where it calls the caller's code, an
option in `GenerationConfig`, and a line in that function.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ..config import GenerationConfig
from ..config.generation import SAMPLE_OPTIONS, as_list
from ..config.validators import check_callable, check_callables
from ..errors import ConfigError, InputError
from .tensor_processors import (
    ExponentialDecay,
    Force,
    NoRepeatNgram,
    Normalize,
    RemoveInvalid,
    RepetitionPenalty,
    SequenceBias,
    Suppress,
    TensorProcessor,
    Warp,
    block_ngrams,
    check_ids,
    penalize_repetition,
)

LogitsProcessor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
AllowedTokens = Callable[[int, torch.Tensor], Sequence[int]]

# The options of `ops.warp`, and the value that switches each of them off.
NO_WARP: dict[str, Any] = dict(
    temperature=1.0, top_h=None, top_k=0, top_p=1.0, min_p=None, typical_p=1.0, epsilon_cutoff=0.0, eta_cutoff=0.0
)

# Classes of transformers -> the option whose own processor an object of the class replaces.
_OPTION_OF_CLASS = {
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


def replaced_option(processor: Any) -> str | None:
    """The option whose processor an object of a class of transformers replaces; None for any other callable."""
    cls = type(getattr(processor, "__wrapped__", processor))
    return _OPTION_OF_CLASS.get(cls.__name__) if cls.__module__.startswith("transformers.") else None


class LogitsProcessorList:
    """Logits processors, applied one after another.

    Args:
        processors: first to last.
        by_row: results may depend on the index of a row, so that ended rows must stay.
        custom_end: index after the last of the caller's own processors; its result is checked. 0 without any.
        beams: rows per source.
        samples: tokens are sampled.

    Attributes:
        tensor_processors: the processors, where all of them have `rows`; otherwise None.
    """

    def __init__(
        self,
        processors: Sequence[LogitsProcessor] = (),
        by_row: bool = False,
        custom_end: int = 0,
        beams: int = 1,
        samples: bool = False,
    ):
        self.processors, self.by_row = tuple(processors), by_row
        self.custom_end, self.beams, self.samples = custom_end, beams, samples
        found = [p for p in self.processors if isinstance(p, TensorProcessor) and p.code is not None]
        self.tensor_processors = found if len(found) == len(self.processors) else None

    def __bool__(self) -> bool:
        return bool(self.processors)

    @property
    def has_custom(self) -> bool:
        """Whether some of the processors are the caller's own."""
        return self.custom_end > 0

    def sample_options(self) -> dict[str, Any] | None:
        """The options of `ops.warp`, where it is the last processor and `ops.sample` can do all of it; else None."""
        last = self.processors[-1] if self.processors else None
        if (
            not isinstance(last, Warp)
            or self.beams > 1
            or any(value != NO_WARP[name] for name, value in last.options.items() if name not in SAMPLE_OPTIONS)
        ):
            return None
        return {name: last.options[name] for name in SAMPLE_OPTIONS}

    def without_last(self) -> LogitsProcessorList:
        """All processors but the last."""
        return LogitsProcessorList(self.processors[:-1], self.by_row, self.custom_end, self.beams, self.samples)

    def __call__(
        self, history: torch.Tensor, scores: torch.Tensor, running: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The processed scores [R, V]; rows where `running`, bool [R], is False have ended and may hold anything."""
        for count, processor in enumerate(self.processors, 1):
            scores = processor(history, scores)
            if count == self.custom_end:
                scores = self._check_custom_scores(history, scores, running)
        return scores

    def _check_custom_scores(
        self, history: torch.Tensor, scores: torch.Tensor, running: torch.Tensor | None
    ) -> torch.Tensor:
        """Scores after the caller's processors: -inf forbids a token, +inf forbids all tokens without +inf.

        Raises:
            InputError: nan; without beams, -inf for every token.
        """
        best = scores.amax(1)
        unusable = best.isnan()
        if self.beams == 1:
            unusable = unusable | best.isneginf()  # a beam without tokens is dropped, a single row cannot be
        bad = unusable if running is None else unusable & running
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            value = "nan" if bool(best[row].isnan()) else "-inf for every token"
            raise InputError(f"logits_processor returned {value} after {history.shape[1]} tokens (row {row})")
        if running is not None:
            scores = scores.masked_fill(unusable[:, None], -torch.inf if self.beams > 1 else 0.0)
        if self.samples or self.beams > 1:  # greedy search takes a token with +inf anyway
            forced = scores.isposinf()
            only_forced = torch.where(forced, 0.0, -torch.inf)
            scores = torch.where(forced.any(1, keepdim=True), only_forced, scores)
        return scores


def build_logits_processors(
    options: GenerationConfig,
    vocabulary: int,
    prefix: torch.Tensor,
    *,
    prefix_mask: torch.Tensor | None = None,
    source_ids: torch.Tensor | None = None,
    allowed: AllowedTokens | None = None,
    custom: Sequence[LogitsProcessor] | None = None,
) -> LogitsProcessorList:
    """The processors of resolved `options`.

    Args:
        vocabulary: number of scores of a row.
        prefix: int64 [B, P], the first tokens of the outputs of each source.
        prefix_mask: bool [B, P], False at padding: tokens before the first True do not count as repetitions.
        source_ids: int64 [B, S], input of the encoder (or of a standalone decoder); None where it was embeddings.
        allowed: `prefix_allowed_tokens_fn`.
        custom: `logits_processor`; an object of a class of transformers replaces the processor of its option.

    Raises:
        ConfigError: ids outside the vocabulary; an option that needs an end token without one; a value that cannot be
            called.
    """
    start, end = prefix.shape[1], options.end_tokens
    custom = check_callables(custom, "logits_processor") or []
    check_callable(allowed, "prefix_allowed_tokens_fn")
    if options.pad_token_id is not None:  # the input of rows that have ended
        check_ids("pad_token_id", [options.pad_token_id], vocabulary)

    def ids_of(name: str, ids: Sequence[int] | None = None) -> torch.Tensor:
        ids = as_list(getattr(options, name)) if ids is None else ids
        check_ids(name, ids, vocabulary)
        return prefix.new_tensor(ids)

    checked = [partial(call_custom, processor=processor) for processor in custom]
    replacements = {
        replaced_option(processor): call for processor, call in zip(reversed(custom), reversed(checked), strict=True)
    }
    processors: list[LogitsProcessor] = []

    def add(option: str, processor: LogitsProcessor) -> None:
        processors.append(replacements.get(option, processor))

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
        add("repetition_penalty", RepetitionPenalty(options.repetition_penalty, first))
    if options.no_repeat_ngram_size > 0:
        add("no_repeat_ngram_size", NoRepeatNgram(options.no_repeat_ngram_size))
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
        too_short = Suppress(ids, vocabulary, last=options.min_length)
        add("min_length", too_short)
        # transformers has a processor for each of the two options.
        if options.min_new_tokens and replacements.keys() & {"min_length", "min_new_tokens"}:
            add("min_new_tokens", too_short)
    if allowed is not None:
        rows = max(options.num_beams, options.num_return_sequences)  # of each source
        add("prefix_allowed_tokens_fn", partial(allow, allowed=allowed, beams=rows))
    if options.forced_bos_token_id is not None:
        add("forced_bos_token_id", Force(ids_of("forced_bos_token_id"), vocabulary, 1))
    if options.forced_eos_token_id is not None:
        forced = Force(ids_of("forced_eos_token_id"), vocabulary, options.max_length - 1)
        add("forced_eos_token_id", forced)
    if options.remove_invalid_values:
        add("remove_invalid_values", RemoveInvalid())
    if options.exponential_decay_length_penalty is not None:
        if not end:
            raise ConfigError("exponential_decay_length_penalty needs eos_token_id")
        begin, factor = options.exponential_decay_length_penalty
        decay = ExponentialDecay(ids_of("eos_token_id", end), begin + start, factor)
        add("exponential_decay_length_penalty", decay)
    if options.suppress_tokens is not None:
        add("suppress_tokens", Suppress(ids_of("suppress_tokens"), vocabulary))
    if options.begin_suppress_tokens is not None:
        length = start + (start <= 1 and options.forced_bos_token_id is not None)
        ids = ids_of("begin_suppress_tokens")
        add("begin_suppress_tokens", Suppress(ids, vocabulary, first=length, last=length + 1))
    processors.extend(call for call in checked if not any(call is processor for processor in processors))
    own_ends = (i for i, processor in enumerate(processors, 1) if any(processor is call for call in checked))
    custom_end = max(own_ends, default=0)
    if options.do_sample:
        limits = {name: getattr(options, name) for name in NO_WARP}
        if limits != NO_WARP:
            # Beams that sample need a token to continue with besides the end tokens.
            keep = 1 if options.num_beams == 1 else 1 + (len(end) or 1)
            processors.append(Warp(limits, keep))
    if options.renormalize_logits:
        processors.append(Normalize())
    return LogitsProcessorList(processors, by_row, custom_end, options.num_beams, bool(options.do_sample))


def call_custom(history: torch.Tensor, scores: torch.Tensor, *, processor: LogitsProcessor) -> torch.Tensor:
    """Call a processor of the caller; InputError where the result is no scores float [R, V]."""
    shape, device = scores.shape, scores.device
    result = processor(history, scores)
    expected = f"expected scores {tuple(shape)} of a floating dtype on {device}"
    if not isinstance(result, torch.Tensor):
        raise InputError(f"logits_processor {processor} returned {type(result).__name__}; {expected}")
    if result.layout != torch.strided or result.is_nested:
        raise InputError(f"logits_processor {processor} returned a tensor of layout {result.layout}; {expected}")
    if result.shape != shape or result.device != device or not result.is_floating_point():
        kind = f"{result.dtype} {tuple(result.shape)} on {result.device}"
        raise InputError(f"logits_processor {processor} returned {kind}; {expected}")
    return result.float()


def allow(history: torch.Tensor, scores: torch.Tensor, *, allowed: AllowedTokens, beams: int) -> torch.Tensor:
    """Forbid all tokens but those of `allowed(source, tokens so far)`; the rows of a source are its beams.

    If earlier processors forbid every allowed token of all beams of a source, its allowed tokens get the score 0.

    Raises:
        InputError: `allowed` returns no ids, or an id outside the vocabulary.
    """
    mask = torch.full_like(scores, -torch.inf)
    for row, tokens in enumerate(history):
        result = allowed(row // beams, tokens)
        try:
            ids = [operator.index(token) for token in result]
        except TypeError:
            ids = []
        if not ids or max(ids) >= scores.shape[1] or min(ids) < 0:
            limit = f"must be at least one id from 0 to {scores.shape[1] - 1}"
            raise InputError(f"prefix_allowed_tokens_fn({row // beams}, {tokens.tolist()}) is {result}; {limit}")
        mask[row, ids] = 0.0
    masked = scores + mask
    all_forbidden = masked.amax(1).isneginf().view(-1, beams).all(1).repeat_interleave(beams)
    return torch.where(all_forbidden[:, None], mask, masked)


def _has_ids(name: str, ids: torch.Tensor | None, vocabulary: int) -> bool:
    """Whether there are input ids for the option; without them it warns and has no effect, as in transformers."""
    if ids is None:
        warnings.warn(f"{name} needs input_ids; it has no effect without them", UserWarning, stacklevel=4)
        return False
    if int(ids.max()) >= vocabulary:
        raise ConfigError(
            f"{name} needs input ids that the decoder has too: the input holds {int(ids.max())}, the decoder has a "
            f"vocabulary of {vocabulary}"
        )
    return True
