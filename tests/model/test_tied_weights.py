"""Weights that have several names: resized, replaced, trained, saved and loaded again, here and in transformers."""

from __future__ import annotations

import copy
import json
import logging
import pickle

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bertgen import (
    BertGenerationConfig,
    BertGenerationDecoder,
    BertGenerationEncoder,
    ConfigError,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    Int4Config,
    UnsupportedError,
)
from bertgen.layers.linear import Int4Linear
from tests.support.model_kinds import HALVES, KINDS, TINY
from tests.support.tiny_models import distance

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
LABELS = torch.tensor([[7, 8, 1], [9, 1, -100]])


def make(kind: str = "bert-generation", tied: bool = True, head: bool = True, **options) -> EncoderDecoderModel:
    torch.manual_seed(0)
    half = dict(TINY, model_type=kind, **options)
    config = EncoderDecoderConfig(
        encoder=half,
        decoder=dict(half, is_decoder=True, add_cross_attention=True, tie_word_embeddings=head),
        tie_encoder_decoder=tied, pad_token_id=0, decoder_start_token_id=2,
    )  # fmt: skip
    return EncoderDecoderModel(config).eval()


def loss(model) -> float:
    with torch.no_grad():
        return float(model.eval()(input_ids=IDS, labels=LABELS).loss)


def train(model) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        model.train()(input_ids=IDS, labels=LABELS.clone()).loss.backward()
        optimizer.step(), optimizer.zero_grad()


def assert_same_files(model, folder, trained: bool = True) -> None:
    """The model is what both libraries load from its files, ties included, and what transformers writes of it loads."""
    if trained:
        train(model)
    model.save_pretrained(folder)
    ours = EncoderDecoderModel.from_pretrained(folder)
    assert loss(ours) == loss(model)
    assert ours.config.to_dict() == {
        **model.config.to_dict(),
        "dtype": "float32",
        "architectures": ["EncoderDecoderModel"],
    }
    assert ours.num_parameters() == model.num_parameters()
    theirs, info = transformers.EncoderDecoderModel.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert abs(loss(theirs) - loss(model)) <= 2e-5
    theirs.save_pretrained(folder / "theirs")
    again = EncoderDecoderModel.from_pretrained(folder / "theirs")
    assert abs(loss(again) - loss(model)) <= 1e-5
    assert again.num_parameters() == model.num_parameters()


def table(half) -> torch.nn.Parameter:
    return half.get_input_embeddings().weight


# Resizing


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_tied_pair_whose_halves_are_both_resized_stays_tied(kind, head, tmp_path):
    model = make(kind, head=head)
    model.encoder.resize_token_embeddings(46), model.decoder.resize_token_embeddings(46)
    assert table(model.encoder) is table(model.decoder) and len(table(model.decoder)) == 46
    assert model.config.encoder.vocab_size == model.config.decoder.vocab_size == 46
    assert model.decoder.head.decoder.bias.shape == (46,)
    assert_same_files(model, tmp_path)


@pytest.mark.parametrize("half", ["encoder", "decoder", "body", "model"])
def test_resizing_one_half_of_a_tied_pair_resizes_both(half, tmp_path):
    model = make()
    places = {"encoder": model.encoder, "decoder": model.decoder, "body": model.decoder.bert, "model": model}
    before = table(model.encoder).detach().clone()
    assert places[half].resize_token_embeddings(46, pad_to_multiple_of=8) is places[half].get_input_embeddings()
    assert table(model.encoder) is table(model.decoder) is model.decoder.head.decoder.weight
    assert table(model.encoder).shape == (48, 32) and torch.equal(table(model.encoder)[:40], before)
    assert_same_files(model, tmp_path)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("half", ["encoder", "decoder", "body"])
def test_resizing_one_half_of_a_pair_that_is_not_tied(half, head, tmp_path):
    model = make(tied=False, head=head)
    place = {"encoder": model.encoder, "decoder": model.decoder, "body": model.decoder.bert}[half]
    place.resize_token_embeddings(46)
    sizes = model.config.encoder.vocab_size, model.config.decoder.vocab_size
    assert sizes == ((46, 40) if half == "encoder" else (40, 46))
    assert_same_files(model, tmp_path)
    with pytest.raises(UnsupportedError, match="resize one half"):
        model.resize_token_embeddings(50)


def test_copies_and_pickles_of_a_tied_pair_are_resized_alone():
    model = make()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.encoder.resize_token_embeddings(46)
        assert table(other.encoder) is table(other.decoder) and len(table(other.decoder)) == 46
        assert len(table(model.encoder)) == 40 and model.config.decoder.vocab_size == 40


def test_a_head_in_4_bits_is_not_resized_by_half():
    decoder = BertGenerationDecoder(BertGenerationConfig(**dict(TINY, hidden_size=64, intermediate_size=64)))
    decoder.lm_head.decoder = Int4Linear.from_linear(decoder.lm_head.decoder, Int4Config(head=True))
    with pytest.raises(UnsupportedError, match="the output layer is in 4 bits"):
        decoder.resize_token_embeddings(50)
    assert decoder.config.vocab_size == 40 and len(table(decoder)) == 40


def test_halves_that_share_one_configuration_do_not_share_what_becomes_of_it():
    half = BertGenerationConfig(**TINY)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(half, half)
    assert config.decoder.is_decoder and not config.encoder.is_decoder
    model = EncoderDecoderModel(config)
    model.decoder.resize_token_embeddings(50)
    assert model.config.encoder.vocab_size == 40


def test_halves_bring_their_own_configurations(tmp_path):
    """A configuration beside halves that exist says how they are joined, not what they are."""
    encoder, decoder = make(tied=False).encoder, make(tied=False).decoder
    config = copy.deepcopy(make(tied=False).config)
    model = EncoderDecoderModel(config, encoder, decoder).eval()
    model.encoder.resize_token_embeddings(46)
    assert_same_files(model, tmp_path)


# Replacing


def test_a_table_that_was_replaced_is_saved(tmp_path):
    """By names that are saved for their twins it would be lost."""
    model = make(tied=False)
    model.decoder.set_input_embeddings(torch.nn.Embedding(40, 32))
    assert not torch.equal(table(model.decoder), model.decoder.head.decoder.weight)
    model.save_pretrained(tmp_path)
    ours = EncoderDecoderModel.from_pretrained(tmp_path)
    assert loss(ours) == loss(model) and not ours.config.decoder.tie_word_embeddings
    theirs = transformers.EncoderDecoderModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert abs(loss(theirs) - loss(model)) <= 2e-5


def test_a_half_that_was_replaced_in_a_tied_pair_is_saved(tmp_path):
    model = make()
    model.encoder.set_input_embeddings(torch.nn.Embedding(40, 32))
    model.save_pretrained(tmp_path / "1"), model.save_pretrained(tmp_path / "2", deduplicate=True)
    for folder in ("1", "2"):
        ours = EncoderDecoderModel.from_pretrained(tmp_path / folder)
        assert loss(ours) == loss(model) and not ours.config.tie_encoder_decoder
    model.tie_weights()
    assert_same_files(model, tmp_path / "3")


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_what_could_not_be_loaded_is_not_saved(half, tmp_path):
    model = make(tied=False)
    getattr(model, half).set_input_embeddings(torch.nn.Embedding(46, 32))
    with pytest.raises(ConfigError, match=r"word_embeddings has 46 rows, config.vocab_size is 40; resize_token_emb"):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError, match="46 rows"):
        getattr(model, half).save_pretrained(tmp_path / "half")
    assert not list(tmp_path.iterdir())


# Files


def test_halves_that_differ_in_a_tied_checkpoint_are_both_loaded(tmp_path, caplog):
    """transformers 5 trains them apart and keeps the key; one of the two would be lost."""
    make().save_pretrained(tmp_path)
    theirs = transformers.EncoderDecoderModel.from_pretrained(tmp_path, attn_implementation="eager")
    with torch.no_grad():
        theirs.encoder.encoder.layer[1].output.dense.weight += 0.1
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["tie_encoder_decoder"]
    caplog.set_level(logging.WARNING, "bertgen")
    ours = EncoderDecoderModel.from_pretrained(tmp_path)
    assert abs(loss(ours) - loss(theirs)) <= 2e-5 and not ours.config.tie_encoder_decoder
    assert "encoder.encoder.layer.1.output.dense.weight and its tied weight in the decoder differ" in caplog.text
    ours.save_pretrained(tmp_path / "again")
    assert loss(EncoderDecoderModel.from_pretrained(tmp_path / "again")) == loss(ours)


def test_a_tied_checkpoint_of_two_sizes_says_how_to_load_it(tmp_path):
    make(tied=False).save_pretrained(tmp_path)
    model = EncoderDecoderModel.from_pretrained(tmp_path)
    model.encoder.resize_token_embeddings(46)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_encoder_decoder": True}))
    with pytest.raises(ConfigError, match="no equal in the decoder; tie_encoder_decoder=False keeps"):
        EncoderDecoderModel.from_pretrained(tmp_path)
    assert loss(EncoderDecoderModel.from_pretrained(tmp_path, tie_encoder_decoder=False)) == loss(model)


@pytest.mark.parametrize("kind", KINDS)
def test_biases_of_a_tied_head_keep_their_length(kind, tmp_path):
    decoder = HALVES[kind][2](HALVES[kind][0](**TINY, is_decoder=True)).eval()
    decoder.resize_token_embeddings(46)
    assert decoder.head.bias.shape == decoder.head.decoder.bias.shape == (46,)
    assert decoder.head.bias is decoder.head.decoder.bias
    decoder.save_pretrained(tmp_path)
    assert distance(HALVES[kind][2].from_pretrained(tmp_path)(IDS).logits, decoder(IDS).logits) == 0
    state = load_file(tmp_path / "model.safetensors")
    bias = f"{decoder.head_path}.bias"
    state[bias] = state[bias][:40].contiguous()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OSError, match=bias.replace(".", r"\.") + r".*\(40,\).*\(46,\)"):
        HALVES[kind][2].from_pretrained(tmp_path)


def test_a_body_is_a_model_of_its_own(tmp_path):
    model = make(tied=False)
    body = copy.deepcopy(model.decoder.bert)
    body.save_pretrained(tmp_path)
    read = BertGenerationEncoder.from_pretrained(tmp_path, is_decoder=False, add_cross_attention=False)
    assert torch.equal(table(read), table(model.decoder))


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_a_flag_of_resizing_is_true_or_false(half):
    model = EncoderDecoderModel.from_pretrained("demo")
    with pytest.raises(ConfigError, match="mean_resizing must be True or False, got 'no'"):
        getattr(model, half).resize_token_embeddings(8010, mean_resizing="no")
    assert getattr(model, half).get_input_embeddings().num_embeddings == 8000
