"""Ids that begin, end and pad outputs: in training, in files, set after construction, or missing."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import transformers

from bertgen import (
    AutoTokenizer,
    BertGenerationConfig,
    BertGenerationDecoder,
    BertTokenizer,
    ConfigError,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
    Generator,
    RobertaTokenizer,
    UnsupportedError,
)
from bertgen.cli import main
from tests.support.bert_checkpoint import make_bert
from tests.support.fast_tokenizers import write_roberta_vocabulary
from tests.support.model_kinds import HALVES, TINY

CLS, SEP, PAD = 101, 102, 0
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder with a BERT of pre-training and its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    make_bert(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(bert, tiny_checkpoint, tmp_path_factory):
    """A half of each kind on disk, with its tokenizer."""
    roberta = write_roberta_vocabulary(tmp_path_factory.mktemp("pretrained") / "roberta")
    tokenizer = RobertaTokenizer.from_pretrained(roberta)
    shape = {**TINY, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    theirs = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**shape))
    theirs.save_pretrained(roberta)
    generation = tmp_path_factory.mktemp("bert-generation")
    EncoderDecoderModel.from_pretrained(tiny_checkpoint).encoder.save_pretrained(generation)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(generation)
    return {"bert": bert, "roberta": roberta, "bert-generation": generation}


def train(model, folder, *options: str) -> int:
    (folder / "train.tsv").write_text("this is\ta summary\na long article\tshort\n" * 4)
    words = f"train --train {folder / 'train.tsv'} --output {folder / 'out'} --model {model} --device cpu"
    sizes = "--batch-tokens 64 --max-length 16 --average 0 --steps 2 --quiet"
    return main([*words.split(), *sizes.split(), *options])


def ids_of(options) -> tuple[int | None, ...]:
    return options.decoder_start_token_id, options.eos_token_id, options.pad_token_id


def joined(bert, **options) -> EncoderDecoderModel:
    return EncoderDecoderModel.from_encoder_decoder_pretrained(bert, bert, **options)


# In training


@pytest.mark.parametrize("kind", HALVES)
def test_training_makes_an_encoder_decoder_of_a_half(checkpoints, kind, tmp_path):
    assert train(checkpoints[kind], tmp_path) == 0
    tokenizer = AutoTokenizer.from_pretrained(checkpoints[kind])
    expected = {"bert": (CLS, SEP, PAD), "roberta": (0, 2, 1), "bert-generation": (2, 1, 0)}[kind]
    assert expected[2] == tokenizer.pad_token_id
    ours = EncoderDecoderModel.from_pretrained(tmp_path / "out/last")
    assert ours.config.encoder.model_type == ours.config.decoder.model_type == kind
    assert ids_of(ours.config) == ids_of(ours.generation_config) == expected
    theirs = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "out/last")
    assert ids_of(theirs.config) == ids_of(theirs.generation_config) == expected
    assert ours.generation_config.max_length == theirs.generation_config.max_length == 16
    ids = IDS.clamp(max=30)
    assert torch.equal(ours.generate(ids, num_beams=2), theirs.generate(ids, num_beams=2))
    assert Generator(tmp_path / "out/last").generate(["this"])[0].error is None


def test_a_half_of_pretraining_begins_training_with_its_weights(bert, tmp_path):
    assert train(bert, tmp_path, "--learning-rate", "1e-12") == 0
    ours, theirs = EncoderDecoderModel.from_pretrained(tmp_path / "out/last"), joined(bert)
    for name, parameter in theirs.named_parameters():
        if "crossattention" not in name:
            assert torch.allclose(ours.get_parameter(name), parameter, atol=1e-6), name


def test_training_resumes_from_a_half(bert, tmp_path):
    assert train(bert, tmp_path) == 0
    assert train(bert, tmp_path, "--steps", "4", "--resume") == 0
    assert ids_of(EncoderDecoderModel.from_pretrained(tmp_path / "out/last").config) == (CLS, SEP, PAD)


@pytest.mark.parametrize("given", [{}, {"decoder_start_token_id": 7}, {"eos_token_id": [9, SEP]}, {"pad_token_id": 3}])
def test_what_training_used_stands_in_the_files(bert, tmp_path, given):
    """Two halves joined without an end, as in the documentation of the family, and trained."""
    model = joined(bert, **given)
    model.save_pretrained(tmp_path / "joined")
    BertTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "joined")
    assert train(tmp_path / "joined", tmp_path) == 0
    expected = {"decoder_start_token_id": CLS, "eos_token_id": SEP, "pad_token_id": PAD, **given}
    for name in ("config", "generation_config"):
        saved = json.loads((tmp_path / f"out/last/{name}.json").read_text())
        assert {key: saved.get(key) for key in expected} == expected


def test_an_end_that_the_tokenizer_does_not_know_is_said(bert, tmp_path, caplog):
    model = joined(bert, decoder_start_token_id=CLS, eos_token_id=5)
    model.save_pretrained(tmp_path / "joined")
    BertTokenizer.from_pretrained(bert).save_pretrained(tmp_path / "joined")
    assert train(tmp_path / "joined", tmp_path) == 0
    assert "targets end with id 5" in caplog.text
    assert EncoderDecoderModel.from_pretrained(tmp_path / "out/last").generation_config.eos_token_id == 5


def test_what_is_trained_ends_by_itself(bert, tmp_path):
    """The whole way: a BERT, pairs, and a model whose outputs are as long as its targets."""
    assert train(bert, tmp_path, *"--steps 60 --learning-rate 3e-3 --warmup-steps 5".split()) == 0
    for output in Generator(tmp_path / "out/last").generate(["this is", "a long article"]):
        assert output.text in ("a summary", "short")


def test_the_warm_start_of_the_readme_is_complete(bert, tmp_path, caplog):
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(
        bert, bert, decoder_start_token_id=101, eos_token_id=102, pad_token_id=0
    )
    assert ids_of(model.generation_config) == (CLS, SEP, PAD)
    model.save_pretrained(tmp_path)
    assert ids_of(transformers.GenerationConfig.from_pretrained(tmp_path)) == (CLS, SEP, PAD)
    model.generate(IDS)
    assert "no end token" not in caplog.text


def test_an_error_for_a_half_says_how_to_make_a_model(bert):
    with pytest.raises(UnsupportedError, match=r"'bert', not 'encoder-decoder'; `Enc.*from_encoder_decoder_pretrained"):
        EncoderDecoderModel.from_pretrained(bert)


# Set after construction


def test_ids_set_after_construction_are_used(bert, tmp_path, caplog):
    """`model.config.decoder_start_token_id = ..`, as tutorials of the family have it."""
    model, tokenizer = joined(bert), BertTokenizer.from_pretrained(bert)
    model.config.decoder_start_token_id = tokenizer.cls_token_id
    model.config.eos_token_id = tokenizer.sep_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    expected = joined(bert, decoder_start_token_id=CLS, eos_token_id=SEP, pad_token_id=PAD)
    expected.load_state_dict(model.state_dict())
    for one in (model, expected):
        one.decoder.head.bias.data[SEP] = 2.0  # ends now and then
    outputs = expected.generate(IDS, num_beams=3)
    assert torch.equal(model.generate(IDS, num_beams=3), outputs)
    assert outputs.shape[1] < 21 and (outputs[:, 0] == CLS).all()
    generators = (Generator(one, tokenizer).generate(["this is a"]) for one in (model, expected))
    assert len({tuple(outputs[0].token_ids) for outputs in generators}) == 1
    model.save_pretrained(tmp_path)
    assert torch.equal(EncoderDecoderModel.from_pretrained(tmp_path).generate(IDS, num_beams=3), outputs)
    theirs = transformers.EncoderDecoderModel.from_pretrained(tmp_path)
    assert torch.equal(theirs.generate(IDS, num_beams=3), outputs)
    assert "no end token" not in caplog.text


@pytest.mark.parametrize("kind", ["bert", "bert-generation"])
def test_ids_set_in_transformers_before_saving_are_found(kind, tmp_path):
    """transformers keeps them in config.json alone, beside a generation_config.json that is older."""
    half = transformers.BertConfig(**TINY) if kind == "bert" else transformers.BertGenerationConfig(**TINY)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(half, half)
    theirs = transformers.EncoderDecoderModel(config)
    theirs.config.decoder_start_token_id, theirs.config.eos_token_id = 11, 12
    theirs.save_pretrained(tmp_path)
    assert ids_of(EncoderDecoderModel.from_pretrained(tmp_path).generation_config) == (11, 12, 0)
    theirs.generation_config.eos_token_id = 13  # and what they generate with stays what we do
    theirs.save_pretrained(tmp_path)
    assert ids_of(EncoderDecoderModel.from_pretrained(tmp_path).generation_config) == (11, 13, 0)


def test_ids_of_a_half_alone_are_found(tmp_path):
    decoder = BertGenerationDecoder(BertGenerationConfig(**TINY, is_decoder=True)).eval()
    decoder.config.eos_token_id = 9
    assert decoder.generation_config.eos_token_id == 9
    decoder.save_pretrained(tmp_path)
    assert BertGenerationDecoder.from_pretrained(tmp_path).generation_config.eos_token_id == 9
    model = EncoderDecoderModel(EncoderDecoderConfig(
        encoder=TINY, decoder=dict(TINY, is_decoder=True, add_cross_attention=True)
    ))  # fmt: skip
    model.config.decoder.eos_token_id = 8
    assert model.generation_config.eos_token_id == 8
    model.config.eos_token_id = 7  # the model's own come before its decoder's
    assert model.generation_config.eos_token_id == 7


def test_options_of_generation_win_over_the_configuration(tmp_path):
    model = EncoderDecoderModel(EncoderDecoderConfig(
        encoder=TINY, decoder=dict(TINY, is_decoder=True, add_cross_attention=True), decoder_start_token_id=2
    ))  # fmt: skip
    model.generation_config.eos_token_id = 7
    model.config.eos_token_id = 9
    assert model.generation_config.eos_token_id == 7
    model.generation_config = GenerationConfig(decoder_start_token_id=2, num_beams=3)
    assert model.generation_config.eos_token_id is None  # as it was given
    model.save_pretrained(tmp_path)
    loaded = EncoderDecoderModel.from_pretrained(tmp_path)
    assert loaded.generation_config == model.generation_config and loaded.config.eos_token_id == 9
    assert transformers.GenerationConfig.from_pretrained(tmp_path).eos_token_id is None


# None at all


def test_a_model_without_an_end_says_so_once(bert, caplog):
    caplog.set_level(logging.WARNING, "bertgen")
    model = joined(bert, decoder_start_token_id=CLS)
    model.generate(IDS, eos_token_id=None)
    model.generate(IDS, eos_token_id=SEP)
    model.generate(IDS, stopping_criteria=[lambda ids, scores: ids.shape[1] > 3])
    model.generate(IDS, max_time=100.0)
    assert "no end token" not in caplog.text
    model.generate(IDS), model.generate(IDS)
    assert caplog.text.count("has no end token (eos_token_id): its outputs run to max_length, here 21 tokens") == 1
    caplog.clear()
    generator = Generator(joined(bert, decoder_start_token_id=CLS), BertTokenizer.from_pretrained(bert))
    generator.generate(["this"], eos_token_id=SEP)
    assert "no end token" not in caplog.text
    generator.generate(["this"], max_new_tokens=4), generator.generate(["this"])
    assert caplog.text.count("has no end token") == 1 and "here 5 tokens" in caplog.text
    caplog.clear()
    alone = BertGenerationDecoder(BertGenerationConfig(**TINY, is_decoder=True, eos_token_id=None)).eval()
    alone.generate(IDS, max_new_tokens=2)
    assert caplog.text.count("this BertGenerationDecoder has no end token") == 1


def test_the_command_says_that_there_is_no_end(bert, tmp_path, caplog):
    joined(bert, decoder_start_token_id=CLS).save_pretrained(tmp_path)
    BertTokenizer.from_pretrained(bert).save_pretrained(tmp_path)
    assert main(["run", "--model", str(tmp_path), "--max-new-tokens", "3", "this"]) == 0
    assert "has no end token" in caplog.text


def test_a_vocabulary_size_set_after_construction_is_kept(tmp_path):
    """As the tutorials of the family set it: it says nothing that the halves do not say."""
    half = dict(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    decoder = dict(half, is_decoder=True, add_cross_attention=True)
    config = EncoderDecoderConfig(encoder=half, decoder=decoder)
    assert not hasattr(config, "vocab_size")
    config.vocab_size = config.encoder.vocab_size
    config.save_pretrained(tmp_path)
    assert EncoderDecoderConfig.from_pretrained(tmp_path).vocab_size == 40


@pytest.mark.parametrize("name", ["max_length", "num_beams", "no_repeat_ngram_size", "early_stopping"])
def test_an_error_for_an_option_of_generation_says_where_to_set_it(name):
    with pytest.raises(ConfigError, match=rf"model\.generation_config\.{name} = "):
        setattr(BertGenerationConfig(), name, 2)
    with pytest.raises(ConfigError, match=rf"model\.generation_config\.{name} = "):
        BertGenerationConfig(**{name: 2})
