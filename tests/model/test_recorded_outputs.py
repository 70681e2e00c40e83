"""Checkpoints that come with what transformers makes of them, in files: any version of it can be the oracle.

BERTGEN_ORACLE names a folder of checkpoints. A folder with oracle.safetensors and oracle.json has inputs, logits,
states, attentions and the results of `generate` under the options of oracle.json; the others are layouts that load.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bertgen import AutoTokenizer, BertGenerationDecoder, BertGenerationEncoder, EncoderDecoderModel

FOLDER = Path(os.environ.get("BERTGEN_ORACLE", "/nowhere"))
CHECKPOINTS = sorted(path.parent for path in FOLDER.glob("*/config.json"))
JUDGED = [path for path in CHECKPOINTS if (path / "oracle.safetensors").exists()]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CHECKPOINTS, reason="BERTGEN_ORACLE names no folder of checkpoints"),
    pytest.mark.filterwarnings("ignore:pytorch_model.bin is a pickle"),
]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@pytest.fixture(params=JUDGED, ids=lambda path: path.name)
def judged(request):
    """(model, tokenizer, tensors and options of the oracle)"""
    path = request.param
    oracle = json.loads((path / "oracle.json").read_text())
    model, tokenizer = EncoderDecoderModel.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    return model, tokenizer, load_file(path / "oracle.safetensors"), oracle


def test_forward(judged):
    model, _, tensors, _ = judged
    inputs = {name: tensors[name] for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        got = model(**inputs, output_hidden_states=True, output_attentions=True)
        plain = model(input_ids=inputs["input_ids"], labels=inputs["labels"])
    read, real = (inputs["labels"] != -100)[..., None], inputs["attention_mask"][..., None]
    assert distance(plain.logits * read, tensors["eager.nomask.logits"] * read) <= 2e-5
    for attention in ("eager", "sdpa"):
        assert distance(got.logits * read, tensors[f"{attention}.logits"] * read) <= 2e-5
        assert distance(got.loss.reshape(1), tensors[f"{attention}.loss"]) <= 1e-5
        for name, mask in (("encoder_hidden_states", real), ("decoder_hidden_states", read)):
            for i, ours in enumerate(got[name]):
                assert distance(ours * mask, tensors[f"{attention}.{name}.{i}"] * mask) <= 2e-5
    assert len(got.encoder_attentions) == model.config.encoder.num_hidden_layers
    for name, mask in (("decoder_attentions", read), ("cross_attentions", read)):
        for i, ours in enumerate(got[name]):
            assert distance(ours * mask[:, None], tensors[f"eager.{name}.{i}"] * mask[:, None]) <= 1e-5


def test_generate(judged):
    model, tokenizer, tensors, oracle = judged
    ids, mask = tensors["input_ids"], tensors["attention_mask"]
    for name, case in oracle["generate"].items():
        rows = tensors[f"gen.{name}.scores"].shape[1]
        inputs = (ids, mask) if rows != 1 else (ids[:1, : int(mask[0].sum())], None)
        got = model.generate(
            inputs[0], attention_mask=inputs[1], return_dict_in_generate=True, output_scores=True, **case["kwargs"]
        )
        assert torch.equal(got.sequences, tensors[f"gen.{name}.sequences"]), name
        expected = tensors[f"gen.{name}.scores"]
        assert len(got.scores) == len(expected)
        for ours, theirs in zip(got.scores, expected):
            assert torch.equal(ours.isinf(), theirs.isinf()), name
            assert (ours - theirs).nan_to_num(0, 0, 0).abs().max() <= 1e-4, name
        if f"gen.{name}.sequences_scores" in tensors:
            assert distance(got.sequences_scores, tensors[f"gen.{name}.sequences_scores"]) <= 1e-4
            assert torch.equal(got.beam_indices.long(), tensors[f"gen.{name}.beam_indices"].long())
        assert tokenizer.batch_decode(got.sequences, skip_special_tokens=True) == case["decoded"]


def test_seeded_sampling(judged):
    model, _, tensors, _ = judged
    torch.manual_seed(1234)
    got = model.generate(
        tensors["input_ids"], attention_mask=tensors["attention_mask"], do_sample=True, top_k=20, top_p=0.9,
        temperature=0.8, max_new_tokens=12,
    )  # fmt: skip
    assert torch.equal(got, tensors["gen.sample_seed1234_k20_p09_t08.sequences"])


def test_texts(judged):
    _, tokenizer, tensors, oracle = judged
    rows = [row[mask.bool()].tolist() for row, mask in zip(tensors["input_ids"], tensors["attention_mask"])]
    assert [tokenizer.encode(text, add_special_tokens=False) for text in oracle["texts"]] == rows


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.name)
def test_every_layout_loads(path):
    config = json.loads((path / "config.json").read_text())
    ids = torch.tensor([[5, 6, 7]])
    if config["model_type"] == "encoder-decoder":
        model = EncoderDecoderModel.from_pretrained(path)
        assert model.generate(ids, max_new_tokens=3).shape[0] == 1
        if config.get("tie_encoder_decoder"):
            tables = model.encoder.get_input_embeddings().weight, model.decoder.get_input_embeddings().weight
            assert tables[0] is tables[1]
    else:
        states = BertGenerationEncoder.from_pretrained(path)(ids).last_hidden_state
        assert states.isfinite().all()
        assert BertGenerationDecoder.from_pretrained(path, is_decoder=True)(ids).logits.isfinite().all()
