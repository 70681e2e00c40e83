"""The cache under random joins, forks, reorders and leaves, against lists of the history of each row."""

from __future__ import annotations

import copy
import gc
import pickle
import random

import pytest
import torch

from bertgen import InputError, UnsupportedError, ops
from bertgen.cache.block_allocator import BlockAllocator, Violation
from bertgen.cache.cache import Cache
from bertgen.cache.static_cache import StaticCache
from bertgen.kernels import tuning
from tests.support.tiny_models import tiny

LAYERS, HEADS, WIDTH = 2, 2, 4
ROWS, POSITIONS, SOURCE = 9, 40, 20


class Row:
    """A running row: its request, its longest length, its source, and the keys and values of its positions."""

    def __init__(self, request: int, limit: int, source: tuple[torch.Tensor, torch.Tensor] | None):
        self.request, self.limit, self.source = request, limit, source
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []  # [layers, heads, width]


class Model:
    """A cache, and the same contents in plain lists."""

    def __init__(self, seed: int):
        self.r = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.cache = Cache(
            LAYERS, HEADS, WIDTH, torch.float32, torch.device("cpu"), rows=ROWS, positions=POSITIONS, slots=15 * 16,
            source_positions=SOURCE, source_slots=5 * 16, full=self.r.random() < 0.5,
        )  # fmt: skip
        self.rows: list[Row] = []
        self.sources: dict[int, tuple[int, torch.Tensor, torch.Tensor]] = {}  # key -> its first request, ..
        self.forks = self.refused = self.read = 0

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def enter(self) -> None:
        """Admit some requests; sources in flight are shared."""
        admitted = []
        for _ in range(self.r.randint(1, 3)):
            count, limit, key = self.r.randint(1, 4), self.r.randint(1, POSITIONS), self.r.randrange(6)
            length = 3 * key + 1
            one = self.cache.admit(count, limit, key, length)
            if one is None:
                self.refused += 1
                continue
            admitted.append(one)
            if one.new_source:
                keys, values = self.draw(2, LAYERS, length, HEADS, WIDTH)
                self.cache.begin_sources([one])
                for layer in range(LAYERS):
                    self.cache.set_cross(layer, keys[layer], values[layer])
                self.sources[key] = (one.request, keys, values)
            self.rows += [Row(one.request, limit, self.sources[key][1:]) for _ in one.rows]
        if admitted:
            self.cache.join(admitted)

    def decode(self) -> None:
        """A decode step; rows at their longest length leave first."""
        self.leave([place for place, row in enumerate(self.rows) if len(row.seen) < row.limit])
        if not self.rows:
            return
        q, k, v = self.draw(3, LAYERS, len(self.rows), HEADS, WIDTH)
        for place, row in enumerate(self.rows):
            row.seen = [*row.seen, (k[:, place], v[:, place])]
        with self.cache.step(1):
            for layer in range(LAYERS):
                attention = self.cache.attend(layer, q[layer], k[layer], v[layer])
                cross_attention = self.cache.attend_cross(layer, q[layer])
                for place, row in enumerate(self.rows):
                    keys, values = (torch.stack([pair[i][layer] for pair in row.seen]) for i in (0, 1))
                    assert (attention[place] - attended(q[layer, place], keys, values)).abs().max() < 1e-5
                    keys, values = (x[layer] for x in row.source)
                    assert (cross_attention[place] - attended(q[layer, place], keys, values)).abs().max() < 1e-5
                    self.read += 1
        assert self.cache.lengths.tolist() == [len(row.seen) for row in self.rows]
        assert self.cache.length == max(len(row.seen) for row in self.rows)

    def fork(self) -> None:
        """Rows continue the histories of other rows of their request, which have as many positions."""
        groups: dict[int, list[int]] = {}
        for place, row in enumerate(self.rows):
            groups.setdefault(row.request, []).append(place)
        parents = [self.r.choice(groups[row.request]) for row in self.rows]
        self.forks += parents != [*range(len(parents))]
        self.cache.reorder(torch.tensor(parents, dtype=torch.int64))
        histories = [self.rows[parent].seen for parent in parents]
        for row, seen in zip(self.rows, histories):
            row.seen = seen

    def some_leave(self) -> None:
        """Some rows and whole requests leave; the remaining requests and their rows change their order."""
        places = [place for place in range(len(self.rows)) if self.r.random() < 0.8]
        requests = list(dict.fromkeys(self.rows[place].request for place in places))
        self.r.shuffle(requests)
        self.leave([place for request in requests for place in places if self.rows[place].request == request])

    def leave(self, kept: list[int]) -> None:
        if kept != [*range(len(self.rows))]:
            self.cache.select(torch.tensor(kept, dtype=torch.int64))
            self.rows = [self.rows[place] for place in kept]

    def check(self) -> None:
        statistics = self.cache.allocator.statistics()
        assert self.cache.allocator.check() == Violation.SOUND and self.cache.rows == len(self.rows)
        assert statistics.requests == len({row.request for row in self.rows})
        assert statistics.sources == len({row.source[0].data_ptr() for row in self.rows})


def attended(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of q [heads, width] to keys and values [positions, heads, width]."""
    weights = (torch.einsum("hd,thd->ht", q, keys) / WIDTH**0.5).softmax(-1)
    return torch.einsum("ht,thd->hd", weights, values)


def run(seed: int, operations: int) -> Model:
    model = Model(seed)
    for _ in range(operations):
        (operation,) = model.r.choices([model.enter, model.decode, model.fork, model.some_leave], [3, 12, 4, 1])
        operation()
        model.check()
    model.cache.clear()
    used = model.cache.allocator.statistics()
    assert used.pages_used == used.pages_reserved == used.source_pages_used == used.rows_used == 0
    return model


@pytest.mark.parametrize("seed", range(3))
def test_random_operations(seed):
    model = run(seed, 200)
    assert model.forks > 15 and model.refused > 15 and model.read > 300


@pytest.mark.long
def test_many_random_operations():
    for seed in range(4, 204):
        run(seed, 500)


def test_a_row_has_as_many_positions_as_it_was_admitted_with():
    model = Model(0)
    model.cache.join([model.cache.admit(1, 3)])
    for _ in range(3):
        with model.cache.step(1):
            pass
    with pytest.raises(InputError, match="cannot take 3: its request was admitted with fewer positions"):
        model.cache.begin(1)


def test_a_step_counts_unless_an_exception_is_raised_in_it():
    cache = Cache(1, 1, 4, torch.float32, torch.device("cpu"), rows=2, positions=16)
    cache.join([cache.admit(2, 16)])
    with cache.step(3):
        assert cache.slot_mapping.shape == (2, 3) and cache.length == 0
    with cache.step(1):
        pass
    assert cache.length == 4 and cache.lengths.tolist() == [4, 4]
    with pytest.raises(ZeroDivisionError), cache.step(1):
        raise ZeroDivisionError
    assert cache.length == 4 and cache.lengths.tolist() == [4, 4]


def encoded_and_begun():
    model = tiny().eval()
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    call = dict(input_ids=ids, attention_mask=mask)
    return model, call, model(**call, decoder_input_ids=ids[:, :2]).past_key_values


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
@torch.no_grad()
def test_a_copy_of_a_cache_and_the_cache_continue_independently(copied):
    model, call, cache = encoded_and_begun()
    begun = call["input_ids"][:, :2]
    held = copied(cache)
    for tokens in ([[3, 4], [5, 6]], [[7], [8]]):  # one token takes another path than several
        new = torch.tensor(tokens)
        other = new + 20
        for one, ids in ((cache, new), (held, other)):
            past = copied(one)
            assert past.rows == 2 and past.length == one.length
            got = model(**call, decoder_input_ids=ids, past_key_values=past).logits
            whole = model(**call, decoder_input_ids=torch.cat((begun, ids), 1)).logits[:, 2:]
            assert (got - whole).abs().max() < 1e-5
            assert past.allocator.check() == Violation.SOUND


@torch.no_grad()
def test_a_copy_outlives_its_cache():
    model, call, cache = encoded_and_begun()
    held = copy.deepcopy(cache)
    del cache
    gc.collect()
    new = torch.tensor([[3], [4]])
    got = model(**call, decoder_input_ids=new, past_key_values=held).logits
    whole = model(**call, decoder_input_ids=torch.cat((call["input_ids"][:, :2], new), 1)).logits[:, 2:]
    assert (got - whole).abs().max() < 1e-5


def test_the_allocator_of_a_cache_is_not_copied_alone():
    allocator = BlockAllocator(2, 16, 32, backend="auto")
    if allocator.backend == "cpp":
        with pytest.raises(UnsupportedError, match="cannot be copied"):
            copy.deepcopy(allocator)
    cache = Cache(1, 1, 4, torch.float32, torch.device("cpu"), rows=2, positions=16)
    cache.join([cache.admit(1, 16)])
    with cache.step(1):
        pass
    cache.join([cache.admit(1, 16)])
    with pytest.raises(UnsupportedError, match="rows have different lengths"):
        copy.copy(cache)


def test_attention_of_all_layers_gets_the_same_counters(monkeypatch):
    shape, told = (1, 2, 8, torch.float32, torch.device("cpu")), []
    cache = Cache(*shape, rows=2, positions=4, source_positions=3, source_slots=16)
    cache.join([cache.admit(2, 4, 0, 3)])
    static = StaticCache(cache, [2], 3)
    for name in ("decode_attention", "cross_decode_attention"):
        monkeypatch.setattr(ops, name, lambda q, *rest: told.append(rest[-1]) or q)
    x = torch.zeros(2, 2, 8)
    with cache.step(1):
        cache.attend(0, x, x, x)
    static.attend(0, x, x, x)
    static.attend_cross(0, x)
    assert len(told) == 3 and all(counters is cache.arrivals for counters in told)
    assert cache.arrivals.dtype == torch.int32 and len(cache.arrivals) == tuning.DECODE_COUNTERS


@pytest.mark.parametrize("arch", tuning.ARCHITECTURES)
def test_there_are_counters_for_every_launch_that_shares_keys(arch):
    for pairs in range(1, 700):
        for keys in (300, 512, 4096):
            assert (
                tuning.decode_attention(arch, pairs, keys, 64, 2).tiles["CHUNKS"] == 1
                or pairs <= tuning.DECODE_COUNTERS
            )
            for rows in (1, 4, 17, 40):
                tiles = tuning.cross_decode_attention(arch, pairs, keys, rows, 64, 2).tiles
                programs = pairs * -(-rows // tiles["BLOCK_M"])
                assert tiles["CHUNKS"] == 1 or programs <= tuning.DECODE_COUNTERS
