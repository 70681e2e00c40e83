"""Tensor processors: logits processors that are operations on tensors alone.

Each is called as any logits processor, with a history int64 [R, L] of one length and scores float32 [R, V]. `rows`
computes the same, bit for bit, for rows of different lengths that the host does not know: it reads nothing on the host,
and its result has the shape of the scores. `code` says what it computes to implementations in other languages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .. import ops
from ..errors import ConfigError

ANY_LENGTH = 1 << 62  # above the length of every history


class ProcessorCode(NamedTuple):
    """What a tensor processor computes.

    | kind | integers | floats |
    |---|---|---|
    | bias | count, then of each sequence: n, its n ids; in the order in which the biases are added | bias of each |
    | repetition | | penalty |
    | ngram | size | |
    | suppress | first, last, ids: forbidden where first <= length < last | |
    | force | length, ids: where the length is equal the ids get 0, all others -inf | |
    | decay | start, ids | factor |
    | finite | | |
    | normalize | | |
    """

    kind: str
    integers: tuple[int, ...] = ()
    floats: tuple[float, ...] = ()


class TensorProcessor:
    """Base of the tensor processors.

    Attributes:
        code: what it computes; None where only `__call__` does.
    """

    code: ProcessorCode | None

    def prepare(self, positions: int) -> None:
        """Make what `rows` needs for histories of up to this many positions, unless it is there."""

    def __call__(self, history: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The processed scores [R, V] of rows with history [R, L]."""
        raise NotImplementedError

    def rows(self, histories: torch.Tensor, lengths: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The processed scores [R, V] of rows whose histories are the first `lengths` [R] of histories [R, L].

        Args:
            lengths: int64, on the device of the scores, at least 1.
        """
        raise NotImplementedError


class SequenceBias(TensorProcessor):
    """Adds a bias to the score of each token that completes a given sequence.

    Args:
        name: the option, for errors.
        biases: sequence of ids -> added to the score of its last id where the others are the newest tokens.
        vocabulary, device: of the scores.
    """

    def __init__(self, name: str, biases: dict[tuple[int, ...], float], vocabulary: int, device: torch.device):
        self.always = torch.zeros(vocabulary, dtype=torch.float32, device=device)
        by_length: dict[int, list[tuple[tuple[int, ...], float]]] = {}
        for ids, bias in biases.items():
            check_ids(name, ids, vocabulary)
            by_length.setdefault(len(ids) - 1, []).append((ids, bias))
        singles = by_length.pop(0, [])
        for ids, bias in singles:
            self.always[ids[0]] = bias
        self.by_prefix = [
            (
                torch.tensor([ids[:-1] for ids, _ in group], dtype=torch.int64, device=device),
                torch.tensor([ids[-1] for ids, _ in group], dtype=torch.int64, device=device),
                torch.tensor([bias for _, bias in group], dtype=torch.float32, device=device),
            )
            for group in by_length.values()
        ]
        added = [*singles, *(pair for group in by_length.values() for pair in group)]
        integers = (len(added), *(n for ids, _ in added for n in (len(ids), *ids)))
        self.code = ProcessorCode("bias", integers, tuple(bias for _, bias in added))

    def __call__(self, history: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        total = self.always.expand_as(scores).clone()
        for prefix, tokens, biases in self.by_prefix:
            length = prefix.shape[1]
            if length <= history.shape[1]:
                matches = (history[:, None, history.shape[1] - length :] == prefix).all(-1)
                total.index_add_(1, tokens, torch.where(matches, biases, 0.0))
        return scores + total

    def rows(self, histories: torch.Tensor, lengths: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        total = self.always.expand_as(scores).clone()
        for prefix, tokens, biases in self.by_prefix:
            length = prefix.shape[1]
            if length <= histories.shape[1]:
                newest = newest_tokens(histories, lengths, length)
                matches = (newest[:, None] == prefix).all(-1) & (lengths >= length)[:, None]
                total.index_add_(1, tokens, torch.where(matches, biases, 0.0))
        return scores + total


class RepetitionPenalty(TensorProcessor):
    """Divides the positive and multiplies the negative scores of tokens of the history by `penalty`.

    Args:
        first: int64 [B], column of the history where each source's tokens begin; earlier columns do not count.
    """

    def __init__(self, penalty: float, first: torch.Tensor | None = None):
        self.penalty, self.first = penalty, first
        self.code = ProcessorCode("repetition", (), (penalty,)) if first is None else None

    def __call__(self, history: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return penalize_repetition(history, scores, penalty=self.penalty, tokens=history, first=self.first)

    def rows(self, histories: torch.Tensor, lengths: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # Behind its end a history repeats its first token, which is penalized once all the same.
        position = torch.arange(histories.shape[1], device=histories.device)
        tokens = torch.where(position < lengths[:, None], histories, histories[:, :1])
        return penalize_repetition(histories, scores, penalty=self.penalty, tokens=tokens)


class NoRepeatNgram(TensorProcessor):
    """Forbids tokens that complete an n-gram which has occurred in the history."""

    def __init__(self, size: int):
        self.size = size
        self.code = ProcessorCode("ngram", (size,))

    def __call__(self, history: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return block_ngrams(history, scores, size=self.size, tokens=history)

    def rows(self, histories: torch.Tensor, lengths: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        size, vocabulary = self.size, scores.shape[1]
        if histories.shape[1] < size:
            return scores
        ngrams = histories.unfold(1, size, 1)
        repeats = (ngrams[..., :-1] == newest_tokens(histories, lengths, size - 1)[:, None]).all(-1)
        position = torch.arange(ngrams.shape[1], device=histories.device)
        repeats = repeats & (position + size <= lengths[:, None])
        # What does not repeat marks an extra column, which is cut off.
        forbidden = torch.zeros((len(scores), vocabulary + 1), dtype=torch.bool, device=scores.device)
        forbidden.scatter_(1, torch.where(repeats, ngrams[..., -1], vocabulary), True)
        return scores.masked_fill(forbidden[:, :vocabulary], -torch.inf)


class Suppress(TensorProcessor):
    """Forbids tokens int64 [n] where first <= length < last.

    Args:
        vocabulary: of the scores.
    """

    def __init__(self, tokens: torch.Tensor, vocabulary: int, first: int = 0, last: int = ANY_LENGTH):
        self.tokens, self.first, self.last = tokens, first, last
        self.forbidden = torch.zeros(vocabulary, dtype=torch.bool, device=tokens.device).index_fill(0, tokens, True)
        self.code = ProcessorCode("suppress", (first, last, *tokens.tolist()))

    @property
    def always(self) -> bool:
        """Whether the tokens are forbidden at every length of a history, which has one token at least."""
        return self.first <= 1 and self.last == ANY_LENGTH

    def __call__(self, history: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self.first <= history.shape[1] < self.last:
            return scores
        return scores.index_fill(1, self.tokens, -torch.inf)

    def rows(self, histories: torch.Tensor, lengths: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.always:
            return scores.index_fill(1, self.tokens, -torch.inf)
        acts = (lengths >= self.first) & (lengths < self.last)
        return scores.masked_fill(acts[:, None] & self.forbidden, -torch.inf)


class Force(TensorProcessor):
    """Forbids all but tokens int64 [n] where the history is of this length.

    Args:
        vocabulary: of the scores.
    """

    def __init__(self, tokens: torch.Tensor, vocabulary: int, length: int):
        self.length = length
        self.forced = torch.full((vocabulary,), -torch.inf, dtype=torch.float32, device=tokens.device)
        self.forced.index_fill_(0, tokens, 0.0)
        self.code = ProcessorCode("force", (length, *tokens.tolist()))

    def __call__(self, history: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self.forced.expand_as(scores).clone() if history.shape[1] == self.length else scores

    def rows(self, histories: torch.Tensor, lengths: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.where((lengths == self.length)[:, None], self.forced, scores)


class RemoveInvalid(TensorProcessor):
    """Replaces nan by 0 and infinite scores by the largest and smallest number."""

    code = ProcessorCode("finite")

    def __call__(self, history: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.nan_to_num(0.0)

    def rows(self, histories: torch.Tensor, lengths: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.nan_to_num(0.0)


class ExponentialDecay(TensorProcessor):
    """Adds |score| * (factor ** n - 1) to the scores of tokens int64 [n], where n is the length beyond `start`."""

    def __init__(self, tokens: torch.Tensor, start: int, factor: float):
        self.tokens, self.start, self.factor = tokens, start, factor
        self.code = ProcessorCode("decay", (start, *tokens.tolist()), (factor,))
        self.growths = torch.zeros(0, dtype=torch.float32, device=tokens.device)  # of each length

    def prepare(self, positions: int) -> None:
        if positions < len(self.growths):
            return
        growths = [self._growth(length) for length in range(positions + 1)]
        self.growths = torch.tensor(growths, dtype=torch.float32, device=self.tokens.device)

    def _growth(self, length: int) -> float:
        """What |score| is multiplied with at this length of the history."""
        beyond = length - self.start
        if beyond <= 0:
            return 0.0
        too_large = beyond * math.log(self.factor) >= 80
        return torch.finfo(torch.float32).max if too_large else self.factor**beyond - 1

    def __call__(self, history: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self._grow(scores, self._growth(history.shape[1]))

    def rows(self, histories: torch.Tensor, lengths: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self._grow(scores, self.growths.index_select(0, lengths)[:, None])

    def _grow(self, scores: torch.Tensor, growth: torch.Tensor | float) -> torch.Tensor:
        ends = scores.index_select(1, self.tokens)
        added = (ends.abs() * growth).masked_fill(~ends.isfinite(), 0.0)
        return scores.index_copy(1, self.tokens, ends + added)


class Normalize(TensorProcessor):
    """Turns scores into log-probabilities."""

    code = ProcessorCode("normalize")

    def __call__(self, history: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return ops.log_softmax(scores)

    def rows(self, histories: torch.Tensor, lengths: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return ops.log_softmax(scores)


class Warp(TensorProcessor):
    """The warpers of sampling: `ops.warp` with these options.

    Args:
        options: values of its arguments.
        keep: every limit keeps at least this many tokens.
    """

    code = None

    def __init__(self, options: dict[str, float | None], keep: int):
        self.options, self.keep = options, keep

    def __call__(self, history: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return ops.warp(scores, **self.options, keep=self.keep)


def penalize_repetition(
    history: torch.Tensor,
    scores: torch.Tensor,
    *,
    penalty: float,
    tokens: torch.Tensor,
    first: torch.Tensor | None = None,
) -> torch.Tensor:
    """Divide the positive and multiply the negative scores of tokens by `penalty`.

    Args:
        tokens: int64 [B, S], the tokens of each source (of whom rows are adjacent), or of each row.
        first: int64 [B], column of `tokens` where each source's tokens begin; earlier columns do not count.
    """
    tokens = _repeat_per_row(tokens, scores)
    changed = scores.gather(1, tokens)
    changed = torch.where(changed < 0, changed * penalty, changed / penalty)
    if first is None:
        return scores.scatter(1, tokens, changed)
    # Columns that do not count write to an extra column, which is cut off.
    column = torch.arange(tokens.shape[1], device=tokens.device)
    tokens = torch.where(column < _repeat_per_row(first[:, None], scores), scores.shape[1], tokens)
    return torch.nn.functional.pad(scores, (0, 1)).scatter(1, tokens, changed)[:, :-1]


def block_ngrams(history: torch.Tensor, scores: torch.Tensor, *, size: int, tokens: torch.Tensor) -> torch.Tensor:
    """Forbid tokens that complete an n-gram which has occurred in `tokens` [B, S], of each source or of each row."""
    tokens = _repeat_per_row(tokens, scores)
    length = history.shape[1]
    if tokens.shape[1] < size or length < size - 1:
        return scores
    ngrams = tokens.unfold(1, size, 1)
    repeats = (ngrams[..., :-1] == history[:, None, length - size + 1 :]).all(-1)
    rows, positions = repeats.nonzero(as_tuple=True)
    return scores.index_put((rows, ngrams[rows, positions, -1]), scores.new_tensor(-torch.inf))


def newest_tokens(histories: torch.Tensor, lengths: torch.Tensor, count: int) -> torch.Tensor:
    """The last `count` tokens [R, count] of histories [R, L] of these lengths [R]; any where there are fewer."""
    position = lengths[:, None] - count + torch.arange(count, device=histories.device)
    return histories.gather(1, position.clamp(min=0))


def _repeat_per_row(values: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Values [B, ...] of sources, repeated for the rows of scores [R, V]; the rows of a source are adjacent."""
    width = scores.shape[0] // values.shape[0]
    return values if width == 1 else values.repeat_interleave(width, 0)


def check_ids(name: str, ids: Sequence[int], vocabulary: int) -> None:
    """Raise ConfigError for an id outside the decoder's vocabulary."""
    outside = [token for token in (min(ids), max(ids)) if not 0 <= token < vocabulary]
    if outside:
        raise ConfigError(f"{name} holds {outside[-1]}; the ids of the decoder go from 0 to {vocabulary - 1}")
