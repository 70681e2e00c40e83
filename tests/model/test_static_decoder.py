"""The static decoder: its steps, recorded and replayed, give what plain searches give, bit for bit."""

from __future__ import annotations

import copy
import random
from unittest import mock

import pytest
import torch
from bertgen.kernels.plain import is_intercepted

from bertgen import Int4Config
from bertgen.cache.static_cache import StaticCache
from bertgen.decoding.static_search import StaticSearch
from bertgen.errors import InputError
from bertgen.model.static_decoder import StaticDecoder
from bertgen.ops.operators import DecoderStep
from tests.support import recorded_step, static_runs
from tests.support.eager_steps import EagerSteps
from tests.support.recorded_step import CaptureError, Reason, RecordedSteps, buffers
from tests.support.static_workloads import (
    LONGEST,
    MODELS,
    OPTIONS,
    SOURCE,
    START,
    StaticRun,
    Workload,
    expected,
    layers_one_by_one,
    model,
    quantize_decoder,
    rows_are_independent,
    run_workload,
)

IN_ONE_CALL = DecoderStep.why_not  # before it is patched
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
    assert not [seed for seed in range(1000, 1020) if differs(seed, EagerSteps)]
    with mock.patch.object(DecoderStep, "why_not", IN_ONE_CALL):
        assert not [seed for seed in range(1020, 1040) if differs(seed, EagerSteps)]


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


def joined(kind, seed, full=True):
    """A static decoder of greedy, sampling and beam search with some units running, and its cache."""
    work, r = Workload(0), random.Random(seed)
    if kind == "nf4":
        work.model = copy.deepcopy(model("bert-generation"))
        quantize_decoder(work.model, Int4Config("nf4", group_size=32))
    elif kind == "bfloat16":
        work.model = copy.deepcopy(model("roberta")).bfloat16()
    else:
        work.model = model(kind)
    chosen = {}, dict(do_sample=True, top_k=9, temperature=2.0), dict(num_beams=3, no_repeat_ngram_size=2)
    work.options = [work._options(options, True) for options in chosen]
    with mock.patch.object(work.r, "random", lambda: 0.0 if full else 1.0):
        cache = work.cache()
    decoder = StaticDecoder(work.model.decoder, cache, [(work.search(i), 2) for i in range(3)], LONGEST, SOURCE)
    for index in range(3):
        join(work, decoder, cache, index, r)
    return work, decoder, cache


def join(work, decoder, cache, index, r):
    ids = [r.randrange(3, 40) for _ in range(r.randint(1, SOURCE))]
    admission = cache.admit(decoder.searches[index].width, LONGEST - 1, r.getrandbits(30), len(ids))
    work.model.prefill(torch.tensor([ids]), None, cache, [admission])
    unit = decoder.searches[index].free_units(1)[0]
    keys = torch.tensor([[r.randrange(9), r.randrange(9), LONGEST]]).unbind(1)
    decoder.join(index, [unit], [admission], torch.tensor([[START]]), [admission], *keys)


@pytest.mark.parametrize("kind", [*MODELS, "nf4", "bfloat16"])
@torch.inference_mode()
def test_replays_and_steps_leave_the_same_in_every_buffer(kind):
    (_, plain, first), (work, decoder, second) = joined(kind, 1), joined(kind, 1)
    eager, recorded = EagerSteps(plain), RecordedSteps(decoder)
    for more in range(3):
        assert eager.run(4) == recorded.run(4) == 4
        for one, cache in ((plain, first), (decoder, second)):
            join(work, one, cache, more, random.Random(more)) if more < 2 else one.leave(2, [0])
    eager.run(2), recorded.run(2)
    assert recorded.captures == 1
    theirs, ours = buffers(plain), buffers(decoder)
    assert len(ours) > 40 and ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


@torch.inference_mode()
def test_steps_from_python_stop_where_a_unit_ends():
    _, decoder, _ = joined("bert-generation", 3)
    steps = EagerSteps(decoder)
    assert decoder.units == 6 and steps.flags() == (0, [False, True] * 3)
    done = steps.run(20, stop_when_over=True)
    assert 0 < done < LONGEST and sum(steps.flags()[1]) > 3 and steps.flags()[0] == 1
    while not all(steps.flags()[1]):
        assert steps.run(5) == 5
    first = decoder.searches[0].results(torch.tensor([0]))
    steps.run(3)
    assert decoder.searches[0].results(torch.tensor([0])) == first and len(first[0][0][0]) < LONGEST


@torch.inference_mode()
def test_flags_of_replays_are_those_of_the_run_before():
    _, decoder, _ = joined("bert-generation", 3)
    steps = RecordedSteps(decoder)
    assert steps.flags() == (0, [False] * 6)
    steps.run(2)
    first = decoder.over.tolist()
    assert steps.flags()[0] == 0
    steps.run(14)
    assert steps.flags() == (1, first)
    steps.run(2)
    assert steps.flags() == (2, [True] * 6)


@torch.inference_mode()
def test_a_recording_is_made_again_where_the_pools_of_a_cpu_have_grown():
    work, decoder, cache = joined("bert", 4, full=False)
    steps = RecordedSteps(decoder)
    steps.run(2), steps.run(2)
    assert steps.captures == 1
    join(work, decoder, cache, 2, random.Random(0))
    steps.run(2)
    assert steps.captures == 2


# Faults: a patch of the code, and how it is found: by the reason of a CaptureError, or by other outcomes. Stale values
# and moved tables are right in steps that Python calls.


def before_step(extra):
    """Run `extra(search, logits)` before each step of a search; its result, if any, takes the place of the logits."""

    def step(self, logits, step=StaticSearch.step):
        changed = extra(self, logits)
        step(self, logits if changed is None else changed)

    return mock.patch.object(StaticSearch, "step", step)


def moved_table(self, units, admissions, join=StaticCache.join):
    self.own_slots = self.own_slots.clone()
    join(self, units, admissions)


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
    if is_intercepted():  # the steps before the capture are right
        self.over = self.over.clone()


def early_release(self, collect=StaticRun.collect):
    """Give back pages of requests that have run once, whose end is not known yet."""
    for job in self.running:
        if job.joined < self.runs and not getattr(job, "released", False):
            job.released = True
            self.decoder.cache.allocator.release(job.admission.request)
    with mock.patch.object(self, "release", lambda job: None if getattr(job, "released", False) else free(self, job)):
        collect(self)


def free(run, job):
    run.decoder.cache.allocator.release(job.admission.request)


def forgets_histories(self, other, theirs, mine, take=StaticCache.take):
    take(self, other, theirs, mine)
    self.slot_table[self.rows_of(mine)] = 0


FAULTS = {
    "a stale length": (lambda: mock.patch.object(StaticCache, "advance", number_of_steps), None),
    "a moved table": (lambda: mock.patch.object(StaticCache, "join", moved_table), None),
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
    "a tensor that outlives the step": (
        lambda: before_step(lambda search, logits: vars(search).update(kept=logits)), Reason.OUTLIVES
    ),
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


@exact
@pytest.mark.parametrize("name", ["a stale length", "a moved table"])
def test_what_only_a_replay_shows_is_right_in_steps_from_python(name):
    with FAULTS[name][0]():
        assert not [seed for seed in range(6) if differs(seed, EagerSteps)]


@torch.inference_mode()
def test_an_output_that_its_admission_cannot_hold_is_refused():
    """Its rows would write slots of others."""
    groups = [(dict(num_beams=2, max_length=static_runs.POSITIONS, eos_token_id=1), 2, False)]
    run = static_runs.StaticRun(static_runs.make_model(random.Random(1)), groups, 0)
    one = run.pools.admit(2, 9, 0, 3)
    start = torch.tensor([[START]])
    for limits in (None, torch.tensor([11])):
        with pytest.raises(InputError, match="its rows have 9 positions"):
            run.decoder.join(0, [0], [one], start, [0], limits=limits)
    assert run.decoder.searches[0].owners == [None, None]
    run.decoder.join(0, [0], [one], start, [0], limits=torch.tensor([10]))
    assert not run.decoder.over[0] and int(run.decoder.cache.own_slots[:2].max()) == -1  # not known yet
