"""StaticSearch beside the searches that grow: the same tokens and scores, bit for bit, in tensors that never move."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import torch

from bertgen import GenerationConfig
from bertgen.decoding import (
    KeyedRng,
    Search,
    StaticSearch,
    TorchRng,
    resolve_generation_config,
    search_class,
    why_not_static,
)
from bertgen.decoding.logits_processors import build_logits_processors
from bertgen.decoding.stopping_criteria import StoppingCriteriaList
from tests.support.host_reads import HostRead, RefuseHostReads, no_host_reads

START, POSITIONS, SOURCES, USED = 2, 14, 5, 24


def new_search(
    options: GenerationConfig, vocabulary: int, scored: bool = False, rng: Any = None, **more: Any
) -> Search:
    processors = build_logits_processors(options, vocabulary, torch.tensor([[START]]), **more)
    return search_class(options)(options, processors, StoppingCriteriaList(), rng or KeyedRng(), scored)


def resolved(**options: Any) -> GenerationConfig:
    base = GenerationConfig(bos_token_id=START, eos_token_id=1, pad_token_id=0, max_length=POSITIONS, top_k=0)
    return resolve_generation_config(GenerationConfig(**options).over(base))


def new_static(search: Search, units: int, positions: int = POSITIONS) -> StaticSearch:
    rows = units * search.width
    over = torch.zeros(units, dtype=torch.bool)
    tokens, parents = torch.zeros(rows, 1, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
    return StaticSearch(search, units, positions, over, tokens, parents)


def random_options(r: random.Random) -> dict[str, Any]:
    kind = r.choice(["greedy", "sample", "beams", "beams"])
    ends = r.choice([[1], [1, 7], [1, 5, 9], [1, 3, 4, 6, 8, 9, 10, 11, 12, 13, 14]])
    options: dict[str, Any] = dict(eos_token_id=ends)
    if r.random() < 0.05:
        options = dict(eos_token_id=None)
    if kind == "sample":
        options["do_sample"] = True
        some = dict(temperature=r.choice([0.4, 1.6]), top_k=r.randint(1, 12), top_p=r.random(), min_p=r.random() / 4)
        options.update((name, value) for name, value in some.items() if r.random() < 0.5)
    if kind == "beams":
        options["num_beams"] = r.randint(2, 6)
        options["num_return_sequences"] = r.randint(1, options["num_beams"])
        options["early_stopping"] = r.choice([True, False, "never"])
    options["length_penalty"] = r.choice([0.0, 1.0, -0.7, 0.6, 2.0])
    processors = dict(
        sequence_bias=[[[5], -1.5], [[4, 5], 2.0], [[6, 4, 5], -torch.inf]], repetition_penalty=r.choice([0.8, 1.4]),
        no_repeat_ngram_size=r.randint(1, 3), bad_words_ids=[[8, 8], [13]], min_new_tokens=r.randint(1, 5),
        forced_bos_token_id=6, forced_eos_token_id=[1, 10], remove_invalid_values=True,
        exponential_decay_length_penalty=(r.randint(0, 3), r.choice([1.2, 0.9])), suppress_tokens=[12, 3],
        begin_suppress_tokens=[11, 9],
    )  # fmt: skip
    if r.random() < 0.6:
        options.update((name, value) for name, value in processors.items() if r.random() < 0.35)
    if not options.get("do_sample") and r.random() < 0.2:
        options["renormalize_logits"] = True
    if options["eos_token_id"] is None:
        options.pop("exponential_decay_length_penalty", None)
    return options


class Rows:
    """A decoder of fixed tables: logits depend on the source of a row and on the last two tokens of its history."""

    def __init__(self, table: torch.Tensor):
        self.table = table
        self.sources = torch.zeros(0, dtype=torch.int64)
        self.before = torch.zeros(0, dtype=torch.int64)  # the token before the newest

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table[self.sources, self.before % USED, tokens % USED]


class Workload:
    """Random joins, leaves, ends and moves of a StaticSearch and of a Search, step by step.

    Args:
        same_limits: every output has the maximum length of the options.
    """

    def __init__(self, seed: int):
        self.r = r = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        self.vocabulary = 1100 if seed % 20 == 0 else 24
        self.options = resolved(**random_options(r))
        self.scored = r.random() < 0.5
        self.table = 2 * torch.randn(SOURCES, USED, USED, self.vocabulary, generator=generator)
        self.table[..., USED:] -= 9.0
        if r.random() < 0.3:
            self.table[torch.rand(self.table.shape, generator=generator) < 0.1] = -torch.inf
        self.plain = self.new_search()
        self.static = new_static(self.new_search(), r.randint(1, 5))
        self.width = self.static.width
        self.plain_rows, self.static_rows = Rows(self.table), Rows(self.table)
        self._resize(self.static.units)
        self.number, self.finished, self.moves = 0, 0, 0
        self.expected: dict[int, Any] = {}  # results of the plain search at the end of each output
        self.addresses = self.places()

    def new_search(self) -> Search:
        search = new_search(self.options, self.vocabulary, self.scored)
        assert why_not_static(search) is None
        return search

    def places(self) -> dict[str, int]:
        return {name: tensor.data_ptr() for name, tensor in self.static.state.items()}

    def _resize(self, units: int) -> None:
        zeros = torch.zeros(units * self.width, dtype=torch.int64)
        self.static_rows.sources, self.static_rows.before = zeros, zeros.clone()

    def join(self) -> None:
        free = self.static.owners.count(None)
        count = self.r.randint(0, free)
        assert self.static.free_units(free + 1) is None
        units = self.static.free_units(count)
        if not units:
            return
        owners = [*range(self.number, self.number + count)]
        self.number += count
        sources = torch.tensor([self.r.randrange(SOURCES) for _ in units])
        limits = torch.tensor(
            [POSITIONS if self.options.forced_eos_token_id else self.r.randint(2, POSITIONS) for _ in units]
        )
        keys = torch.tensor([[self.r.randrange(1 << 62), self.r.randrange(1 << 50)] for _ in units]).unbind(1)
        prefix = torch.full((count, 1), START)
        self.plain.join(prefix, owners, *keys, limits)
        self.static.join(units, prefix, owners, *keys, limits)
        repeated = sources.repeat_interleave(self.width)
        rows = self.plain_rows
        rows.sources = torch.cat((rows.sources, repeated))
        rows.before = torch.cat((rows.before, torch.zeros_like(repeated)))
        self.static_rows.sources.view(-1, self.width)[units] = sources[:, None]
        self.static_rows.before.view(-1, self.width)[units] = 0

    def step(self) -> None:
        if self.plain.owners:
            tokens = self.plain.tokens[:, 0]
            self.plain.advance(self.plain_rows.logits(tokens))
            self.plain_rows.before = tokens
            if self.plain.parents is not None:
                assert torch.equal(self.plain_rows.sources, self.plain_rows.sources[self.plain.parents])
                self.plain_rows.before = tokens[self.plain.parents]
        static, rows = self.static, self.static_rows
        over, before = static.over.clone(), {name: x.clone() for name, x in static.state.items()}
        tokens = static.tokens[:, 0].clone()
        logits = rows.logits(tokens)
        kept = logits.clone()
        with no_host_reads():
            static.step(logits)
        assert torch.equal(logits, kept)
        rows.before = tokens[static.parents]
        for name, tensor in static.state.items():
            new, old = (x.unflatten(0, (static.units, -1))[over] for x in (tensor, before[name]))
            if name == "parents":
                old = torch.arange(len(tensor)).view(static.units, -1)[over]
            assert torch.equal(new, old), f"{name} of a unit that is over"
        assert int(static.tokens.min()) >= 0 and int(static.tokens.max()) < self.vocabulary
        assert self.places() == self.addresses

    def compare(self) -> None:
        """What the searches hold, and the results of those that have ended; some of these leave."""
        static, plain, owners = self.static, self.plain, self.plain.owners
        units = [static.owners.index(owner) for owner in owners]
        ended = set(plain.ended().tolist() if owners else ())
        assert [unit for unit in range(static.units) if static.owners[unit] is None or static.over[unit]] == sorted(
            {*range(static.units)} - {units[i] for i in range(len(units)) if i not in ended}
        )
        if not owners:
            return
        live = [i for i in range(len(units)) if i not in ended]
        rows = static.tokens.view(-1, self.width)
        assert torch.equal(plain.tokens.view(-1, self.width)[live], rows[[units[i] for i in live]])
        assert plain.lengths[live].tolist() == static.lengths[[units[i] for i in live]].tolist()
        if "running_scores" in static.state:
            assert torch.equal(plain.running_scores[live], static.search.running_scores[[units[i] for i in live]])
        for i in ended:
            # Later steps of the plain search may change the order of equal hypotheses.
            self.expected.setdefault(owners[i], plain.results(torch.tensor([i]))[0])
        leaving = [i for i in range(len(units)) if self.r.random() < (0.7 if i in ended else 0.03)]
        if not leaving:
            return
        done = [i for i in leaving if i in ended]
        got = static.results(torch.tensor([units[i] for i in done], dtype=torch.int64))
        assert got == [self.expected[owners[i]] for i in done]
        self.finished += len(done)
        kept = plain.leave(torch.tensor(leaving))
        self.plain_rows.sources, self.plain_rows.before = (
            x[kept] for x in (self.plain_rows.sources, self.plain_rows.before)
        )
        static.leave([units[i] for i in leaving])

    def move(self) -> None:
        """Go on in a StaticSearch of another size."""
        old, rows = self.static, self.static_rows
        theirs = [unit for unit, owner in enumerate(old.owners) if owner is not None]
        units = self.r.randint(max(1, len(theirs)), 6)
        self.static = new_static(self.new_search(), units, POSITIONS + self.r.randint(0, 3))
        mine = self.r.sample(range(units), len(theirs))
        self.static.take(old, theirs, mine)
        sources, before = (x.view(-1, self.width)[theirs] for x in (rows.sources, rows.before))
        self._resize(units)
        rows.sources.view(-1, self.width)[mine], rows.before.view(-1, self.width)[mine] = sources, before
        self.addresses = self.places()
        self.moves += 1


@functools.cache
def run(seed: int, steps: int = 40) -> tuple[int, int]:
    """A workload; returns how many outputs it compared, and how often it moved."""
    workload = Workload(seed)
    for _ in range(steps):
        if workload.r.random() < 0.4:
            workload.join()
        if workload.r.random() < 0.08:
            workload.move()
        workload.step()
        workload.compare()
    return workload.finished, workload.moves


@pytest.mark.parametrize("seed", range(80))
def test_tokens_and_scores_are_those_of_a_search_that_grows(seed):
    run(seed)


def test_the_workloads_reach_what_they_are_for():
    finished, moves = zip(*(run(seed) for seed in range(20)))
    assert sum(finished) > 100 and sum(moves) > 20


SAMPLES = dict(do_sample=True, temperature=0.7, top_k=9, top_p=0.9, min_p=0.02)


def test_a_unit_of_the_buffers_of_a_batch():
    """Buffers that are views: what is behind and before them does not change."""
    over, tokens, parents = torch.zeros(9, dtype=torch.bool), torch.full((18, 1), 5), torch.full((18,), 7)
    search = new_search(resolved(num_beams=2), 24)
    static = StaticSearch(search, 4, POSITIONS, over[2:6], tokens[4:12], parents[4:12])
    static.join([1], torch.tensor([[START]]), ["owner"], limits=torch.tensor([5]))
    for _ in range(6):
        static.step(torch.randn(8, 24, generator=torch.Generator().manual_seed(1)))
    assert over.tolist() == [False, False, True, True, True, True, False, False, False]
    assert (tokens[:4] == 5).all() and (tokens[12:] == 5).all() and (parents[:4] == 7).all()
    assert parents[4:12].tolist() == [*range(8)] and static.results(torch.tensor([1]))[0][0]


def test_several_sequences_of_a_source_are_those_of_the_search():
    options = resolved(num_return_sequences=3, min_new_tokens=5, **SAMPLES)
    plain, static = new_search(options, 24, True), new_static(new_search(options, 24, True), 4)
    prefix, seed, number = torch.tensor([[START]]), torch.tensor([11]), torch.tensor([4])
    plain.join(prefix, ["a"], seed, number)
    numbers = number + (torch.arange(3) << 40)
    static.join([0, 1, 3], prefix.expand(3, 1), plain.owners, seed.expand(3), numbers)
    table = torch.randn(24, 24, generator=torch.Generator().manual_seed(3))
    while plain.advance(table[plain.tokens[:, 0]]):
        static.step(table[static.tokens[:, 0]])
    static.step(table[static.tokens[:, 0]])
    assert static.over.all() and static.results(torch.tensor([0, 1, 3])) == plain.results(torch.arange(3))
    assert len({tuple(outputs[0]) for outputs, _ in plain.results(torch.arange(3))}) == 3


def test_each_unit_has_its_own_limits_of_sampling():
    """As alone, also after a move and where a unit had other limits before."""
    limits = [SAMPLES, dict(temperature=1.7), dict(top_k=2), dict(top_p=0.3), dict(min_p=0.4), dict(temperature=1.0)]
    options = [resolved(**{**one, "do_sample": True, "min_new_tokens": 8}) for one in limits]
    table = 2 * torch.randn(24, 24, generator=torch.Generator().manual_seed(3))
    static = new_static(new_search(options[0], 24), 6)
    prefix, seeds, numbers = torch.full((6, 1), START), torch.arange(6), torch.arange(6)
    for order in ([*range(6)], [*reversed(range(6))]):
        static.leave([*range(6)])
        static.join([*range(6)], prefix, order, seeds, numbers, options=[options[i] for i in order])
        moved = new_static(new_search(options[3], 24), 7)
        static.step(table[static.tokens[:, 0]])
        moved.take(static, [*range(6)], [*range(6)])
        while not moved.over.all():
            moved.step(table[moved.tokens[:, 0]])
        results = moved.results(torch.arange(6))
        for unit, i in enumerate(order):
            alone = new_search(options[i], 24)
            alone.join(prefix[:1], [i], seeds[unit : unit + 1], numbers[unit : unit + 1])
            while alone.advance(table[alone.tokens[:, 0]]):
                pass
            assert results[unit] == alone.results(torch.tensor([0]))[0], limits[i]


def test_a_join_overwrites_all_that_a_unit_has_left():
    for seed in range(20):
        options = resolved(**random_options(random.Random(seed)))
        table = torch.randn(24, 24, generator=torch.Generator().manual_seed(seed))
        used, fresh = (new_static(new_search(options, 24, True), 2) for _ in range(2))
        limit = torch.tensor([POSITIONS])
        for round_, static in ((0, used), (1, used), (1, fresh)):
            if static.owners[1] is not None:
                static.leave([1])
            static.join([1], torch.tensor([[START]]), [round_], torch.tensor([round_]), torch.tensor([5]), limit)
            for _ in range(3 if round_ == 0 else POSITIONS):
                static.step(table[static.tokens[:, 0]] + round_)
        assert used.results(torch.tensor([1])) == fresh.results(torch.tensor([1]))
        for name, tensor in used.state.items():
            rows = (x.unflatten(0, (2, -1))[1] for x in (tensor, fresh.state[name]))
            assert torch.equal(*rows), name


@pytest.mark.parametrize(
    ("options", "more", "reason"),
    [
        (dict(num_beams=4, num_beam_groups=2, diversity_penalty=0.5), {}, "there are 2 groups of beams"),
        (dict(num_beams=2, do_sample=True), {}, "beams are sampled"),
        (dict(do_sample=True), dict(rng=TorchRng()), "a generator of torch"),
        (dict(do_sample=True, typical_p=0.5), {}, "a warper is not one of"),
        (dict(do_sample=True, top_k=5, renormalize_logits=True), {}, "renormalize_logits comes after it"),
        (dict(return_dict_in_generate=True, output_scores=True), {}, "output_scores returns"),
        (dict(return_dict_in_generate=True, num_beams=2), {}, "records the beam"),
        ({}, dict(custom=[lambda history, scores: scores]), "logits_processor of the caller"),
        ({}, dict(allowed=lambda source, tokens: [1]), "prefix_allowed_tokens_fn"),
        (dict(encoder_no_repeat_ngram_size=2), dict(source_ids=torch.tensor([[3, 4]])), "encoder_no_repeat_ngram_size"),
        (SAMPLES, {}, None),
        (dict(do_sample=True, renormalize_logits=True), {}, None),
        (dict(num_beams=20), {}, None),
        ({}, dict(rng=TorchRng()), None),
    ],
    ids=lambda value: "-".join(value) or "none" if isinstance(value, dict) else str(value),
)  # fmt: skip
def test_what_is_not_static_is_named(options, more, reason):
    got = why_not_static(new_search(resolved(**options), 24, **more))
    assert got is None if reason is None else reason in got


def test_criteria_and_sources_are_named():
    options = resolved()
    stopping = search_class(options)(
        options, build_logits_processors(options, 24, torch.tensor([[START]])),
        StoppingCriteriaList([lambda history, scores: False]), KeyedRng(),
    )  # fmt: skip
    assert "a stopping criterion" in why_not_static(stopping)
    begun = new_search(options, 24)
    begun.join(torch.tensor([[START]]), ["owner"])
    assert "has sources" in why_not_static(begun)


def test_the_mode_of_these_tests_refuses_reads_of_the_host():
    x = torch.arange(4)
    reads = [
        lambda: x[0].item(), lambda: bool(x.any()), lambda: x.tolist(), lambda: x.nonzero(), lambda: x[x > 1],
        lambda: x.unique(), lambda: x.masked_select(x > 1), lambda: torch.isin(x, x), lambda: x.cpu(),
        lambda: x.new_tensor([1]), lambda: torch.tensor(3), lambda: x.repeat_interleave(x), lambda: torch.equal(x, x),
        lambda: x.index_put_((x > 1,), x[0]),
    ]  # fmt: skip
    for read in reads:
        with pytest.raises(HostRead), torch.inference_mode(), RefuseHostReads():
            read()
