"""A made-up model whose steps take no time, requests for it, and what each of them gives alone."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import torch

from bertgen import BertGenerationDecoder, GenerationConfig
from bertgen.cache.block_allocator import Violation
from bertgen.decoding import resolve_generation_config
from bertgen.engine import Engine, Request

VOCABULARY, START, END, POSITIONS = 13, 2, 1, 64
SLOT = 2 * 4  # bytes: a key and a value of one number, of one layer
BASE = GenerationConfig(decoder_start_token_id=START, eos_token_id=END, pad_token_id=0, max_length=20)


class Model(torch.nn.Module):
    """Logits that depend on the source, the last token and the position of a row; no layers, no weights."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        super().__init__()
        self.eval()
        half = SimpleNamespace(
            num_hidden_layers=1, num_attention_heads=1, head_dim=1, hidden_size=1, max_tokens=POSITIONS,
            vocab_size=VOCABULARY, first_position=0,
        )  # fmt: skip
        self.config = SimpleNamespace(encoder=half, decoder=half)
        self.table = torch.randn(7, VOCABULARY, POSITIONS, VOCABULARY, generator=torch.Generator().manual_seed(0))
        self.table[..., END] += 0.5
        stack = SimpleNamespace(layer=[None], check_sources=lambda: None)
        body = SimpleNamespace(encoder=stack, embeddings=None, packed=self.packed)
        self.decoder = SimpleNamespace(config=half, body=body, head=self.head)
        self.decoder.step = partial(BertGenerationDecoder.step, self.decoder)
        self.encodings, self.failing = [], 0
        self.sums = {}  # of each source, by its row in the table of sources

    def refuse_hooks(self):
        pass

    def prefill(self, ids, mask, cache, admissions):
        self.encodings.append([row[: int(n)].tolist() for row, n in zip(ids, mask.sum(1))])
        cache.begin_sources(admissions)

    def packed(self, ids, positions, context):
        self.failing -= 1
        if self.failing == 0:
            raise torch.OutOfMemoryError("out of memory")
        lengths = context.cache._source_lengths[context.cache._sources.clamp(min=0)]
        return torch.stack((lengths.long() % 7, ids, positions))

    def head(self, hidden):
        return self.table[tuple(hidden)]


def options(**values):
    return resolve_generation_config(GenerationConfig(**values).over(BASE))


KINDS = [
    options(), options(max_length=9), options(num_beams=3), options(num_beams=4, num_return_sequences=2),
    options(num_beams=2, early_stopping=True, length_penalty=0.3), options(no_repeat_ngram_size=2),
    options(do_sample=True, temperature=2.0), options(do_sample=True, num_return_sequences=3, top_k=5),
    options(do_sample=True, num_beams=3), options(num_beams=4, num_beam_groups=2, diversity_penalty=0.5),
    options(min_length=8, repetition_penalty=1.5), options(encoder_no_repeat_ngram_size=2),
    options(forced_eos_token_id=6, max_length=7), options(forced_eos_token_id=6, max_length=12),
]  # fmt: skip


def requests(r, count, kinds=KINDS):
    sources = [[r.randrange(5, VOCABULARY) for _ in range(r.randint(1, 30))] for _ in range(max(1, count // 2))]
    return [
        Request(r.choice(sources), r.choice(kinds), seed=3, number=i, scored=r.random() < 0.3) for i in range(count)
    ]


def result(request):
    """Outputs and scores."""
    return request.outputs, [None if score is None else round(score, 4) for score in request.scores]


def alone(request):
    """What a new request of the same options gives in an engine without other requests."""
    engine, done = Engine(Model()), []
    engine.submit([dataclasses.replace(request)], done.append)
    while not done:
        engine.step()
    return result(done[0])


def drive(engine, done, count):
    """Step until `count` requests are done; every step makes progress."""
    while len(done) < count:
        before = engine._counts.row_steps, len(done), engine._counts.restarts
        engine.step()
        assert (engine._counts.row_steps, len(done), engine._counts.restarts) != before
        assert engine.cache.allocator.check() == Violation.SOUND
    assert not engine.busy and engine.statistics.pages_used == 0 and engine.cache.rows == 0
    assert not engine.scheduler._sources and not engine.scheduler._groups and not engine._batch.groups
