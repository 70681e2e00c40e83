"""The static decoder: its steps, recorded and replayed, give what plain searches give, bit for bit."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from bertgen.cache.static_cache import StaticCache
from bertgen.decoding.static_search import StaticSearch
from bertgen.model.static_decoder import EagerSteps, StaticDecoder
from tests.support import recorded_step
from tests.support.recorded_step import CaptureError, Reason, RecordedSteps
from tests.support.static_workloads import (
    MODELS,
    OPTIONS,
    StaticRun,
    Workload,
    expected,
    layers_one_by_one,
    rows_are_independent,
    run_workload,
)

exact = pytest.mark.skipif(not rows_are_independent(), reason="the products of a row depend on the number of rows")


@pytest.fixture(autouse=True)
def layers():
    with layers_one_by_one():
        yield


def differs(seed, make_steps=RecordedSteps, run=run_workload):
    return run(seed, make_steps) != expected(seed)


@exact
@pytest.mark.parametrize("part", range(10))
def test_replays_give_what_plain_searches_give(part):
    assert not [seed for seed in range(50 * part, 50 * (part + 1)) if differs(seed)]


@exact
@pytest.mark.long
@pytest.mark.parametrize("part", range(20))
def test_replays_give_what_plain_searches_give_for_long(part):
    assert not [seed for seed in range(1000 * (part + 1), 1000 * (part + 2)) if differs(seed)]


@exact
def test_steps_from_python_give_what_plain_searches_give():
    assert not [seed for seed in range(1000, 1040) if differs(seed, EagerSteps)]


def test_the_workloads_have_all_that_they_are_to_have():
    kinds, jobs, moves = set(), [], []
    with mock.patch.object(StaticRun, "move", lambda self, move=StaticRun.move: (moves.append(1), move(self))):
        for seed in range(60):
            work = Workload(seed)
            kinds |= {(work.model, len(work.options)), *(repr(options) for options, _ in work.options)}
            jobs += work.jobs
    assert len(kinds) >= len(OPTIONS) + 2 * len(MODELS)
    assert any(job.cancelled is not None for job in jobs) and any(job.after for job in jobs)
    with mock.patch.object(StaticRun, "move", lambda self, move=StaticRun.move: (moves.append(1), move(self))):
        for seed in range(5):
            run_workload(seed, EagerSteps)
    assert moves


# Faults: a patch of the code, and how it is found: by the reason of a CaptureError, or by other outcomes.


def before_step(extra):
    """Run `extra(search, logits)` before each step of a search; its result, if any, takes the place of the logits."""

    def step(self, logits, step=StaticSearch.step):
        changed = extra(self, logits)
        step(self, logits if changed is None else changed)

    return mock.patch.object(StaticSearch, "step", step)


def moved_table(self, units, admissions, join=StaticCache.join):
    self.own_slots = self.own_slots.clone()
    join(self, units, admissions)


def moved_flags(self, *args, join=StaticDecoder.join):
    self.over = self.over.clone()
    for search, part in zip(self.searches, self.over.split([search.units for search in self.searches])):
        search.over = search.state["over"] = part
    join(self, *args)


def number_of_steps(self, active):
    """The length of all rows as an integer of Python, right for rows that joined together."""
    self.count = getattr(self, "count", 0) + 1
    self.lengths.add_(active).clamp_(max=self.count)


def no_scratch(self, active, begin=StaticCache.begin):
    begin(self, torch.ones_like(active))


def not_sticky(self, logits, step=StaticSearch.step):
    before = self.over.clone()
    step(self, logits)
    self.over.logical_and_(~before)


def flags_rebound(self, logits, step=StaticSearch.step):
    step(self, logits)
    self.over = self.over.clone()


def early_release(self, collect=StaticRun.collect):
    """Give back pages of requests that have run once, whose end is not known yet."""
    for job in self.running:
        if job.joined < self.runs and not getattr(job, "released", False):
            job.released = True
            self.decoder.cache.release(job.admission)
    with mock.patch.object(self, "release", lambda job: None if getattr(job, "released", False) else free(self, job)):
        collect(self)


def free(run, job):
    run.decoder.cache.release(job.admission)


def forgets_histories(self, other, theirs, mine, take=StaticCache.take):
    take(self, other, theirs, mine)
    self.slot_table[self.rows_of(mine)] = 0


FAULTS = {
    "a stale length": (lambda: mock.patch.object(StaticCache, "advance", number_of_steps), None),
    "a moved table": (lambda: mock.patch.object(StaticCache, "join", moved_table), None),
    "moved flags": (lambda: mock.patch.object(StaticDecoder, "join", moved_flags), None),
    "a host read": (lambda: before_step(lambda search, logits: bool(search.over.all()) or None), Reason.HOST_READ),
    "no scratch slot": (lambda: mock.patch.object(StaticCache, "begin", no_scratch), None),
    "pages freed a replay too early": (lambda: mock.patch.object(StaticRun, "collect", early_release), None),
    "a copy from the host": (
        lambda: before_step(lambda _, logits: logits + torch.tensor([0.0], dtype=torch.float32, device="cpu")),
        Reason.HOST_COPY,
    ),
    "a shape of values": (
        lambda: before_step(lambda search, logits: logits + 0 * search.over.nonzero().sum()),
        Reason.SHAPE,
    ),
    "flags that are not sticky": (lambda: mock.patch.object(StaticSearch, "step", not_sticky), None),
    "units that advance after their end": (
        lambda: mock.patch.object(
            StaticCache, "advance", lambda self, active, advance=StaticCache.advance: advance(self, active | True)
        ),
        None,
    ),
    "tables left exchanged": (lambda: mock.patch.object(recorded_step, "two_steps", StaticDecoder.step), Reason.MOVED),
    "a tensor that outlives the step": (lambda: before_step(lambda search, x: vars(search).update(x=x)), Reason.OUTLIVES),
    "a buffer that a step replaces": (lambda: mock.patch.object(StaticSearch, "step", flags_rebound), Reason.OUTLIVES),
    "histories lost in a move": (lambda: mock.patch.object(StaticCache, "take", forgets_histories), None),
}  # fmt: skip


@exact
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found(name):
    fault, reason = FAULTS[name]
    for seed in range(25):
        outcome = expected(seed)
        try:
            with fault():
                found = run_workload(seed, RecordedSteps) != outcome
        except CaptureError as error:
            assert error.reason is reason
            return
        except (AssertionError, IndexError, RuntimeError, ValueError):
            found = True
        if found:
            assert reason is None
            return
    pytest.fail(f"{name} was not found")
