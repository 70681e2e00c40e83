"""Special tokens around the texts of a model, from its kind: in a Generator and in training."""

from __future__ import annotations

import pytest
import torch

from bertgen import AutoTokenizer, BertTokenizer, ConfigError, EncoderDecoderModel, Generator, InputError
from bertgen.cli import main
from bertgen.tokenizer import special_tokens
from bertgen.tokenizer.special_tokens import target_end_token
from bertgen.trainer.data import Corpus
from tests.support.bert_checkpoint import make_bert

CLS, SEP, PAD = 101, 102, 0
TEXTS = ["This is a long article", "", "a", "a short summary to summarize"]


@pytest.fixture(scope="module")
def bert2bert(tmp_path_factory):
    """A folder with two random BERTs and their tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    make_bert(folder)
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(
        folder, folder, decoder_start_token_id=CLS, pad_token_id=PAD, eos_token_id=SEP
    )
    joined = tmp_path_factory.mktemp("bert2bert")
    model.save_pretrained(joined)
    BertTokenizer.from_pretrained(folder).save_pretrained(joined)
    return joined


def test_a_text_has_a_limit_before_it_is_encoded(bert2bert, monkeypatch):
    monkeypatch.setattr(special_tokens, "MAX_TEXT_CHARACTERS", 100)
    generator = Generator(bert2bert)
    monkeypatch.setattr(generator.tokenizer, "_encode_rows", lambda texts: [[7] * len(text) for text in texts])
    message = "text 1: 101 characters, the limit of a text is 100"
    with pytest.raises(InputError, match=message):
        generator.generate(["a", "a" * 101], max_new_tokens=2)
    with pytest.raises(InputError, match=message):
        generator.generate(["a", "a" * 101], max_new_tokens=2, truncation=True)
    actual = dict(generator.stream(["a", "a" * 101], max_new_tokens=2, return_errors=True))
    assert actual[0].error is None and "101 characters" in str(actual[1].error)


def encoded(generator, monkeypatch, texts, **options) -> list[list[int]]:
    """The rows of ids that the encoder gets."""
    rows, encode = [], generator.model.encoded

    def watched(input_ids, attention_mask):
        rows.extend(ids[mask].tolist() for ids, mask in zip(input_ids, attention_mask))
        return encode(input_ids, attention_mask)

    with monkeypatch.context() as patch:
        patch.setattr(generator.model, "encoded", watched)
        generator.generate(texts, max_new_tokens=2, **options)
    return sorted(rows, key=len)


def test_a_bert_encoder_reads_special_tokens(bert2bert, monkeypatch):
    generator = Generator(bert2bert)
    tokenizer = AutoTokenizer.from_pretrained(bert2bert)
    expected = sorted((tokenizer.encode(text) for text in TEXTS if text), key=len)
    assert expected[0][0] == CLS and expected[0][-1] == SEP
    assert encoded(generator, monkeypatch, TEXTS) == expected
    outputs = generator.generate(TEXTS, max_new_tokens=5)
    assert outputs[1].text == "" and not outputs[1].token_ids
    ids = torch.tensor([tokenizer.encode(TEXTS[0])])
    alone = generator.model.generate(ids, max_new_tokens=5)[0, 1:].tolist()
    assert list(outputs[0].token_ids) == alone[: len(outputs[0].token_ids)]


def test_special_tokens_can_be_switched_off_and_are_never_cut(bert2bert, monkeypatch):
    bare = Generator(bert2bert, add_special_tokens=False)
    assert all(CLS not in row and SEP not in row for row in encoded(bare, monkeypatch, TEXTS))
    cutting = Generator(bert2bert, max_input_length=4, truncation=True)
    assert all(len(row) <= 4 and row[0] == CLS and row[-1] == SEP for row in encoded(cutting, monkeypatch, TEXTS))
    with pytest.raises(InputError, match="5 tokens, the limit is 2"):
        Generator(bert2bert, max_input_length=4).generate(TEXTS)
    with pytest.raises(ConfigError, match="max_input_length 2 leaves no room"):
        Generator(bert2bert, max_input_length=2)


def test_a_bert_generation_encoder_reads_the_bare_text(tiny_checkpoint, bert2bert, monkeypatch):
    generator = Generator(tiny_checkpoint)
    assert encoded(generator, monkeypatch, ["one"]) == [generator.tokenizer.encode("one")]
    # with any tokenizer: the published translation models are of this kind and have a BertTokenizer
    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    model.encoder.resize_token_embeddings(128), model.decoder.resize_token_embeddings(128)
    generator = Generator(model, bert2bert)
    assert encoded(generator, monkeypatch, ["a"]) == [generator.tokenizer.encode("a", add_special_tokens=False)]


def test_training_adds_the_special_tokens_of_the_generator(bert2bert, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(bert2bert)
    config = EncoderDecoderModel.from_pretrained(bert2bert).config
    corpus = Corpus([("this is", "a summary")], tokenizer, 16, config)
    batch = corpus.batch(next(iter(corpus.plan(100))), torch.device("cpu"))
    assert batch.input_ids.tolist() == [tokenizer.encode("this is")]
    assert batch.labels.tolist() == [[*tokenizer.encode("a summary", add_special_tokens=False), SEP]]
    (tmp_path / "train.tsv").write_text("this is\ta summary\na long article\tshort\n" * 4)
    code = main(
        ["train", "--train", str(tmp_path / "train.tsv"), "--output", str(tmp_path / "out"), "--model", str(bert2bert)]
        + "--steps 3 --batch-tokens 64 --max-length 16 --average 0 --device cpu".split()
    )
    assert code == 0
    assert Generator(tmp_path / "out" / "last").generate(["this is"], max_new_tokens=3)[0].index == 0


def test_a_target_needs_an_end(bert2bert, tiny_checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(bert2bert)
    assert target_end_token(None, tokenizer) == SEP
    assert target_end_token(None, AutoTokenizer.from_pretrained(tiny_checkpoint)) == 1
    config = EncoderDecoderModel.from_pretrained(bert2bert).config
    config.eos_token_id = [7, 8]
    assert target_end_token(config, tokenizer) == 7
    tokenizer.sep_token = None
    with pytest.raises(ConfigError, match="token that ends a text"):
        target_end_token(None, tokenizer)
