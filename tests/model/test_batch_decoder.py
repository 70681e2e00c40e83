"""The decoder of the running batch, by itself."""

import torch

from bertgen.engine import Engine
from bertgen.model.batch_decoder import BatchDecoder
from tests.support.made_up_model import VOCABULARY, Model


def test_a_step_writes_one_position_of_each_row():
    model = Model()
    decoder = BatchDecoder(model, Engine(model)._new_cache())
    cache = decoder.cache
    admissions = [cache.admit(rows, 9, number, 3) for number, rows in enumerate((1, 2))]
    cache.join(admissions)
    tokens = torch.tensor([[2], [3], [4]])
    assert decoder.step(tokens).shape == (3, VOCABULARY) and cache.lengths.tolist() == [1, 1, 1]
    assert torch.equal(decoder.step(tokens), model.table[3, [2, 3, 4], 1]) and cache.length == 2
    decoder.select(torch.tensor([1, 2]))
    assert decoder.step(tokens[:2]).shape == (2, VOCABULARY) and cache.lengths.tolist() == [3, 3]
    cache.join([cache.admit(1, 9, 7, 3)])
    assert decoder.step(tokens).shape == (3, VOCABULARY) and cache.lengths.tolist() == [4, 4, 1]
