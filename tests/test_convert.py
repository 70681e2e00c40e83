"""Conversion to a current checkpoint, to BART and to CTranslate2; transformers and CTranslate2 load the results."""

import contextlib
import copy
import json
import random
import re
import resource
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file

from bertgen import (
    AutoTokenizer,
    BackendError,
    BertGenerationConfig,
    BertGenerationTokenizer,
    ConfigError,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    Generator,
    UnsupportedError,
    cli,
)
from bertgen.convert import bart_config, bart_state, check_bart, convert, epsilon_drift
from tests.support.checkpoints import MAX_LENGTH, padded, sentence, sentences

HALF = dict(
    vocab_size=64,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=40,
    max_position_embeddings=20,
    initializer_range=0.2,
)
SPECIAL = dict(pad_token_id=0, bos_token_id=2, eos_token_id=1, decoder_start_token_id=2)


@pytest.fixture(scope="module")
def bart(tiny_checkpoint, tmp_path_factory):
    """Folder of the tiny checkpoint as a BART, and the drift."""
    folder = tmp_path_factory.mktemp("bart") / "new" / "folder"
    return folder, convert(tiny_checkpoint, folder, "bart")


@pytest.mark.parametrize("to", ["bertgen", "bart"])
@pytest.mark.parametrize("room, file", [(10, "[a-z_]+.json"), (5000, "model.safetensors"), (None, "spiece.model")])
def test_a_full_disk_is_named(tiny_checkpoint, tmp_path, capsys, monkeypatch, to, room, file):
    """The error has the file's final path, not that in the temporary folder; no part of the file stays."""
    if room is None:
        write = BertGenerationTokenizer.save_vocabulary

        def limited(*rest):
            with file_size(1000):
                return write(*rest)

        monkeypatch.setattr(BertGenerationTokenizer, "save_vocabulary", limited)
    with file_size(room):
        command = ["convert", "--model", str(tiny_checkpoint), "--to", to, "--output", str(tmp_path / "new")]
        assert cli.main(command) == 3
    err = capsys.readouterr().err
    assert re.fullmatch(f"bertgen: error: {tmp_path}/new/{file} cannot be written: File too large\n", err), err
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def file_size(limit):
    """No file of this process may be larger; None sets no limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft if limit is None else limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def texts():
    return sentences(11, 24)


def load_bart(folder, epsilon=None):
    """The BART as transformers loads it, without a weight missing or left over."""
    model, info = transformers.BartForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    if epsilon is not None:
        set_epsilon(model, epsilon)
    return model.eval()


def set_epsilon(model, epsilon):
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = epsilon


def make_model(encoder=(), decoder=(), **joint):
    """A random model; LayerNorms and biases have random values as well."""
    torch.manual_seed(3)
    config = EncoderDecoderConfig(
        encoder=BertGenerationConfig(**{**HALF, **dict(encoder)}),
        decoder=BertGenerationConfig(**{**HALF, **dict(decoder)}, is_decoder=True, add_cross_attention=True),
        **{**SPECIAL, **joint},
    )
    model = EncoderDecoderModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def largest_difference(model, other, rows=4):
    """Of the logits of random padded sources and targets, and the largest logit."""
    draw = torch.Generator().manual_seed(5)
    vocabulary, positions = model.config.decoder.vocab_size, model.config.decoder.max_position_embeddings
    ids = torch.randint(vocabulary, (rows, positions), generator=draw)
    inputs = torch.randint(vocabulary, (rows, positions), generator=draw)
    mask = (torch.arange(positions) < torch.randint(3, positions, (rows, 1), generator=draw)).long()
    ours, theirs = (one(ids, attention_mask=mask, decoder_input_ids=inputs).logits for one in (model, other))
    return float((ours - theirs).abs().max()), float(ours.abs().max())


# BART


def test_bart_is_the_model_except_for_its_epsilon(bart, tiny_checkpoint):
    folder, drift = bart
    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint)
    difference, largest = largest_difference(model, load_bart(folder))
    assert 2e-5 < difference <= 3e-4 * largest
    assert largest_difference(model, load_bart(folder, 1e-12))[0] <= 2e-5
    set_epsilon(model, 1e-5)
    assert largest_difference(model, load_bart(folder))[0] <= 2e-5
    assert difference / 3 < drift.logit < 3 * difference and 1e-6 < drift.relative < 3e-4
    assert drift.positions == 8 * 32 and drift.turned <= 2


@pytest.mark.parametrize("options", [{}, {"num_beams": 4}, {"num_beams": 3, "length_penalty": 2.0}])
def test_bart_gives_the_same_tokens(bart, tiny_checkpoint, texts, options):
    ours, theirs = EncoderDecoderModel.from_pretrained(tiny_checkpoint), load_bart(bart[0])
    ids, mask = padded(AutoTokenizer.from_pretrained(tiny_checkpoint).encode_batch(texts), 0)
    results = ours.generate(ids, attention_mask=mask, **options)
    assert torch.equal(results, theirs.generate(ids, attention_mask=mask, **options))
    assert theirs.generation_config.max_length == MAX_LENGTH, "the options of generation come along"
    assert theirs.config.forced_eos_token_id is None, "which BART has by default"


def test_bart_has_the_tokenizer(bart, tiny_checkpoint, texts):
    words = transformers.AutoTokenizer.from_pretrained(bart[0])
    expected = AutoTokenizer.from_pretrained(tiny_checkpoint).encode_batch(texts)
    assert [words(text, add_special_tokens=False).input_ids for text in texts] == expected


@pytest.mark.parametrize(
    "options, tables",
    [
        ({"tie_encoder_decoder": True}, 1),
        ({}, 4),
        ({"tie_encoder_decoder": True, "decoder": {"tie_word_embeddings": False}}, 4),
        ({"decoder": {"tie_word_embeddings": False}}, 4),
    ],
    ids=["all-shared", "words-apart", "head-apart", "all-apart"],
)
def test_bart_with_every_way_to_share_words(options, tables, tmp_path):
    """BART has one table by default; here the halves, or the head, may have their own."""
    model = make_model(**options)
    model.save_pretrained(tmp_path / "model")
    words = AutoTokenizer.from_pretrained("demo")
    words.save_pretrained(tmp_path / "words")
    convert(tmp_path / "model", tmp_path / "bart", "bart", tokenizer=tmp_path / "words")
    written = load_file(tmp_path / "bart/model.safetensors")
    assert sum(tensor.shape == (64, 24) for tensor in written.values()) == tables
    assert largest_difference(model, load_bart(tmp_path / "bart", 1e-12))[0] <= 2e-5


def test_bart_with_halves_of_other_depth_and_width(tmp_path):
    model = make_model({"num_hidden_layers": 3, "intermediate_size": 56}, {"num_hidden_layers": 1})
    model.save_pretrained(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "bart", "bart", tokenizer="demo")
    assert largest_difference(model, load_bart(tmp_path / "bart", 1e-12))[0] <= 2e-5


def test_bart_of_16_bits(tiny_checkpoint, tmp_path):
    drift = convert(tiny_checkpoint, tmp_path / "bart", "bart", dtype="bfloat16")
    written = load_file(tmp_path / "bart/model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16} and drift.relative < 3e-4
    assert load_bart(tmp_path / "bart").dtype == torch.bfloat16


def test_drift_does_not_change_the_model():
    model = make_model()
    before = copy.deepcopy(model)
    drift = epsilon_drift(model, 0.1)
    assert drift.positions == 8 * 20 and drift.turned > 0 and drift.relative > 0.01
    assert largest_difference(model, before)[0] == 0.0
    assert epsilon_drift(model, 1e-12) == type(drift)(0.0, 0.0, 160, 0)


@pytest.mark.parametrize(
    "encoder, decoder, message",
    [
        ({"model_type": "bert"}, {}, "the encoder is of kind 'bert'"),
        ({}, {"model_type": "roberta"}, "the decoder is of kind 'roberta'"),
        ({"hidden_act": "gelu_new"}, {"hidden_act": "gelu_new"}, "the encoder has hidden_act 'gelu_new'"),
        ({}, {"hidden_act": "relu"}, "the decoder has hidden_act 'relu'"),
        ({"hidden_size": 32}, {}, "hidden_size is 32 in the encoder and 24 in the decoder"),
        ({}, {"num_attention_heads": 2}, "num_attention_heads is 4 in the encoder and 2 in the decoder"),
        ({"vocab_size": 65}, {}, "vocab_size is 65 in the encoder and 64 in the decoder"),
        ({}, {"max_position_embeddings": 9}, "max_position_embeddings is 20 in the encoder and 9 in the decoder"),
    ],
)
def test_models_that_cannot_be_a_bart(encoder, decoder, message, tmp_path):
    decoder = {**HALF, **decoder, "is_decoder": True, "add_cross_attention": True}
    config = EncoderDecoderConfig(encoder={**HALF, **encoder}, decoder=decoder, **SPECIAL)
    with pytest.raises(UnsupportedError, match=message):
        check_bart(config)
    EncoderDecoderModel(config).save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedError, match=message):
        convert(tmp_path / "model", tmp_path / "bart", "bart", tokenizer="demo")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_bart_needs_a_start_token():
    model = make_model(bos_token_id=None, decoder_start_token_id=None, decoder={"bos_token_id": None})
    with pytest.raises(ConfigError, match="decoder_start_token_id or bos_token_id"):
        bart_config(model)
    assert "final_logits_bias" in bart_state(model)


# a checkpoint of today


@pytest.mark.filterwarnings("ignore:pytorch_model.bin is a pickle")
def test_an_old_checkpoint_becomes_a_current_one(tiny_checkpoint, tmp_path, texts):
    """A pickle with gamma and beta, and the decoder's weights only, like converted checkpoints of TensorFlow."""
    model = EncoderDecoderModel.from_pretrained(tiny_checkpoint, tie_encoder_decoder=True)
    old = tmp_path / "old"
    model.save_pretrained(old, safe_serialization=False, deduplicate=True)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(old)
    state = torch.load(old / "pytorch_model.bin", weights_only=True)
    for name in list(state):
        new = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        state[new] = state.pop(name)
    torch.save(state, old / "pytorch_model.bin")

    assert convert(old, tmp_path / "new") is None
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors", "spiece.model", "tokenizer_config.json",
    ]  # fmt: skip
    theirs, info = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert largest_difference(model, theirs.eval())[0] <= 2e-5
    assert Generator(tmp_path / "new").generate(texts) == Generator(old).generate(texts)


def test_demo_can_be_loaded_by_transformers(tmp_path):
    """Its file has weights that both halves share once, which transformers 5 cannot load."""
    assert cli.main(["convert", "--model", "demo", "--output", str(tmp_path / "new")]) == 0
    theirs = transformers.EncoderDecoderModel.from_pretrained(tmp_path / "new").eval()
    assert largest_difference(EncoderDecoderModel.from_pretrained("demo"), theirs)[0] <= 5e-5


# folders and errors


def test_the_folder_appears_complete_or_not_at_all(tiny_checkpoint, tmp_path, monkeypatch):
    words = type(AutoTokenizer.from_pretrained(tiny_checkpoint))
    save = words.save_pretrained

    def fail(self, *arguments):
        save(self, *arguments)
        raise OSError("disk full")

    monkeypatch.setattr(words, "save_pretrained", fail)
    for to in ("bertgen", "bart"):
        with pytest.raises(OSError, match="disk full"):
            convert(tiny_checkpoint, tmp_path / "new", to)
        assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_stays_as_it_is(tiny_checkpoint, tmp_path):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        convert(tiny_checkpoint, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    convert(tiny_checkpoint, tmp_path / "empty")
    assert (tmp_path / "empty/model.safetensors").exists()
    with pytest.raises(ConfigError, match="to must be bertgen, bart or ct2, got 'onnx'"):
        convert(tiny_checkpoint, tmp_path / "new", "onnx")


def test_command(tiny_checkpoint, bart, tmp_path, capsys):
    arguments = ["convert", "--model", str(tiny_checkpoint), "--output", str(tmp_path / "new"), "--to", "bart"]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    written, message = out.splitlines()
    assert written == f"{tmp_path}/new is written" and err == ""
    logit, relative = f"{bart[1].logit:.2g}", f"{bart[1].relative:.2g}"
    assert message.startswith("BART's LayerNorms have an epsilon of 1e-05")
    assert f"up to {logit}, {relative} of" in message
    assert cli.main(arguments) == 2 and "not empty" in capsys.readouterr().err
    assert cli.main(["convert", "--model", str(tmp_path / "none"), "--output", str(tmp_path / "other")]) == 3
    capsys.readouterr()


# CTranslate2


@pytest.mark.parametrize("missing", ["ctranslate2", "ctranslate2.converters", "transformers"])
def test_without_the_packages(tiny_checkpoint, tmp_path, monkeypatch, capsys, missing):
    if missing == "transformers":
        monkeypatch.setitem(sys.modules, "ctranslate2", sys)
        monkeypatch.setitem(sys.modules, "ctranslate2.converters", sys)
    monkeypatch.setitem(sys.modules, missing, None)
    command = ["convert", "--model", str(tiny_checkpoint), "--output", str(tmp_path / "new"), "--to", "ct2"]
    assert cli.main(command) == 2
    err = capsys.readouterr().err
    assert "conversion to CTranslate2 needs a package that cannot be imported" in err and "pip install" in err
    with pytest.raises(BackendError):
        convert(tiny_checkpoint, tmp_path / "new", "ct2")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def ctranslate2():
    return pytest.importorskip("ctranslate2", reason="ctranslate2 is not installed")


def test_ctranslate2_gives_the_same_tokens_and_scores(ctranslate2, tiny_checkpoint, tmp_path, texts):
    """Its LayerNorms have the model's own epsilon: the scores are not those of a BART."""
    assert convert(tiny_checkpoint, tmp_path / "new", "ct2") is None
    generator = Generator(tiny_checkpoint)
    translator = ctranslate2.Translator(str(tmp_path / "new"), device="cpu", compute_type="float32")
    words = AutoTokenizer.from_pretrained(tmp_path / "new")
    pieces = [words.convert_ids_to_tokens(ids) for ids in words.encode_batch(texts, add_special_tokens=False)]
    for width in (1, 4):
        outputs = generator.generate(texts, num_beams=width)
        results = translator.translate_batch(
            pieces, beam_size=width, max_decoding_length=MAX_LENGTH, return_end_token=True
        )
        ids = [words.convert_tokens_to_ids(result.hypotheses[0]) for result in results]
        assert ids == [list(output.token_ids) for output in outputs]
    targets = [words.convert_ids_to_tokens(list(output.token_ids[:-1])) for output in outputs]
    scored = generator.score(texts, [output.token_ids for output in outputs])
    for ours, theirs in zip(scored, translator.score_batch(pieces, targets), strict=True):
        assert theirs.log_probs == pytest.approx(ours.log_probs, abs=2e-5)


@pytest.mark.parametrize("options", [{}, {"decoder": {"tie_word_embeddings": False}}], ids=["words-apart", "all-apart"])
def test_ctranslate2_with_tables_of_their_own(ctranslate2, tiny_checkpoint, tmp_path, options):
    model = make_model(**options)
    model.save_pretrained(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "new", "ct2", tokenizer=tiny_checkpoint)
    generator = Generator(model, tiny_checkpoint)
    words = generator.tokenizer
    translator = ctranslate2.Translator(str(tmp_path / "new"), device="cpu", compute_type="float32")
    draw = random.Random(4)
    for _ in range(5):
        text = sentence(draw)
        target = [draw.randrange(5, 64) for _ in range(8)]
        (ours,) = generator.score([text], [[*target, 1]])
        source = words.convert_ids_to_tokens(words.encode_batch([text], add_special_tokens=False)[0])
        (theirs,) = translator.score_batch([source], [words.convert_ids_to_tokens(target)])
        assert theirs.log_probs == pytest.approx(ours.log_probs, abs=5e-5)


def test_models_that_ctranslate2_does_not_support(ctranslate2, tiny_checkpoint, tmp_path):
    make_model(decoder={"layer_norm_eps": 1e-5}).save_pretrained(tmp_path / "a")
    make_model({"vocab_size": 70}, {"vocab_size": 70}).save_pretrained(tmp_path / "b")
    with pytest.raises(UnsupportedError, match="layer_norm_eps is 1e-12 in the encoder and 1e-05 in the decoder"):
        convert(tmp_path / "a", tmp_path / "new", "ct2", tokenizer=tiny_checkpoint)
    with pytest.raises(UnsupportedError, match="the tokenizer has 64 tokens, the model a vocabulary of 70"):
        convert(tmp_path / "b", tmp_path / "new", "ct2", tokenizer=tiny_checkpoint)
    assert not (tmp_path / "new").exists() and json.loads((tmp_path / "a/config.json").read_text())
