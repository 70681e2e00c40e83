"""How likely a model finds given targets: log-probabilities by one pass over sources and targets, no search.

Pairs are sorted by source, so that targets of one source share its encoding, and cut into batches by tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from .. import process_events
from ..config import GenerationConfig
from ..decoding.sampling import length_normalized
from ..errors import BackendError, ConfigError, InputError
from ..memory import attempt
from ..model import EncoderDecoderModel
from ..packing import padded
from ..tokenizer import Tokenizer
from ..tokenizer.special_tokens import Encoded, encode_targets, target_end_token

HELD_LOGITS = 1 << 26  # logits in float32 that are held at a time: 256 MiB


@dataclass(frozen=True)
class Likelihood:
    """What a model thinks of one target.

    Attributes:
        index: which of the given pairs it answers.
        token_ids: of the target as it was scored, with the end token of a text.
        log_probs: log-probability of each token, given the source and the tokens before.
        total: their sum: the log-probability of the target.
        score: total / length ** length_penalty, as `Output.score`.
        truncated: the source was longer than the limit and its end was not read.
        error: why the pair could not be used, where `stream_scores(return_errors=True)` met such a one.
    """

    index: int
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    total: float | None = None
    score: float | None = None
    truncated: bool = False
    error: InputError | None = None


class Owner(Protocol):
    """What scoring needs of a Generator."""

    model: EncoderDecoderModel
    tokenizer: Tokenizer
    encode_tokens: int

    def encode_sources(self, texts: Sequence[str], truncation: bool | None = None) -> list[Encoded]:
        """Texts as the encoder reads them."""


@dataclass(frozen=True)
class _Pair:
    """A pair that was encoded."""

    index: int
    source: list[int]
    target: list[int]
    truncated: bool


class Scorer:
    """Scores pairs with the model of a Generator; arguments as those of `Generator.stream_scores`."""

    def __init__(self, owner: Owner, length_penalty: float | None, truncation: bool | None, return_errors: bool):
        self.owner, self.return_errors = owner, return_errors
        self.truncation = truncation
        given = {} if length_penalty is None else {"length_penalty": length_penalty}
        options = GenerationConfig.of_call(given, None, owner.model.generation_config)
        default = GenerationConfig.DEFAULTS["length_penalty"]
        self.length_penalty = default if options.length_penalty is None else options.length_penalty
        start = options.decoder_start_token_id
        self.start = options.bos_token_id if start is None else start
        if self.start is None:
            raise ConfigError("a target needs the model's decoder_start_token_id or bos_token_id")
        self.end = target_end_token(owner.model.config, owner.tokenizer, options)

    def answers(self, windows: Iterable[list[tuple[Any, Any]]]) -> Iterator[tuple[int, Likelihood]]:
        """Likelihoods of the pairs (source, target) of each window, under their index."""
        first = 0
        for window in windows:
            pairs = []
            for found in self._encode(window, first):
                if isinstance(found, Likelihood):
                    yield found.index, found
                else:
                    pairs.append(found)
            yield from self._batches(pairs)
            first += len(window)

    def _encode(self, window: list[tuple[Any, Any]], first: int) -> list[_Pair | Likelihood]:
        owner, config = self.owner, self.owner.model.config
        both = [pair if isinstance(pair, tuple) and len(pair) == 2 else (pair, "") for pair in window]
        sources = owner.encode_sources([source for source, _ in both], self.truncation)
        targets = encode_targets(
            [target for _, target in both],
            owner.tokenizer,
            self.end,
            limit=config.decoder.max_tokens,
            vocabulary=config.decoder.vocab_size,
        )
        found: list[_Pair | Likelihood] = []
        for index, (pair, source, target) in enumerate(zip(window, sources, targets, strict=True), first):
            problem = None
            if not isinstance(pair, tuple) or len(pair) != 2:
                problem = f"must be a tuple of source and target, got {type(pair).__name__}"
            elif source.reason is not None:
                problem = f"source: {source.reason}"
            elif not source.ids:
                problem = "source: no tokens"
            elif target.reason is not None:
                problem = f"target: {target.reason}"
            if problem is None:
                found.append(_Pair(index, source.ids, target.ids, source.truncated))
            elif self.return_errors:
                found.append(Likelihood(index, error=InputError(problem)))
            else:
                raise InputError(f"pair {index}: {problem}")
        return found

    def _batches(self, pairs: list[_Pair]) -> Iterator[tuple[int, Likelihood]]:
        """Score the pairs, longest source first; a batch that does not fit into memory is halved."""
        pairs = sorted(pairs, key=lambda pair: (len(pair.source), pair.source, len(pair.target)), reverse=True)
        model, limit, start = self.owner.model, self.owner.encode_tokens, 0
        while start < len(pairs):
            batch, cost = _first_batch(pairs, start, limit)
            found = process_events.run(functools.partial(attempt, functools.partial(self._score, batch), model.device))
            if found is not None:
                yield from ((likelihood.index, likelihood) for likelihood in found)
                start += len(batch)
            elif len(batch) > 1:
                limit = cost // 2
            else:
                raise BackendError(
                    f"out of memory on {model.device} with pair {batch[0].index} alone: {len(batch[0].source)} tokens "
                    f"of source, {len(batch[0].target)} of target"
                )

    def _score(self, batch: list[_Pair]) -> list[Likelihood]:
        sources, shares = [batch[0].source], [0]
        for pair in batch:
            if pair.source != sources[-1]:
                sources.append(pair.source)
                shares.append(0)
            shares[-1] += 1
        rows = log_probs(self.owner.model, sources, [pair.target for pair in batch], shares, self.start)
        return [
            Likelihood(
                pair.index,
                tuple(pair.target),
                tuple(row),
                math.fsum(row),
                normalized(row, self.length_penalty),
                pair.truncated,
            )
            for pair, row in zip(batch, rows, strict=True)
        ]


def _first_batch(pairs: list[_Pair], start: int, limit: int) -> tuple[list[_Pair], int]:
    """The longest run of pairs from `start` on that costs at most `limit` tokens, but at least one, and its cost.

    The tokens are those of the batch if it were padded: attention works by rows, in the decoder by rows of targets in
    one place and by all targets of a source in the other.
    """
    sources = longest = asked = most = cost = 0
    for end in range(start, len(pairs)):
        pair = pairs[end]
        new = end == start or pair.source != pairs[end - 1].source
        sources += new
        asked = len(pair.target) + (0 if new else asked)
        longest, most = max(longest, len(pair.target)), max(most, asked)
        dearer = sources * len(pairs[start].source) + max((end - start + 1) * longest, sources * most)
        if end > start and dearer > limit:
            return pairs[start:end], cost
        cost = dearer
    return pairs[start:], cost


def normalized(log_probs: list[float], length_penalty: float) -> float:
    """The sum / length ** length_penalty: the score of a beam."""
    return length_normalized(math.fsum(log_probs), len(log_probs), length_penalty)


@torch.no_grad()
def log_probs(
    model: EncoderDecoderModel, sources: list[list[int]], targets: list[list[int]], shares: list[int], start: int
) -> list[list[float]]:
    """The model's log-probability of each token of each target, whatever token it is.

    Args:
        model: in evaluation mode.
        sources: ids as the model reads them, each encoded once.
        targets: ids, the end token among them, behind the start token `start`; those of a source are adjacent.
        shares: how many targets each source has.
    """
    device = model.device
    ids, real = padded(targets, 0, device)
    inputs = ids.roll(1, 1)
    inputs[:, 0] = start
    hidden, rows = model.target_states(*padded(sources, 0, device), inputs, real, shares)
    step = max(1, HELD_LOGITS // model.config.decoder.vocab_size)
    parts = [
        -F.cross_entropy(model.decoder.head(states).float(), labels, reduction="none")
        for states, labels in zip(hidden.split(step), rows.pack(ids).split(step), strict=True)
    ]
    found = iter(torch.cat(parts).tolist())
    return [[next(found) for _ in target] for target in targets]
