"""The static batch on a fake decoder: units, stages, late flags, pages, the length of runs."""

import random
from dataclasses import dataclass, field

import pytest

from bertgen.cache.block_allocator import Admission
from bertgen.engine import Request
from bertgen.engine.request import SearchKey
from bertgen.engine.static_batch import StaticBatch, StaticLimits
from bertgen.model.graph_pool import GraphPool
from bertgen.model.graph_steps import GraphSteps
from tests.support.fake_cuda_device import FakeCudaDevice, QueuedDecoder
from tests.support.made_up_model import options

GREEDY, BEAMS, DRAWS = options(), options(num_beams=4), options(do_sample=True, num_return_sequences=3)


class FakeSearch:
    """Counts to the limit of each unit; its results are what the owner asks for."""

    def __init__(self, units):
        self.owners, self.limits, self.counts = [None] * units, [0] * units, [1] * units

    @property
    def lengths(self):
        return self

    def tolist(self):
        return [*self.counts]

    def over(self):
        return [owner is None or n >= limit for owner, n, limit in zip(self.owners, self.counts, self.limits)]

    def results(self, units):
        return [([[self.limits[u]] * (self.counts[u] - 1)], [None]) for u in units.tolist()]


class FakeDecoder:
    def __init__(self, world, counts, source_width):
        self.world, self.source_width = world, source_width
        self.searches = [FakeSearch(count) for count in counts]
        self.admissions = [[None] * count for count in counts]

    def join(self, index, units, admissions, prefix, owners, seeds, numbers, limits, options):
        self.world.fail("join")
        search = self.searches[index]
        for unit, admission, owner, limit in zip(units, admissions, owners, limits.tolist(), strict=True):
            assert search.owners[unit] is None and self.admissions[index][unit] is None
            assert self.world.written.isdisjoint(admission.rows), "rows that a queued run may still write"
            search.owners[unit], search.limits[unit], search.counts[unit] = owner, limit, 1
            assert (owner[0] if isinstance(owner, tuple) else owner).options in options
            self.admissions[index][unit] = admission

    def leave(self, index, units):
        for unit in units:
            self.searches[index].owners[unit] = self.admissions[index][unit] = None

    def take(self, index, other, theirs_index, theirs, mine):
        self.world.fail("take")
        search, old = self.searches[index], other.searches[theirs_index]
        for their, my in zip(theirs, mine, strict=True):
            assert search.owners[my] is None and old.owners[their] is not None
            search.owners[my], search.limits[my] = old.owners[their], old.limits[their]
            search.counts[my] = old.counts[their]
            self.admissions[index][my] = other.admissions[theirs_index][their]


class FakeSteps:
    """Runs at once, but tells of each run only after `late` others, or after `synchronize`."""

    def __init__(self, world, decoder):
        self.world, self.decoder, self.told, self.runs = world, decoder, [(0, [])], 0

    def run(self, count, stop_when_over=False):
        self.world.fail("run")
        self.world.counts.append((count, stop_when_over))
        self.runs += 1
        for search in self.decoder.searches:
            for unit, over in enumerate(search.over()):
                search.counts[unit] += 0 if over else min(count, search.limits[unit] - search.counts[unit])
        self.told.append((self.runs, [over for search in self.decoder.searches for over in search.over()]))
        if self.world.late:
            self.world.written = {
                row
                for admissions in self.decoder.admissions
                for admission in admissions
                if admission is not None
                for row in admission.rows
            }
        self.world.now += self.world.seconds * count
        return count

    def flags(self):
        last = max(0, len(self.told) - 1 - self.world.late)
        return self.told[last] if not self.world.synchronized else self.told[-1]


@dataclass
class World:
    """A fake device, and the cache's rows."""

    late: int = 0
    limits: StaticLimits = field(default_factory=lambda: StaticLimits(max_rows=64, source_positions=100))
    seconds: float = 0.001
    now: float = 0.0
    synchronized: bool = False
    opened: list = field(default_factory=list)
    counts: list = field(default_factory=list)
    released: list = field(default_factory=list)
    written: set = field(default_factory=set)
    failing: str = ""
    serial: int = 0

    def __post_init__(self):
        self.batch = StaticBatch(
            self.open, self.released.append, self.limits, synchronize=self.synchronize, clock=lambda: self.now
        )

    def fail(self, place):
        if place == self.failing:
            raise MemoryError(place)

    def open(self, groups, source_width):
        self.fail("open")
        assert all(isinstance(key, SearchKey) for key, _ in groups)
        counts = [count for _, count in groups]
        self.opened.append((counts, source_width))
        decoder = FakeDecoder(self, counts, source_width)
        return decoder, FakeSteps(self, decoder)

    def synchronize(self):
        self.synchronized, self.written = True, set()

    def join(self, *requests):
        admissions = {}
        for request in requests:
            first, self.serial = self.serial, self.serial + request.rows
            admissions[request] = Admission(
                first, range(first, first + request.rows), request.positions, len(request.ids), 0, True
            )
        self.batch.join(admissions)
        return admissions

    def run(self, waiting=False, beside=False):
        self.synchronized = False
        self.batch.run(waiting, beside)
        return self.batch.remove_finished()

    def finish(self, most=100):
        done = []
        for _ in range(most):
            done += self.run()
            if not self.batch.rows:
                return done
        raise AssertionError(f"{self.batch.rows} rows still run")


def greedy(length=20, source=5, kind=GREEDY, **values):
    return Request([7] * source, options(**{**values, "max_length": length}) if values else kind_of(kind, length))


def kind_of(kind, length):
    return kind if length == kind.max_length else options(
        max_length=length, num_beams=kind.num_beams, do_sample=kind.do_sample,
        num_return_sequences=kind.num_return_sequences,
    )  # fmt: skip


def on_cpu(**values):
    given = dict(
        max_rows=64, source_positions=100, source_width=100, least_units=16, compacts=False, waiting_steps=8,
        even=False, seconds=0.02,
    )  # fmt: skip
    return StaticLimits(**{**given, **values})


@pytest.mark.parametrize("late", [0, 1, 3])
def test_requests_of_all_kinds_end_with_their_own_results(late):
    world = World(late=late)
    requests = [greedy(n, kind=kind) for n in (3, 9, 20) for kind in (GREEDY, BEAMS, DRAWS)]
    admissions = world.join(*requests)
    done = world.finish()
    assert set(done) == set(requests) and len(done) == 9
    for request in requests:
        assert request.outputs == [[request.options.max_length] * (request.options.max_length - 1)] * len(
            request.outputs
        )
        assert len(request.outputs) == (3 if request.options.do_sample else 1)
    assert sorted(one.request for one in world.released) == sorted(one.request for one in admissions.values())
    assert world.batch.take_row_steps() == sum(request.rows * (request.options.max_length - 1) for request in requests)


def test_a_stage_grows_is_compacted_and_is_found_again():
    world = World()
    world.join(*(greedy(30) for _ in range(3)))
    world.join(*(greedy(9) for _ in range(3)))
    assert world.opened == [([4], 64), ([8], 64)]
    world.run()
    assert len(world.run()) == 0 or world.batch.rows == 3
    world.run()
    assert world.batch.rows == 3 and len(world.opened) == 2, "3 of 8: the stage of 4 was kept"
    world.finish()
    world.join(greedy(9), greedy(9), greedy(9))
    world.finish()
    world.join(greedy(9))
    assert world.opened == [([4], 64), ([8], 64), ([1], 64)]


def test_free_units_that_cost_nothing_stay():
    world = World(limits=on_cpu())
    for count in (1, 16, 3, 1):
        world.join(*(greedy(9) for _ in range(count)))
        assert len(world.finish()) == count
    assert world.opened == [([16], 100)]


def test_groups_of_options_come_and_go():
    world = World(limits=on_cpu())
    world.join(greedy(40))
    world.join(greedy(9, kind=BEAMS))
    world.run()
    world.run()
    world.join(greedy(9, kind=DRAWS))
    assert [counts for counts, _ in world.opened] == [[16], [16, 16], [16, 16]], "an idle group makes room"
    world.finish()
    world.join(greedy(9, kind=BEAMS))
    assert len(world.opened) == 4 and world.opened[-1] == ([16], 100)


def test_a_wider_source_needs_another_stage():
    world = World()
    world.join(greedy(source=64))
    world.join(greedy(source=65))
    world.join(greedy(source=100))
    assert world.opened == [([1], 64), ([2], 100), ([4], 100)]


def test_a_unit_of_many_beams_fits_any_number_of_rows():
    world = World(limits=on_cpu(max_rows=5))
    world.join(greedy(9, kind=BEAMS))
    assert world.opened == [([1], 100)] and len(world.finish()) == 1


def test_the_number_of_stages_is_bounded():
    world = World(limits=StaticLimits(max_rows=64, source_positions=100, stages=2))
    for count in (1, 2, 4, 8, 8, 4, 2):
        world.join(*(greedy(5) for _ in range(count)))
        world.finish()
    assert [counts for counts, _ in world.opened] == [[1], [2], [4], [8], [2]]
    assert len(world.batch._stages) == 2


def test_too_many_kinds_of_options_at_a_time():
    world = World(limits=on_cpu(groups=2))
    requests = [greedy(9), greedy(9, kind=BEAMS), greedy(12), greedy(9, kind=DRAWS), greedy(9, kind=BEAMS)]
    assert world.batch.joinable(requests) == [requests[i] for i in (0, 1, 2, 4)]
    world.join(requests[0], requests[1])
    assert world.batch.joinable(requests) == [requests[i] for i in (0, 1, 2, 4)]
    world.finish()
    assert world.batch.joinable(requests[3:]) == requests[3:]


def test_requests_with_other_limits_of_sampling_are_one_group():
    world = World(limits=on_cpu(groups=2))
    limits = (dict(temperature=0.5), dict(top_k=3), dict(top_p=0.9, min_p=0.1), {})
    draws = [Request([7], options(do_sample=True, max_length=9 + i, **one)) for i, one in enumerate(limits)]
    others = [
        greedy(9), Request([7], options(do_sample=True, repetition_penalty=1.5)),
        Request([7], options(do_sample=True), scored=True),
    ]  # fmt: skip
    assert world.batch.joinable([*draws, *others]) == [*draws, others[0]]
    world.join(*draws[:2], others[0])
    world.join(*draws[2:])
    assert world.opened == [([16, 16], 100)] and set(world.finish()) == {*draws, others[0]}
    assert not draws[0].search_key.matches(draws[1].search_key), "one search that grows has one processor for all"


# Late flags


def test_flags_of_an_older_run_do_not_count_for_a_new_occupant():
    world = World(late=2)
    world.join(greedy(3), greedy(60))
    while world.batch.rows == 2:
        assert world.run() in ([], [*world.batch._ended]) or world.batch.rows == 1
    second = greedy(60)
    world.join(second)
    assert world.opened == [([2], 64)], "the unit is used again at once"
    for _ in range(3):
        assert not world.run()
        assert world.batch.rows == 2
    done = world.finish()
    assert second in done and second.outputs == [[60] * 59]


def test_pages_of_a_cancelled_request_wait_for_the_queued_runs():
    world = World(late=2)
    first, second = greedy(60), greedy(60)
    admissions = world.join(first, second)
    world.run()
    world.batch.remove({first})
    assert world.batch.rows == 1 and not world.released
    world.run()
    world.run()
    assert world.released == [admissions[first]]
    assert world.finish() == [second] and world.released == [admissions[first], admissions[second]]


def test_pages_come_back_where_nothing_runs_any_more():
    world = World(late=2)
    request = greedy(60)
    admissions = world.join(request)
    world.run()
    world.batch.remove({request})
    assert not world.batch.rows and world.released == [admissions[request]] and world.batch.remove_finished() == []


def test_a_cancelled_request_that_has_just_ended_is_not_returned():
    world = World()
    request = greedy(3)
    world.join(request, greedy(60))
    world.batch.run()
    world.batch._collect()
    world.batch.remove({request})
    assert world.batch.remove_finished() == [] and world.batch.rows == 1


def test_return_sequences_are_given_back_together():
    world = World()
    request = greedy(9, kind=DRAWS)
    admissions = world.join(request, greedy(60))
    search = world.batch._stage.decoder.searches[0]
    search.limits[:3] = [3, 12, 20]
    world.run()
    assert not world.released and world.batch.rows == 3
    world.run()
    assert not world.released
    world.run()
    assert world.released == [admissions[request]] and [len(row) for row in request.outputs] == [2, 11, 19]


# The length of a run


def test_a_run_has_eight_steps_or_two_where_something_waits():
    world = World()
    world.join(greedy(60))
    world.run()
    world.run(waiting=True)
    world.run(beside=True)
    assert world.counts == [(8, False), (2, True), (2, False)]


def test_a_run_on_a_cpu_takes_twenty_milliseconds():
    world = World(limits=on_cpu(), seconds=0.004)
    world.join(greedy(200, max_length=200))
    for _ in range(2):
        world.run()
    world.seconds = 0.5
    for _ in range(2):
        world.run(waiting=True)
    world.seconds = 0.001
    world.run()
    world.join(*(greedy(200, max_length=200) for _ in range(9)))
    world.run()
    world.run(beside=True)
    assert [count for count, _ in world.counts] == [1, 5, 5, 1, 1, 2, 1], "ten rows may be slower"


# Faults


@pytest.mark.parametrize("place", ["open", "join", "take", "run"])
def test_after_a_failure_everything_can_be_dropped_and_run_again(place):
    world = World(late=1)
    requests = [greedy(30) for _ in range(3)]
    world.failing = place
    with pytest.raises(MemoryError, match=place):
        world.join(*requests)
        world.run()
        world.join(*(greedy(30) for _ in range(3)))
    world.batch.clear()
    assert not world.batch.rows and world.run() == []
    world.failing, world.written = "", set()
    world.join(*requests)
    assert world.finish() == requests


def test_a_random_workload():
    r = random.Random(0)
    for seed in range(40):
        world = World(late=seed % 4, limits=on_cpu() if seed % 2 else StaticLimits(64, 100, stages=r.choice([1, 3, 9])))
        waiting, running, done, gone = [], set(), [], set()
        for _ in range(60):
            waiting.append(greedy(r.randint(3, 30), r.randint(1, 100), r.choice([GREEDY, BEAMS, DRAWS])))
        total = [*waiting]
        while waiting or running:
            entering = [waiting.pop() for _ in range(min(len(waiting), r.randint(0, 3)))]
            if entering and world.batch.rows < 50:
                world.join(*entering)
                running |= {*entering}
            else:
                waiting += entering
            ended = world.run(waiting=r.random() < 0.5)
            assert running.issuperset(ended) and len(set(ended)) == len(ended)
            done += ended
            running -= {*ended}
            if running and r.random() < 0.1:
                cancelled = {r.choice([*running])}
                world.batch.remove(cancelled)
                running -= cancelled
                gone |= cancelled
        assert not world.batch.rows and len(done) + len(gone) == len(total)
        assert len(world.released) == len(total) and len({one.request for one in world.released}) == len(total)
        for request in done:
            length = request.options.max_length
            assert all(row == [length] * (length - 1) for row in request.outputs)


@pytest.mark.parametrize("seed", range(20))
def test_results_are_read_beside_queued_runs_and_are_those_of_their_own_request(seed):
    """The device runs nothing before the host waits for it, and units get other occupants at once."""
    r, device = random.Random(seed), FakeCudaDevice(late=True)
    pool, limits = GraphPool(device), StaticLimits(max_rows=4, source_positions=100, least_units=4, compacts=False)

    def opened(groups, width):
        decoder = QueuedDecoder(device, 4)
        return decoder, GraphSteps(decoder, pool)

    batch = StaticBatch(opened, lambda admission: None, limits, device.synchronize, device.reading)
    requests = [Request([7] * 5, options(max_length=r.randint(2, 24)), number=50 + i) for i in range(25)]
    waiting, done = [*requests], []
    for _ in range(400):
        joining, waiting = waiting[: 4 - batch.rows], waiting[4 - batch.rows :]
        if joining:
            admissions = [Admission(one.number, range(1), one.positions, 5, 0, True) for one in joining]
            batch.join(dict(zip(joining, admissions)))
        batch.run(bool(waiting))
        done += batch.remove_finished()
        if r.random() < 0.3:
            device.work(r.randint(1, 20) if len(device._waiting) > 20 else None)
        if len(done) == len(requests):
            break
    assert [one.outputs for one in requests] == [[[one.number] * (one.options.max_length - 1)] for one in requests]
    assert "read beside" in device.told
    assert batch.take_row_steps() == sum(one.options.max_length - 1 for one in requests)
