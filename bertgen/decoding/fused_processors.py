"""Fused processors: runs of tensor processors that `ops.process` computes in one launch on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import ops
from .tensor_processors import NoRepeatNgram, RepetitionPenalty, Suppress, TensorProcessor


class FusedProcessors:
    """Adjacent tensor processors as one call of `ops.process`.

    Args:
        rows: of the scores.
        device: of the scores.
        repetition, ngrams, too_short, banned: the processors, in this order; None where there is none.
    """

    def __init__(
        self,
        rows: int,
        device: torch.device,
        repetition: RepetitionPenalty | None = None,
        ngrams: NoRepeatNgram | None = None,
        too_short: Suppress | None = None,
        banned: Suppress | None = None,
    ):
        def of_rows(value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((rows,), value, dtype=dtype, device=device)

        self.penalties = of_rows(1.0 if repetition is None else repetition.penalty, torch.float32)
        self.ngrams = of_rows(0 if ngrams is None else ngrams.size, torch.int64)
        self.min_lengths = None if too_short is None else of_rows(too_short.last, torch.int64)
        self.end_tokens = None if too_short is None else too_short.tokens
        self.banned = None if banned is None else banned.forbidden

    def rows(self, histories: torch.Tensor, lengths: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """As `TensorProcessor.rows`."""
        scores = scores.clone()
        ops.process(
            scores, histories, lengths, self.penalties, self.ngrams, self.min_lengths, self.end_tokens, self.banned
        )
        return scores


def _part_of(processor: TensorProcessor) -> str | None:
    """The argument of FusedProcessors that a processor can be."""
    if isinstance(processor, RepetitionPenalty):
        return "repetition"
    if isinstance(processor, NoRepeatNgram):
        return "ngrams"
    if isinstance(processor, Suppress):
        if processor.always:
            return "banned"
        if processor.first <= 1:  # a history has one token at least
            return "too_short"
    return None


_ORDER = ("repetition", "ngrams", "too_short", "banned")  # in which `ops.process` applies its parts


def fuse(
    processors: Sequence[TensorProcessor], rows: int, device: torch.device
) -> list[TensorProcessor | FusedProcessors]:
    """The processors for scores of `rows` rows, with runs of them fused; their order stays."""
    fused: list[TensorProcessor | FusedProcessors] = []
    run: dict[str, Any] = {}

    def close() -> None:
        if run:
            fused.append(FusedProcessors(rows, device, **run))
            run.clear()

    for processor in processors:
        part = _part_of(processor)
        if part is None:
            close()
            fused.append(processor)
            continue
        if run and _ORDER.index(part) <= max(map(_ORDER.index, run)):
            close()
        run[part] = processor
    close()
    return fused
