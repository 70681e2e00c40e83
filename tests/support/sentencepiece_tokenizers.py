"""A small sentencepiece vocabulary, and fixtures with tokenizers of bertgen and transformers on it."""

import io
import random

import pytest
import sentencepiece
from hypothesis import strategies as st

from bertgen.tokenizer import BertGenerationTokenizer

SPECIAL = ["<s>", "</s>", "<unk>", "<pad>", "<::::>"]


def corpus() -> list[str]:
    """Sentences of made-up words, with some punctuation, digits and letters beyond ASCII."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdeilnorstuäöé", k=draw.randint(1, 7))) for _ in range(300)]
    words += ["the", "station", "newtok", "1", "23", "don't", "isn't"]
    ends = [".", "?", "!", ", so", " :", ""]
    return [" ".join(draw.choices(words, k=draw.randint(1, 9))) + draw.choice(ends) for _ in range(1500)]


def train(path, **options) -> str:
    writer = io.BytesIO()
    options = (
        dict(vocab_size=300, character_coverage=1.0, pad_id=0, eos_id=1, bos_id=2, unk_id=3, minloglevel=2) | options
    )
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus()), model_writer=writer, **options)
    path.write_bytes(writer.getvalue())
    return str(path)


@pytest.fixture(scope="session")
def vocab(tmp_path_factory) -> str:
    return train(tmp_path_factory.mktemp("vocab") / "spiece.model")


@pytest.fixture(scope="session")
def exact_vocab(tmp_path_factory) -> str:
    """A model that does not normalise: every space of a text counts."""
    path = tmp_path_factory.mktemp("exact") / "spiece.model"
    return train(path, normalization_rule_name="identity", remove_extra_whitespaces=False)


@pytest.fixture(scope="session")
def theirs(vocab):
    from transformers import BertGenerationTokenizer as Theirs

    return Theirs(vocab)


@pytest.fixture(scope="session")
def ours(vocab):
    return BertGenerationTokenizer(vocab)


@pytest.fixture
def fresh(vocab):
    return BertGenerationTokenizer(vocab)


def near_text(*tokens: str) -> st.SearchStrategy[str]:
    """Text in which the given tokens, pieces of them, white space and odd Unicode are likely."""
    odd = [
        " ",
        "  ",
        "\t",
        "\n",
        "\xa0",
        "\u3000",
        "\u200b",
        "\0",
        "▁",
        "▁the",
        "＜s＞",
        "ﬀ",
        "e\u0301",
        "漢字",
        "😀",
        "<",
        ">",
    ]
    part = st.sampled_from([*SPECIAL, *tokens, *odd, "the ", "station", " don't.", "abc"]) | st.text(max_size=4)
    return st.lists(part, max_size=10).map("".join)
