"""One interface for all engines: the same weights, sources and output lengths in, tokens out.

An output may be longer than requested where an engine cannot stop a single row of a batch. The excess is ignored.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from bertgen.config import EngineConfig, GenerationConfig, Int4Config
from bertgen.convert import convert
from bertgen.decoding import resolve_generation_config
from bertgen.engine import Engine, Request
from bertgen.errors import BackendError
from bertgen.hub import DEMO_MODEL
from bertgen.model import EncoderDecoderModel
from bertgen.optional_imports import load_ctranslate2, load_transformers

from . import memory
from .child import Child
from .workload import END, PAD, START, Budget, Plan, Size, Tokens

PURPOSE = "the comparison"
SHAPES = 256  # maximum number of shapes that a model is compiled for
GRAIN = 32  # sources of a compiled model are padded to multiples of it, to limit the number of shapes


class Run(NamedTuple):
    """The outcome of one run.

    Attributes:
        tokens: output of each source, without the start token.
        seconds: of the whole run.
        requests: latency of each request in seconds: from the start of the run, or with batch 1 from its own start.
        gaps: seconds between consecutive tokens of a request; empty where the engine has no step callback.
        loaded, peak: bytes allocated before the run, and at most during it; None where the system has no figure.
    """

    tokens: Tokens
    seconds: float
    requests: list[float]
    gaps: list[float]
    loaded: int | None
    peak: int | None


class Contender:
    """An engine with the model loaded.

    Attributes:
        device: on which it runs.
        ends: latency of each request of the last run. marks: of each batch, the time of its start and of the end of
            each step.
    """

    device = torch.device("cpu")
    ends: dict[int, float] = {}  # noqa: RUF012 (replaced, never changed)
    marks: list[list[float]] = []  # noqa: RUF012

    def run(self, sources: Tokens, lengths: list[int], beams: int, batch: int) -> Tokens:
        """The output of each source without the start token, at least as long as requested.

        Args:
            batch: sources that are decoded together, or a Budget.
        """
        raise NotImplementedError

    def warm(self, sources: Tokens, lengths: list[int], beams: int, batch: int) -> None:
        """A short warm-up run."""
        few = slice(0, 1 if batch == 1 else min(batch, len(sources)))
        self.run(sources[few], [min(4, n) for n in lengths[few]], beams, batch)

    def measured(self, sources: Tokens, lengths: list[int], beams: int, batch: int) -> Run:
        """A measured run, after a warm-up run."""
        self.warm(sources, lengths, beams, batch)
        self.ends, self.marks = {}, []
        loaded = memory.reset(self.device)
        start = time.perf_counter()
        tokens = self.run(sources, lengths, beams, batch)
        spent = time.perf_counter() - start
        gaps = [b - a for marks in self.marks for a, b in itertools.pairwise(marks[1:])]
        return Run(tokens, spent, list(self.ends.values()), gaps, loaded, memory.peak(self.device))

    def begin(self) -> None:
        """Record the start of a batch."""
        self.marks = [*self.marks, [time.perf_counter()]]

    def step(self) -> None:
        """Record the end of a step."""
        self.marks[-1].append(time.perf_counter())

    def end(self, numbers: list[int], since: float) -> None:
        """Record the latency of finished requests."""
        now = time.perf_counter()
        self.ends = {**self.ends, **dict.fromkeys(numbers, now - since)}

    @staticmethod
    def saved(model: EncoderDecoderModel, folder: Path) -> Callable[[], Any]:
        """Write the model in the format of the engine; returns a function that loads it."""
        raise NotImplementedError

    def close(self) -> None:
        """Free the engine."""


class Bertgen(Contender):
    """bertgen: all requests are submitted at once, longest source first; up to `batch` of them run at a time."""

    def __init__(self, model: EncoderDecoderModel):
        self.model, self.device = model, model.device
        self.engine: Engine | None = None

    @staticmethod
    def saved(
        model: EncoderDecoderModel,
        folder: Path,
        group: int | None = None,
        head: bool = False,
        compute_dtype: str | None = None,
    ) -> Any:
        own, device = folder / "model", model.device
        model.save_pretrained(own)
        if group is not None:
            config = Int4Config(group_size=group, head=head, compute_dtype=compute_dtype)
            convert(own, folder / "int4", tokenizer=DEMO_MODEL, int4=config)
            own = folder / "int4"
        return lambda: Engine(EncoderDecoderModel.from_pretrained(own).to(device))

    def run(self, sources: Tokens, lengths: list[int], beams: int, batch: int) -> Tokens:
        if isinstance(batch, Budget):
            batch = max(1, batch * len(sources) // sum(map(len, sources)))
        rows = batch * beams
        if self.engine is None or self.engine.config.max_rows != rows:
            self.engine = None  # free its memory first
            self.engine = Engine(self.model, EngineConfig(max_rows=rows))
        special = dict(pad_token_id=PAD, eos_token_id=END, bos_token_id=START)
        options = {
            n: resolve_generation_config(GenerationConfig(max_new_tokens=n, num_beams=beams, **special))
            for n in set(lengths)
        }
        requests = [Request(ids, options[n], number=i) for i, (ids, n) in enumerate(zip(sources, lengths))]
        requests.sort(key=lambda request: len(request.ids), reverse=True)
        waves = [requests] if batch > 1 else [[request] for request in requests]  # batch 1: one after the other
        by_source: dict[int, list[int]] = {}
        for wave in waves:
            self.begin()
            since = self.marks[-1][0]
            self.engine.submit(wave, lambda request, since=since: self.end([request.number], since))
            while self.engine.busy:
                self.engine.step()
                self.step()
            for request in wave:
                if request.error is not None:
                    raise request.error
                by_source[request.number] = request.outputs[0]
        return [by_source[i] for i in range(len(sources))]


class Transformers(Contender):
    """transformers: batches of sources sorted by length; finished rows are computed until their batch is finished."""

    def __init__(self, model: EncoderDecoderModel, attention: str = "sdpa"):
        transformers = silent_transformers()
        config = transformers.EncoderDecoderConfig(**model.config.to_dict())
        self.model = transformers.EncoderDecoderModel(config).eval()
        self.model.load_state_dict(model.state_dict(), strict=False)
        self.model.to(model.device, model.dtype).set_attn_implementation(attention)
        self.device = model.device

    @staticmethod
    def saved(model: EncoderDecoderModel, folder: Path, attention: str = "sdpa") -> Callable[[], Any]:
        model.save_pretrained(folder)
        kind, device = silent_transformers().EncoderDecoderModel, model.device
        return lambda: kind.from_pretrained(folder, attn_implementation=attention).to(device)

    @torch.no_grad()
    def run(self, sources: Tokens, lengths: list[int], beams: int, batch: int) -> Tokens:
        by_source: dict[int, list[int]] = {}
        start = time.perf_counter()
        order = sorted(range(len(sources)), key=lambda i: (len(sources[i]), lengths[i]))
        parts = list(batches(order, batch, sources))
        for some in parts:
            self.begin()
            limits = torch.tensor([lengths[i] for i in some], device=self.device)
            most = max(map(len, parts)), max(lengths)
            rows = self.generated([sources[i] for i in some], limits, beams, most)
            self.end(some, start if batch > 1 else self.marks[-1][0])
            by_source |= {i: row[1 : 1 + lengths[i]] for i, row in zip(some, rows)}
        return [by_source[i] for i in range(len(sources))]

    def generated(self, sources: Tokens, limits: torch.Tensor, beams: int, most: tuple[int, int]) -> Tokens:
        """Outputs of one batch, with the start token. `most`: largest batch and longest output of all batches."""
        return self._generate(sources, limits, beams, int(limits.max()))

    def _generate(self, sources: Tokens, limits: torch.Tensor, beams: int, tokens: int, **more: Any) -> Tokens:
        padded = nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in sources], batch_first=True)
        ids = padded.to(self.device)

        def stops(tokens: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
            self.step()
            return (limits < tokens.shape[1]).repeat_interleave(len(tokens) // len(limits))

        return self.model.generate(
            input_ids=ids, attention_mask=(ids != PAD).long(), num_beams=beams, max_new_tokens=tokens,
            do_sample=False, decoder_start_token_id=START, pad_token_id=PAD, eos_token_id=END,
            stopping_criteria=[stops], **more,
        ).tolist()  # fmt: skip


class StaticBart(Transformers):
    """transformers' BART of the same weights, with a static cache and torch.compile.

    It is compiled for each shape, so sources are padded to a multiple of GRAIN and batches to one number of rows. Its
    LayerNorms get the epsilon of the model. Runs that compile do not count. Above its limit of shapes torch.compile
    would silently stop compiling, so the limit is set high and exceeding it is an error.
    """

    def __init__(self, model: EncoderDecoderModel):
        transformers = silent_transformers()
        with tempfile.TemporaryDirectory() as folder:
            converted = _converted(model, Path(folder), "bart")
            self.model = transformers.BartForConditionalGeneration.from_pretrained(converted, dtype=model.dtype).eval()
        self.model.to(model.device)
        self.device = model.device
        for module in self.model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = model.config.decoder.layer_norm_eps
        torch._dynamo.config.recompile_limit = SHAPES
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        mode = "reduce-overhead" if self.device.type == "cuda" else None  # CUDA graphs
        self.model.forward = torch.compile(self.model.forward, dynamic=False, mode=mode)
        self._compiled: set[Any] = set()

    @staticmethod
    def saved(model: EncoderDecoderModel, folder: Path) -> Callable[[], Any]:
        converted, device = _converted(model, folder, "bart"), model.device
        return lambda: silent_transformers().BartForConditionalGeneration.from_pretrained(converted).to(device)

    def warm(self, sources: Tokens, lengths: list[int], beams: int, batch: int) -> None:
        from torch._dynamo.utils import counters

        setting, graphs = (len(sources), max(lengths), beams, batch), None
        while setting not in self._compiled and graphs != (graphs := counters["stats"]["unique_graphs"]):
            self.run(sources, lengths, beams, batch)
        self._compiled.add(setting)

    def generated(self, sources: Tokens, limits: torch.Tensor, beams: int, most: tuple[int, int]) -> Tokens:
        count, longest = most
        width = -(-max(map(len, sources)) // GRAIN) * GRAIN
        filled = [ids + [PAD] * (width - len(ids)) for ids in sources]
        filled += [filled[-1]] * (count - len(filled))
        limits = torch.cat((limits, limits[-1:].expand(len(filled) - len(limits))))
        rows = self._generate(filled, limits, beams, longest, cache_implementation="static")
        return rows[: len(sources)]


class CTranslate2(Contender):
    """The same weights by way of a BART, in the model's dtype unless told otherwise; as many threads as torch has.

    A callback stops a greedy row at its length and the row leaves its batch, so batches are sorted by source length.
    With beams there is no callback to stop a single row, as EOS would in production. There batches are sorted by output
    length, which is unknown in production, so that the rows of a batch end at about the same time. Without a callback
    there are no times of steps either.
    """

    def __init__(self, model: EncoderDecoderModel, compute_type: str | None = None):
        ctranslate2 = load_ctranslate2(PURPOSE)
        self.device = model.device
        if self.device.type == "cuda" and not ctranslate2.get_cuda_device_count():
            raise BackendError("this CTranslate2 was built without CUDA")
        self.words = words(model.config.decoder.vocab_size)
        self.ids = {word: id for id, word in enumerate(self.words)}
        with tempfile.TemporaryDirectory() as folder:
            self.translator = self.saved(model, Path(folder), compute_type)()

    @staticmethod
    def saved(model: EncoderDecoderModel, folder: Path, compute_type: str | None = None) -> Callable[[], Any]:
        converted, device = str(_converted(model, folder, "ct2")), model.device.type
        kind = compute_type or str(model.dtype).removeprefix("torch.")
        return lambda: load_ctranslate2(PURPOSE).Translator(
            converted, device=device, compute_type=kind, inter_threads=1, intra_threads=torch.get_num_threads()
        )

    def run(self, sources: Tokens, lengths: list[int], beams: int, batch: int) -> Tokens:
        def key(i: int) -> tuple[int, int]:
            return (len(sources[i]), lengths[i]) if beams == 1 else (lengths[i], len(sources[i]))

        by_source: dict[int, list[int]] = {}
        start = time.perf_counter()
        for some in batches(sorted(range(len(sources)), key=key), batch, sources):
            limits = [lengths[i] for i in some]
            self.begin()
            marks = self.marks[-1]
            since = marks[0]

            # Without a reference to self: a thread of the translator may free the callback last, and with it the
            # translator.
            def stops(result, limits=limits, marks=marks):
                if result.step + 2 > len(marks):
                    marks.append(time.perf_counter())
                return result.step + 1 >= limits[result.batch_id]

            results = self.translator.translate_batch(
                [[self.words[id] for id in sources[i]] for i in some],
                beam_size=beams, max_decoding_length=max(limits), max_input_length=0,
                callback=stops if beams == 1 else None,
            )  # fmt: skip
            self.end(some, start if batch > 1 else since)
            by_source |= {i: [self.ids[word] for word in result.hypotheses[0]] for i, result in zip(some, results)}
        return [by_source[i] for i in range(len(sources))]


def silent_transformers() -> Any:
    """The transformers module, with warnings and progress bars off."""
    transformers = load_transformers(PURPOSE)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers")
    return transformers


def words(count: int) -> list[str]:
    """A word for each id, as CTranslate2's converter needs."""
    return ["<pad>", "</s>", "<s>", "<unk>", "<mask>", *(f"t{i}" for i in range(5, count))]


def _converted(model: EncoderDecoderModel, folder: Path, to: str) -> Path:
    """The model in another format, with a tokenizer of made-up words."""
    own, spelled, converted = (folder / name for name in ("model", "words", to))
    model.save_pretrained(own)
    spelled.mkdir()
    ids = {word: id for id, word in enumerate(words(model.config.decoder.vocab_size))}
    (spelled / "vocab.json").write_text(json.dumps(ids))
    (spelled / "merges.txt").write_text("#version: 0.2\n")
    (spelled / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
    convert(own, converted, to, tokenizer=spelled)
    return converted


def batches(order: list[int], size: int, sources: Tokens) -> Iterator[list[int]]:
    """Batches of `size` requests, or of `size` source tokens with padding (Budget), from the end of the order."""
    some: list[int] = []
    for i in reversed(order):
        grown = [*some, i]
        full = len(grown) > size
        if isinstance(size, Budget):
            full = len(grown) * max(len(sources[j]) for j in grown) > size
        if full and some:
            yield some
            grown = [i]
        some = grown
    if some:
        yield some


class Apart(Contender):
    """A contender in a separate process, so that contenders share no threads and no memory."""

    def __init__(self, kind: type[Contender], plan: Plan | Size, *arguments: Any):
        self.child = Child(make, kind, plan, *arguments)

    def run(self, sources: Tokens, lengths: list[int], beams: int, batch: int) -> Tokens:
        return self.child.call("run", sources, lengths, beams, batch)

    def measured(self, sources: Tokens, lengths: list[int], beams: int, batch: int) -> Run:
        return self.child.call("measured", sources, lengths, beams, batch)

    def close(self) -> None:
        self.child.close()


def make(kind: type[Contender], plan: Plan | Size, *arguments: Any) -> Contender:
    """A contender with the model of a plan."""
    return kind(plan.build(), *arguments)
