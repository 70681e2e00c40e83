"""Every argument of every public function with invalid values: a typed error with its name, or a result."""

import inspect
import warnings

import numpy
import pytest
import torch

import bertgen
from bertgen import (
    BertConfig,
    BertGenerationConfig,
    BertgenError,
    BertLMHeadModel,
    BertModel,
    ConfigError,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
    Generator,
    InputError,
    Int4Config,
    RobertaConfig,
    RobertaForCausalLM,
    UnsupportedError,
    metrics,
    modules,
    ops,
)
from bertgen.config import BitsAndBytesConfig, EngineConfig
from bertgen.errors import quoted
from bertgen.model.generation_inputs import decoder_only_inputs, encoder_decoder_inputs
from bertgen.trainer.options import TrainingConfig

HOSTILE = {
    "None": None,
    "3": 3,
    "-1": -1,
    "0": 0,
    "True": True,
    "2**70": 2**70,
    "10**400": 10**400,
    "10**5000": 10**5000,
    "0.5": 0.5,
    "inf": float("inf"),
    "-inf": float("-inf"),
    "nan": float("nan"),
    "1e-320": 1e-320,
    "1j": 1j,
    "'x'": "x",
    "''": "",
    "'\\0'": "\0",
    "b'x'": b"x",
    "[]": [],
    "{}": {},
    "()": (),
    "set": {1, 2},
    "object": object(),
    "lambda": lambda *args, **options: None,
    "class": int,
    "[None]": [None],
    "[3]": [3],
    "[[1, 1]]": [[1, 1]],
    "[[[]]]": [[[]]],
    "{'a': 1}": {"a": 1},
    "{1: 2}": {1: 2},
    "tensor(3)": torch.tensor(3),
    "tensor(0.5)": torch.tensor(0.5),
    "empty tensor": torch.tensor([]),
    "int64 [2]": torch.ones(2, dtype=torch.int64),
    "int64 [2, 3]": torch.ones(2, 3, dtype=torch.int64),
    "int64 [2, 5]": torch.ones(2, 5, dtype=torch.int64),
    "int64 [2, 0]": torch.ones(2, 0, dtype=torch.int64),
    "int64 [1, 1, 1]": torch.ones(1, 1, 1, dtype=torch.int64),
    "huge ids": torch.full((2, 5), 2**62),
    "negative ids": torch.full((2, 5), -(2**62)),
    "uint8 [2, 5]": torch.ones(2, 5, dtype=torch.uint8),
    "bool [2, 5]": torch.ones(2, 5, dtype=torch.bool),
    "float [2, 5]": torch.ones(2, 5),
    "nan [2, 5]": torch.full((2, 5), float("nan")),
    "complex [2, 5]": torch.ones(2, 5, dtype=torch.complex64),
    "meta [2, 5]": torch.ones(2, 5, dtype=torch.int64, device="meta"),
    "sparse [2, 5]": torch.ones(2, 5).to_sparse(),
    "float [2, 5, 16]": torch.ones(2, 5, 16),
    "float [2, 5, 7]": torch.ones(2, 5, 7),
    "double [2, 5, 16]": torch.ones(2, 5, 16, dtype=torch.float64),
    "int64 [2, 5, 16]": torch.ones(2, 5, 16, dtype=torch.int64),
    "half [2, 5, 16]": torch.ones(2, 5, 16, dtype=torch.float16),
    "meta [2, 5, 16]": torch.ones(2, 5, 16, device="meta"),
    "float [2, 1, 5, 5]": torch.ones(2, 1, 5, 5),
    "meta [2, 1, 5, 5]": torch.ones(2, 1, 5, 5, device="meta"),
    "float [9, 9, 9, 9, 9]": torch.ones(9, 9, 9, 9, 9),
    "int64(3)": numpy.int64(3),
    "int8(-1)": numpy.int8(-1),
    "float32(.5)": numpy.float32(0.5),
    "bool_": numpy.bool_(True),
    "str_": numpy.str_("x"),
    "array(3)": numpy.array(3),
    "array [2, 5]": numpy.ones((2, 5), dtype=numpy.int64),
    "array of objects": numpy.array([None, "x"], dtype=object),
    "device": torch.device("meta"),
    "dtype": torch.int8,
    "generator": torch.Generator(),
    "module": torch.nn.Linear(2, 2),
    "exception": ValueError("x"),
}


def tiny(**options):
    return dict(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, pad_token_id=0, bos_token_id=2, eos_token_id=1, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    decoder = BertGenerationConfig(**tiny(is_decoder=True, add_cross_attention=True))
    config = EncoderDecoderConfig(
        encoder=BertGenerationConfig(**tiny()),
        decoder=decoder,
        decoder_start_token_id=2,
        pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    return EncoderDecoderModel(config).eval()


@pytest.fixture(scope="module")
def alone():
    return BertLMHeadModel(BertConfig(**tiny(is_decoder=True))).eval()


# What an argument is called in the message, where it is not by its own name.
CALLED = {
    "inputs": "input_ids", "texts": "text", "sources": "source", "targets": "target", "pairs": "pair", "ids": "id",
    "sequences": "id", "token_ids": "id", "new_tokens": "token", "encoded_inputs": "encoding", "torch_dtype": "dtype",
    "encoder_hidden_states": "encoder states", "path_or_id": "", "model": "", "tokenizer": "", "name": "backend",
    "text_target": "text", "model_kwargs": "Generator has no option",
    "min_new_tokens": "min_length", "generation_config": "GenerationConfig",
    "quantization_config": "Int4Config", "stored_dtype": "dtype", "revision": "hub", "cache_dir": "hub", "token": "hub",
    "local_files_only": "hub", "linear": "weight", "packed": "scale", "max_new_tokens": "max_length",
}  # fmt: skip
# Functions of the caller's that cannot be called with these arguments raise errors of their own.
NOT_HERE = {
    "progress": ("class", "module", "lambda"),
    "on_tokens": ("class", "module"),
    "prefix_allowed_tokens_fn": ("class", "module"),
}


def parameters_of(function):
    """Names of a function's arguments except `self`, *args and **kwargs."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in inspect.signature(function).parameters.values() if p.kind not in kinds and p.name != "self"]


def sweep(function, good, names=None, without=()):
    """Call with each hostile value in place of each argument; returns a description of each wrong outcome."""
    wrong = []
    for argument in parameters_of(function) if names is None else names:
        for name, value in HOSTILE.items():
            if argument in without or name in NOT_HERE.get(argument, ()):
                continue
            try:
                with warnings.catch_warnings(), torch.no_grad():
                    warnings.simplefilter("ignore")
                    function(**{**good, argument: value})
            except BertgenError as error:
                half = argument.removeprefix("decoder_")  # the decoder's arguments have other names in it
                known = (argument, half, CALLED.get(argument, argument))
                if not any(one in str(error) for one in known) and "exactly one of" not in str(error):
                    wrong.append(f"{argument}={name}: {type(error).__name__} does not name it: {error}")
            except Exception as error:
                wrong.append(f"{argument}={name}: {type(error).__name__}: {error}")
    return wrong


def options_of(config):
    return [name for name in config.__dataclass_fields__ if name != "extra"]


@pytest.mark.parametrize(
    "config, good",
    [
        (GenerationConfig, {}),
        (EngineConfig, {}),
        (BitsAndBytesConfig, {"load_in_4bit": True}),
        (BertGenerationConfig, {}),
        (RobertaConfig, {}),
        (EncoderDecoderConfig, {"encoder": {}, "decoder": {}}),
        (TrainingConfig, {"train": "pairs.tsv", "output": "out", "steps": 1}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_option_of_every_configuration(config, good):
    assert sweep(config, good, options_of(config)) == []


def test_every_option_of_rounding():
    assert sweep(Int4Config, {}) == []


IDS = torch.full((2, 5), 7)


@pytest.mark.parametrize(
    "good",
    [
        {"input_ids": IDS, "decoder_input_ids": IDS},
        {"input_ids": IDS, "labels": IDS},
        {"encoder_outputs": (torch.ones(2, 5, 16),), "decoder_input_ids": IDS},
    ],
    ids=["ids", "labels", "states"],
)
def test_forward_of_a_pair(pair, good):
    wrong = sweep(pair.forward, good)
    assert [one for one in wrong if "labels have shape" not in one] == []  # those of other decoder_input_ids


def test_forward_of_every_half(pair, alone):
    assert sweep(pair.encoder.forward, {"input_ids": IDS}) == []
    assert sweep(pair.decoder.forward, {"input_ids": IDS}) == []
    assert sweep(pair.decoder.forward, {"input_ids": IDS, "encoder_hidden_states": torch.ones(2, 5, 16)}) == []
    assert sweep(alone.forward, {"input_ids": IDS}) == []
    assert sweep(BertModel(BertConfig(**tiny())).eval().forward, {"input_ids": IDS}) == []
    assert sweep(RobertaForCausalLM(RobertaConfig(**tiny(is_decoder=True))).eval().forward, {"input_ids": IDS}) == []


@pytest.mark.parametrize("kind", ["pair", "alone", "decoder of a pair"])
def test_arguments_of_generate(pair, alone, kind):
    model, prompt = {
        "pair": (pair, encoder_decoder_inputs), "alone": (alone, decoder_only_inputs),
        "decoder of a pair": (pair.decoder, decoder_only_inputs),
    }[kind]  # fmt: skip

    def generate(**options):
        return model.generate(**{"inputs": None if "input_ids" in options else IDS, "max_new_tokens": 3, **options})

    names = [*parameters_of(model.generate), *prompt.__kwdefaults__]
    assert sweep(generate, {}, names) == []


@pytest.mark.parametrize("kind", [{}, {"do_sample": True}, {"num_beams": 2}], ids=["greedy", "sampling", "beams"])
def test_options_of_generate(pair, kind):
    names = options_of(GenerationConfig)
    assert sweep(lambda **options: pair.generate(IDS, **{"max_new_tokens": 3, **kind, **options}), {}, names) == []


def test_transition_scores(pair):
    good = {"sequences": torch.full((2, 3), 2), "scores": (torch.ones(2, 64),) * 2}
    assert sweep(pair.compute_transition_scores, good) == []


def test_a_generator_and_its_calls(generator):
    model, tokenizer, texts = generator.model, generator.tokenizer, ["one two"]
    assert sweep(Generator, {"model": model, "tokenizer": tokenizer}) == []
    assert sweep(generator.generate, {"texts": texts, "max_new_tokens": 2}) == []
    extra = ["generation_config", "logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn"]
    names = [name for name in (*options_of(GenerationConfig), *extra) if name != "max_time"]
    assert sweep(lambda **options: generator.generate(texts, **{"max_new_tokens": 2, **options}), {}, names) == []
    good = {"texts": texts, "max_new_tokens": 2}
    assert sweep(lambda **options: list(generator.stream(**options)), good, parameters_of(generator.stream)) == []
    good = {"text": texts[0], "max_new_tokens": 2}
    assert sweep(lambda **options: generator.submit(**options).result(60), good, parameters_of(generator.submit)) == []
    assert sweep(generator.score, {"sources": texts, "targets": texts}) == []
    names = parameters_of(generator.stream_scores)
    assert sweep(lambda **options: list(generator.stream_scores(**options)), {"pairs": [("one", "eins")]}, names) == []
    assert sweep(generator.encode_sources, {"texts": texts}) == []
    names = [*parameters_of(bertgen.pipeline), "prefix", "batch_size", "truncation"]
    good = {"model": model, "tokenizer": tokenizer, "max_new_tokens": 2}
    assert sweep(lambda **options: bertgen.pipeline(**options)("one two"), good, names) == []


def test_a_tokenizer_and_its_calls(generator, tiny_checkpoint):
    tokenizer = type(generator.tokenizer).from_pretrained(tiny_checkpoint)
    names = parameters_of(type(tokenizer).__call__)
    assert sweep(tokenizer, {"text": ["one two", "red"]}, names) == []
    assert sweep(tokenizer, {"text": "one two"}, names) == []
    calls = {
        "encode_batch": {"texts": ["one"]}, "tokenize": {"text": "one"},
        "pad": {"encoded_inputs": tokenizer(["one two", "red"])},
        "batch_decode": {"sequences": [[5, 6]]}, "decode": {"token_ids": [5, 6]}, "convert_tokens_to_ids": {},
        "convert_ids_to_tokens": {"ids": [5]}, "add_tokens": {"new_tokens": []},
        "add_special_tokens": {"special_tokens_dict": {}}, "num_special_tokens_to_add": {},
    }  # fmt: skip
    for name, good in calls.items():
        assert sweep(getattr(tokenizer, name), good) == [], name
    options = """model_max_length padding_side truncation_side clean_up_tokenization_spaces split_special_tokens
        model_input_names extra_special_tokens sp_model_kwargs""".split()
    load = type(tokenizer).from_pretrained
    assert sweep(load, {"path_or_id": tiny_checkpoint}, ["path_or_id", "revision", "cache_dir", "token"]) == []
    wrong = sweep(lambda **options: load(tiny_checkpoint, **options), {}, options)
    assert [one for one in wrong if "a token must be" not in one] == []


def test_loading_and_saving(pair, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # "x" is a directory like any other
    load = EncoderDecoderModel.from_pretrained
    wrong = sweep(load, {"path_or_id": tiny_checkpoint})
    known = (
        "has no groups of 64",
        "path_or_id must be",
        "has no weights",
        "holds no weight",
        "config.json was not found",
    )
    assert [one for one in wrong if not any(words in one for words in known)] == []  # {} is the default format
    assert sweep(pair.save_pretrained, {"directory": tmp_path / "saved"}) == []
    assert sweep(GenerationConfig().save_pretrained, {}, ["directory"]) == []
    body = BertModel(BertConfig(**tiny()))
    assert sweep(body.resize_token_embeddings, {}) == []
    assert sweep(body.gradient_checkpointing_enable, {}) == []


def test_modules_for_other_models():
    x, linear = torch.ones(2, 5, 16), torch.nn.Linear(64, 8)
    assert sweep(modules.LayerNorm(16).forward, {"x": x}) == []
    assert sweep(modules.FeedForward, {"hidden": 16, "intermediate": 32}) == []
    assert sweep(modules.FeedForward(16, 32).forward, {"x": x}) == []
    attention = modules.MultiheadAttention(16, 2, batch_first=True)
    assert sweep(attention.forward, {"query": x, "key": x, "value": x}) == []
    rounded = modules.Int4Linear.from_linear(linear)
    assert sweep(modules.Int4Linear.from_linear, {"linear": linear}) == []
    good = {"packed": rounded.packed.data, "scale": rounded.scale.data}
    assert sweep(modules.Int4Linear, good) == []
    wrong = sweep(rounded.forward, {"x": torch.ones(2, 64)})
    assert [one for one in wrong if "the input " not in one] == []


def test_functions_that_take_a_generator(generator):
    assert sweep(bertgen.TextStreamer, {"tokenizer": generator.tokenizer}) == []
    assert sweep(bertgen.TextIteratorStreamer, {"tokenizer": generator.tokenizer}) == []
    streamer = bertgen.TextStreamer(generator.tokenizer)
    wrong = sweep(streamer.put, {"value": torch.tensor([3])})
    assert [one for one in wrong if "InputError" not in one] == []
    assert sweep(bertgen.restore, {}) == sweep(bertgen.explain, {}) == []
    before = ops.set_backend("auto")
    try:
        assert sweep(ops.set_backend, {}) == []
    finally:
        ops.set_backend(before)
    assert sweep(metrics.bleu, {"outputs": ["one"], "references": [["one"]]}) == []


# -- what is accepted --------------------------------------------------------------------------------------------------


def test_numbers_of_numpy_are_numbers(pair, generator):
    plain = pair.generate(IDS, max_new_tokens=3, num_beams=2, length_penalty=0.5, early_stopping=True)
    theirs = pair.generate(
        IDS, max_new_tokens=numpy.int64(3), num_beams=numpy.uint8(2), length_penalty=numpy.float32(0.5),
        early_stopping=numpy.bool_(True), eos_token_id=[numpy.int32(1)],
    )  # fmt: skip
    assert torch.equal(plain, theirs)
    config = GenerationConfig(max_length=numpy.int16(7), do_sample=numpy.bool_(False), temperature=numpy.float64(0.5))
    assert [type(v) for v in (config.max_length, config.do_sample, config.temperature)] == [int, bool, float]
    one = generator.generate(["one two"], max_batch_size=numpy.int64(1), truncation=numpy.bool_(True))
    assert one == generator.generate(numpy.array(["one two"]))


def test_a_dict_is_a_generation_config(pair, generator):
    options = {"num_beams": 3, "max_new_tokens": 4}
    expected = pair.generate(IDS, generation_config=GenerationConfig(**options))
    assert torch.equal(pair.generate(IDS, generation_config=options), expected)
    assert generator.generate(["one"], generation_config={"num_beams": 3}) == generator.generate(["one"], num_beams=3)
    with pytest.raises(ConfigError, match="no option 'num_beam'; did you mean 'num_beams'"):
        pair.generate(IDS, generation_config={"num_beam": 3})
    with pytest.raises(UnsupportedError, match="guidance_scale=2"):
        pair.generate(IDS, generation_config={"guidance_scale": 2})


def test_names_that_tokenizers_have_for_truncation(tiny_checkpoint):
    generator = Generator(tiny_checkpoint, max_input_length=3)
    cut = generator.generate(["one two three four"], truncation="longest_first")[0]
    assert cut == generator.generate(["one two three four"], truncation=True)[0] and cut.truncated
    with pytest.raises(InputError, match="the limit is 3"):
        generator.generate(["one two three four"], truncation="do_not_truncate")
    with pytest.raises(ConfigError, match="truncation must be one of longest_first, .*got 'sideways'"):
        generator.generate(["one"], truncation="sideways")


def test_errors_name_the_value_and_the_limit(pair, generator):
    for options, message in (
        (dict(temperature=10**400), r"temperature must be a number from 1e-30 to 1e\+30, got 1000"),
        (dict(attention_mask=[[1] * 5] * 2), "attention_mask must be a tensor, got list"),
        (dict(encoder_outputs=5), "encoder_outputs must be the return value of the encoder, .* got 5"),
        (dict(encoder_outputs=(torch.ones(2, 5, 7),)), r"encoder_outputs must be \[batch, length, 16\] .*\(2, 5, 7\)"),
        (dict(encoder_outputs=(torch.ones(2, 5, 16).double(),)), "must be torch.float32, .* got torch.float64"),
        (dict(do_sample=torch.ones(2, 2)), r"do_sample must be True or False, got Tensor of shape \(2, 2\)"),
    ):
        inputs = {} if "encoder_outputs" in options else {"input_ids": IDS}
        with pytest.raises(BertgenError, match=message):
            pair.generate(**inputs, **options, max_new_tokens=3)
    with pytest.raises(ConfigError, match="progress, where it is no function, must be True or False, got 3"):
        generator.generate(["one"], progress=3)
    with pytest.raises(ConfigError, match="first must be an integer from 0 to .*, got -1"):
        generator.stream(["one"], first=-1)
    with pytest.raises(InputError, match="decoder: input_ids holds 64; ids go from 0 to 63"):
        pair(input_ids=IDS, decoder_input_ids=IDS + 57)


def test_a_cache_of_another_model_is_refused(pair):
    other = BertLMHeadModel(BertConfig(**{**tiny(is_decoder=True), "num_attention_heads": 4})).eval()
    cache = pair.decoder(IDS, use_cache=True).past_key_values
    with pytest.raises(InputError, match="past_key_values hold 1 layers of 2 heads of 8 columns, the model has 1 of 4"):
        other(IDS[:, :1], past_key_values=cache)


def test_a_quoted_value_is_short():
    class Failing:
        def __repr__(self):
            raise RuntimeError

    assert quoted(10**5000) == "a value of type int" and quoted(Failing()) == "a value of type Failing"
    assert quoted("x" * 1000) == "'" + "x" * 196 + "..."
    assert quoted(torch.ones(3, 4, device="meta")) == "Tensor of shape (3, 4) and dtype torch.float32"
    assert quoted(numpy.ones(3)) == "ndarray of shape (3,) and dtype float64"


def test_an_exponential_penalty_stays_finite(pair):
    tokens = pair.generate(IDS, max_new_tokens=9, exponential_decay_length_penalty=(0, 1e29))
    assert tokens.shape[1] <= 10
