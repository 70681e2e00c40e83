"""The trained tiny checkpoint, here and in transformers."""

from __future__ import annotations

import pytest

from bertgen import EncoderDecoderModel


@pytest.fixture(scope="module")
def models(tiny_checkpoint):
    """The trained checkpoint here and in transformers (eager)."""
    import transformers

    oracle = transformers.EncoderDecoderModel.from_pretrained(tiny_checkpoint, attn_implementation="eager").eval()
    return EncoderDecoderModel.from_pretrained(tiny_checkpoint), oracle
