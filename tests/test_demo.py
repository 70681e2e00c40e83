"""The model of the package: it is small, it translates, and transformers gives the same tokens."""

from __future__ import annotations

import pytest
import torch
import transformers

from bertgen import AutoTokenizer, EncoderDecoderModel, Generator
from bertgen.hub import DEMO_MODEL

SENTENCES = [
    "Where is the station?",
    "I have lost my key.",
    "She has been learning German for two years.",
    "If it rains tomorrow, we will stay at home.",
    "Tom asked Mary whether she had ever been to Boston, but she did not answer him.",
    "Yes.",
]


@pytest.fixture(scope="module")
def demo() -> EncoderDecoderModel:
    return EncoderDecoderModel.from_pretrained("demo")


def test_it_is_small_and_tied(demo):
    assert sum(path.stat().st_size for path in DEMO_MODEL.iterdir()) <= 16 * 2**20
    assert demo.dtype == torch.float32 and demo.config.tie_encoder_decoder
    assert demo.encoder.embeddings.word_embeddings.weight is demo.decoder.lm_head.decoder.weight


def test_it_translates():
    outputs = Generator("demo").generate(SENTENCES)
    assert [output.text for output in outputs[:3]] == [
        "Wo ist der Bahnhof?",
        "Ich habe meinen Schlüssel verloren.",
        "Sie lernt seit zwei Jahren Deutsch.",
    ]
    assert all(output.score < 0 and output.token_ids[-1] == 1 for output in outputs)


@pytest.mark.parametrize("beams", [1, 4])
def test_transformers_gives_the_same_tokens(demo, tmp_path, beams):
    demo.save_pretrained(tmp_path)
    oracle = transformers.EncoderDecoderModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    batch = AutoTokenizer.from_pretrained("demo")(SENTENCES, padding=True, return_tensors="pt")
    options = dict(num_beams=beams, max_length=60, return_dict_in_generate=True, output_scores=True)
    ours, theirs = (m.generate(batch.input_ids, attention_mask=batch.attention_mask, **options) for m in (demo, oracle))
    assert torch.equal(ours.sequences, theirs.sequences)
    if beams > 1:
        assert (ours.sequences_scores - theirs.sequences_scores).abs().max() <= 1e-4
