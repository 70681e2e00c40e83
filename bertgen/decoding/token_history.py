"""Operations on the histories (tokens so far) of rows of different lengths."""

from __future__ import annotations

import torch

from ..config import GenerationConfig
from .logits_processors import LogitsProcessorList
from .stopping_criteria import StepScores, StoppingCriteriaList

CHUNK = 64  # histories grow by multiples of this many positions


def rows_by_length(lengths: torch.Tensor) -> list[tuple[int, torch.Tensor | None]]:
    """Each value of lengths int64 [n] (on the host) with the indices of its rows; None if all rows have one length."""
    if len(lengths) == 0:
        return []
    first = int(lengths[0])
    if bool((lengths == first).all()):
        return [(first, None)]
    return [(length, (lengths == length).nonzero().squeeze(1)) for length in lengths.unique().tolist()]


def process_scores(
    processors: LogitsProcessorList,
    histories: torch.Tensor,
    lengths: torch.Tensor,
    scores: torch.Tensor,
    running: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply logits processors to rows of different lengths.

    Args:
        histories: int64 [n, L].
        lengths: int64 [n], on the host.
        scores: float32 [n, V], of the next token of each row.
        running: bool [n], rows that have not ended; None for all.

    Returns:
        The processed scores, float32 [n, V].
    """
    groups = rows_by_length(lengths)
    if len(groups) == 1:
        return processors(histories[:, : groups[0][0]], scores, running)
    if processors.tensor_processors is not None:
        lengths = lengths.to(scores.device)
        for processor in processors.tensor_processors:
            processor.prepare(histories.shape[1])
            scores = processor.rows(histories, lengths, scores)
        return scores
    processed = torch.empty_like(scores)
    for length, rows in groups:
        assert rows is not None
        rows = rows.to(scores.device)
        processed[rows] = processors(histories[rows, :length], scores[rows], None if running is None else running[rows])
    return processed


def stopped_rows(
    criteria: StoppingCriteriaList, histories: torch.Tensor, lengths: torch.Tensor, scores: StepScores
) -> torch.Tensor:
    """bool [n]: rows of histories int64 [n, L], of lengths int64 [n], that a stopping criterion ends."""
    groups = rows_by_length(lengths)
    if len(groups) == 1:
        return criteria(histories[:, : groups[0][0]], scores)
    stopped = torch.zeros(len(histories), dtype=torch.bool, device=histories.device)
    for length, rows in groups:
        assert rows is not None
        rows = rows.to(histories.device)
        stopped[rows] = criteria(histories[rows, :length], scores)
    return stopped


def pad_histories(histories: torch.Tensor, width: int, fill: int) -> torch.Tensor:
    """Histories [.., L] with room for at least `width` positions; new positions hold `fill`."""
    if histories.shape[-1] >= width:
        return histories
    return torch.nn.functional.pad(histories, (0, -(-width // CHUNK) * CHUNK - histories.shape[-1]), value=fill)


def returned_scores(scores: list[torch.Tensor], options: GenerationConfig) -> StepScores:
    """The scores of all steps with `output_scores`, else None."""
    return tuple(scores) if options.output_scores else None
