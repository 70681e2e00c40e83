"""Stopping criteria: they end an output before its end token and its maximum length.

A criterion is a function of the tokens so far, history int64 [R, L], and the scores of all steps (None unless they are
recorded). It returns which rows have ended: bool [R], or one bool for all. `build_stopping_criteria` makes those that a
call needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..config import GenerationConfig
from ..config.validators import check_callables
from ..errors import ConfigError, InputError, quoted

StepScores = tuple[torch.Tensor, ...] | None
StoppingCriterion = Callable[[torch.Tensor, StepScores], Any]

# Classes of transformers -> the option whose own criterion an object of the class replaces.
_OPTION_OF_CLASS = {
    "MaxLengthCriteria": "max_length",
    "MaxTimeCriteria": "max_time",
    "StopStringCriteria": "stop_strings",
    "EosTokenCriteria": "eos_token_id",
}

# Decoded before a token to get the token's own text: the first token of a text may lose its space.
LEADING_TEXT = "abcdef"


class StoppingCriteriaList:
    """Criteria of which any may end a row.

    Args:
        criteria: each is called in every step.
        by_row: results may depend on the index of a row, so that ended rows must stay.
    """

    def __init__(self, criteria: Sequence[StoppingCriterion] = (), by_row: bool = False):
        self.criteria, self.by_row = tuple(criteria), by_row

    def __bool__(self) -> bool:
        return bool(self.criteria)

    def __call__(self, history: torch.Tensor, scores: StepScores) -> torch.Tensor:
        """bool [R], the rows of history int64 [R, L] that have ended.

        Raises:
            InputError: a criterion returns neither one bool nor one per row.
        """
        ended = torch.zeros(history.shape[0], dtype=torch.bool, device=history.device)
        for criterion in self.criteria:
            result = criterion(history, scores)
            try:
                rows = torch.as_tensor(result, device=history.device)
            except (TypeError, ValueError, RuntimeError):
                raise InputError(f"{criterion} returned {result!r}; expected one bool, or one per row") from None
            if rows.dim() and rows.shape != ended.shape:
                raise InputError(
                    f"{criterion} returned shape {tuple(rows.shape)} for {len(ended)} rows; expected one bool per row"
                )
            ended = ended | rows.bool()
        return ended


def build_stopping_criteria(
    options: GenerationConfig, tokenizer: Any = None, custom: Sequence[StoppingCriterion] | None = None
) -> StoppingCriteriaList:
    """The criteria of resolved `options`; `max_time` counts from this call.

    Args:
        tokenizer: decodes tokens, for `stop_strings`.
        custom: the caller's `stopping_criteria`; an object of a class of transformers replaces that of its option.

    Raises:
        ConfigError: `stop_strings` without a tokenizer; `custom` is no list of callables.
    """
    custom = check_callables(custom, "stopping_criteria") or []
    replaced = {replaced_option(criterion) for criterion in custom}
    criteria: list[StoppingCriterion] = []
    if options.max_time is not None and "max_time" not in replaced:
        limit = time.monotonic() + options.max_time
        criteria.append(lambda history, scores: time.monotonic() > limit)
    if options.stop_strings is not None and "stop_strings" not in replaced:
        if not all(callable(getattr(tokenizer, name, None)) for name in ("encode", "decode", "__len__")):
            raise ConfigError(
                f"stop_strings={quoted(options.stop_strings)} needs tokenizer=, which decodes the tokens, got "
                f"{quoted(tokenizer)}"
            )
        texts = options.stop_strings
        criteria.append(StopStrings(tokenizer, [texts] if isinstance(texts, str) else texts))
    return StoppingCriteriaList([*criteria, *custom], by_row=bool(custom))


def replaced_option(criterion: Any) -> str | None:
    """The option whose criterion an object of a class of transformers replaces; None for any other callable."""
    cls = type(getattr(criterion, "__wrapped__", criterion))
    return _OPTION_OF_CLASS.get(cls.__name__) if cls.__module__.startswith("transformers.") else None


def with_custom_limits(options: GenerationConfig, prefix: int, custom: Sequence[Any] | None) -> GenerationConfig:
    """Resolved options with the length and end tokens of the MaxLengthCriteria and EosTokenCriteria in `custom`.

    Args:
        prefix: number of tokens that an output begins with; at least one more is chosen, whatever the length.
        custom: the caller's `stopping_criteria`.
    """
    changed: dict[str, Any] = {}
    for criterion in custom or ():
        option = replaced_option(criterion)
        if option == "max_length":
            changed.setdefault(option, max(criterion.max_length, prefix + 1))
        elif option == "eos_token_id" and (options.end_tokens or options.num_beams == 1):
            changed.setdefault(option, torch.as_tensor(criterion.eos_token_id, device="cpu").flatten().tolist())
    return GenerationConfig.from_dict({**options.to_dict(), **changed}) if changed else options


class StopStrings:
    """Ends rows when a text of `texts` is complete, also where the text ends inside the last token.

    Args:
        tokenizer: has `encode`, `decode` and a length.
        texts: not empty.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]):
        self.tokenizer, self.texts = tokenizer, list(texts)
        self.longest = max(len(text.encode()) for text in self.texts)
        self.leading_ids = tokenizer.encode(LEADING_TEXT, add_special_tokens=False)
        self.leading_length = len(self._decode(self.leading_ids))
        self.token_texts: dict[int, str] = {}  # of the tokens that have occurred

    def __call__(self, history: torch.Tensor, scores: StepScores) -> torch.Tensor:
        # A text has at most one token per byte, unless tokens decode to nothing.
        tails = history[:, max(0, history.shape[1] - self.longest) :].tolist()
        return torch.tensor([self._completes(tail) for tail in tails], dtype=torch.bool, device=history.device)

    def _completes(self, tail: list[int]) -> bool:
        outside = [i for i, token in enumerate(tail) if token >= len(self.tokenizer)]
        if outside:  # the model's vocabulary is larger than the tokenizer's; such a token has no text
            tail = tail[outside[-1] + 1 :]
        if not tail:
            return False
        before, text = self._text(tail[:-1]), self._text(tail)
        common = 0  # characters that both begin with
        while common < min(len(before), len(text)) and before[common] == text[common]:
            common += 1
        return any(stop in text[max(0, common - len(stop) + 1) :] for stop in self.texts)

    def _text(self, tokens: list[int]) -> str:
        pieces = [self._token_text(token) for token in tokens]
        if any("\ufffd" in piece for piece in pieces):  # parts of a character must be decoded together
            return self._text_after_leading(tokens)
        return "".join(pieces)

    def _token_text(self, token: int) -> str:
        if token not in self.token_texts:
            self.token_texts[token] = self._text_after_leading([token])
        return self.token_texts[token]

    def _text_after_leading(self, tokens: list[int]) -> str:
        return self._decode([*self.leading_ids, *tokens])[self.leading_length :]

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
