"""The scorer: log-probabilities that a model gives to targets, by one pass over sources and targets, without a search.

Pairs are sorted by source, so that targets of one source share its encoding, and cut into batches by tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .. import process_events
from ..config import GenerationConfig
from ..decoding.sampling import length_normalized
from ..errors import BackendError, ConfigError, InputError
from ..model import EncoderDecoderModel
from ..ops.device_guard import device_guard
from ..ops.slow_paths import report_slow_paths
from ..out_of_memory import attempt
from ..packing import padded
from .text_encoder import TextEncoder

HELD_LOGITS = 1 << 26  # float32 logits in memory at a time: 256 MiB


@dataclass(frozen=True)
class Likelihood:
    """Log-probabilities of one target.

    Attributes:
        index: of the pair in the call.
        token_ids: of the target as it was scored, with the end token of a text.
        log_probs: log-probability of each token, given the source and the tokens before.
        total: their sum: the log-probability of the target.
        score: total / length ** length_penalty, as `Output.score`.
        truncated: the source was longer than the limit, and its end was cut off.
        error: why the pair could not be used, in `stream_scores(return_errors=True)`.
    """

    index: int
    token_ids: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    total: float | None = None
    score: float | None = None
    truncated: bool = False
    error: InputError | None = None


@dataclass(frozen=True)
class _Pair:
    """An encoded pair."""

    index: int
    source: list[int]
    target: list[int]
    truncated: bool


class Scorer:
    """Scores pairs of sources and targets.

    Args:
        model: in evaluation mode.
        text_encoder: of the model.
        encode_tokens: tokens of a batch.
        length_penalty: of `Likelihood.score`; None takes the model's.
        truncation: cut long sources; None as the text encoder is set.
        return_errors: yield a Likelihood with its error for a pair that cannot be used, instead of raising.

    Raises:
        ConfigError: bad options, or the model has no start or no end token.
    """

    def __init__(
        self,
        model: EncoderDecoderModel,
        text_encoder: TextEncoder,
        *,
        encode_tokens: int,
        length_penalty: float | None = None,
        truncation: bool | None = None,
        return_errors: bool = False,
    ):
        self.model, self.text_encoder, self.encode_tokens = model, text_encoder, encode_tokens
        self.truncation, self.return_errors = truncation, return_errors
        options = {} if length_penalty is None else {"length_penalty": length_penalty}
        config = GenerationConfig.of_call(options, None, model.generation_config)
        default = GenerationConfig.DEFAULTS["length_penalty"]
        self.length_penalty = default if config.length_penalty is None else config.length_penalty
        start = config.decoder_start_token_id
        self.start = config.bos_token_id if start is None else start
        if self.start is None:
            raise ConfigError("a target needs the model's decoder_start_token_id or bos_token_id")
        self.end = text_encoder.target_end(config)

    def likelihoods(self, windows: Iterable[list[tuple[Any, Any]]]) -> Iterator[tuple[int, Likelihood]]:
        """(index, likelihood) of the pairs (source, target) of each window, in the order of the batches."""
        first = 0
        for window in windows:
            pairs = []
            for encoded in self._encode(window, first):
                if isinstance(encoded, Likelihood):
                    yield encoded.index, encoded
                else:
                    pairs.append(encoded)
            yield from self._batches(pairs)
            first += len(window)

    def _encode(self, window: list[tuple[Any, Any]], first: int) -> list[_Pair | Likelihood]:
        """The encoded pairs; the likelihood of a pair with an error."""
        columns = [pair if isinstance(pair, tuple) and len(pair) == 2 else (pair, "") for pair in window]
        sources = self.text_encoder.sources([source for source, _ in columns], self.truncation)
        targets = self.text_encoder.targets([target for _, target in columns], self.end)
        pairs: list[_Pair | Likelihood] = []
        for index, (pair, source, target) in enumerate(zip(window, sources, targets, strict=True), first):
            reason = None
            if not isinstance(pair, tuple) or len(pair) != 2:
                reason = f"must be a tuple of source and target, got {type(pair).__name__}"
            elif source.problem is not None:
                reason = f"source: {source.problem}"
            elif not source.ids:
                reason = "source: no tokens"
            elif target.problem is not None:
                reason = f"target: {target.problem}"
            if reason is None:
                pairs.append(_Pair(index, source.ids, target.ids, source.truncated))
            elif self.return_errors:
                pairs.append(Likelihood(index, error=InputError(reason)))
            else:
                raise InputError(f"pair {index}: {reason}")
        return pairs

    def _batches(self, pairs: list[_Pair]) -> Iterator[tuple[int, Likelihood]]:
        """Score the pairs, longest source first; a batch that does not fit into memory is halved."""
        pairs = sorted(pairs, key=lambda pair: (len(pair.source), pair.source, len(pair.target)), reverse=True)
        model, limit, start = self.model, self.encode_tokens, 0
        report_slow_paths(model.device)
        while start < len(pairs):
            batch, cost = _first_batch(pairs, start, limit)
            score = functools.partial(attempt, functools.partial(self._score, batch), model.device)
            likelihoods = process_events.run(score)
            if likelihoods is not None:
                yield from ((likelihood.index, likelihood) for likelihood in likelihoods)
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
        with device_guard(self.model.device):
            rows = log_probs(self.model, sources, [pair.target for pair in batch], shares, self.start)
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
    """The longest run of pairs from `start` on that costs at most `limit` tokens, but at least one pair, and its cost.

    The cost is the number of tokens of the padded batch: self-attention of the decoder works on rows of targets,
    cross-attention on all targets of a source together; the larger of both counts.
    """
    sources = longest_target = targets_of_source = longest_targets = cost = 0
    for end in range(start, len(pairs)):
        pair = pairs[end]
        is_new = end == start or pair.source != pairs[end - 1].source
        sources += is_new
        targets_of_source = len(pair.target) + (0 if is_new else targets_of_source)
        longest_target = max(longest_target, len(pair.target))
        longest_targets = max(longest_targets, targets_of_source)
        targets_cost = max((end - start + 1) * longest_target, sources * longest_targets)
        new_cost = sources * len(pairs[start].source) + targets_cost
        if end > start and new_cost > limit:
            return pairs[start:end], cost
        cost = new_cost
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
        targets: ids, with the end token and without the start token; those of one source are adjacent.
        shares: number of targets of each source.
        start: the start token.
    """
    device = model.device
    labels, mask = padded(targets, 0, device)
    inputs = labels.roll(1, 1)
    inputs[:, 0] = start
    hidden, rows = model.target_states(*padded(sources, 0, device), inputs, mask, shares)
    step = max(1, HELD_LOGITS // model.config.decoder.vocab_size)
    parts = [
        -F.cross_entropy(model.decoder.head(states).float(), packed_labels, reduction="none")
        for states, packed_labels in zip(hidden.split(step), rows.pack(labels).split(step), strict=True)
    ]
    values = iter(torch.cat(parts).tolist())
    return [[next(values) for _ in target] for target in targets]
