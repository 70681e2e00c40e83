"""The published models, downloaded (up to 3 GB each): `pytest -m network`. Expected values are those of their cards and
of transformers' own tests of them.
"""

from __future__ import annotations

import pytest
import torch

from bertgen import AutoTokenizer, BertGenerationDecoder, BertGenerationEncoder, EncoderDecoderModel, Generator

pytestmark = [
    pytest.mark.network,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore:pytorch_model.bin is a pickle"),
]

BBC_ENCODER = "google/bert_for_seq_generation_L-24_bbc_encoder"
DISCOFUSE = "google/roberta2roberta_L-24_discofuse"
IDS = torch.tensor([[101, 7592, 1010, 2026, 3899, 2003, 10140, 102]])
CHOPPY = (
    "As a run-blocker, Zeitler moves relatively well. "
    "Zeitler often struggles at the point of contact in space."
)  # fmt: skip


def corner(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[0, :3, :3]


def test_bbc_encoder():
    states = BertGenerationEncoder.from_pretrained(BBC_ENCODER)(IDS).last_hidden_state
    expected = [[0.1775, 0.0083, -0.0321], [1.6002, 0.1287, 0.3912], [2.1473, 0.5791, 0.6066]]
    assert states.shape == (1, 8, 1024)
    torch.testing.assert_close(corner(states), torch.tensor(expected), atol=1e-3, rtol=1e-3)


def test_bbc_encoder_as_decoder():
    logits = BertGenerationDecoder.from_pretrained(BBC_ENCODER)(IDS).logits
    expected = [[-0.5788, -2.5994, -3.7054], [0.0438, 4.7997, 1.8795], [1.5862, 6.6409, 4.4638]]
    assert logits.shape == (1, 8, 50358)
    torch.testing.assert_close(corner(logits), torch.tensor(expected), atol=1e-3, rtol=1e-3)


def test_bbc_tokenizer():
    assert AutoTokenizer.from_pretrained(BBC_ENCODER).encode("Hello World!") == [18536, 2260, 101]


# The revision holds safetensors with the shared weights once.
@pytest.mark.parametrize("revision", ["main", "refs/pr/1"])
def test_sentence_fusion(revision):
    model = EncoderDecoderModel.from_pretrained(DISCOFUSE, revision=revision)
    encoder, decoder = model.encoder.embeddings, model.decoder.bert.embeddings
    assert encoder.word_embeddings.weight is decoder.word_embeddings.weight
    tokenizer = AutoTokenizer.from_pretrained(DISCOFUSE)
    (output,) = Generator(model, tokenizer).generate([CHOPPY])
    assert "However, Zeitler often struggles" in output.text


@pytest.mark.parametrize("name", ["wikisplit", "cnn_daily_mail", "gigaword", "bbc"])
def test_related_models_load_and_generate(name):
    (output,) = Generator(f"google/roberta2roberta_L-24_{name}").generate([CHOPPY])
    assert len(output.text.split()) > 3


def test_translation():
    name = "google/bert2bert_L-24_wmt_en_de"
    tokenizer = AutoTokenizer.from_pretrained(name, pad_token="<pad>", eos_token="</s>", bos_token="<s>")
    model = EncoderDecoderModel.from_pretrained(name)
    text = "Would you like to grab a coffee with me this week?"
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    translated = tokenizer.decode(model.generate(ids)[0], skip_special_tokens=True)
    assert translated == "Möchten Sie diese Woche einen Kaffee mit mir schnappen?"
