"""Small transformers models and batches for the tests of the drop-in."""

from __future__ import annotations

import torch
import transformers
from transformers import EncoderDecoderModel

import bertgen

CONFIGS = {
    "bert-generation": transformers.BertGenerationConfig,
    "bert": transformers.BertConfig,
    "roberta": transformers.RobertaConfig,
}
KINDS = list(CONFIGS)
DECODERS = {
    "bert-generation": transformers.BertGenerationDecoder,
    "bert": transformers.BertLMHeadModel,
    "roberta": transformers.RobertaForCausalLM,
}
SIZES = dict(
    vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
    max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
START, END = 2, 3  # special tokens of the models
PROMPT_PAD = 1  # padding token of the decoders without an encoder


def make_model(kind="bert-generation", decoder_kind=None, **decoder_options) -> EncoderDecoderModel:
    """An encoder-decoder of transformers with varied outputs, some of which end early."""
    torch.manual_seed(0)
    encoder = CONFIGS[kind](**SIZES)
    sizes = {**SIZES, **decoder_options, "is_decoder": True, "add_cross_attention": True}
    decoder = CONFIGS[decoder_kind or kind](**sizes)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = EncoderDecoderModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    for settings in (model.config, model.generation_config):
        settings.pad_token_id = decoder.pad_token_id
        settings.decoder_start_token_id, settings.eos_token_id = START, END
    return model


def make_both(kind="bert-generation", **options):
    """A model, and an accelerated one with the same weights."""
    return make_model(kind, **options), bertgen.accelerate(make_model(kind, **options))


def make_decoder(kind, accelerated=False, generate=True):
    """A decoder without an encoder, with varied outputs, some of which end early."""
    torch.manual_seed(0)
    config = CONFIGS[kind](**SIZES, is_decoder=True, pad_token_id=PROMPT_PAD, eos_token_id=END)
    model = DECODERS[kind](config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return bertgen.accelerate(model, generate=generate) if accelerated else model


def batch(rows=3, length=9, pad=0):
    """input_ids and attention_mask [rows, length] as a dict, and labels [rows, 6]; rows 1 and 2 are padded."""
    torch.manual_seed(1)
    ids = torch.randint(4, 99, (rows, length))
    mask = torch.ones_like(ids)
    mask[1, 6:], mask[2, 4:] = 0, 0
    labels = torch.randint(4, 99, (rows, 6))
    labels[1, 4:], labels[2, 1:] = -100, -100
    return dict(input_ids=ids.masked_fill(mask == 0, pad), attention_mask=mask), labels


def prompts(rows=3, length=6, left=(0, 2, 4)):
    """Ids and mask [rows, length] of prompts, with so many padding tokens on the left of each row."""
    torch.manual_seed(2)
    ids, mask = torch.randint(4, 99, (rows, length)), torch.ones(rows, length, dtype=torch.long)
    for row, padding in zip(range(rows), left, strict=True):
        ids[row, :padding], mask[row, :padding] = PROMPT_PAD, 0
    return ids, mask


def distance(a, b):
    """The largest difference of two tensors of one shape and dtype."""
    assert a.shape == b.shape and a.dtype == b.dtype
    return float((a - b).detach().abs().max()) if a.numel() else 0.0


def layer(model, number=0):
    """A layer of the encoder."""
    return model.encoder.encoder.layer[number]


def last_layer(model):
    """The last layer of the decoder."""
    return model.decoder.base_model.encoder.layer[-1]


def halve_output(module, args, output):
    """A forward hook."""
    return (output[0] * 0.5, *output[1:]) if isinstance(output, tuple) else output * 0.5
