"""Public names of transformers' classes: each exists, or docs/compatibility.md lists it as missing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers
from torch import nn

import bertgen
from bertgen.hub import DEMO_MODEL
from bertgen.tokenizer import BatchEncoding

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
SHAPE = dict(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)


def things(library):
    """One object of each kind."""
    half = library.BertConfig(**SHAPE)
    pair = library.EncoderDecoderConfig.from_encoder_decoder_configs(half, library.BertConfig(**SHAPE))
    pieces = library.BertGenerationTokenizer(f"{DEMO_MODEL}/spiece.model")
    words = library.BertTokenizer(vocab={word: i for i, word in enumerate("[PAD] [UNK] [CLS] [SEP] [MASK] a".split())})
    model = library.EncoderDecoderModel(pair)
    return {
        "model": model,
        "half": model.decoder,
        "configuration": pair,
        "configuration of a half": half,
        "generation configuration": library.GenerationConfig(),
        "tokenizer of pieces": pieces,
        "tokenizer of words": words,
        "encoding": words("a"),
        "streamer": library.TextIteratorStreamer(pieces),
    }


def public(thing):
    return {name for name in dir(thing) if not name.startswith("_")} - set(dir(nn.Module()))


def listed():
    """The names that the page lists as missing, by kind of object."""
    part = PAGE.read_text(encoding="utf-8").partition("## Missing names")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\w ,]+) \| (`[^|]*) \|[^|]*\|$", part, re.MULTILINE)
    missing: dict[str, set[str]] = {kind: set() for kind in things(bertgen)}
    for kinds, names in rows:
        for kind in kinds.split(", "):
            missing[kind] |= set(re.findall(r"`(\w+)`", names))
    return missing


@pytest.mark.parametrize("kind", things(bertgen))
def test_every_public_name_exists_or_is_listed_as_missing(kind):
    ours, theirs, absent = things(bertgen)[kind], things(transformers)[kind], listed()[kind]
    if kind == "encoding":
        assert isinstance(ours, BatchEncoding)
    missing = {name for name in public(theirs) if not hasattr(ours, name)}
    assert missing - absent == set(), "neither there nor listed"
    assert absent - missing == set(), "listed, but there"
