"""Checkpoints of every layout of the family: written by transformers and read here, and the other way round."""

from __future__ import annotations

import json
import logging

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bertgen import (
    BertGenerationConfig,
    BertGenerationDecoder,
    BertGenerationEncoder,
    BertLMHeadModel,
    BertModel,
    CheckpointError,
    ConfigError,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    Int4Config,
    RobertaModel,
    UnsupportedError,
)
from tests.support.model_kinds import HALVES, KINDS, THEIRS, TINY, alone
from tests.support.reference_models import make_model_pair
from tests.support.tiny_models import distance

pytestmark = pytest.mark.filterwarnings("ignore:pytorch_model.bin is a pickle")

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
LABELS = torch.tensor([[7, 8, 1], [9, 1, -100]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, labels=LABELS).logits * (LABELS != -100)[..., None]


def saved_keys(folder) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


LOGGERS = ("bertgen.model.loading", "bertgen.model.pretrained")


@pytest.fixture
def lines(caplog):
    """The lines that loading a checkpoint logs."""
    caplog.set_level(logging.WARNING, "bertgen")
    return lambda: [record.getMessage() for record in caplog.records if record.name in LOGGERS]


# Whole models


@pytest.mark.parametrize("seed", range(30))
def test_both_read_what_either_writes(seed, tmp_path, lines):
    twins = make_model_pair(seed)
    twins.oracle.save_pretrained(tmp_path / "theirs")
    ours = EncoderDecoderModel.from_pretrained(tmp_path / "theirs")
    assert distance(logits(ours), logits(twins.oracle)) <= 2e-5
    ours.save_pretrained(tmp_path / "ours")
    # of an untied head transformers keeps the bias nobody uses as well
    assert saved_keys(tmp_path / "ours") == saved_keys(tmp_path / "theirs")
    again, info = transformers.EncoderDecoderModel.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert distance(logits(again.float()), logits(twins.oracle)) <= 2e-5
    assert distance(logits(EncoderDecoderModel.from_pretrained(tmp_path / "ours")), logits(ours)) == 0
    assert not lines()


@pytest.mark.parametrize("kind", KINDS)
def test_halves_are_read_and_written(kind, tmp_path, lines):
    for part, options in ((1, {}), (2, dict(is_decoder=True))):
        _, theirs = alone(kind, part, **options)
        theirs.save_pretrained(tmp_path / f"theirs{part}")
        read = HALVES[kind][part].from_pretrained(tmp_path / f"theirs{part}")
        assert type(read.config) is HALVES[kind][0]
        assert distance(read(IDS)[0], theirs(IDS)[0]) <= 2e-5
        read.save_pretrained(tmp_path / f"ours{part}")
        assert saved_keys(tmp_path / f"ours{part}") == saved_keys(tmp_path / f"theirs{part}")
        again = THEIRS[kind][part].from_pretrained(tmp_path / f"ours{part}", attn_implementation="eager")
        assert distance(again(IDS)[0], theirs(IDS)[0]) <= 2e-5
    assert not lines()


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_decoder_is_no_half(kind, tmp_path):
    make_model_pair(0).model.save_pretrained(tmp_path)
    for part in (1, 2):
        with pytest.raises(
            UnsupportedError, match=r"encoder-decoder; load an EncoderDecoderModel and take its .encoder"
        ):
            HALVES[kind][part].from_pretrained(tmp_path)


def shared(kind: str) -> EncoderDecoderModel:
    """A model whose halves share their weights."""
    torch.manual_seed(0)
    half = dict(TINY, model_type=kind)
    config = EncoderDecoderConfig(
        encoder=half, decoder=dict(half, is_decoder=True, add_cross_attention=True),
        tie_encoder_decoder=True, pad_token_id=0, decoder_start_token_id=2,
    )  # fmt: skip
    return EncoderDecoderModel(config).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_shared_weights_in_every_form(kind, tmp_path, lines):
    model = shared(kind)
    body = model.decoder.body_name
    expected = logits(model)
    state = model.state_dict()
    config = model.config.to_dict()

    def written(name, save):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        save(folder)
        return EncoderDecoderModel.from_pretrained(folder)

    encoder_only = {k: t for k, t in state.items() if not k.startswith("encoder.") or k.startswith("encoder.pooler.")}
    decoder_only = {
        k: t
        for k, t in state.items()
        if not k.startswith((f"decoder.{body}.embeddings", f"decoder.{body}.encoder")) or "crossattention" in k
    }
    dropped = {k: k.replace("encoder.", f"decoder.{body}.", 1) for k in state if k not in encoder_only}

    def safetensors(part, **metadata):
        part = {k: t.clone() for k, t in part.items() if not k.endswith(("decoder.weight", "decoder.bias"))}
        return lambda folder: save_file(part, folder / "model.safetensors", metadata={"format": "pt", **metadata})

    loaded = [
        written("both", lambda folder: torch.save(state, folder / "pytorch_model.bin")),
        written("decoder's", safetensors(encoder_only)),
        written("decoder's with a table", safetensors(encoder_only, **dropped)),
        written("encoder's", safetensors(decoder_only)),
    ]
    for one in loaded:
        assert distance(logits(one), expected) <= 1e-6
        assert one.encoder.embeddings.word_embeddings.weight is one.decoder.body.embeddings.word_embeddings.weight
        assert one.num_parameters() == model.num_parameters()
    assert not lines()

    # Both halves by default: transformers 5 does not share, so it needs them.
    loaded[1].save_pretrained(tmp_path / "saved")
    theirs = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "saved", attn_implementation="eager")
    assert distance(logits(theirs), expected) <= 2e-5
    loaded[1].save_pretrained(tmp_path / "once", deduplicate=True)
    assert "transformers 5 cannot load them" in lines()[-1]
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("saved", "once")]
    assert sizes[1] < 0.75 * sizes[0]
    assert distance(logits(EncoderDecoderModel.from_pretrained(tmp_path / "once")), expected) <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_differs_from_its_twin_is_untied(kind, tmp_path, lines):
    """As transformers, and not silently: one of the two would win and the other be lost."""
    torch.manual_seed(0)
    half = dict(TINY, model_type=kind)
    model = EncoderDecoderModel(
        EncoderDecoderConfig(
            encoder=half,
            decoder=dict(half, is_decoder=True, add_cross_attention=True, tie_word_embeddings=False),
            pad_token_id=0,
            decoder_start_token_id=2,
        )
    )
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["decoder"]["tie_word_embeddings"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = EncoderDecoderModel.from_pretrained(tmp_path)
    assert distance(logits(loaded), logits(model)) <= 1e-6
    theirs = transformers.EncoderDecoderModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert distance(logits(theirs), logits(model)) <= 2e-5
    loaded.save_pretrained(tmp_path / "again")
    assert distance(logits(EncoderDecoderModel.from_pretrained(tmp_path / "again")), logits(model)) <= 1e-6


# Warm starts


def legacy(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of the first BERT checkpoints."""
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): t for k, t in state.items()}
    old = {k.replace("LayerNorm.bias", "LayerNorm.beta"): t for k, t in old.items()}
    name = next(k for k in old if k.endswith("position_embeddings.weight"))
    return old | {name.replace("position_embeddings.weight", "position_ids"): torch.arange(20)[None]}


@pytest.fixture(params=["bert", "bert legacy", "roberta"])
def pretrained(request, tmp_path):
    """(folder, stack): a BERT or RoBERTa of pre-training, on disk, and its stack in transformers."""
    kind = request.param.split()[0]
    torch.manual_seed(0)
    whole = transformers.BertForPreTraining if kind == "bert" else transformers.RobertaForMaskedLM
    model = whole(THEIRS[kind][0](**TINY, attn_implementation="eager")).eval()
    folder = tmp_path / kind
    model.save_pretrained(folder)
    if request.param == "bert legacy":
        state = legacy(model.state_dict())
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin")
    return folder, getattr(model, kind)


def test_warm_start_of_the_page(pretrained, lines):
    """The page's example: halves of kind bert-generation out of a BERT, joined."""
    folder, stack = pretrained
    special = dict(bos_token_id=2, eos_token_id=1)
    encoder = BertGenerationEncoder.from_pretrained(folder, **special)
    decoder = BertGenerationDecoder.from_pretrained(folder, add_cross_attention=True, is_decoder=True, **special)
    assert type(encoder.config) is BertGenerationConfig and encoder.config.bos_token_id == 2
    for name, parameter in stack.named_parameters():
        if not name.startswith(("embeddings.token_type", "pooler")):
            assert torch.equal(encoder.get_parameter(name), parameter), name
            assert torch.equal(decoder.bert.get_parameter(name), parameter), name
    (first, missing, second) = lines()
    assert first.count("\n") == 0 and "not used: " in first and "token_type_embeddings.weight" in first
    assert "missing, initialised at random: " in missing and "layer.*.crossattention.self.query.weight (2)" in missing
    assert "cls" in second or "lm_head.dense.weight" in second
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    loss = model(input_ids=IDS, decoder_input_ids=IDS, labels=IDS).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_folding_the_embeddings_reproduces_the_pretrained_stack(pretrained, tmp_path):
    folder, stack = pretrained
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    encoder = BertGenerationEncoder.from_pretrained(folder, fold_embeddings=True)
    expected = stack(IDS, attention_mask=mask).last_hidden_state * mask[..., None]
    assert distance(encoder(IDS, mask).last_hidden_state, expected) <= 2e-6
    plain = BertGenerationEncoder.from_pretrained(folder)
    assert distance(plain(IDS, mask).last_hidden_state, expected) > 0.1
    decoder = BertGenerationDecoder.from_pretrained(folder, fold_embeddings=True)
    assert distance(decoder.bert(IDS, mask).last_hidden_state, expected) <= 2e-6
    assert encoder.config.max_position_embeddings == 20 - (stack.config.model_type == "roberta")
    encoder.save_pretrained(tmp_path / "folded")
    assert distance(BertGenerationEncoder.from_pretrained(tmp_path / "folded")(IDS, mask)[0], expected) <= 2e-6
    theirs = transformers.BertGenerationEncoder.from_pretrained(tmp_path / "folded")
    assert distance(theirs(IDS, attention_mask=mask)[0] * mask[..., None], expected) <= 2e-6
    with pytest.raises(ConfigError, match="fold_embeddings is for a BERT or RoBERTa"):
        BertGenerationEncoder.from_pretrained(tmp_path / "folded", fold_embeddings=True)


def test_from_encoder_decoder_pretrained(pretrained, tmp_path, lines):
    folder, stack = pretrained
    kind = stack.config.model_type
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(
        folder, folder, decoder_start_token_id=2, pad_token_id=0, encoder_hidden_dropout_prob=0.0,
        decoder_attention_probs_dropout_prob=0.3,
    )  # fmt: skip
    theirs = transformers.EncoderDecoderModel.from_encoder_decoder_pretrained(folder, folder)
    assert type(model.encoder) is HALVES[kind][1] and type(model.decoder) is HALVES[kind][2]
    assert not model.training and model.config.decoder_start_token_id == 2
    assert model.config.encoder.hidden_dropout_prob == 0.0
    assert model.config.decoder.attention_probs_dropout_prob == 0.3
    reference = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        if "crossattention" not in name and "pooler" not in name:
            assert torch.equal(parameter, reference[name]), name
    (missing,) = [line for line in lines() if "missing" in line and "crossattention" in line]
    assert missing.count("crossattention") == 10  # one entry for all layers
    model.save_pretrained(tmp_path / "joined")
    again = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "joined", attn_implementation="eager")
    assert distance(logits(again), logits(model)) <= 2e-5


def test_halves_that_exist_and_halves_of_two_kinds_are_joined(tmp_path):
    bert, roberta = alone("bert", 1)[0], alone("roberta", 2, is_decoder=True, add_cross_attention=True)[0]
    bert.save_pretrained(tmp_path / "bert")
    model = EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "bert", decoder_model=roberta)
    assert isinstance(model.encoder, BertModel) and model.decoder is roberta
    tied = EncoderDecoderModel.from_encoder_decoder_pretrained(
        tmp_path / "bert", tmp_path / "bert", tie_encoder_decoder=True
    )
    assert tied.encoder.embeddings.word_embeddings.weight is tied.decoder.bert.embeddings.word_embeddings.weight
    with pytest.raises(ConfigError, match="the decoder's path, or decoder_model="):
        EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="hiden_size"):
        EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "bert", tmp_path / "bert", encoder_hiden_size=3)
    with pytest.raises(ConfigError, match="no option 'spam'"):
        EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "bert", tmp_path / "bert", spam=3)


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_only_repositories(kind, tmp_path, lines):
    """An encoder's weights, with or without the name of the stack before them, serve a decoder."""
    _, theirs = alone(kind, 1)
    for prefix in ("", "bert.", "roberta."):
        folder = tmp_path / f"{kind}{prefix}"
        theirs.save_pretrained(folder)
        state = {prefix + k: t for k, t in load_file(folder / "model.safetensors").items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        decoder = HALVES[kind][2].from_pretrained(folder, is_decoder=True)
        for name, parameter in decoder.body.named_parameters():
            assert torch.equal(parameter, theirs.get_parameter(name)), name
        assert sum("missing" in line for line in lines()) <= 3
        assert distance(HALVES[kind][1].from_pretrained(folder)(IDS)[0], theirs(IDS)[0]) <= 2e-5


def test_a_file_without_any_weight_of_ours_is_refused(tmp_path):
    alone("bert", 1)[0].save_pretrained(tmp_path)
    save_file({"transformer.h.0.weight": torch.zeros(3)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for cls in (BertModel, BertLMHeadModel, RobertaModel, BertGenerationEncoder):
        with pytest.raises(CheckpointError, match=f"holds no weight of a {cls.__name__}"):
            cls.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_half_in_4_bits(tmp_path, kind):
    """Poolers and the transforms of heads are rounded, output layers are not."""
    shape = dict(vocab_size=40, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    for cls in HALVES[kind][1:]:
        cls(HALVES[kind][0](**shape, max_position_embeddings=32, is_decoder=cls is HALVES[kind][2])).save_pretrained(
            tmp_path
        )
        model = cls.from_pretrained(tmp_path, quantization_config=Int4Config())
        linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
        assert linear == ({f"{model.head_path}.decoder"} if cls is HALVES[kind][2] else set())
        model.save_pretrained(tmp_path / cls.__name__)
        assert distance(cls.from_pretrained(tmp_path / cls.__name__)(IDS)[0], model.eval()(IDS)[0]) == 0
