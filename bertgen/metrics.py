"""Scores of outputs against references, computed by sacrebleu with its defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .errors import InputError, quoted


class Score(NamedTuple):
    """A corpus score from 0 to 100, and sacrebleu's signature of how it was computed."""

    value: float
    signature: str


def bleu(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """BLEU (Papineni et al. 2002), in the form of Post 2018.

    Args:
        outputs: a text per sentence, at least one.
        references: a list for each sentence, at least one text in each; their number may differ.
    """
    from sacrebleu.metrics import BLEU

    return _score(BLEU(), outputs, references)


def chrf(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    """chrF2 (Popovic 2016); arguments as `bleu`."""
    from sacrebleu.metrics import CHRF

    return _score(CHRF(), outputs, references)


def _score(metric: Any, outputs: Sequence[str], references: Sequence[Sequence[str]]) -> Score:
    if not _are_texts(outputs):
        raise InputError(f"outputs must be a list of at least one text, got {quoted(outputs)}")
    listed = isinstance(references, (list, tuple)) and len(references) == len(outputs)
    if not listed or not all(map(_are_texts, references)):
        raise InputError(f"references must be a list of texts for each of the outputs, got {quoted(references)}")
    streams = [[r[i] if i < len(r) else None for r in references] for i in range(max(map(len, references)))]
    value = metric.corpus_score(list(outputs), streams).score
    return Score(value, str(metric.get_signature()))


def _are_texts(texts: Any) -> bool:
    return isinstance(texts, (list, tuple)) and bool(texts) and all(isinstance(text, str) for text in texts)
