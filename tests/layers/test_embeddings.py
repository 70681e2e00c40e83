"""Embeddings against their equation in float64, and the arguments and configurations that they reject."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bertgen import BertConfig, BertGenerationConfig, ConfigError, InputError, RobertaConfig
from bertgen.layers.embeddings import Embeddings
from tests.support.tiny_models import TINY, distance

KINDS = {"bert-generation": BertGenerationConfig, "bert": BertConfig, "roberta": RobertaConfig}
IDS, POSITIONS, TYPES = torch.tensor([3, 39, 3, 7]), torch.tensor([2, 0, 15, 1]), torch.tensor([0, 1, 1, 0])


def embeddings(kind):
    torch.manual_seed(0)
    sizes = TINY if kind == "bert-generation" else TINY | dict(type_vocab_size=2)
    module = Embeddings(KINDS[kind](**sizes)).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("shifted", [True, False], ids=["LayerNorm", "no bias"])
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_their_equation(kind, shifted):
    """Of ids or embeddings, with types where the model has them; also with a LayerNorm that no operator computes."""
    module = embeddings(kind)
    if not shifted:
        module.LayerNorm = nn.LayerNorm(32, eps=module.LayerNorm.eps, bias=False)
    exact = copy.deepcopy(module).double()
    typed = hasattr(module, "token_type_embeddings")
    assert typed == (kind != "bert-generation")
    with torch.no_grad():
        embeds = module.word_embeddings(IDS)
        for types in (None, TYPES) if typed else (None,):
            total = exact.word_embeddings.weight[IDS] + exact.position_embeddings.weight[POSITIONS]
            if typed:
                total = total + exact.token_type_embeddings.weight[torch.zeros_like(IDS) if types is None else types]
            expected = exact.LayerNorm(total)
            assert distance(module(IDS, POSITIONS, types=types).double(), expected) <= 1e-5
            assert distance(module(None, POSITIONS, embeds, types).double(), expected) <= 1e-5


def test_a_limit_on_the_norm_of_token_types_is_kept():
    module = embeddings("bert")
    module.token_type_embeddings.max_norm = 1e-3
    with torch.no_grad():
        module(IDS, POSITIONS)
    assert float(module.token_type_embeddings.weight[0].detach().norm()) <= 1.1e-3


def test_embeddings_of_another_dtype_are_rejected():
    module = embeddings("bert")
    with pytest.raises(InputError, match="inputs_embeds must be torch.float32, as the weights of the model, got .*64"):
        module(None, POSITIONS, torch.zeros(4, 32, dtype=torch.float64))


def test_a_padding_id_needs_a_row():
    with pytest.raises(ConfigError, match="pad_token_id 40 has no row: vocab_size is 40"):
        Embeddings(BertGenerationConfig(**TINY, pad_token_id=40))
    with pytest.raises(ConfigError, match="pad_token_id 16 has no row: max_position_embeddings is 16"):
        Embeddings(RobertaConfig(**TINY, pad_token_id=16))  # its positions begin after the padding id
    assert Embeddings(BertGenerationConfig(**TINY, pad_token_id=16)).position_embeddings.padding_idx is None
