"""The static cache under random joins, leaves, reorders and moves, against lists of the history of each row."""

from __future__ import annotations

import random

import pytest
import torch

from bertgen import InputError
from bertgen.cache.block_allocator import Violation
from bertgen.cache.cache import Cache
from bertgen.cache.static_cache import StaticCache

LAYERS, HEADS, WIDTH = 2, 2, 4
POSITIONS, SOURCE = 20, 12
WIDTHS = [1, 3, 2, 1, 3, 2]


def new_cache(full=False):
    return Cache(
        LAYERS, HEADS, WIDTH, torch.float32, torch.device("cpu"), rows=14, positions=POSITIONS, slots=30 * 16,
        source_positions=SOURCE, source_slots=10 * 16, full=full,
    )  # fmt: skip


class Unit:
    """A running unit: its admission, the keys and values of its source and of each row's positions."""

    def __init__(self, admission, source):
        self.admission, self.source = admission, source
        self.seen = [[] for _ in admission.rows]


class Model:
    """A static cache, and the same contents in plain lists."""

    def __init__(self, seed: int):
        self.r, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.cache = new_cache(full=self.r.random() < 0.5)
        self.static = StaticCache(self.cache, WIDTHS, SOURCE)
        self.units: dict[int, Unit] = {}
        self.read = self.moves = 0
        self.prepared = 0

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def join(self) -> None:
        free = [unit for unit in range(len(self.static.widths)) if unit not in self.units]
        units, admissions = [], []
        for unit in self.r.sample(free, self.r.randint(0, len(free))):
            length = self.r.randint(1, self.static.source_width)
            one = self.cache.admit(
                self.static.widths[unit], self.r.randint(1, POSITIONS), self.r.getrandbits(40), length
            )
            if one is None:
                continue
            keys, values = self.draw(2, LAYERS, length, HEADS, WIDTH)
            self.cache.begin_sources([one])
            for layer in range(LAYERS):
                self.cache.set_cross(layer, keys[layer], values[layer])
            self.units[unit] = Unit(one, (keys, values))
            units.append(unit), admissions.append(one)
        self.static.join(units, admissions)
        self.prepared = 0

    def decode(self) -> None:
        """A step; units at their longest length, and some others, pause: they write the scratch slot."""
        static = self.static
        if self.prepared == 0:
            self.prepared = self.r.randint(1, 5)
            static.prepare(self.prepared)
        self.prepared -= 1
        going = {
            unit
            for unit, one in self.units.items()
            if len(one.seen[0]) < one.admission.positions and self.r.random() < 0.9
        }
        active = torch.tensor([unit in going for unit in static.unit_of_row.tolist()])
        q, k, v = self.draw(3, LAYERS, static.rows, HEADS, WIDTH)
        static.begin(active)
        for layer in range(LAYERS):
            attention = static.attend(layer, q[layer], k[layer], v[layer])
            cross_attention = static.attend_cross(layer, q[layer])
            for unit in going:
                one = self.units[unit]
                for row, seen in zip(static.rows_of([unit]), one.seen):
                    if layer == 0:
                        seen.append((k[:, row], v[:, row]))
                    keys, values = (torch.stack([pair[i][layer] for pair in seen]) for i in (0, 1))
                    assert (attention[row] - attended(q[layer, row], keys, values)).abs().max() < 1e-5
                    keys, values = (x[layer] for x in one.source)
                    assert (cross_attention[row] - attended(q[layer, row], keys, values)).abs().max() < 1e-5
                    self.read += 1
        static.advance(active)
        lengths = [len(seen) for unit in range(len(static.widths)) for seen in self.seen_of(unit)]
        assert static.lengths.tolist() == lengths

    def seen_of(self, unit: int) -> list:
        return self.units[unit].seen if unit in self.units else [[]] * self.static.widths[unit]

    def reorder(self) -> None:
        parents = []
        for unit in range(len(self.static.widths)):
            rows = self.static.rows_of([unit])
            chosen = [self.r.choice(rows) for _ in rows]
            if unit in self.units:
                seen = self.units[unit].seen
                self.units[unit].seen = [[*seen[row - rows[0]]] for row in chosen]
            parents += chosen
        self.static.reorder(torch.tensor(parents))

    def leave(self) -> None:
        units = [unit for unit in self.units if self.r.random() < 0.3]
        self.static.leave(units)
        for unit in units:
            self.static.allocator.release(self.units.pop(unit).admission.request)

    def move(self) -> None:
        """Continue in tables of another width of sources, with the units in another order."""
        widths = self.r.sample(WIDTHS, len(WIDTHS))
        longest = max([one.source[0].shape[1] for one in self.units.values()], default=1)
        other = StaticCache(self.cache, widths, self.r.randint(longest, SOURCE))
        places: dict[int, int] = {}
        for unit in self.units:
            width = self.static.widths[unit]
            places[unit] = next(i for i, w in enumerate(widths) if w == width and i not in places.values())
        other.take(self.static, [*places], [*places.values()])
        self.units = {places[unit]: one for unit, one in self.units.items()}
        self.static, self.prepared = other, 0
        self.moves += 1


def attended(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of q [heads, width] to keys and values [n, heads, width]."""
    weights = (torch.einsum("hd,nhd->hn", q, keys) / WIDTH**0.5).softmax(-1)
    return torch.einsum("hn,nhd->hd", weights, values)


@pytest.mark.parametrize("seed", range(6))
@torch.inference_mode()
def test_each_row_sees_its_own_history_and_source(seed):
    one = Model(seed)
    for _ in range(60):
        kind = one.r.random()
        if kind < 0.25:
            one.join()
        elif kind < 0.35:
            one.leave()
        elif kind < 0.42:
            one.move()
        elif kind < 0.6:
            one.reorder()
        else:
            one.decode()
        assert one.cache.allocator.check() == Violation.SOUND
    assert one.read > 100 and one.moves
    one.leave(), one.static.leave([*one.units])
    for unit in [*one.units.values()]:
        one.static.allocator.release(unit.admission.request)
    used = one.cache.allocator.statistics()
    assert used.pages_used == used.pages_reserved == used.rows_used == used.source_pages_used == 0


@torch.inference_mode()
def test_the_tables_stay_where_they_are():
    cache = new_cache(full=True)
    static = StaticCache(cache, [2, 1], 5)
    tensors = lambda: [  # noqa: E731
        t.data_ptr() for t in (
            static.own_slots, static.slot_table, static.lengths, static.slot_mapping, static.source_table,
            static.source_lengths, static.cu_rows, static.unit_of_row, static.pool.scratch, *static.pool.keys,
        )
    ]  # fmt: skip
    before = tensors()
    admissions = [cache.admit(2, 8, 0, 3), cache.admit(1, 20, 1, 5)]
    static.join([0, 1], admissions)
    static.prepare(8)
    for _ in range(4):
        static.begin(torch.ones(3, dtype=torch.bool))
        static.advance(torch.ones(3, dtype=torch.bool))
        static.reorder(torch.tensor([1, 1, 2]))
    static.leave([0])
    assert tensors() == before and static.lengths.tolist() == [0, 0, 4] and static.source_lengths.tolist() == [0, 5]


@torch.inference_mode()
def test_rows_that_are_not_active_write_the_scratch_slot_and_stay():
    cache = new_cache()
    static = StaticCache(cache, [1, 1, 1], SOURCE)
    one = cache.admit(1, 20, 0, 3)
    static.join([1], [one])
    static.prepare(1)
    static.begin(torch.tensor([False, True, False]))
    scratch = int(static.pool.scratch)
    assert static.slot_mapping.tolist() == [scratch, int(cache.allocator.slot_table[one.rows[0], 0]), scratch]
    static.advance(torch.tensor([False, True, False]))
    assert static.lengths.tolist() == [0, 1, 0] and scratch == len(static.pool.keys[0]) - 1


@torch.inference_mode()
def test_on_a_cpu_memory_grows_with_what_is_used():
    cache = new_cache()
    static = StaticCache(cache, [1], SOURCE)
    static.join([0], [cache.admit(1, 20, 0, 3)])
    assert cache.allocator.statistics().pages_used == 0
    static.prepare(2)
    assert cache.allocator.statistics().pages_used == 1 and len(cache.pool.keys[0]) == 16 + 1
    static.lengths += 15
    static.prepare(1)
    assert cache.allocator.statistics().pages_used == 1
    static.prepare(8)
    assert cache.allocator.statistics().pages_used == 2 and static.own_slots[0, :20].unique().numel() == 20


def test_a_source_that_is_too_long_is_an_error():
    cache = new_cache()
    static = StaticCache(cache, [1], 4)
    with pytest.raises(InputError, match="a source of 5 positions; the table has 4"):
        static.join([0], [cache.admit(1, 20, 0, 5)])
    wide = StaticCache(cache, [1], 9)
    wide.join([0], [cache.admit(1, 20, 1, 9)])
    with pytest.raises(InputError, match="a source of 9 positions; the table has 4"):
        static.take(wide, [0], [0])


def test_a_request_of_several_units_is_split():
    one = new_cache().admit(4, 20, 0, 3)
    parts = one.split(2)
    assert [part.rows for part in parts] == [range(0, 2), range(2, 4)] and {part.request for part in parts} == {
        one.request
    }
