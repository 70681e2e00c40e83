"""What the two caches have in common: a step of one token of each row reads the same tables."""

import torch

from bertgen.cache.cache import Cache
from bertgen.cache.static_cache import StaticCache
from bertgen.cache.step_cache import CrossAttentionMetadata


def filled(static):
    """A cache of three rows over two sources, running or static, with the admissions of both."""
    cache = Cache(2, 2, 4, torch.float32, torch.device("cpu"), rows=4, positions=8, source_positions=5, source_slots=64)
    admissions = [cache.admit(2, 8, 0, 3), cache.admit(1, 8, 1, 5)]
    cache.begin_sources(admissions)
    generator = torch.Generator().manual_seed(0)
    for layer in range(2):
        cache.set_cross(layer, *torch.randn(2, 8, 2, 4, generator=generator))
    if not static:
        cache.join(admissions)
        return cache
    one = StaticCache(cache, [2, 1], 5)
    one.join([0, 1], admissions)
    one.prepare(8)
    return one


def test_both_caches_attend_alike_bit_for_bit():
    plain, static = filled(False), filled(True)
    active = torch.ones(3, dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        plain.begin(1), static.begin(active)
        for layer in range(2):
            q, k, v = torch.randn(3, 3, 2, 4, generator=generator)
            assert torch.equal(plain.attend(layer, q, k, v), static.attend(layer, q, k, v))
            assert torch.equal(plain.attend_cross(layer, q), static.attend_cross(layer, q))
        plain.advance(1), static.advance(active)
        plain.reorder(torch.tensor([1, 1, 2])), static.reorder(torch.tensor([1, 1, 2]))
    assert len(plain) == len(static) == 2 and plain.rows == static.rows == 3


def test_the_keys_of_packed_sources_begin_one_after_the_other():
    lengths = torch.tensor([2, 0, 3], dtype=torch.int32)
    sources = CrossAttentionMetadata(torch.zeros(3, 3, dtype=torch.int32), lengths, lengths, 1)
    assert sources.cu_seqlens_k().tolist() == [0, 2, 2, 5]
    assert sources.mask().sum(1).tolist() == [2, 0, 3]
