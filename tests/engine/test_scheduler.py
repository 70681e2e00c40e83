"""The scheduler by itself: plain numbers, no tensors, no cache."""

import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertgen import GenerationConfig, InputError
from bertgen.engine.request import Request, RequestState
from bertgen.engine.scheduler import Capacity, Scheduler

PAGE = 4
PLENTY = Capacity(rows=1000, pages=1000, page=PAGE, source_pages=1000, source_page=PAGE)


def settled(**options):
    """Options without None in what the scheduler reads."""
    defaults = dict(num_beams=1, num_return_sequences=1, encoder_repetition_penalty=1.0, encoder_no_repeat_ngram_size=0)
    return GenerationConfig(**{**defaults, **options})


def request(rows=1, positions=4, source=(5,)):
    return Request(source, settled(num_beams=rows, max_length=positions + 1))


def queued(scheduler, *requests):
    scheduler.submit([*requests], print)
    assert scheduler.receive() == []
    return [*requests]


# order


def test_requests_enter_in_the_order_of_their_arrival():
    scheduler = Scheduler(3, 0.0)
    requests = queued(scheduler, *(request(positions=n) for n in (9, 3, 7, 4, 8)))
    assert scheduler.admit(0, PLENTY) == requests[:3] == [*scheduler.running]
    assert [one.state for one in requests] == [RequestState.RUNNING] * 3 + [RequestState.WAITING] * 2
    scheduler.leave(requests[1])
    assert scheduler.admit(2, PLENTY) == requests[3:4]


def test_no_request_overtakes_one_that_does_not_fit():
    scheduler = Scheduler(4, 0.0)
    first, large, small = queued(scheduler, request(rows=2), request(rows=3), request())
    assert scheduler.admit(0, PLENTY) == [first]
    assert scheduler.admit(2, PLENTY) == [] and [*scheduler.waiting] == [large, small]
    scheduler.leave(first)
    assert scheduler.admit(0, PLENTY) == [large, small]


def test_all_requests_of_a_call_are_queued_together_or_none():
    scheduler = Scheduler(4, 0.0)
    (first,) = queued(scheduler, request())
    new = request()
    for requests in ([new, first], [new, new]):
        with pytest.raises(InputError, match="was submitted before: make a new Request"):
            scheduler.submit(requests, print)
    assert scheduler.waiting_count == 1 and new.state is RequestState.NEW


# capacity


@pytest.mark.parametrize(
    "free, count",
    [
        (Capacity(2, 99, PAGE, 99, PAGE), 2),
        (Capacity(9, 5, PAGE, 99, PAGE), 2),  # two pages each
        (Capacity(9, 99, PAGE, 2, PAGE), 1),  # two pages for each source
        (Capacity(9, 99, 2 * PAGE, 99, PAGE), 4),
    ],
)
def test_the_worst_case_of_each_request_fits(free, count):
    scheduler = Scheduler(4, 0.0)
    queued(scheduler, *(request(positions=PAGE + 1, source=(i,) * (PAGE + 1)) for i in range(9)))
    assert len(scheduler.admit(0, free)) == count


def test_a_source_in_flight_takes_no_pages_and_has_one_key():
    scheduler = Scheduler(9, 0.0)
    requests = queued(scheduler, *(request(source=(5, 6)) for _ in range(5)), request(source=(7,)))
    free = Capacity(9, 99, PAGE, 1, PAGE)
    assert scheduler.admit(0, free) == requests[:5]
    assert {one.source_key for one in requests[:5]} == {requests[0].serial}
    for one in requests[:5]:
        scheduler.leave(one)
    assert scheduler.admit(0, free) == requests[5:] and requests[5].source_key == requests[5].serial
    (again,) = queued(scheduler, request(source=(5, 6)))
    assert scheduler.admit(1, free) == [again] and again.source_key == again.serial


def test_a_request_larger_than_the_row_limit_enters_alone():
    scheduler = Scheduler(8, 0.0)
    requests = queued(scheduler, *(request(rows=rows) for rows in (4, 1, 4, 4)))
    assert len(scheduler.admit(0, PLENTY)) == 2
    assert scheduler.back_off() == [] and scheduler.row_limit == 2
    assert scheduler.admit(0, PLENTY) == requests[:1]


def test_a_request_that_ran_alone_when_memory_ran_out_has_to_fail():
    scheduler = Scheduler(8, 0.0)
    requests = queued(scheduler, *(request(rows=4) for _ in range(4)))
    assert len(scheduler.admit(0, PLENTY)) == 2
    assert scheduler.back_off() == [] and scheduler.row_limit == 4
    assert scheduler.admit(0, PLENTY) == requests[:1]
    assert scheduler.back_off() == requests[:1] and [*scheduler.waiting] == requests
    scheduler.remove(requests[:1])
    assert scheduler.row_limit == 8 and scheduler.admit(0, PLENTY) == requests[1:3], "the others may fit"


@pytest.mark.parametrize("refill, free, enters", [(0.5, 3, False), (0.5, 4, True), (0.0, 0, True), (1.0, 7, False)])
def test_refill(refill, free, enters):
    """Requests enter beside running ones only after this share of the rows is free."""
    scheduler = Scheduler(8, refill)
    assert not scheduler.may_admit(0), "nothing waits"
    queued(scheduler, request(), request())
    assert scheduler.may_admit(0), "nothing runs"
    scheduler.admit(0, Capacity(1, 99, PAGE, 99, PAGE))
    assert scheduler.may_admit(8 - free) == enters


def test_requests_that_the_cache_cannot_place_are_put_back():
    """Enough rows were free, but not adjacent ones."""
    scheduler = Scheduler(8, 0.0)
    requests = queued(scheduler, *(request(source=(5,)) for _ in range(4)))
    assert scheduler.admit(0, PLENTY) == requests
    scheduler.put_back(requests[1:])
    assert [*scheduler.waiting] == requests[1:] and [*scheduler.running] == requests[:1]
    assert requests[2].state is RequestState.WAITING
    assert scheduler.admit(1, PLENTY) == requests[1:]
    for one in requests:
        scheduler.leave(one)
    assert not scheduler.busy and not scheduler._sources and not scheduler._groups


# search groups


def test_requests_of_equal_options_share_a_group():
    scheduler = Scheduler(99, 0.0)
    shared = settled(max_length=9)
    tokenizer, process = object(), [lambda history, scores: scores]
    requests = [
        Request([5], shared),
        Request([6], shared, seed=3, number=4),
        Request([7], settled(max_length=30)),  # each has its own longest output
        Request([5], settled(max_length=9, num_beams=2)),
        Request([5], shared, scored=True),
        Request([5], shared, logits_processor=process),
        Request([5], shared, logits_processor=process),
        Request([5], settled(max_length=9, stop_strings=["x"]), tokenizer=tokenizer),
        Request([5], settled(max_length=9, stop_strings=["x"]), tokenizer=tokenizer),
        Request([5], settled(max_length=9, stop_strings=["x"]), tokenizer=object()),
        Request([5], settled(max_length=9, forced_eos_token_id=3)),
        Request([5], settled(max_length=8, forced_eos_token_id=3)),  # its processor depends on the length
        Request([5], settled(max_length=9, max_time=3.0)),
        Request([5], settled(max_length=9, max_time=3.0)),
    ]
    queued(scheduler, *requests)
    assert scheduler.admit(0, PLENTY) == requests
    assert [one.group for one in requests] == [0, 0, 0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10]


def test_a_group_ends_with_its_last_request():
    scheduler = Scheduler(99, 0.0)
    first, second = queued(scheduler, request(), request())
    scheduler.admit(0, PLENTY)
    scheduler.leave(first)
    (third,) = queued(scheduler, request())
    scheduler.admit(1, PLENTY)
    assert first.group == second.group == third.group
    scheduler.leave(second)
    scheduler.leave(third)
    (fourth,) = queued(scheduler, request())
    scheduler.admit(0, PLENTY)
    assert fourth.group != first.group


# cancellation, and what starts again


def test_cancelled_requests_leave_wherever_they_are():
    scheduler = Scheduler(2, 0.0)
    requests = queued(scheduler, *(request() for _ in range(4)))
    scheduler.admit(0, PLENTY)
    done, running, waiting, _ = requests
    done.finish()
    scheduler.leave(done)
    new = request()
    scheduler.submit([new], print)
    scheduler.cancel([done, running, waiting, new])
    assert scheduler.receive() == [running] and [*scheduler.waiting] == requests[3:]
    scheduler.leave(running)
    assert done.state is RequestState.FINISHED and not done.cancelled
    assert {one.state for one in (running, waiting, new)} == {RequestState.CANCELLED}
    assert scheduler.receive() == []


def test_requeued_requests_come_first_and_in_their_order():
    scheduler = Scheduler(3, 0.0)
    requests = queued(scheduler, *(request() for _ in range(6)))
    scheduler.admit(0, PLENTY)
    scheduler.leave(requests[0])
    scheduler.admit(2, PLENTY)
    requests[1].outputs, requests[1].ended_rows = [[1]], {0: ([1], None)}
    assert scheduler.requeue() == requests[1:4]
    assert [*scheduler.waiting] == requests[1:] and not scheduler.running
    assert requests[1].outputs is None and requests[1].ended_rows == {}
    assert all(one.state is RequestState.WAITING for one in requests[1:])


def test_an_interrupt_between_two_lines_neither_loses_nor_doubles_a_request():
    """Requeue finds a request that is in the queue and in the running set, or that is done but has not left."""
    scheduler = Scheduler(3, 0.0)
    first, second, third = queued(scheduler, request(), request(), request())
    scheduler.admit(0, PLENTY)
    scheduler.waiting.appendleft(second)
    third.finish()
    assert scheduler.requeue() == [first, second]
    assert [*scheduler.waiting] == [first, second]


def test_half_of_the_rows_run_after_memory_ran_out_until_nothing_is_left():
    scheduler = Scheduler(16, 0.0)
    requests = queued(scheduler, *(request() for _ in range(9)))
    assert len(scheduler.admit(0, PLENTY)) == 9
    scheduler.back_off()
    assert scheduler.row_limit == 4 and len(scheduler.admit(0, PLENTY)) == 4
    scheduler.back_off()
    assert scheduler.row_limit == 2
    while scheduler.busy:
        assert scheduler.row_limit == 2
        scheduler.admit(len(scheduler.running), PLENTY)
        scheduler.leave(next(iter(scheduler.running)))
    assert scheduler.row_limit == 16
    again = queued(scheduler, request(), request())
    assert scheduler.back_off() == again, "nothing ran: the cache itself did not fit"
    scheduler.remove([*scheduler.waiting])
    assert scheduler.row_limit == 16 and requests


# properties


class Simulation:
    """A scheduler with a cache that counts its free rows and pages by itself."""

    ROWS, PAGES, SOURCE_PAGES = 7, 9, 5

    def __init__(self, refill):
        self.scheduler = Scheduler(self.ROWS, refill)
        self.submitted, self.entered, self.gone, self.left = [], [], set(), set()

    def capacity(self):
        """What the running requests leave."""
        running = [*self.scheduler.running]
        pages = sum(one.rows * -(-one.positions // PAGE) for one in running)
        sources = sum(-(-len(ids) // PAGE) for ids in {one.ids for one in running})
        rows = sum(one.rows for one in running)
        free = Capacity(self.ROWS - rows, self.PAGES - pages, PAGE, self.SOURCE_PAGES - sources, PAGE)
        assert min(free) >= 0, free
        return rows, free

    def submit(self, sizes):
        requests = [request(rows, positions, (5 + kind,) * length) for rows, positions, kind, length in sizes]
        self.scheduler.submit(requests, print)
        self.submitted += requests

    def step(self):
        """Receive and admit, as the engine does."""
        for one in self.scheduler.receive():
            self.scheduler.leave(one)
        rows, free = self.capacity()
        if self.scheduler.may_admit(rows):
            first = self.scheduler.waiting[0]
            entering = self.scheduler.admit(rows, free)
            assert not entering or entering[0] is first
            assert entering or self.scheduler.running, "the engine stands still"
            self.entered += entering
        self.check()

    def leave(self, place):
        if running := [*self.scheduler.running]:
            one = running[place % len(running)]
            if not one.cancelled:
                one.finish()
                self.left.add(one)
            self.scheduler.leave(one)

    def cancel(self, place):
        if self.submitted:
            one = self.submitted[place % len(self.submitted)]
            self.scheduler.cancel([one])
            if one not in self.left:
                self.gone.add(one)

    def requeue(self, memory_ran_out):
        running = [*self.scheduler.running]
        waiting = [*self.scheduler.waiting]
        if memory_ran_out:
            failed = self.scheduler.back_off()
            assert set(failed) == set(running if len(running) == 1 else [] if running else waiting)
        else:
            assert set(self.scheduler.requeue()) == set(running)
        assert set(self.scheduler.waiting) == {*running, *waiting}
        self.entered = []  # what had left before is older than what enters again

    def check(self):
        """Every request is in exactly one place, and the order was kept."""
        self.capacity()
        scheduler = self.scheduler
        waiting, running = [*scheduler.waiting], [*scheduler.running]
        assert sorted([*waiting, *running, *self.left, *self.gone], key=id) == sorted(self.submitted, key=id)
        for ordered in (waiting, self.entered):
            assert [one.serial for one in ordered] == sorted(one.serial for one in ordered)
        assert all(one.state is RequestState.WAITING for one in waiting)
        assert all(one.state is RequestState.RUNNING for one in running)
        assert all(one.state is RequestState.CANCELLED for one in self.gone)
        assert set(scheduler._sources) == {one.ids for one in running}
        assert set(scheduler._groups) == {one.group for one in running}
        assert all(a.rows == b.rows for a in running for b in running if a.group == b.group)


SIZES = st.tuples(st.integers(1, 3), st.integers(1, 3 * PAGE), st.integers(0, 2), st.integers(1, 2 * PAGE))
ACTIONS = st.one_of(
    st.tuples(st.just("submit"), st.lists(SIZES, max_size=5)),
    st.tuples(st.just("step")),
    st.tuples(st.just("step")),
    st.tuples(st.just("leave"), st.integers(0, 9)),
    st.tuples(st.just("cancel"), st.integers(0, 99)),
    st.tuples(st.just("requeue"), st.booleans()),
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([0.0, 0.3, 1.0]), st.lists(ACTIONS, max_size=40))
def test_no_request_is_lost_the_order_is_kept_and_the_capacity_never_exceeded(refill, actions):
    simulation = Simulation(refill)
    for name, *arguments in actions:
        getattr(simulation, name)(*arguments)
    for _ in range(len(simulation.submitted) + 1):
        simulation.step()
        simulation.leave(0)
    simulation.step()
    assert not simulation.scheduler.busy and simulation.scheduler.row_limit == Simulation.ROWS
    assert simulation.left | simulation.gone == set(simulation.submitted)


# without torch


def test_thousands_of_decisions_take_milliseconds():
    scheduler, r = Scheduler(64, 0.1), random.Random(0)
    options = [settled(max_length=n, num_beams=beams) for n in (9, 17) for beams in (1, 4)]
    requests = [Request([r.randrange(9)] * 5, r.choice(options)) for _ in range(5000)]
    scheduler.submit(requests, print)
    start, rows = time.perf_counter(), 0
    while scheduler.busy:
        scheduler.receive()
        if scheduler.may_admit(rows):
            rows += sum(one.rows for one in scheduler.admit(rows, PLENTY))
        for one in [*scheduler.running][:20]:
            scheduler.leave(one)
            rows -= one.rows
    assert time.perf_counter() - start < 2.0, "about 0.04 s on an idle core: 15,000 decisions"


def test_the_scheduler_imports_no_torch():
    """Neither do requests: an engine of another kind, or a simulation, can use both."""
    root = Path(__file__).parents[2]
    program = f"""
        import sys, types
        sys.modules["torch"] = None
        package = types.ModuleType("bertgen.engine")  # whose __init__ names the Engine
        package.__path__ = [{str(root / "bertgen" / "engine")!r}]
        sys.modules["bertgen.engine"] = package
        from bertgen.config import GenerationConfig
        from bertgen.engine.request import Request
        from bertgen.engine.scheduler import Capacity, Scheduler
        scheduler = Scheduler(4, 0.1)
        options = GenerationConfig(num_beams=1, num_return_sequences=1, max_length=9, encoder_repetition_penalty=1.0,
                                   encoder_no_repeat_ngram_size=0)
        scheduler.submit([Request([5], options) for _ in range(9)], print)
        scheduler.receive()
        print(len(scheduler.admit(0, Capacity(9, 99, 16, 99, 16))))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert (found.returncode, found.stdout.strip()) == (0, "4"), found.stderr
