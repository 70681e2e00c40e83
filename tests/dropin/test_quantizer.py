"""quantization_config=bertgen.Int4Config(..) in transformers makes the model that bertgen itself makes."""

import copy
import gc
import json

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.trainer_utils import validate_quantization_for_training

import bertgen
from bertgen import CheckpointError, ConfigError, InputError, Int4Config
from bertgen.convert import convert
from bertgen.dropin.quantizer import Int4Quantizer
from bertgen.layers.linear import Int4Linear

CLOSE = dict(atol=2e-4, rtol=2e-4)  # of logits up to 10; the weights are equal bit for bit
SPECIAL = dict(pad_token_id=0, bos_token_id=2, eos_token_id=1)
HALF = dict(
    vocab_size=40, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
    max_position_embeddings=32, **SPECIAL,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def registered():
    bertgen.register_with_transformers()


def randomized(model):
    torch.manual_seed(7)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An encoder-decoder of transformers."""
    encoder = transformers.BertGenerationConfig(**HALF)
    decoder = transformers.BertGenerationConfig(**HALF, is_decoder=True, add_cross_attention=True)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 2, 0
    folder = tmp_path_factory.mktemp("whole")
    randomized(transformers.EncoderDecoderModel(config=config)).save_pretrained(folder)
    return folder


IDS = torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(1))
MASK = torch.arange(9) < torch.tensor([[9], [5], [2]])
CALL = dict(input_ids=IDS, attention_mask=MASK, decoder_input_ids=IDS.flip(0))


def logits(model, **call):
    with torch.no_grad():
        return model(**(call or CALL)).logits


def layers(model):
    return {name for name, module in model.named_modules() if isinstance(module, Int4Linear)}


def equal_states(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


CONFIGS = {
    "int4": Int4Config(),
    "asymmetric": Int4Config(symmetric=False, group_size=32),
    "nf4": Int4Config(format="nf4", scales="absmax"),
    "blocks over rows": Int4Config(format="nf4", group_size=128),
    "output layer": Int4Config(head=True),
    "skip": Int4Config(skip=("crossattention", "encoder.encoder.layer.0")),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_is_that_of_bertgen_and_its_files_too(name, checkpoint, tmp_path):
    config = CONFIGS[name]
    theirs = transformers.EncoderDecoderModel.from_pretrained(checkpoint, quantization_config=config)
    ours = bertgen.EncoderDecoderModel.from_pretrained(checkpoint, quantization_config=config)
    assert layers(theirs) == layers(ours) and layers(theirs)
    torch.testing.assert_close(logits(theirs), logits(ours), **CLOSE)
    for options in (dict(num_beams=1), dict(num_beams=3)):
        call = dict(attention_mask=MASK.long(), max_new_tokens=8, **options)
        assert torch.equal(theirs.generate(IDS, **call), ours.generate(IDS, **call))

    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    stored = [json.loads((tmp_path / who / "config.json").read_text()) for who in ("theirs", "ours")]
    assert stored[0]["quantization_config"] == stored[1]["quantization_config"] == config.to_dict()
    written = [load_file(tmp_path / who / "model.safetensors") for who in ("theirs", "ours")]
    for key in written[1].keys() & written[0].keys():
        assert torch.equal(written[0][key], written[1][key])
    assert {key for key in written[0].keys() ^ written[1].keys()} <= {"decoder.lm_head.decoder.bias"}  # tied
    for who in ("theirs", "ours"):
        again, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / who, output_loading_info=True)
        assert not any(info.values())
        assert type(again) is transformers.EncoderDecoderModel and equal_states(again, theirs)
        assert torch.equal(logits(again), logits(theirs))
        assert equal_states(bertgen.EncoderDecoderModel.from_pretrained(tmp_path / who), ours)


def float_matrices(shapes):
    """The number of live float tensors of these shapes."""
    gc.collect()
    results = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    return sum(t.is_floating_point() and t.shape in shapes and not t.is_meta for t in results)


def test_no_float_weight_is_left(checkpoint):
    shapes = {(64, 64), (128, 64), (64, 128)}  # of the linear layers, and of nothing else
    before = float_matrices(shapes)
    whole = transformers.EncoderDecoderModel.from_pretrained(checkpoint)
    weights = sum(p.nbytes for p in whole.parameters() if p.shape in shapes)
    assert float_matrices(shapes) == before + 2 * 6 + 2 * 10
    del whole
    small = transformers.EncoderDecoderModel.from_pretrained(checkpoint, quantization_config=Int4Config())
    assert len(layers(small)) == 2 * 6 + 2 * 10
    assert float_matrices(shapes) == before
    for name in layers(small):
        layer = small.get_submodule(name)
        assert {key for key, _ in layer.named_parameters()} == {"packed", "scale", "bias"}
        assert not any(p.requires_grad or p.is_meta for p in layer.parameters())
    in_4_bits = sum(p.nbytes for name in layers(small) for p in small.get_submodule(name).parameters())
    assert in_4_bits < 0.17 * weights


def test_half_precision(checkpoint, tmp_path):
    small = transformers.EncoderDecoderModel.from_pretrained(
        checkpoint, quantization_config=Int4Config(), dtype=torch.bfloat16
    )
    layer = small.encoder.encoder.layer[0].output.dense
    assert layer.scale.dtype == layer.bias.dtype == torch.bfloat16
    small.save_pretrained(tmp_path)
    assert equal_states(transformers.EncoderDecoderModel.from_pretrained(tmp_path), small)


@pytest.mark.parametrize("options", [Int4Config(), Int4Config(head=True)])
def test_files_of_bertgen_convert(options, tmp_path):
    """Weights that both halves share are in the file once, and floats in 16 bits; in memory the weights are shared."""
    convert("demo", tmp_path / "small", int4=options)
    with safe_open(tmp_path / "small/model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if name.startswith("encoder.")]
    model, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not any(info.values())
    ours = bertgen.EncoderDecoderModel.from_pretrained(tmp_path / "small")
    torch.testing.assert_close(logits(model), logits(ours), **CLOSE)
    one, other = (half.encoder.layer[0].output.dense for half in (model.encoder, model.decoder.bert))
    assert one.packed is other.packed and one.bias is other.bias
    assert layers(model) == layers(ours)
    model.save_pretrained(tmp_path / "again")
    with safe_open(tmp_path / "again/model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if name.startswith("encoder.")]
    assert equal_states(transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again"), model)
    assert equal_states(bertgen.EncoderDecoderModel.from_pretrained(tmp_path / "again"), ours)


def bert():
    options = dict(vocab_size=40, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128)
    return transformers.BertForMaskedLM(transformers.BertConfig(**options))


def bart():
    config = transformers.BartConfig(
        vocab_size=40, d_model=64, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128, max_position_embeddings=32,
        decoder_start_token_id=2, forced_eos_token_id=None, **SPECIAL,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=128, max_position_embeddings=32, tie_word_embeddings=False, **SPECIAL,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("make", [bert, bart, llama])
def test_models_of_other_kinds(make, head, tmp_path):
    whole = randomized(make())
    whole.save_pretrained(tmp_path / "whole")
    small = type(whole).from_pretrained(tmp_path / "whole", quantization_config=Int4Config(head=head))
    output = [name for name, module in whole.named_modules() if module is whole.get_output_embeddings()]
    linears = {name for name, module in whole.named_modules() if type(module) is torch.nn.Linear}
    assert layers(small) == linears - set([] if head else output)
    # The same model, made by hand.
    by_hand = copy.deepcopy(whole)
    for name in layers(small):
        by_hand.set_submodule(name, Int4Linear.from_linear(by_hand.get_submodule(name), Int4Config(head=head)))
    assert torch.equal(logits(small, input_ids=IDS), logits(by_hand, input_ids=IDS))
    small.save_pretrained(tmp_path / "small")
    again, info = type(whole).from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not any(info.values()) and equal_states(again, small)
    small.tie_weights()  # an output layer in 4 bits is not tied again
    assert not any(hasattr(small.get_submodule(name), "weight") for name in layers(small))
    assert torch.equal(logits(small, input_ids=IDS), logits(by_hand, input_ids=IDS))


def test_a_model_that_gives_initial_values_to_layers_of_its_layers(tmp_path):
    """T5 looks for the weights of a layer's layers, to fill what the file lacks, and for that of `wo` in each call."""
    options = dict(vocab_size=40, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=2)
    whole = randomized(transformers.T5ForConditionalGeneration(transformers.T5Config(**options, **SPECIAL)))
    whole.save_pretrained(tmp_path / "whole")
    config = Int4Config(skip=("wo",))
    small = type(whole).from_pretrained(tmp_path / "whole", quantization_config=config)
    assert len(layers(small)) == 4 + 1 + 8 + 1
    small.save_pretrained(tmp_path / "small")
    again = type(whole).from_pretrained(tmp_path / "small")
    call = dict(input_ids=IDS, decoder_input_ids=IDS)
    assert equal_states(again, small) and torch.equal(logits(again, **call), logits(small, **call))
    for name in layers(small):
        whole.set_submodule(name, Int4Linear.from_linear(whole.get_submodule(name), config))
    assert torch.equal(logits(small, **call), logits(whole, **call))


class TwoNames(transformers.PreTrainedModel):
    """Two layers that share a weight, and one with its own."""

    config_class = transformers.BertConfig
    _tied_weights_keys = {"b.weight": "a.weight"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.a, self.b, self.c = (torch.nn.Linear(64, 64) for _ in range(3))
        self.post_init()


def test_layers_of_one_weight_stay_as_they_are(tmp_path):
    whole = TwoNames(transformers.BertConfig(tie_word_embeddings=True))
    whole.save_pretrained(tmp_path / "whole")
    small = TwoNames.from_pretrained(tmp_path / "whole", quantization_config=Int4Config())
    assert layers(small) == {"c"} and small.a.weight is small.b.weight
    assert torch.equal(small.a.weight, whole.a.weight)


def test_a_model_within_another(tmp_path):
    """The files of a model with a head load in the one without."""
    whole = randomized(bert())
    whole.save_pretrained(tmp_path / "whole")
    small = transformers.BertForMaskedLM.from_pretrained(tmp_path / "whole", quantization_config=Int4Config())
    small.save_pretrained(tmp_path / "small")
    body = transformers.BertModel.from_pretrained(tmp_path / "small", add_pooling_layer=False)
    assert equal_states(body, small.bert)


def test_a_model_without_linear_layers_stays_as_it_is(tmp_path):
    config = transformers.GPT2Config(vocab_size=40, n_embd=64, n_layer=1, n_head=4, n_positions=32, **SPECIAL)
    whole = randomized(transformers.GPT2LMHeadModel(config))
    whole.save_pretrained(tmp_path / "whole")
    small = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "whole", quantization_config=Int4Config())
    assert not layers(small) and torch.equal(logits(small, input_ids=IDS), logits(whole, input_ids=IDS))


def test_floats_again(checkpoint):
    small = transformers.EncoderDecoderModel.from_pretrained(checkpoint, quantization_config=Int4Config())
    before = logits(small)
    floats = small.dequantize()
    assert not layers(floats) and not hasattr(floats.config, "quantization_config")
    torch.testing.assert_close(logits(floats), before, **CLOSE)


def test_copies_and_pickles(checkpoint, tmp_path):
    small = transformers.EncoderDecoderModel.from_pretrained(checkpoint, quantization_config=Int4Config(head=True))
    torch.save(small, tmp_path / "model.pt")
    for again in (copy.deepcopy(small), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(logits(again), logits(small))
        again.save_pretrained(tmp_path / "again")
        assert equal_states(transformers.EncoderDecoderModel.from_pretrained(tmp_path / "again"), small)


def test_gradients_pass_through_and_the_trainer_raises(checkpoint):
    small = transformers.EncoderDecoderModel.from_pretrained(checkpoint, quantization_config=Int4Config())
    small(**CALL).logits.square().mean().backward()
    assert small.encoder.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="purely quantized models"):
        validate_quantization_for_training(small)


# What is refused


def test_a_model_is_not_quantized_twice(checkpoint, tmp_path):
    load = transformers.EncoderDecoderModel.from_pretrained
    load(checkpoint, quantization_config=Int4Config()).save_pretrained(tmp_path / "small")
    for config in (Int4Config(), Int4Config(format="nf4")):
        with pytest.raises(ValueError, match="quantized with StoredInt4Config but you are passing a Int4Config"):
            load(tmp_path / "small", quantization_config=config)
    # The same, where config.json does not say it: then floats are missing.
    values = json.loads((tmp_path / "small/config.json").read_text())
    del values["quantization_config"]
    (tmp_path / "small/config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"holds no float weight of decoder\..*skip="):
        load(tmp_path / "small", quantization_config=Int4Config())


def test_groups_that_do_not_divide(tmp_path):
    options = dict(vocab_size=40, hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    model = transformers.BertModel(transformers.BertConfig(**options))
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"encoder.layer.0.*: a weight of 48 columns has no groups of 64 \(skip="):
        transformers.BertModel.from_pretrained(tmp_path, quantization_config=Int4Config())
    skip = ("attention", "intermediate", "pooler")
    small = transformers.BertModel.from_pretrained(tmp_path, quantization_config=Int4Config(skip=skip))
    assert layers(small) == {"encoder.layer.0.output.dense"}
    with pytest.raises(ConfigError, match="skip has 'attn', but a BertModel has no module of that name"):
        transformers.BertModel.from_pretrained(tmp_path, quantization_config=Int4Config(skip=("attn",)))


def test_weights_that_are_not_finite(checkpoint, tmp_path):
    state = load_file(checkpoint / "model.safetensors")
    state["encoder.encoder.layer.1.output.dense.weight"][3, 4] = torch.nan
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    with pytest.raises(InputError, match=r"encoder.encoder.layer.1.output.dense: the weight holds values that are not"):
        transformers.EncoderDecoderModel.from_pretrained(tmp_path, quantization_config=Int4Config())


def test_missing_or_inconsistent_weights(checkpoint, tmp_path):
    load = transformers.EncoderDecoderModel.from_pretrained
    load(checkpoint, quantization_config=Int4Config(symmetric=False)).save_pretrained(tmp_path)
    path, name = tmp_path / "model.safetensors", "encoder.encoder.layer.1.output.dense"
    whole = load_file(path)

    def broken(**changes):
        state = {**whole, **{f"{name}.{part}": tensor for part, tensor in changes.items()}}
        save_file({k: t for k, t in state.items() if t is not None}, path, metadata={"format": "pt"})
        return pytest.raises(CheckpointError, match=f"{name}.*(missing|not finite|0 to 15)")

    for part in ("packed", "scale", "zero"):
        with broken(**{part: None}):
            load(tmp_path)
    with broken(scale=whole[f"{name}.scale"] * torch.inf):
        load(tmp_path)
    with broken(zero=whole[f"{name}.zero"] + 16):
        load(tmp_path)


def test_invalid_options_in_a_file(checkpoint, tmp_path):
    load = transformers.EncoderDecoderModel.from_pretrained
    load(checkpoint, quantization_config=Int4Config()).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for wrong, message in ((dict(group_size=48), "group_size must be one of"), (dict(bits=3), "no option 'bits'")):
        changed = {**values, "quantization_config": {**values["quantization_config"], **wrong}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match=message):
            load(tmp_path)


def test_another_method_is_refused():
    with pytest.raises(bertgen.UnsupportedError, match="quantized by 'gptq'"):
        Int4Quantizer({"quant_method": "gptq"})


def test_shared_weights_written_once_as_floats_are_refused(tmp_path):
    """transformers gives the encoder of such a checkpoint random weights, which must not be rounded."""
    model = bertgen.EncoderDecoderModel.from_pretrained("demo")
    model.save_pretrained(tmp_path, deduplicate=True)
    with pytest.raises(CheckpointError, match=r"holds no float weight of encoder\..*bertgen convert --int4"):
        transformers.EncoderDecoderModel.from_pretrained(tmp_path, quantization_config=Int4Config())
