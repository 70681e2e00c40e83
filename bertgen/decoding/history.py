"""What searches do with histories of different lengths."""

from __future__ import annotations

import torch

from ..config import GenerationConfig
from .logits_processors import Processors
from .stopping_criteria import Criteria, Scores

CHUNK = 64  # positions by which the room for histories grows


def cohorts(lengths: torch.Tensor) -> list[tuple[int, torch.Tensor | None]]:
    """Each length that occurs in lengths int64 [n] (on the host), with its places; None for all of them."""
    if len(lengths) == 0:
        return []
    first = int(lengths[0])
    if bool((lengths == first).all()):
        return [(first, None)]
    return [(length, (lengths == length).nonzero().squeeze(1)) for length in lengths.unique().tolist()]


def process(
    processors: Processors,
    histories: torch.Tensor,
    lengths: torch.Tensor,
    scores: torch.Tensor,
    going: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scores [n, V] of the next tokens behind histories [n, L] of some lengths [n], processed.

    Args:
        going: bool [n], rows that are not done; None for all.
    """
    groups = cohorts(lengths)
    if len(groups) == 1:
        return processors(histories[:, : groups[0][0]], scores, going)
    changed = torch.empty_like(scores)
    for length, places in groups:
        assert places is not None
        places = places.to(scores.device)
        changed[places] = processors(
            histories[places, :length], scores[places], None if going is None else going[places]
        )
    return changed


def done(criteria: Criteria, histories: torch.Tensor, lengths: torch.Tensor, scores: Scores) -> torch.Tensor:
    """bool [n], which of the histories [n, L] of some lengths [n] are done."""
    groups = cohorts(lengths)
    if len(groups) == 1:
        return criteria(histories[:, : groups[0][0]], scores)
    found = torch.zeros(len(histories), dtype=torch.bool, device=histories.device)
    for length, places in groups:
        assert places is not None
        places = places.to(histories.device)
        found[places] = criteria(histories[places, :length], scores)
    return found


def widened(histories: torch.Tensor, width: int, fill: int) -> torch.Tensor:
    """Histories [.., L] with room for at least `width` positions, filled behind."""
    if histories.shape[-1] >= width:
        return histories
    return torch.nn.functional.pad(histories, (0, -(-width // CHUNK) * CHUNK - histories.shape[-1]), value=fill)


def recorded(scores: list[torch.Tensor], options: GenerationConfig) -> Scores:
    """The scores of all steps, where they are returned."""
    return tuple(scores) if options.output_scores else None
