"""Small vocabularies of BERT and RoBERTa, and fixtures with tokenizers of bertgen and transformers on them."""

import random
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from bertgen import BertTokenizer, RobertaTokenizer
from bertgen.tokenizer import AddedToken
from tests.support.tokenizer_checks import utf8

BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def corpus() -> list[str]:
    """Sentences of made-up words, some in upper case, with punctuation, digits and letters beyond ASCII."""
    draw = random.Random(7)
    words = ["".join(draw.choices("abcdeilnorstuäöé", k=draw.randint(1, 7))) for _ in range(300)]
    words += [word.capitalize() for word in words[:100]]
    words += ["the", "station", "newtok", "1", "23", "don't", "isn't", "漢字"]
    ends = [".", "?", "!", ", so", " :", ""]
    return [" ".join(draw.choices(words, k=draw.randint(1, 9))) + draw.choice(ends) for _ in range(1000)]


def write_bert_vocabulary(folder: Path, *, cased: bool = False, special: list[str] = BERT_SPECIAL) -> Path:
    """A vocab.txt of 400 tokens in a new folder, which is returned."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.model.save(str(folder))
    return folder


def write_roberta_vocabulary(folder: Path) -> Path:
    """A vocab.json of 400 tokens and its merges.txt in a new folder, which is returned."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = dict(vocab_size=400, special_tokens=ROBERTA_SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainers.BpeTrainer(**options))
    tokenizer.model.save(str(folder))
    return folder


class Kind(NamedTuple):
    """A class here, the same in transformers, and a folder that both load."""

    ours: type
    folder: Path

    @property
    def theirs(self) -> type:
        import transformers

        return getattr(transformers, self.ours.__name__)

    def load(self, **options):
        return self.ours.from_pretrained(self.folder, **options), self.theirs.from_pretrained(self.folder, **options)


@pytest.fixture(scope="session")
def kinds(tmp_path_factory) -> dict[str, Kind]:
    folder = tmp_path_factory.mktemp("vocabularies")
    return {
        "bert": Kind(BertTokenizer, write_bert_vocabulary(folder / "bert")),
        "roberta": Kind(RobertaTokenizer, write_roberta_vocabulary(folder / "roberta")),
    }


@pytest.fixture(scope="session", params=["bert", "roberta"])
def kind(request, kinds) -> Kind:
    return kinds[request.param]


@pytest.fixture(scope="session")
def both(kind):
    """One tokenizer of each side that no test may change."""
    return kind.load()


@pytest.fixture
def fresh_fast(kind):
    return kind.ours.from_pretrained(kind.folder)


ODD = [
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\xa0",
    "\u3000",
    "\u200b",
    "\u200d",
    "\0",
    "\x85",
    "\ufffd",
    "ﬀ",
    "ＡＢ",
    "e\u0301",
]
ODD += ["漢字", "仮名カナ", "한국어", "😀", "👩‍👩‍👧", "🇩🇪", "<", ">", "[", "]", "##", "Ġ", "İ", "ß", "ǅ", "x" * 120]


def near_text(*tokens: str) -> st.SearchStrategy[str]:
    """Text in which the given tokens, pieces of them, white space and odd Unicode are likely."""
    words = ["the ", "The", "station", " don't.", "abc", "Äé", "naïve"]
    part = st.sampled_from([*BERT_SPECIAL, *ROBERTA_SPECIAL, *tokens, *ODD, *words]) | st.text(max_size=4)
    return st.lists(part, max_size=10).map("".join).filter(lambda text: text.isascii() or utf8(text))


def assert_equivalent(ours, theirs) -> None:
    """The same vocabulary, options and results."""
    assert ours.get_vocab() == theirs.get_vocab() and len(ours) == len(theirs)
    assert ours.all_special_tokens == theirs.all_special_tokens
    for name in ("model_max_length", "padding_side", "truncation_side", "model_input_names", "special_tokens_map"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert {i: AddedToken.of(t) for i, t in theirs.added_tokens_decoder.items()} == {
        i: AddedToken.of(t) for i, t in ours.added_tokens_decoder.items()
    }
    texts = [*corpus()[:20], "a<s>[M]the[E] Newword x[F] <mask> [MASK]y", "Äé ", "  ", ""]
    assert dict(ours(texts, padding=True)) == dict(theirs(texts, padding=True))
    assert dict(ours(texts[0], texts[1])) == dict(theirs(texts[0], texts[1]))
    rows = theirs(texts)["input_ids"]
    for skip in (False, True):
        assert ours.batch_decode(rows, skip) == theirs.batch_decode(rows, skip_special_tokens=skip)
