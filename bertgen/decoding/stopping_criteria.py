"""Stopping: what ends an output besides its end token and its length.

A criterion is a function of the tokens so far, history int64 [R, L], and the scores of all steps (None unless they are
recorded), that says which rows are done: bool [R], or one bool for all. `build` makes those that a call asks for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..config import GenerationConfig
from ..config.validators import check_callables
from ..errors import ConfigError, InputError, quoted

Scores = tuple[torch.Tensor, ...] | None
Criterion = Callable[[torch.Tensor, Scores], Any]

# transformers' criteria, of which one that a caller passes takes the place of the one that the option makes.
_THEIRS = {
    "MaxLengthCriteria": "max_length",
    "MaxTimeCriteria": "max_time",
    "StopStringCriteria": "stop_strings",
    "EosTokenCriteria": "eos_token_id",
}

BASE = "abcdef"  # a text that a token follows when its own text is asked for: what begins a text may lose its space


class Criteria:
    """Criteria of which any may end a row.

    Args:
        criteria: each is asked in every step.
        by_row: some of them may know which row is which, so that no row may be left out once it is done.
    """

    def __init__(self, criteria: Sequence[Criterion] = (), by_row: bool = False):
        self.criteria, self.by_row = tuple(criteria), by_row

    def __bool__(self) -> bool:
        return bool(self.criteria)

    def __call__(self, history: torch.Tensor, scores: Scores) -> torch.Tensor:
        """bool [R], the rows of history [R, L] that are done."""
        done = torch.zeros(history.shape[0], dtype=torch.bool, device=history.device)
        for criterion in self.criteria:
            given = criterion(history, scores)
            try:
                found = torch.as_tensor(given, device=history.device)
            except (TypeError, ValueError, RuntimeError):
                raise InputError(f"{criterion} gave {given!r}; one bool, or one per row") from None
            if found.dim() and found.shape != done.shape:
                raise InputError(f"{criterion} gave shape {tuple(found.shape)} for {len(done)} rows; one bool per row")
            done = done | found.bool()
        return done


def build(options: GenerationConfig, tokenizer: Any = None, custom: Sequence[Criterion] | None = None) -> Criteria:
    """The criteria that settled `options` ask for; `max_time` counts from here.

    Args:
        tokenizer: what gives tokens their text, for `stop_strings`.
        custom: `stopping_criteria`; one of transformers' classes takes the place of that of its option.

    Raises:
        ConfigError: `stop_strings` without a tokenizer; `custom` is no list of callables.
    """
    own = check_callables(custom, "stopping_criteria") or []
    places = {replaced(criterion) for criterion in own}
    criteria: list[Criterion] = []
    if options.max_time is not None and "max_time" not in places:
        limit = time.monotonic() + options.max_time
        criteria.append(lambda history, scores: time.monotonic() > limit)
    if options.stop_strings is not None and "stop_strings" not in places:
        if not all(callable(getattr(tokenizer, name, None)) for name in ("encode", "decode", "__len__")):
            raise ConfigError(
                f"stop_strings={quoted(options.stop_strings)} needs tokenizer=, to see what tokens spell, got "
                f"{quoted(tokenizer)}"
            )
        texts = options.stop_strings
        criteria.append(StopStrings(tokenizer, [texts] if isinstance(texts, str) else texts))
    return Criteria([*criteria, *own], by_row=bool(own))


def replaced(criterion: Any) -> str | None:
    """The option that a criterion of transformers' takes the place of; None for any other callable."""
    kind = type(getattr(criterion, "__wrapped__", criterion))
    return _THEIRS.get(kind.__name__) if kind.__module__.startswith("transformers.") else None


def overruled(options: GenerationConfig, prefix: int, custom: Sequence[Any] | None) -> GenerationConfig:
    """Settled options with the length and the end tokens of transformers' criteria that take their place.

    Args:
        prefix: tokens that an output begins with; at least one more is chosen, whatever the length.
        custom: `stopping_criteria`.
    """
    changed: dict[str, Any] = {}
    for criterion in custom or ():
        option = replaced(criterion)
        if option == "max_length":
            changed.setdefault(option, max(criterion.max_length, prefix + 1))
        elif option == "eos_token_id" and (options.end_tokens or options.num_beams == 1):
            changed.setdefault(option, torch.as_tensor(criterion.eos_token_id, device="cpu").flatten().tolist())
    return GenerationConfig.from_dict({**options.to_dict(), **changed}) if changed else options


class StopStrings:
    """Rows whose last token completes one of some texts, also where the text ends inside of it.

    Args:
        tokenizer: has `encode`, `decode` and a length.
        texts: none of them empty.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]):
        self.tokenizer, self.texts = tokenizer, list(texts)
        self.longest = max(len(text.encode()) for text in self.texts)
        self.base = tokenizer.encode(BASE, add_special_tokens=False)
        self.skip = len(self._decode(self.base))
        self.spelled: dict[int, str] = {}  # of the tokens that have occurred

    def __call__(self, history: torch.Tensor, scores: Scores) -> torch.Tensor:
        # More tokens than a text has bytes cannot be part of it, unless they spell nothing.
        tails = history[:, max(0, history.shape[1] - self.longest) :].tolist()
        return torch.tensor([self._completes(tail) for tail in tails], dtype=torch.bool, device=history.device)

    def _completes(self, tail: list[int]) -> bool:
        outside = [place for place, token in enumerate(tail) if token >= len(self.tokenizer)]
        if outside:  # the model's vocabulary is larger: such a token spells nothing and joins nothing
            tail = tail[outside[-1] + 1 :]
        if not tail:
            return False
        before, text = self._text(tail[:-1]), self._text(tail)
        same = 0
        while same < min(len(before), len(text)) and before[same] == text[same]:
            same += 1
        return any(stop in text[max(0, same - len(stop) + 1) :] for stop in self.texts)

    def _text(self, tokens: list[int]) -> str:
        pieces = [self._spell(token) for token in tokens]
        if any("\ufffd" in piece for piece in pieces):  # parts of a letter: only together do they spell it
            return self._joined(tokens)
        return "".join(pieces)

    def _spell(self, token: int) -> str:
        if token not in self.spelled:
            self.spelled[token] = self._joined([token])
        return self.spelled[token]

    def _joined(self, tokens: list[int]) -> str:
        return self._decode([*self.base, *tokens])[self.skip :]

    def _decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
