"""The engines side by side, behind one interface: the same weights, sources and lengths in, tokens out.

An output may be longer than was asked, where an engine cannot stop one row of a batch. What is beyond does not count.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from child import Child
from workload import END, PAD, START, Size, Tokens, build

from bertgen import EncoderDecoderModel, GenerationConfig
from bertgen.config import EngineConfig
from bertgen.conversion import convert
from bertgen.engine import Engine, Request
from bertgen.errors import BackendError
from bertgen.peers import load_ctranslate2, load_transformers
from bertgen.search import settle

PURPOSE = "the comparison"


class Contender:
    """An engine with the model loaded.

    Attributes:
        name: of its column. variants: ways to run it, of which the best counts.
    """

    name: str
    variants: tuple[str, ...] = ("",)

    def run(self, sources: Tokens, lengths: list[int], beams: int, batch: int, variant: str = "") -> Tokens:
        """Tokens behind the start token for each source, at least as many as its length says.

        Args:
            batch: sources that are decoded together.
        """
        raise NotImplementedError

    def close(self) -> None:
        """It is not needed any more."""


class Bertgen(Contender):
    """All requests at once, the longest source first; `batch` requests run, and who is done makes room for the next."""

    name = "bertgen"

    def __init__(self, model: EncoderDecoderModel):
        self.model = model
        self.engine: Engine | None = None

    def run(self, sources: Tokens, lengths: list[int], beams: int, batch: int, variant: str = "") -> Tokens:
        rows = batch * beams
        if self.engine is None or self.engine.config.max_rows != rows:
            self.engine = None  # its memory first
            self.engine = Engine(self.model, EngineConfig(max_rows=rows))
        special = dict(pad_token_id=PAD, eos_token_id=END, bos_token_id=START)
        options = {n: settle(GenerationConfig(max_new_tokens=n, num_beams=beams, **special)) for n in set(lengths)}
        requests = [Request(ids, options[n], number=i) for i, (ids, n) in enumerate(zip(sources, lengths))]
        requests.sort(key=lambda request: len(request.ids), reverse=True)
        waves = [requests] if batch > 1 else [[request] for request in requests]  # alone: one after the other
        found: dict[int, list[int]] = {}
        for wave in waves:
            tickets = self.engine.submit(wave, lambda ticket: None)
            while self.engine.busy:
                self.engine.step()
            for ticket in tickets:
                if ticket.error is not None:
                    raise ticket.error
                found[ticket.request.number] = ticket.outputs[0]
        return [found[i] for i in range(len(sources))]


class Transformers(Contender):
    """Batches of sources sorted by their lengths. A row that is done is computed on until its batch is."""

    name, variants = "transformers", ("sdpa", "eager")

    def __init__(self, model: EncoderDecoderModel):
        transformers = load_transformers(PURPOSE)
        transformers.logging.set_verbosity_error()
        warnings.filterwarnings("ignore", module="transformers")
        config = transformers.EncoderDecoderConfig(**model.config.to_dict())
        self.model = transformers.EncoderDecoderModel(config).eval()
        self.model.load_state_dict(model.state_dict(), strict=False)

    @torch.no_grad()
    def run(self, sources: Tokens, lengths: list[int], beams: int, batch: int, variant: str = "") -> Tokens:
        self.model.set_attn_implementation(variant or self.variants[0])
        found: dict[int, list[int]] = {}
        for some in batches(sorted(range(len(sources)), key=lambda i: (len(sources[i]), lengths[i])), batch):
            ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(sources[i]) for i in some], batch_first=True)
            limits = torch.tensor([lengths[i] for i in some])

            def stops(tokens: torch.Tensor, scores: object, limits: torch.Tensor = limits, **_: object) -> torch.Tensor:
                return (limits < tokens.shape[1]).repeat_interleave(len(tokens) // len(limits))

            rows = self.model.generate(
                input_ids=ids, attention_mask=(ids != PAD).long(), num_beams=beams, max_new_tokens=int(limits.max()),
                do_sample=False, decoder_start_token_id=START, pad_token_id=PAD, eos_token_id=END,
                stopping_criteria=[stops],
            )  # fmt: skip
            found |= {i: row[1 : 1 + lengths[i]] for i, row in zip(some, rows.tolist())}
        return [found[i] for i in range(len(sources))]


class CTranslate2(Contender):
    """The same weights by way of a BART, in float32 unless told otherwise; as many threads as torch has.

    A greedy row is stopped at its length by a callback and leaves its batch, so batches are sorted by the lengths of
    sources. With beams nothing stops a single row, which an end token would do in life: there batches are sorted by
    the lengths of outputs, as nobody could in life, so that the rows of a batch end about together.
    """

    name = "CTranslate2"

    def __init__(self, model: EncoderDecoderModel, compute_type: str = "float32"):
        ctranslate2 = load_ctranslate2(PURPOSE)
        self.words = ["<pad>", "</s>", "<s>", "<unk>", "<mask>"]
        self.words += [f"t{i}" for i in range(len(self.words), model.config.decoder.vocab_size)]
        self.ids = {word: id for id, word in enumerate(self.words)}
        with tempfile.TemporaryDirectory() as folder:
            own, words, converted = (Path(folder, name) for name in ("model", "words", "ct2"))
            model.save_pretrained(own)
            words.mkdir()  # the converter wants a tokenizer with a word for each id
            (words / "vocab.json").write_text(json.dumps(self.ids))
            (words / "merges.txt").write_text("#version: 0.2\n")
            (words / "tokenizer_config.json").write_text('{"tokenizer_class": "RobertaTokenizer"}')
            convert(own, converted, "ct2", tokenizer=words)
            self.translator = ctranslate2.Translator(
                str(converted), device="cpu", compute_type=compute_type, inter_threads=1,
                intra_threads=torch.get_num_threads(),
            )  # fmt: skip

    def run(self, sources: Tokens, lengths: list[int], beams: int, batch: int, variant: str = "") -> Tokens:
        def key(i: int) -> tuple[int, int]:
            return (len(sources[i]), lengths[i]) if beams == 1 else (lengths[i], len(sources[i]))

        found: dict[int, list[int]] = {}
        for some in batches(sorted(range(len(sources)), key=key), batch):
            limits = [lengths[i] for i in some]
            stops = None
            if beams == 1 and len(set(limits)) > 1:

                def stops(result, limits=limits):
                    return result.step + 1 >= limits[result.batch_id]

            results = self.translator.translate_batch(
                [[self.words[id] for id in sources[i]] for i in some],
                beam_size=beams, max_decoding_length=max(limits), max_input_length=0, callback=stops,
            )  # fmt: skip
            found |= {i: [self.ids[word] for word in result.hypotheses[0]] for i, result in zip(some, results)}
        return [found[i] for i in range(len(sources))]


def batches(order: list[int], size: int) -> Iterator[list[int]]:
    """Of so many, the longest first."""
    order = order[::-1]
    for start in range(0, len(order), size):
        yield order[start : start + size]


class Apart(Contender):
    """A contender in a process of its own, so that none shares threads or memory with another."""

    def __init__(self, kind: type[Contender], size: Size, *arguments: Any):
        self.name, self.variants = kind.name, kind.variants
        self.child = Child(make, kind, size, *arguments)

    def run(self, sources: Tokens, lengths: list[int], beams: int, batch: int, variant: str = "") -> Tokens:
        return self.child.call("run", sources, lengths, beams, batch, variant)

    def close(self) -> None:
        self.child.close()


def make(kind: type[Contender], size: Size, *arguments: Any) -> Contender:
    """With the model of a size."""
    return kind(build(size), *arguments)


def load(size: Size, apart: bool) -> tuple[list[Contender], dict[str, str]]:
    """All contenders, and why those are missing that are not among them.

    Args:
        apart: each in a process of its own.
    """
    present: list[Contender] = []
    missing: dict[str, str] = {}
    for kind in (Bertgen, Transformers, CTranslate2):
        try:
            present.append(Apart(kind, size) if apart else make(kind, size))
        except BackendError as error:
            missing[kind.name] = str(error)
    return present, missing
