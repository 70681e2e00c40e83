"""Spaces in decoded text."""

from __future__ import annotations


def clean_up_spaces(text: str) -> str:
    """Remove the spaces before English punctuation and contractions."""
    for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(spaced, spaced.strip())
    return text
