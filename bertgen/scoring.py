"""Scores of outputs against references, computed by sacrebleu with its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Score(NamedTuple):
    """A corpus score from 0 to 100, and the signature by which sacrebleu says how it was computed."""

    value: float
    signature: str


def bleu(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """BLEU (Papineni et al. 2002), in the form of Post 2018.

    Args:
        outputs: a text per sentence, at least one.
        references: those of each sentence; how many may differ from sentence to sentence.
    """
    from sacrebleu.metrics import BLEU

    return _score(BLEU(), outputs, references)


def chrf(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """chrF2 (Popovic 2016); arguments as `bleu`."""
    from sacrebleu.metrics import CHRF

    return _score(CHRF(), outputs, references)


def _score(metric: Any, outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    streams = [[r[i] if i < len(r) else None for r in references] for i in range(max(map(len, references)))]
    value = metric.corpus_score(list(outputs), streams).score
    return Score(value, str(metric.get_signature()))
