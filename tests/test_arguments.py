"""Arguments of transformers' `from_pretrained`: each has an effect, has none, or raises an error with its name."""

from __future__ import annotations

import inspect
import logging
import re
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import bertgen
from bertgen import (
    AutoTokenizer,
    BackendError,
    BertConfig,
    BertGenerationConfig,
    BertGenerationEncoder,
    BertModel,
    CheckpointError,
    ConfigError,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
    Generator,
    UnsupportedError,
    pipeline,
)
from bertgen.arguments import IGNORED, UNSUPPORTED, _log_ignored
from bertgen.hub import HUB_OPTIONS
from tests.support.tiny_models import TINY, distance, tiny

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arguments") / "model"
    tiny().save_pretrained(folder)
    return folder


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=(IDS != 0).long(), decoder_input_ids=IDS).logits.float()


def test_every_argument_of_transformers_has_a_meaning_here():
    theirs = set(inspect.signature(transformers.PreTrainedModel.from_pretrained).parameters)
    source = inspect.getsource(transformers.PreTrainedModel.from_pretrained)
    theirs |= set(re.findall(r'kwargs\.pop\("(\w+)"', source))
    theirs |= set(re.findall(r'"(\w+)"', re.search(r"for name in (\[.*?\])", source)[1]))
    assert len(theirs) > 40
    ours = {*inspect.signature(EncoderDecoderModel.from_pretrained).parameters, *HUB_OPTIONS, *IGNORED, *UNSUPPORTED}
    ours |= {"torch_dtype", "device_map"}  # other names
    ours |= {"pretrained_model_name_or_path", "model_args", "kwargs"}
    assert theirs <= ours, theirs - ours


@pytest.mark.parametrize("name", [*IGNORED])
def test_arguments_without_an_effect_are_logged_once_at_debug_level(name, saved, caplog):
    _log_ignored.cache_clear()
    value = False if name in ("from_tf", "from_flax") else True
    with caplog.at_level(logging.DEBUG, logger="bertgen"):
        for _ in range(2):
            model = EncoderDecoderModel.from_pretrained(saved, **{name: value})
    assert distance(logits(model), logits(EncoderDecoderModel.from_pretrained(saved))) == 0
    logged = [record for record in caplog.records if record.message.startswith(f"{name} changes nothing: ")]
    assert len(logged) == 1 and logged[0].levelno == logging.DEBUG


@pytest.mark.parametrize("name", [*UNSUPPORTED, "from_tf", "from_flax"])
def test_unsupported_arguments_raise_an_error_with_their_name(name, saved):
    for load in (EncoderDecoderModel, EncoderDecoderConfig, GenerationConfig, Generator):
        with pytest.raises(UnsupportedError, match=name):
            (load if load is Generator else load.from_pretrained)(saved, **{name: "8"})
    with pytest.raises(UnsupportedError, match=name):
        EncoderDecoderModel.from_encoder_decoder_pretrained(saved, saved, **{name: "8"}, encoder_config=TINY)
    EncoderDecoderModel.from_pretrained(saved, **{name: None})
    EncoderDecoderModel.from_pretrained(saved, **{name: False})


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16", "torch.bfloat16", torch.float64, "auto"])
def test_torch_dtype_is_dtype(dtype, saved, tmp_path, tiny_checkpoint):
    expected = EncoderDecoderModel.from_pretrained(saved, dtype=dtype).dtype
    assert EncoderDecoderModel.from_pretrained(saved, torch_dtype=dtype).dtype == expected
    assert EncoderDecoderModel.from_pretrained(saved, torch_dtype=dtype, dtype="float32").dtype == torch.float32
    half = tmp_path / "half"
    EncoderDecoderModel.from_pretrained(saved).encoder.save_pretrained(half)
    assert BertGenerationEncoder.from_pretrained(half, torch_dtype=dtype).dtype == expected
    pair = EncoderDecoderModel.from_encoder_decoder_pretrained(half, half, torch_dtype=dtype)
    assert {p.dtype for p in pair.parameters()} == {expected}
    mixed = EncoderDecoderModel.from_encoder_decoder_pretrained(half, half, decoder_torch_dtype=dtype)
    assert (mixed.encoder.dtype, mixed.decoder.dtype) == (torch.float32, expected)
    assert Generator(tiny_checkpoint, torch_dtype=dtype).model.dtype == expected
    assert pipeline(model=tiny_checkpoint, torch_dtype=dtype).model.dtype == expected
    assert pipeline(model=tiny_checkpoint, model_kwargs={"torch_dtype": dtype}).model.dtype == expected


def test_a_dtype_of_the_configuration_is_the_one_of_loading(saved):
    config = EncoderDecoderConfig.from_pretrained(saved, torch_dtype=torch.bfloat16)
    assert config.dtype == config.torch_dtype == torch.bfloat16 and config.to_dict()["dtype"] == "bfloat16"
    assert EncoderDecoderModel.from_pretrained(saved, config=config).dtype == torch.bfloat16
    config.torch_dtype = "float16"
    assert EncoderDecoderModel.from_pretrained(saved, config=config).dtype == torch.float16
    assert BertConfig().dtype is None and BertConfig(dtype=torch.float16).torch_dtype == torch.float16


def test_gradient_checkpointing_is_switched_on(saved):
    model = EncoderDecoderModel.from_pretrained(saved, gradient_checkpointing=True)
    assert model.is_gradient_checkpointing and model.encoder.encoder.recompute and model.decoder.bert.encoder.recompute
    assert not EncoderDecoderModel.from_pretrained(saved).is_gradient_checkpointing
    config = EncoderDecoderConfig.from_pretrained(saved, gradient_checkpointing=True)
    assert EncoderDecoderModel(config).is_gradient_checkpointing
    assert EncoderDecoderModel.from_pretrained(saved, config=config).is_gradient_checkpointing
    half = BertGenerationConfig(**TINY, gradient_checkpointing=True)
    theirs = transformers.BertGenerationConfig(**TINY, gradient_checkpointing=True)
    assert BertGenerationEncoder(half).is_gradient_checkpointing
    assert transformers.BertGenerationEncoder(theirs).is_gradient_checkpointing


@pytest.mark.parametrize(
    "device_map",
    ["auto", "balanced", "sequential", "cpu", torch.device("cpu"), {"": "cpu"}, {"encoder": "cpu", "decoder": "cpu"}],
)
def test_a_device_map_places_the_model(device_map, saved, tiny_checkpoint):
    expected = "cuda" if device_map in ("auto", "balanced", "sequential") and torch.cuda.is_available() else "cpu"
    assert EncoderDecoderModel.from_pretrained(saved, device_map=device_map).device.type == expected
    assert Generator(tiny_checkpoint, device_map=device_map).model.device.type == expected
    assert pipeline(model=tiny_checkpoint, device_map=device_map).device.type == expected


def test_a_device_map_of_parts_or_of_no_device_is_refused(saved):
    for device_map in ({"encoder": 0, "decoder": "cpu"}, {"": "disk"}, {}):
        with pytest.raises(UnsupportedError, match="on one device as a whole"):
            EncoderDecoderModel.from_pretrained(saved, device_map=device_map)
    for device_map in ("cuda:77", {"": 77}):
        with pytest.raises(BackendError, match="cuda:77"):
            EncoderDecoderModel.from_pretrained(saved, device_map=device_map)
    with pytest.raises(BackendError, match="meta"):
        EncoderDecoderModel.from_pretrained(saved, device_map="meta")
    with pytest.raises(ConfigError, match="device='cpu' and device_map='cpu'"):
        EncoderDecoderModel.from_pretrained(saved, device="cpu", device_map="cpu")


@pytest.mark.filterwarnings("ignore:.*is a pickle")
def test_the_files_that_are_read_can_be_chosen(saved, tmp_path):
    model = EncoderDecoderModel.from_pretrained(saved)
    both = shutil.copytree(saved, tmp_path / "both")
    torch.save({name: t + 1 for name, t in load_file(saved / "model.safetensors").items()}, both / "pytorch_model.bin")
    assert distance(logits(EncoderDecoderModel.from_pretrained(both, use_safetensors=True)), logits(model)) == 0
    assert distance(logits(EncoderDecoderModel.from_pretrained(both, use_safetensors=False)), logits(model)) > 0
    with pytest.raises(CheckpointError, match=r"looked for pytorch_model\.bin, pytorch_model\.bin\.index\.json"):
        EncoderDecoderModel.from_pretrained(saved, use_safetensors=False)
    # A variant, whole and in shards, as transformers writes it.
    theirs = transformers.EncoderDecoderModel.from_pretrained(saved)
    for size in ("5GB", "20KB"):
        theirs.save_pretrained(tmp_path / size, variant="fp16", max_shard_size=size)
        assert (
            distance(logits(EncoderDecoderModel.from_pretrained(tmp_path / size, variant="fp16")), logits(model)) == 0
        )
        with pytest.raises(CheckpointError, match="has no weights"):
            EncoderDecoderModel.from_pretrained(tmp_path / size)
    shutil.copytree(saved, tmp_path / "outer" / "inner")
    assert (
        distance(logits(EncoderDecoderModel.from_pretrained(tmp_path / "outer", subfolder="inner")), logits(model)) == 0
    )
    with pytest.raises(CheckpointError, match=r"outer has no config\.json"):
        EncoderDecoderModel.from_pretrained(tmp_path / "outer")


def test_weights_can_be_given_renamed_and_left_out(saved, tmp_path, caplog):
    model = EncoderDecoderModel.from_pretrained(saved)
    state = {name: t.clone() for name, t in load_file(saved / "model.safetensors").items()}
    other = {name: t * 1.01 for name, t in state.items()}
    changed = EncoderDecoderModel.from_pretrained(saved, state_dict=other)
    assert torch.equal(changed.encoder.embeddings.LayerNorm.weight, other["encoder.embeddings.LayerNorm.weight"])
    alone = EncoderDecoderModel.from_pretrained(None, config=model.config, state_dict=state)
    assert distance(logits(alone), logits(model)) == 0
    with pytest.raises(ConfigError, match="needs a directory or a hub id"):
        EncoderDecoderModel.from_pretrained(None, config=model.config)
    renamed = shutil.copytree(saved, tmp_path / "renamed")
    save_file({f"old.{name}": t for name, t in state.items()}, renamed / "model.safetensors")
    mapped = EncoderDecoderModel.from_pretrained(renamed, key_mapping={r"^old\.": ""})
    assert distance(logits(mapped), logits(model)) == 0

    name = "encoder.embeddings.position_embeddings.weight"
    state[name] = state[name][:-1].clone()
    save_file(state, renamed / "model.safetensors")
    with pytest.raises(CheckpointError, match="position_embeddings"):
        EncoderDecoderModel.from_pretrained(renamed)
    options = dict(ignore_mismatched_sizes=True, output_loading_info=True)
    result, info = EncoderDecoderModel.from_pretrained(renamed, **options)
    expected = transformers.EncoderDecoderModel.from_pretrained(renamed, **options)[1]
    assert {name: set(values) for name, values in expected.items() if name in info} == info
    assert (
        result.encoder.embeddings.position_embeddings.weight.shape
        == model.encoder.embeddings.position_embeddings.weight.shape
    )
    assert "of another shape in the file, initialised at random: encoder.embeddings.position" in caplog.text


def test_other_arguments_of_a_model_act(saved, tmp_path):
    mine = GenerationConfig(max_length=7)
    assert EncoderDecoderModel.from_pretrained(saved, generation_config=mine).generation_config is mine
    other = tmp_path / "other"
    config = EncoderDecoderConfig.from_pretrained(saved, output_attentions=True)
    config.save_pretrained(other)
    assert EncoderDecoderModel.from_pretrained(saved, config=str(other)).config.output_attentions
    BertModel(BertConfig(**TINY)).save_pretrained(tmp_path / "bert")
    assert BertModel.from_pretrained(tmp_path / "bert", add_pooling_layer=False).pooler is None
    assert EncoderDecoderModel.from_pretrained(saved, use_auth_token=None, force_download=True) is not None
    with pytest.raises(UnsupportedError, match="load_in_8bit"):
        EncoderDecoderModel.from_pretrained(saved, load_in_8bit=True)
    with pytest.raises(ConfigError, match="encoder_dtype has no effect on encoder_model, which is not loaded"):
        EncoderDecoderModel.from_encoder_decoder_pretrained(
            None, tmp_path / "bert", encoder_model=BertModel(BertConfig(**TINY)), encoder_dtype="float16"
        )


def test_saving_takes_the_arguments_of_transformers(saved, tmp_path):
    model = EncoderDecoderModel.from_pretrained(saved)
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()
    state = {name: t * 2 for name, t in model.state_dict().items()}
    model.save_pretrained(tmp_path / "saved", state_dict=state, save_function=torch.save, token=None)
    results = load_file(tmp_path / "saved" / "model.safetensors")
    assert results.keys() == load_file(saved / "model.safetensors").keys()
    assert all(torch.equal(t, state[name]) for name, t in results.items())
    for size in ("5GB", "20KB"):
        model.save_pretrained(tmp_path / size, variant="fp16", max_shard_size=size)
        theirs = transformers.EncoderDecoderModel.from_pretrained(tmp_path / size, variant="fp16")
        assert distance(logits(theirs), logits(model)) <= 1e-5
        assert (
            distance(logits(EncoderDecoderModel.from_pretrained(tmp_path / size, variant="fp16")), logits(model)) == 0
        )
    with pytest.raises(ConfigError, match="state_dict has no encoder.embeddings.LayerNorm.bias"):
        model.save_pretrained(
            tmp_path / "x", state_dict={n: t for n, t in state.items() if n != "encoder.embeddings.LayerNorm.bias"}
        )
    with pytest.raises(ConfigError, match="no option 'safe_serialisation'"):
        model.save_pretrained(tmp_path / "x", safe_serialisation=True)
    with pytest.raises(UnsupportedError, match="push_to_hub"):
        model.save_pretrained(tmp_path / "x", push_to_hub=True)
    assert not (tmp_path / "x").exists()


def test_small_helpers_of_models_equal_transformers(saved):
    ours, theirs = (kind.EncoderDecoderModel.from_pretrained(saved) for kind in (bertgen, transformers))
    for one in (ours, theirs):
        one.encoder.embeddings.word_embeddings.weight.requires_grad_(False)
    for options in ({}, dict(only_trainable=True), dict(exclude_embeddings=True)):
        assert ours.num_parameters(**options) == theirs.num_parameters(**options), options
    assert ours.get_memory_footprint(return_buffers=False) == theirs.get_memory_footprint(return_buffers=False)
    assert ours.can_generate() and ours.decoder.can_generate() and not ours.encoder.can_generate()
    ours.set_attn_implementation("eager")
    assert ours.base_model is ours and ours.decoder.base_model is ours.decoder.bert and ours.name_or_path == str(saved)
    ours.activation_checkpointing_enable()
    assert ours.is_activation_checkpointing and ours.is_gradient_checkpointing
    ours.activation_checkpointing_disable()
    assert not ours.is_gradient_checkpointing
    with pytest.raises(UnsupportedError, match="every_n_layers=2"):
        ours.activation_checkpointing_enable(every_n_layers=2)


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_inputs_of_frozen_embeddings_can_need_gradients(saved, kind):
    model = (bertgen if kind == "ours" else transformers).EncoderDecoderModel.from_pretrained(saved)
    model.requires_grad_(False)
    model.enable_input_require_grads()
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    layer = model.encoder.encoder.layer[0].output.dense
    layer.weight.requires_grad_(True)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().max() > 0
    model.disable_input_require_grads()
    if kind == "ours":  # transformers leaves the hooks of halves
        assert not model.eval().encoder.embeddings.word_embeddings(IDS).requires_grad


def test_configurations_and_tokenizers_take_the_arguments_of_loading_too(saved, tiny_checkpoint, tmp_path):
    options = dict(force_download=True, trust_remote_code=True, low_cpu_mem_usage=True, use_auth_token=False)
    config, unused = EncoderDecoderConfig.from_pretrained(
        saved, **options, foo=1, use_cache=False, return_unused_kwargs=True
    )
    assert unused == {"foo": 1} and not config.use_cache
    with pytest.raises(ConfigError, match="foo"):
        EncoderDecoderConfig.from_pretrained(saved, **options, foo=1)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint, use_fast=False, config=config, **options)
    assert tokenizer.encode("one") == AutoTokenizer.from_pretrained(tiny_checkpoint).encode("one")
    shutil.copytree(tiny_checkpoint, tmp_path / "inner")
    assert len(AutoTokenizer.from_pretrained(tmp_path, subfolder="inner")) == len(tokenizer)
    assert Generator(tmp_path, subfolder="inner").generate(["one"])[0].text == "eins"
    for load in (AutoTokenizer.from_pretrained, type(tokenizer).from_pretrained):
        with pytest.raises(UnsupportedError, match="gguf_file"):
            load(tiny_checkpoint, gguf_file="x")
        with pytest.raises(ConfigError, match="use_fats"):
            load(tiny_checkpoint, use_fats=True)


def test_the_place_of_a_model_by_transformers_names(saved):
    for load in (EncoderDecoderModel, EncoderDecoderConfig, GenerationConfig):
        assert type(load.from_pretrained(pretrained_model_name_or_path=saved)) is load
    assert GenerationConfig.from_pretrained(pretrained_model_name=saved)
    assert len(AutoTokenizer.from_pretrained(pretrained_model_name_or_path="demo")) == 8000
    with pytest.raises(TypeError, match="multiple values"):
        EncoderDecoderModel.from_pretrained(saved, pretrained_model_name_or_path=saved)


def test_the_folder_to_save_into_by_transformers_name(saved, tmp_path):
    model = EncoderDecoderModel.from_pretrained(saved)
    for one in (model, model.config, model.generation_config):
        one.save_pretrained(save_directory=tmp_path / "new")
    assert torch.equal(logits(EncoderDecoderModel.from_pretrained(tmp_path / "new")), logits(model))


def test_a_home_directory_is_the_same_in_saving_and_loading(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    EncoderDecoderModel.from_pretrained(saved).save_pretrained("~/model")
    AutoTokenizer.from_pretrained("demo").save_pretrained("~/model")
    EncoderDecoderConfig.from_pretrained("~/model").save_pretrained("~/other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]
    assert AutoTokenizer.from_pretrained("~/model/spiece.model")
    with pytest.raises(ConfigError, match="no such home directory"):
        EncoderDecoderModel.from_pretrained("~nobody-of-this-name/model")


def test_two_options_for_quantization_in_one_call_are_refused(saved):
    four = bertgen.BitsAndBytesConfig(load_in_4bit=True)
    for short in (dict(load_in_8bit=True), dict(load_in_4bit=True)):
        with pytest.raises(ConfigError, match=f"{next(iter(short))} is short for a quantization_config"):
            EncoderDecoderModel.from_pretrained(saved, quantization_config=four, **short)


def test_gradient_checkpointing_is_true_or_false(saved):
    with pytest.raises(ConfigError, match="gradient_checkpointing must be True or False, got 'False'"):
        EncoderDecoderModel.from_pretrained(saved, gradient_checkpointing="False")


def test_a_configuration_of_transformers_makes_a_model(saved):
    theirs = transformers.EncoderDecoderConfig.from_pretrained(saved)
    model = EncoderDecoderModel.from_pretrained(saved, config=theirs)
    assert torch.equal(logits(model), logits(EncoderDecoderModel.from_pretrained(saved)))
    assert EncoderDecoderModel(theirs).config == model.config
    assert BertGenerationEncoder(theirs.encoder).config == model.config.encoder
    for config in (transformers.BertConfig(), transformers.BertConfig, 5, {}):
        with pytest.raises(ConfigError, match="config must be of the class EncoderDecoderConfig"):
            EncoderDecoderModel.from_pretrained(saved, config=config)
        with pytest.raises(ConfigError, match="config must be of the class BertGenerationConfig"):
            BertGenerationEncoder(config)


def test_a_configuration_is_loaded_from_its_file(saved):
    config = EncoderDecoderConfig.from_pretrained(saved / "config.json")
    assert config == EncoderDecoderConfig.from_pretrained(saved)
    model = EncoderDecoderModel.from_pretrained(saved, config=str(saved / "config.json"))
    assert torch.equal(logits(model), logits(EncoderDecoderModel.from_pretrained(saved)))


def test_two_weights_that_are_mapped_to_one_name_are_refused(saved):
    with pytest.raises(CheckpointError, match=r"layer\.0\..* and .*layer\.1\..* are two weights for one name"):
        EncoderDecoderModel.from_pretrained(saved, key_mapping={r"layer\.1\.": "layer.0."})
    for mapping in ({"(": ""}, {"layer": r"\9"}):
        with pytest.raises(ConfigError, match="no regular expression"):
            EncoderDecoderModel.from_pretrained(saved, key_mapping=mapping)
