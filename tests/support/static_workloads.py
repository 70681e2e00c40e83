"""Random work for static decoders: requests that join, leave and move to other decoders between runs of steps.

`run_workload(seed, make_steps)` drives a `StaticDecoder` as an engine does, with any kind of `Steps`; `expected(seed)`
decodes the same requests with the plain searches. Both return the outputs and scores of each request that is not
cancelled; they must be equal bit for bit, where products of rows do not depend on other rows (`rows_are_independent`).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from bertgen.kernels.linear import few_rows

from bertgen import (
    BertConfig,
    BertGenerationConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GenerationConfig,
    Int4Config,
    RobertaConfig,
)
from bertgen.cache.block_allocator import Admission, Violation
from bertgen.cache.cache import Cache
from bertgen.decoding import resolve_generation_config, step_searches
from bertgen.decoding.search import Search
from bertgen.engine import Request
from bertgen.engine.search_group import SearchGroup
from bertgen.layers.linear import Int4Linear
from bertgen.model.batch_decoder import BatchDecoder
from bertgen.model.static_decoder import StaticDecoder, Steps
from bertgen.ops import extension
from bertgen.ops.operators import DecoderStep
from bertgen.packing import padded

PAD, START, END, VOCABULARY = 0, 2, 1, 40
LONGEST, SOURCE = 12, 9  # tokens of an output with its prefix, and of a source
TINY = dict(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=20, initializer_range=0.5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
CONFIGS = {"bert-generation": BertGenerationConfig, "bert": BertConfig, "roberta": RobertaConfig}
MODELS = [*CONFIGS, "int4"]
Outcome = dict[Any, tuple[list[list[int]], list[float | None]]]

OPTIONS: list[dict[str, Any]] = [
    {},
    dict(repetition_penalty=1.7, min_length=4),
    dict(no_repeat_ngram_size=2, suppress_tokens=[5, 6]),
    dict(bad_words_ids=[[7], [8, 9]], forced_bos_token_id=11),
    dict(sequence_bias=[([12], 2.0), ([3, 4], -1.5)], forced_eos_token_id=END, begin_suppress_tokens=[END]),
    dict(exponential_decay_length_penalty=(3, 1.4), remove_invalid_values=True),
    dict(do_sample=True),
    dict(do_sample=True, temperature=0.7, top_k=5),
    dict(do_sample=True, top_p=0.8, num_return_sequences=2),
    dict(do_sample=True, min_p=0.1, temperature=1.5, no_repeat_ngram_size=3),
    dict(num_beams=2),
    dict(num_beams=3, length_penalty=2.0, num_return_sequences=2),
    dict(num_beams=4, early_stopping=True),
    dict(num_beams=2, early_stopping="never", repetition_penalty=1.3),
    dict(num_beams=3, no_repeat_ngram_size=2, length_penalty=0.0),
    dict(num_beams=2, min_length=5, renormalize_logits=True),
    dict(num_beams=2, eos_token_id=[END, 4, 13]),
]


@functools.cache
def model(kind: str) -> EncoderDecoderModel:
    """A small model that ends many of its outputs early."""
    torch.manual_seed(0)
    half = CONFIGS.get(kind, BertGenerationConfig)
    config = EncoderDecoderConfig(
        encoder=half(**TINY), decoder=half(**TINY, is_decoder=True, add_cross_attention=True),
        pad_token_id=PAD, decoder_start_token_id=START, eos_token_id=END,
    )  # fmt: skip
    made = EncoderDecoderModel(config).eval()
    with torch.no_grad():
        made.decoder.get_output_embeddings().bias[END] += 3.0
    if kind == "int4":
        quantize_decoder(made, Int4Config(group_size=32, compute_dtype="int8"))
    return made.eval()


def quantize_decoder(made: EncoderDecoderModel, config: Int4Config) -> None:
    """Give the layers of the decoder weights in 4 bits."""
    for part in [*made.decoder.body.encoder.modules()]:
        for name, child in [*part.named_children()]:
            if type(child) is torch.nn.Linear:
                setattr(part, name, Int4Linear.from_linear(child, config))


def rows_are_independent() -> bool:
    """Whether the products of a row are the same bit for bit, whatever other rows there are."""
    return extension.available() and few_rows() >= 24


@dataclass
class Job:
    """A request of a workload.

    Attributes:
        kind: which of the workload's options.
        limit: of its outputs, with their prefix.
        after: the run before which it arrives. cancelled: the run before which it is cancelled.
        admission: while it runs. units: those that it still has, and the rows of its output that they decode.
        joined: runs before it joined.
    """

    number: int
    ids: list[int]
    kind: int
    seed: int
    limit: int
    after: int
    cancelled: int | None
    admission: Admission | None = None
    units: dict[int, int] = field(default_factory=dict)
    joined: int = 0


class Workload:
    """The requests and decisions of a seed."""

    def __init__(self, seed: int):
        r = self.r = random.Random(seed)
        self.model = model(r.choice(MODELS))
        # Rows of all searches together stay few.
        self.options = [self._options(r.choice(OPTIONS), r.random() < 0.3) for _ in range(1 if r.random() < 0.7 else 2)]
        self.jobs = [
            Job(
                number, [r.randrange(3, VOCABULARY) for _ in range(r.randint(1, SOURCE))],
                r.randrange(len(self.options)),
                r.randrange(-5, 5), r.randint(2, LONGEST), r.choice((0, 0, 1, 2, 3, 4, 5)),
                r.randint(1, 5) if r.random() < 0.15 else None,
            )
            for number in range(r.randint(3, 7))
        ]  # fmt: skip

    def _options(self, chosen: dict[str, Any], scored: bool) -> tuple[GenerationConfig, bool]:
        base = GenerationConfig(decoder_start_token_id=START, eos_token_id=END, pad_token_id=PAD, max_length=LONGEST)
        return resolve_generation_config(GenerationConfig(**chosen).over(base)), scored

    def search(self, kind: int) -> Search:
        """A search without units."""
        options, scored = self.options[kind]
        return SearchGroup(Request([3], options, scored=scored), self.model).search

    def copies(self, kind: int) -> int:
        """Units of a request."""
        options = self.options[kind][0]
        return options.num_return_sequences if options.num_beams == 1 else 1

    def cache(self) -> Cache:
        """Empty, with less room than all requests need at once."""
        decoder, model = self.model.config.decoder, self.model
        return Cache(
            decoder.num_hidden_layers, decoder.num_attention_heads, decoder.head_dim, model.dtype, model.device,
            rows=24, positions=LONGEST - 1, source_positions=SOURCE, source_slots=12 * 16,
            full=self.r.random() < 0.8,  # as on a GPU
        )  # fmt: skip


def expected(seed: int) -> Outcome:
    """The outcome of plain searches, which decode all requests of equal options together."""
    work, outcome = Workload(seed), {}
    with torch.inference_mode():
        for kind in range(len(work.options)):
            jobs, search = [job for job in work.jobs if job.kind == kind], work.search(kind)
            if jobs:
                outcome.update(_plain(work, search, jobs))
    return {owner: result for owner, result in outcome.items() if work.jobs[owner[0]].cancelled is None}


def _plain(work: Workload, search: Search, jobs: list[Job]) -> Outcome:
    cache = Cache(
        *(len(work.model.decoder.body.encoder.layer), work.model.config.decoder.num_attention_heads),
        work.model.config.decoder.head_dim, torch.float32, work.model.device,
        rows=64, positions=LONGEST - 1, source_positions=SOURCE, source_slots=64 * 16,
    )  # fmt: skip
    rows = max(search.options.num_beams, search.options.num_return_sequences)
    admissions = [cache.admit(rows, job.limit - 1, job.number, len(job.ids)) for job in jobs]
    _prefill(work, cache, list(zip(jobs, admissions)))
    cache.join(admissions)
    keys = [[job.seed, job.number, job.limit] for job in jobs]
    start = torch.full((len(jobs), 1), START, dtype=torch.int64)
    owners = [(job.number, 0) if search.width > 1 or work.copies(job.kind) == 1 else job.number for job in jobs]
    search.join(start, owners, *torch.tensor(keys, dtype=torch.int64).unbind(1))
    decoder, outcome = BatchDecoder(work.model, cache), {}
    while search.owners:
        step_searches(decoder, [search])
        ended = search.ended()
        for unit, result in zip(ended.tolist(), search.results(ended)):
            outcome[search.owners[unit]] = result
        if len(ended):
            cache.select(search.leave(ended))
    return outcome


def _prefill(work: Workload, cache: Cache, entering: list[tuple[Job, Admission]]) -> None:
    for job, one in entering:
        if one.new_source:  # each alone: the products of an encoder's batch depend on its size
            ids, mask = padded([job.ids], 0, work.model.device)
            work.model.prefill(ids, mask, cache, [one])


def run_workload(seed: int, make_steps: Callable[[StaticDecoder], Steps]) -> Outcome:
    """The outcome of a static decoder whose steps `make_steps` makes. All slots are free in the end."""
    with torch.inference_mode():
        return StaticRun(Workload(seed), make_steps).outcome()


def layers_one_by_one() -> Any:
    """A context in which a decoder calls its layers, as on a GPU, and not all of them in one call of the extension."""
    return mock.patch.object(DecoderStep, "why_not", lambda self, x: "the layers are called one by one")


class StaticRun:
    """Drives a static decoder; whether a unit is over is known from the flags only."""

    def __init__(self, work: Workload, make_steps: Callable[[StaticDecoder], Steps]):
        self.work, self.r, self.make_steps = work, work.r, make_steps
        self.cache = work.cache()
        self.waiting = [*work.jobs]
        self.running: list[Job] = []
        self.runs = self.first_run = 0  # in all, and before those of the present Steps
        self.results: Outcome = {}
        self.decoder = self._new_decoder([self.r.randint(1, 2) for _ in work.options], SOURCE)
        self.steps = make_steps(self.decoder)

    def _new_decoder(self, units: list[int], source_width: int) -> StaticDecoder:
        searches = [(self.work.search(kind), count) for kind, count in enumerate(units)]
        units = [count * self.work.copies(kind) for kind, count in enumerate(units)]
        searches = [(search, count) for (search, _), count in zip(searches, units)]
        return StaticDecoder(self.work.model.decoder, self.cache, searches, LONGEST, source_width)

    def outcome(self) -> Outcome:
        while self.waiting or self.running:
            if self.r.random() < 0.06:
                self.move()
            self.cancel()
            self.join()
            self.steps.run(self.r.choice((2, 2, 4, 6)), stop_when_over=self.r.random() < 0.3)
            self.runs += 1
            assert self.runs < 60, "units do not end"
            assert self.cache.allocator.check() == Violation.SOUND
            self.collect()
        used = self.cache.allocator.statistics()
        assert used.pages_used == used.rows_used == used.source_pages_used == used.requests == used.pages_reserved == 0
        return {owner: result for owner, result in self.results.items() if self.work.jobs[owner[0]].cancelled is None}

    def join(self) -> None:
        """Let requests join that have arrived and fit."""
        entering: dict[int, list[tuple[Job, list[int]]]] = {}
        for job in [job for job in self.waiting if job.after <= self.runs or not self.running]:
            search, copies = self.decoder.searches[job.kind], self.work.copies(job.kind)
            taken = sum(copies for _ in entering.get(job.kind, ()))
            units = search.free_units(taken + copies)
            if units is None or len(job.ids) > self.decoder.cache.source_width:
                continue
            admission = self.cache.admit(search.width * copies, job.limit - 1, job.number, len(job.ids))
            if admission is None:
                continue
            job.admission, job.joined = admission, self.runs
            job.units = {unit: i for i, unit in enumerate(units[taken:])}
            entering.setdefault(job.kind, []).append((job, units[taken:]))
        for kind, jobs in entering.items():
            _prefill(self.work, self.cache, [(job, job.admission) for job, _ in jobs])
            width = self.decoder.searches[kind].width
            each = [(job, i, part) for job, _ in jobs for i, part in enumerate(job.admission.split(width))]
            self.decoder.join(
                kind, [unit for _, units in jobs for unit in units], [part for *_, part in each],
                torch.full((len(each), 1), START, dtype=torch.int64), [(job.number, i) for job, i, _ in each],
                torch.tensor([job.seed for job, *_ in each], dtype=torch.int64),
                torch.tensor([job.number + (i << 40) for job, i, _ in each], dtype=torch.int64),
                torch.tensor([job.limit for job, *_ in each], dtype=torch.int64),
            )  # fmt: skip
            for job, _ in jobs:
                self.waiting.remove(job)
                self.running.append(job)

    def cancel(self) -> None:
        """Drop requests, whether they run or not."""
        for job in [job for job in (*self.waiting, *self.running) if job.cancelled == self.runs]:
            if job in self.waiting:
                self.waiting.remove(job)
            else:
                self.leave(job, [*job.units])

    def collect(self) -> None:
        """Take the results of units that are known to be over."""
        run, over = self.steps.flags()
        run += self.first_run
        first = 0
        for kind, search in enumerate(self.decoder.searches):
            for job in [job for job in self.running if job.kind == kind and job.joined < run]:
                ended = [unit for unit in job.units if over[first + unit]]
                if ended:
                    for unit, result in zip(ended, search.results(torch.tensor(ended))):
                        self.results[search.owners[unit]] = result
                    self.leave(job, ended)
            first += search.units

    def leave(self, job: Job, units: list[int]) -> None:
        self.decoder.leave(job.kind, units)
        for unit in units:
            del job.units[unit]
        if not job.units:
            self.running.remove(job)
            self.release(job)

    def release(self, job: Job) -> None:
        self.decoder.cache.allocator.release(job.admission.request)

    def move(self) -> None:
        """Continue in another decoder, with another number of units and another width of sources."""
        copies = [self.work.copies(kind) for kind in range(len(self.work.options))]
        jobs = [[job for job in self.running if job.kind == kind] for kind in range(len(copies))]
        most = 8 // len(copies)
        units = [self.r.randint(max(1, len(jobs[kind])), max(most, len(jobs[kind]))) for kind in range(len(copies))]
        while sum(s.width * n * c for s, n, c in zip(self.decoder.searches, units, copies)) > 24:
            kind = self.r.randrange(len(units))
            units[kind] = max(1, len(jobs[kind]), units[kind] - 1)
            if units == [max(1, len(one)) for one in jobs]:
                break
        used = max([len(job.ids) for job in self.running], default=1)
        other = self._new_decoder(units, self.r.choice((SOURCE, max(used, SOURCE - 3))) if self.waiting else used)
        if any(len(job.ids) > other.cache.source_width for job in self.waiting):
            other = self._new_decoder(units, SOURCE)
        for kind in range(len(copies)):
            theirs = [unit for job in jobs[kind] for unit in job.units]
            mine = self.r.sample(range(other.searches[kind].units), len(theirs))
            other.take(kind, self.decoder, kind, theirs, mine)
            places = dict(zip(theirs, mine))
            for job in jobs[kind]:
                job.units = {places[unit]: row for unit, row in job.units.items()}
        self.decoder, self.steps, self.first_run = other, self.make_steps(other), self.runs
