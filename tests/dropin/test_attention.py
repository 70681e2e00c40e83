"""attn_implementation="bertgen" equals transformers' sdpa in models of several kinds, or raises a typed error."""

import copy
from contextlib import contextmanager

import pytest
import torch
import transformers
from transformers.masking_utils import sdpa_mask

import bertgen
from bertgen import InputError, UnsupportedError, ops
from bertgen.dropin.attention import attend, visible_keys

CLOSE = dict(atol=2e-5, rtol=2e-5)


@pytest.fixture(scope="module", autouse=True)
def registered():
    bertgen.register_with_transformers()


def randomized(model):
    """Weights large enough that attention is not flat."""
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0.0, 0.6 if "q_proj" in name or "query" in name else 0.3)
    return model.eval()


@contextmanager
def counted():
    """How often each op runs, and with which arguments."""
    calls = {"attention": [], "masked_attention": []}
    former = {name: getattr(ops, name) for name in calls}

    def recorder(name):
        def run(*arguments, **named):
            calls[name].append((arguments, named))
            return former[name](*arguments, **named)

        return run

    for name in calls:
        setattr(ops, name, recorder(name))
    try:
        yield calls
    finally:
        for name, op in former.items():
            setattr(ops, name, op)


SMALL = dict(pad_token_id=0, bos_token_id=2, eos_token_id=1)


def bert_generation():
    half = dict(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=48, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **SMALL,
    )  # fmt: skip
    encoder = transformers.BertGenerationConfig(**half)
    decoder = transformers.BertGenerationConfig(**half, is_decoder=True, add_cross_attention=True)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 2, 0
    return transformers.EncoderDecoderModel(config=config)


def bert():
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    return transformers.BertForSequenceClassification(config)


def bart():
    config = transformers.BartConfig(
        vocab_size=40, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=48, dropout=0.0,
        decoder_start_token_id=2, forced_eos_token_id=None, **SMALL,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config)


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=48, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
        **SMALL,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=48, **SMALL,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def vit():
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=4
    )
    return transformers.ViTModel(config)


def whisper():
    config = transformers.WhisperConfig(
        vocab_size=40, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_source_positions=20,
        max_target_positions=20, num_mel_bins=8, decoder_start_token_id=2, suppress_tokens=None,
        begin_suppress_tokens=None, **SMALL,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config)


def padded(lengths, side="right", seed=3):
    """Ids [B, L] of rows of those lengths, and their mask."""
    longest = max(lengths)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 40, (len(lengths), longest), generator=generator)
    column = torch.arange(longest)
    real = column < torch.tensor(lengths)[:, None]
    real = real.flip(1) if side == "left" else real
    return ids.where(real, 0), real.long()


def encoder_decoder_inputs():
    ids, mask = padded([5, 9, 2])
    targets, target_mask = padded([7, 3, 6], seed=4)
    return dict(
        input_ids=ids,
        attention_mask=mask,
        decoder_input_ids=targets,
        decoder_attention_mask=target_mask,
        labels=targets,
    )


def decoder_inputs(side):
    ids, mask = padded([5, 9, 2], side)
    return dict(input_ids=ids, attention_mask=mask, labels=ids)


IMAGES = dict(pixel_values=torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)))
SOUND = torch.randn(2, 8, 40, generator=torch.Generator().manual_seed(1))
CALLS = {
    "bert_generation": (bert_generation, encoder_decoder_inputs()),
    "bert": (bert, dict(zip(("input_ids", "attention_mask"), padded([5, 9, 2])), labels=torch.tensor([0, 1, 1]))),
    "bart": (bart, encoder_decoder_inputs()),
    "gpt2": (gpt2, decoder_inputs("right")),
    "gpt2, padded in front": (gpt2, decoder_inputs("left")),
    "llama": (llama, decoder_inputs("right")),
    "llama, padded in front": (llama, decoder_inputs("left")),
    "llama, no padding": (llama, decoder_inputs("right") | {"attention_mask": None}),
    "vit": (vit, IMAGES),
    "whisper": (whisper, dict(input_features=SOUND, labels=padded([7, 3], seed=4)[0])),
}


def both(make):
    """Two models of the same weights, with sdpa and with ours."""
    sdpa = randomized(make())
    ours = copy.deepcopy(sdpa)
    sdpa.set_attn_implementation("sdpa")
    ours.set_attn_implementation("bertgen")
    return sdpa, ours


@pytest.mark.parametrize("name", CALLS)
def test_forward_and_gradients_equal_sdpa(name):
    make, inputs = CALLS[name]
    sdpa, ours = both(make)
    outputs = []
    with counted() as calls:
        for model in (sdpa, ours):
            result = model(**inputs)
            states = result.logits if "logits" in result else result.last_hidden_state
            (states.square().mean() if result.get("loss") is None else result.loss).backward()
            outputs.append(states)
    assert calls["attention"] and not calls["masked_attention"]
    torch.testing.assert_close(outputs[1], outputs[0], **CLOSE)
    for (parameter, one), (_, other) in zip(sdpa.named_parameters(), ours.named_parameters()):
        assert (one.grad is None) == (other.grad is None), parameter
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, atol=2e-5, rtol=2e-4, msg=parameter)


def test_padding_on_the_right_becomes_lengths_and_on_the_left_a_mask():
    for side, argument in (("right", "key_len"), ("left", "key_mask")):
        _, ours = both(llama)
        with counted() as calls:
            ours(**decoder_inputs(side))
        for _, named in calls["attention"]:
            assert {name for name in ("key_len", "key_mask") if named[name] is not None} == {argument}
            assert named["causal"] and named["q_start"].tolist() == [0] * len(named["q_start"])


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("name", ["bert_generation", "bart", "gpt2", "llama", "whisper"])
def test_generated_tokens_equal_sdpa(name, beams):
    make, _ = CALLS[name]
    if name == "whisper":
        inputs = dict(input_features=SOUND)
    else:
        side = "left" if name in ("gpt2", "llama") else "right"
        inputs = dict(zip(("input_ids", "attention_mask"), padded([5, 9, 2], side)))
    tokens = [model.generate(**inputs, num_beams=beams, max_new_tokens=9, min_new_tokens=6) for model in both(make)]
    assert torch.equal(*tokens)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_any_split_of_a_text_over_calls_with_a_cache(cache):
    """Prefill, several tokens after a cache, one token; with and without padding on the left."""
    for mask in (None, padded([6, 12, 3], "left")[1]):
        ids = padded([12, 12, 12])[0]
        states = []
        for model in both(llama):
            options = {} if cache == "dynamic" else {"max_cache_len": 16}
            kind = transformers.DynamicCache if cache == "dynamic" else transformers.StaticCache
            past, pieces, place = kind(config=model.config, **options), [], 0
            for width in (4, 3, 1, 4):
                seen = None if mask is None else mask[:, : place + width]
                positions = torch.arange(place, place + width)[None]
                piece = ids[:, place : place + width]
                out = model(piece, attention_mask=seen, position_ids=positions, past_key_values=past)
                pieces.append(out.logits)
                place += width
            states.append(torch.cat(pieces, 1))
        torch.testing.assert_close(states[1], states[0], **CLOSE)


def test_a_decode_step_with_grouped_keys_copies_no_key():
    _, ours = both(llama)
    past = ours(padded([6, 6])[0], use_cache=True).past_key_values
    with counted() as calls:
        ours(torch.tensor([[5], [6]]), past_key_values=past)
    for ((q, k, _, *_), _), layer in zip(calls["attention"], past.layers, strict=True):
        assert k.data_ptr() == layer.keys.data_ptr()
        assert q.shape == (2 * 4, 1, 8) and k.shape == (2 * 2 * 7, 1, 8)


def test_one_half_of_an_encoder_decoder():
    sdpa, ours = both(bert_generation)
    ours.set_attn_implementation({"encoder": "bertgen", "decoder": "sdpa"})
    with counted() as calls:
        out = ours(**encoder_decoder_inputs())
    assert len(calls["attention"]) == 2
    torch.testing.assert_close(out.logits, sdpa(**encoder_decoder_inputs()).logits, **CLOSE)


def test_from_pretrained_takes_the_name(tmp_path):
    randomized(bert()).save_pretrained(tmp_path)
    model = transformers.BertModel.from_pretrained(tmp_path, attn_implementation="bertgen")
    ids, mask = padded([5, 9, 2])
    with counted() as calls:
        ours = model(ids, attention_mask=mask).last_hidden_state
    assert len(calls["attention"]) == 2
    sdpa = transformers.BertModel.from_pretrained(tmp_path)(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(ours, sdpa, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_near_to_float64_as_sdpa(dtype):
    for name in ("bert_generation", "llama"):
        make, inputs = CALLS[name]
        exact = randomized(make()).double()(**inputs).logits.detach()
        distances = []
        for model in both(make):
            distances.append(float((model.to(dtype)(**inputs).logits.detach() - exact).abs().max()))
        assert distances[1] <= 1.5 * distances[0] + 1e-6, distances


def test_dropout_drops_weights_and_keeps_their_mean():
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 5, 8)
    v = torch.ones(1, 2, 5, 8)
    q, v = q.expand(400, -1, -1, -1), v.expand(400, -1, -1, -1)
    out, _ = attend(torch.nn.Module(), q, k.expand(400, -1, -1, -1), v, None, dropout=0.4)
    assert abs(float(out.mean()) - 1.0) < 0.05 and float(out.std()) > 0.3


def test_gradient_checkpointing():
    sdpa, ours = both(llama)
    ours.gradient_checkpointing_enable()
    for model in (sdpa.train(), ours.train()):
        model(**decoder_inputs("left"), use_cache=False).loss.backward()
    one, other = (model.model.layers[0].self_attn.q_proj.weight.grad for model in (sdpa, ours))
    torch.testing.assert_close(other, one, atol=2e-5, rtol=2e-4)


def test_inference_mode():
    sdpa, ours = both(llama)
    with torch.inference_mode():
        outputs = [model(**decoder_inputs("left")).logits for model in (sdpa, ours)]
    torch.testing.assert_close(*outputs, **CLOSE)


def test_compiled_without_a_break():
    sdpa, ours = both(bert)
    ids, mask = padded([5, 9, 2])
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    for attention_mask in (None, mask):
        with torch.no_grad():
            outputs = [model(ids, attention_mask=attention_mask).logits for model in (sdpa, compiled)]
        torch.testing.assert_close(*outputs, **CLOSE)


# Masks by themselves


def tensors(length=3, keys=5, heads=4, key_heads=4, rows=2):
    generator = torch.Generator().manual_seed(5)
    shapes = (rows, heads, length, 8), (rows, key_heads, keys, 8), (rows, key_heads, keys, 8)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def sdpa(q, k, v, mask, **options):
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, **options).transpose(1, 2)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_custom_masks(key_heads, length, scaling):
    q, k, v = tensors(length, key_heads=key_heads)
    chosen = torch.rand(2, 4, length, 5, generator=torch.Generator().manual_seed(1)) > 0.4
    chosen[0, 0, 0] = False  # a query without a key
    for mask in (chosen, chosen[:, :1], torch.zeros(1, 1, 1, 5).masked_fill_(chosen[:1, :1, :1], -2.0), None):
        ours, weights = attend(torch.nn.Module(), q, k, v, mask, scaling=scaling, is_causal=False)
        assert weights is None and ours.is_contiguous()
        torch.testing.assert_close(ours, sdpa(q, k, v, mask, scale=scaling), **CLOSE)


def test_a_mask_that_was_changed_is_applied_as_it_is():
    q, k, v = tensors(3, 3)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            mask = visible_keys(2, 3, 3, attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]).bool())
            with counted() as calls:
                attend(torch.nn.Module(), q, k, v, mask)
                assert len(calls["attention"]) == 1
                mask[:, :, 2, 0] = False
                out, _ = attend(torch.nn.Module(), q, k, v, mask)
                assert len(calls["masked_attention"]) == 1
            torch.testing.assert_close(out, sdpa(q, k, v, mask), **CLOSE)


def test_a_part_of_a_mask_is_applied_as_it_is():
    q, k, v = tensors(3, 3)
    mask = visible_keys(2, 3, 3, attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]).bool())[:, :, 1:]
    out, _ = attend(torch.nn.Module(), q[:, :, 1:], k, v, mask)
    torch.testing.assert_close(out, sdpa(q[:, :, 1:], k, v, mask), **CLOSE)


def test_a_mask_of_one_row_is_applied_to_all():
    q, k, v = tensors(3, 3)
    mask = visible_keys(1, 3, 3, attention_mask=torch.tensor([[1, 1, 0]]).bool())
    out, _ = attend(torch.nn.Module(), q, k, v, mask)
    torch.testing.assert_close(out, sdpa(q, k, v, mask), **CLOSE)


@pytest.mark.parametrize("offset", [1, torch.tensor(1)])
def test_a_step_in_the_middle_of_a_longer_mask(offset):
    """Real keys after the query, and layers with different numbers of heads that share a mask."""
    for real in ([1, 1, 1, 0], [0, 1, 1, 1]):
        mask = visible_keys(2, 1, 4, q_offset=offset, attention_mask=torch.tensor([[1, 1, 1, 1], real]).bool())
        for heads in (4, 2):
            q, k, v = tensors(1, 4, heads=heads, key_heads=2)
            out, _ = attend(torch.nn.Module(), q, k, v, mask)
            torch.testing.assert_close(out, sdpa(q, k, v, mask), **CLOSE)
            q, k, v = tensors(1, 4, heads=heads, key_heads=heads)
            out, _ = attend(torch.nn.Module(), q, k, v, mask)
            torch.testing.assert_close(out, sdpa(q, k, v, mask), **CLOSE)


def test_masks_are_those_of_sdpa_and_none_if_is_causal_is_enough():
    lengths = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]]).bool()
    for mask in (None, lengths, lengths.flip(1), lengths[:, :3]):
        for length, offset in ((4, 0), (1, 3), (2, 2), (1, 0)):
            inputs = dict(batch_size=2, q_length=length, kv_length=4, q_offset=offset, attention_mask=mask)
            ours = visible_keys(**inputs)
            dense = sdpa_mask(**inputs, allow_is_causal_skip=False)
            if ours is not None:
                assert torch.equal(ours, dense)
            elif length == 1:
                assert dense.all()
            else:
                assert torch.equal(dense, torch.ones_like(dense).tril())


def test_documents_packed_into_one_row_do_not_see_each_other():
    """Positions start from 0 again, without a mask: transformers makes a mask of blocks."""
    ids, positions = padded([7])[0], torch.tensor([[0, 1, 2, 0, 1, 2, 3]])
    outputs = [model(ids, position_ids=positions, use_cache=False).logits for model in both(llama)]
    torch.testing.assert_close(*outputs, **CLOSE)
    alone = both(llama)[1](ids[:, 3:]).logits
    torch.testing.assert_close(outputs[1][:, 3:], alone, **CLOSE)


# What is refused


@pytest.mark.parametrize(
    "option", ["sliding_window", "softcap", "s_aux", "sinks", "position_bias", "indices", "cache", "block_table"]
    + ["cu_seq_lens_q"],
)  # fmt: skip
def test_options_that_would_change_the_result_are_refused(option):
    with pytest.raises(UnsupportedError, match=option):
        attend(torch.nn.Module(), *tensors(), None, **{option: torch.ones(1)})
    attend(torch.nn.Module(), *tensors(), None, **{option: None})


def test_attention_weights_are_not_returned():
    with pytest.raises(UnsupportedError, match="output_attentions"):
        attend(torch.nn.Module(), *tensors(), None, output_attentions=True)


def test_shapes_that_do_not_fit():
    q, k, v = tensors()
    module = torch.nn.Module()
    with pytest.raises(UnsupportedError, match=r"values of another width"):
        attend(module, q, k, v[..., :4], None)
    with pytest.raises(InputError, match=r"query \(2, 4, 3, 8\), key \(2, 3, 5, 8\).*do not fit"):
        attend(module, q, k[:, :3], v[:, :3], None)
    with pytest.raises(InputError, match="do not fit"):
        attend(module, q, k[:1], v[:1], None)
    with pytest.raises(InputError, match="expected"):
        attend(module, q[0], k, v, None)
    with pytest.raises(InputError, match="float16"):
        attend(module, q.half(), k, v, None)
    with pytest.raises(InputError, match=r"mask \(2, 1, 3, 6\): does not broadcast to the scores \(2, 4, 3, 5\)"):
        attend(module, q, k, v, torch.ones(2, 1, 3, 6, dtype=torch.bool))
    with pytest.raises(InputError, match="does not broadcast"):
        attend(module, q, k, v, torch.ones(2, 5, dtype=torch.bool))
    with pytest.raises(UnsupportedError, match="int64"):
        attend(module, q, k, v, torch.ones(2, 1, 3, 5, dtype=torch.long))
    with pytest.raises(UnsupportedError, match="BlockMask"):
        attend(module, q, k, v, type("BlockMask", (), {})())


def test_models_with_a_window_or_a_bias_are_refused():
    small = dict(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, **SMALL,
    )  # fmt: skip
    mistral = transformers.MistralForCausalLM(transformers.MistralConfig(**small, sliding_window=4))
    mistral.set_attn_implementation("bertgen")
    with pytest.raises(UnsupportedError, match="no sliding window, this model needs one of 4"):
        mistral(padded([5])[0])
    gemma = transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**small, head_dim=8, layer_types=["full_attention"])
    )
    gemma.set_attn_implementation("bertgen")
    with pytest.raises(UnsupportedError, match="sliding window|softcap"):
        gemma(padded([5])[0])
    config = transformers.T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)
    t5 = transformers.T5EncoderModel(config)
    t5.set_attn_implementation("bertgen")
    with pytest.raises(UnsupportedError, match="a bias of the scores by position"):
        t5(padded([5])[0])
