"""The engines side by side, behind one interface: the same weights, sources and lengths in, tokens out.

An output may be longer than was asked, where an engine cannot stop one row of a batch. What is beyond does not count.
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
SHAPES = 256  # that a model is compiled for, at most
GRAIN = 32  # sources of a compiled model are padded to multiples of it, so that it is compiled for few lengths


class Run(NamedTuple):
    """What came of one run.

    Attributes:
        tokens: behind the start token, for each source.
        seconds: of all.
        requests: seconds until each answer was there, from when it could begin: all of a batch at once, single ones
            one after the other.
        gaps: seconds between the tokens of a request, behind its first; none where the engine does not tell.
        loaded, peak: bytes held before the run, and at most in it; None where the system does not tell.
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
        device: that it runs on.
        ends: seconds until each answer of the last run was there. marks: for each batch, when it began and when each
            of its steps ended.
    """

    device = torch.device("cpu")
    ends: dict[int, float] = {}  # noqa: RUF012 (replaced, never changed)
    marks: list[list[float]] = []  # noqa: RUF012

    def run(self, sources: Tokens, lengths: list[int], beams: int, batch: int) -> Tokens:
        """Tokens behind the start token for each source, at least as many as its length says.

        Args:
            batch: sources that are decoded together, or a Budget.
        """
        raise NotImplementedError

    def warm(self, sources: Tokens, lengths: list[int], beams: int, batch: int) -> None:
        """A short run, which wakes threads."""
        few = slice(0, 1 if batch == 1 else min(batch, len(sources)))
        self.run(sources[few], [min(4, n) for n in lengths[few]], beams, batch)

    def measured(self, sources: Tokens, lengths: list[int], beams: int, batch: int) -> Run:
        """A run with everything that is known of it, behind one that does not count."""
        self.warm(sources, lengths, beams, batch)
        self.ends, self.marks = {}, []
        loaded = memory.reset(self.device)
        start = time.perf_counter()
        tokens = self.run(sources, lengths, beams, batch)
        spent = time.perf_counter() - start
        gaps = [b - a for marks in self.marks for a, b in itertools.pairwise(marks[1:])]
        return Run(tokens, spent, list(self.ends.values()), gaps, loaded, memory.peak(self.device))

    def begin(self) -> None:
        """A batch begins."""
        self.marks = [*self.marks, [time.perf_counter()]]

    def step(self) -> None:
        """A step has ended."""
        self.marks[-1].append(time.perf_counter())

    def end(self, numbers: list[int], since: float) -> None:
        """Answers of requests are there."""
        now = time.perf_counter()
        self.ends = {**self.ends, **dict.fromkeys(numbers, now - since)}

    @staticmethod
    def saved(model: EncoderDecoderModel, folder: Path) -> Callable[[], Any]:
        """Write the model as the engine has it on disk, and return what loads it."""
        raise NotImplementedError

    def close(self) -> None:
        """It is not needed any more."""


class Bertgen(Contender):
    """All requests at once, the longest source first; `batch` requests run, and who is done makes room for the next."""

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
            self.engine = None  # its memory first
            self.engine = Engine(self.model, EngineConfig(max_rows=rows))
        special = dict(pad_token_id=PAD, eos_token_id=END, bos_token_id=START)
        options = {
            n: resolve_generation_config(GenerationConfig(max_new_tokens=n, num_beams=beams, **special))
            for n in set(lengths)
        }
        requests = [Request(ids, options[n], number=i) for i, (ids, n) in enumerate(zip(sources, lengths))]
        requests.sort(key=lambda request: len(request.ids), reverse=True)
        waves = [requests] if batch > 1 else [[request] for request in requests]  # alone: one after the other
        found: dict[int, list[int]] = {}
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
                found[request.number] = request.outputs[0]
        return [found[i] for i in range(len(sources))]


class Transformers(Contender):
    """Batches of sources sorted by their lengths. A row that is done is computed on until its batch is."""

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
        found: dict[int, list[int]] = {}
        start = time.perf_counter()
        order = sorted(range(len(sources)), key=lambda i: (len(sources[i]), lengths[i]))
        parts = list(batches(order, batch, sources))
        for some in parts:
            self.begin()
            limits = torch.tensor([lengths[i] for i in some], device=self.device)
            most = max(map(len, parts)), max(lengths)
            rows = self.generated([sources[i] for i in some], limits, beams, most)
            self.end(some, start if batch > 1 else self.marks[-1][0])
            found |= {i: row[1 : 1 + lengths[i]] for i, row in zip(some, rows)}
        return [found[i] for i in range(len(sources))]

    def generated(self, sources: Tokens, limits: torch.Tensor, beams: int, most: tuple[int, int]) -> Tokens:
        """Of one batch, with the start token. `most`: requests of a batch and tokens of an output, of all batches."""
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

    It is compiled for each shape, so sources are padded to a multiple of 32 and batches to one number of rows; its
    LayerNorms get the epsilon of the model. The runs of a setting that compile do not count. Behind so many shapes
    torch.compile would go on without compiling, and say so in its log only: the limit is far off, and an error.
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
        self.model.forward = torch.compile(self.model.forward, dynamic=False)
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

    A greedy row is stopped at its length by a callback and leaves its batch, so batches are sorted by the lengths of
    sources. With beams nothing stops a single row, which an end token would do in life: there batches are sorted by
    the lengths of outputs, as nobody could in life, so that the rows of a batch end about together. Beams have no
    callback either that would tell when a step ends.
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

        found: dict[int, list[int]] = {}
        start = time.perf_counter()
        for some in batches(sorted(range(len(sources)), key=key), batch, sources):
            limits = [lengths[i] for i in some]
            self.begin()
            marks = self.marks[-1]
            since = marks[0]

            # Not of self: a thread of the translator may drop it last, and must not end the translator with it.
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
            found |= {i: [self.ids[word] for word in result.hypotheses[0]] for i, result in zip(some, results)}
        return [found[i] for i in range(len(sources))]


def silent_transformers() -> Any:
    """The module, without its warnings and bars."""
    transformers = load_transformers(PURPOSE)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers")
    return transformers


def words(count: int) -> list[str]:
    """A word for each id, as a converter to CTranslate2 wants."""
    return ["<pad>", "</s>", "<s>", "<unk>", "<mask>", *(f"t{i}" for i in range(5, count))]


def _converted(model: EncoderDecoderModel, folder: Path, to: str) -> Path:
    """The model in another form, with a tokenizer of made-up words."""
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
    """Of so many requests, or of so many source tokens with padding; those at the end of the order first."""
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
    """A contender in a process of its own, so that none shares threads or memory with another."""

    def __init__(self, kind: type[Contender], plan: Plan | Size, *arguments: Any):
        self.child = Child(make, kind, plan, *arguments)

    def run(self, sources: Tokens, lengths: list[int], beams: int, batch: int) -> Tokens:
        return self.child.call("run", sources, lengths, beams, batch)

    def measured(self, sources: Tokens, lengths: list[int], beams: int, batch: int) -> Run:
        return self.child.call("measured", sources, lengths, beams, batch)

    def close(self) -> None:
        self.child.close()


def make(kind: type[Contender], plan: Plan | Size, *arguments: Any) -> Contender:
    """With the model of a plan."""
    return kind(plan.build(), *arguments)
