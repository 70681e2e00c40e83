"""Pickles of whole models, layers and results written before their modules moved."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch
import transformers

import bertgen
from bertgen import EncoderDecoderModel, Int4Config, Likelihood
from bertgen.modules import Int4Linear
from tests.support.model_kinds import HALVES, KINDS, TINY

# The class as a pickle names it now -> as it did.
OLD_NAMES = {
    "bertgen.dropin.state\nAccelerationState": "bertgen.dropin.state\nState",
    "bertgen.generator.scorer\nLikelihood": "bertgen.likelihood\nLikelihood",
    "bertgen.layers.activations\nXIELU": "bertgen.activations\nXIELU",
    "bertgen.layers.add_norm\nAddNorm": "bertgen.layers\nAddNorm",
    "bertgen.layers.attention\nAttention": "bertgen.layers\nAttention",
    "bertgen.layers.attention\nProjections": "bertgen.layers\nProjections",
    "bertgen.layers.block\nIntermediate": "bertgen.layers\nIntermediate",
    "bertgen.layers.block\nLayer": "bertgen.layers\nLayer",
    "bertgen.layers.embeddings\nEmbeddings": "bertgen.layers\nEmbeddings",
    "bertgen.layers.heads\nBertLMHead": "bertgen.heads\nBertLMHead",
    "bertgen.layers.heads\nBertPredictions": "bertgen.heads\nBertPredictions",
    "bertgen.layers.heads\nLMHead": "bertgen.heads\nLMHead",
    "bertgen.layers.heads\nPooler": "bertgen.heads\nPooler",
    "bertgen.layers.heads\nRobertaLMHead": "bertgen.heads\nRobertaLMHead",
    "bertgen.layers.heads\nTransform": "bertgen.heads\nTransform",
    "bertgen.layers.linear\nInt4Linear": "bertgen.linear\nInt4Linear",
    "bertgen.layers.stack\nStack": "bertgen.stack\nStack",
}


def old_pickle(value):
    """The bytes that an earlier commit wrote: the same but for names of classes, and one attribute of models.

    Protocol 2, which `torch.save` uses, writes a class as "c", its module and its name, a line each.
    """
    data = pickle.dumps(value, protocol=2)
    for new, old in OLD_NAMES.items():
        data = data.replace(f"c{new}\n".encode(), f"c{old}\n".encode())
    return data.replace(b"X\x0b\0\0\0_copied_ids", b"X\x0a\0\0\0_noted_ids")


def unpickled_elsewhere(data, path, expression):
    """An expression of `value`, unpickled in a process that has imported nothing of bertgen."""
    path.write_bytes(data)
    code = f"import pickle, sys; value = pickle.load(open(sys.argv[1], 'rb')); print({expression})"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_generates_what_it_did(kind):
    half = HALVES[kind][0](**TINY, hidden_act="xielu")
    model = EncoderDecoderModel(bertgen.EncoderDecoderConfig.from_encoder_decoder_configs(half, half)).eval()
    model.generation_config.decoder_start_token_id = 2
    ids = torch.tensor([[5, 6, 7]])
    data = old_pickle(model)
    assert b"cbertgen.stack\nStack\n" in data and b"_copied_ids" not in data
    other = pickle.loads(data)
    assert torch.equal(other.generate(ids, max_length=8), model.generate(ids, max_length=8))
    assert pickle.loads(pickle.dumps(other)).state_dict().keys() == model.state_dict().keys()
    other.config.eos_token_id = 9
    assert other.generation_config.eos_token_id == 9


def test_layers_and_results_in_a_new_process(tmp_path):
    linear = Int4Linear.from_linear(torch.nn.Linear(64, 64), Int4Config(group_size=64))
    data = old_pickle((linear, Likelihood(3, total=-1.5)))
    assert b"cbertgen.linear\nInt4Linear\n" in data and b"cbertgen.likelihood\nLikelihood\n" in data
    printed = unpickled_elsewhere(data, tmp_path / "old.pkl", "type(value[0]).__module__, value[1].total")
    assert printed == "bertgen.layers.linear -1.5"


def test_an_accelerated_model_stays_accelerated():
    config = transformers.BertGenerationConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    model = bertgen.accelerate(transformers.BertGenerationEncoder(config).eval())
    data = old_pickle(model)
    assert b"cbertgen.dropin.state\nState\n" in data
    other, ids = pickle.loads(data), torch.tensor([[5, 6, 7]])
    assert torch.equal(other(ids).last_hidden_state, model(ids).last_hidden_state)
    assert list(bertgen.explain(other).models) == [""]


@pytest.mark.parametrize("name", sorted({old.partition("\n")[0] for old in OLD_NAMES.values()}))
def test_every_old_name_is_the_class_of_today(name):
    for new, old in OLD_NAMES.items():
        if old.partition("\n")[0] == name:
            data = [f"c{path}\n.".encode() for path in (new, old)]
            assert pickle.loads(data[0]) is pickle.loads(data[1])


def test_a_module_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"bertgen\.heads_"):
        __import__("bertgen.heads_")
