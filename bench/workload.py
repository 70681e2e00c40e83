"""The workload of all engines: a model, sources, and the length at which each output stops.

Where a model chooses EOS depends on its weights, not on the engine. So the bias of the output layer excludes the three
special ids, in every engine, and each request stops at a given length.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import torch

from bertgen.config import EncoderDecoderConfig
from bertgen.errors import ConfigError, InputError
from bertgen.files.line_formats import read_texts
from bertgen.files.text_input import check_name
from bertgen.model import EncoderDecoderModel
from bertgen.tokenizer import AutoTokenizer

PAD, END, START = 0, 1, 2
FIRST = 5  # ids below it are special
OUT_OF_REACH = -1e4
FIXED, LONGEST = 32, 128
KINDS = ("fixed", "mixed", "single")
WIKISPLIT = Path(__file__).parents[2] / "shared/data/wikisplit/test.tsv"
Tokens = list[list[int]]


class Size(NamedTuple):
    """The size of a model; `layers` in the encoder and in the decoder."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    vocabulary: int

    @property
    def of_source_token(self) -> int:
        """Weights used per source token: the encoder, and the cross-attention keys and values of the decoder."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate + 2 * self.hidden**2)

    @property
    def of_output_token(self) -> int:
        """Weights used per output token: the decoder layers and the output layer."""
        return self.of_source_token + self.vocabulary * self.hidden

    def build(self) -> EncoderDecoderModel:
        return build(self)


SIZES = {
    "demo": Size(256, 4, 1024, 4, 8000),
    "base": Size(768, 6, 3072, 12, 32000),
    "large": Size(1024, 24, 4096, 16, 50358),
    "smoke": Size(64, 2, 128, 4, 500),
}


class Plan(NamedTuple):
    """The model and its device. An engine in a separate process builds the model there.

    Attributes:
        path: of a checkpoint; None makes random weights of this size.
        dtype: a name in torch.
    """

    size: Size
    path: str | None = None
    device: str = "cpu"
    dtype: str = "float32"

    def build(self) -> EncoderDecoderModel:
        model = build(self.size) if self.path is None else load_model(self.path)
        return model.to(self.device, getattr(torch, self.dtype))


class Budget(int):
    """A batch size in source tokens, including padding, instead of requests."""


class Case(NamedTuple):
    """Requests, and the length of the output of each."""

    kind: str
    beams: int
    sources: Tokens
    lengths: list[int]

    @property
    def name(self) -> str:
        return f"{self.kind}, {'greedy' if self.beams == 1 else f'beam {self.beams}'}"

    def flop(self, size: Size) -> float:
        """FLOPs of the matrix products of all tokens: two per weight and token."""
        source, output = sum(map(len, self.sources)), sum(self.lengths) * self.beams
        return 2.0 * (source * size.of_source_token + output * size.of_output_token)

    def limit(self, size: Size, flops: float, bandwidth: float, item: int = 4) -> float:
        """Lower bound in seconds: the products at full speed, or the decoder's weights read once per step.

        Args:
            flops, bandwidth: of the machine, per second. item: bytes per weight.
        """
        if self.kind == "single":
            alone = [Case("fixed", self.beams, [ids], [n]) for ids, n in zip(self.sources, self.lengths)]
            return sum(case.limit(size, flops, bandwidth, item) for case in alone)
        return max(self.flop(size) / flops, max(self.lengths) * item * size.of_output_token / bandwidth)


def build(size: Size) -> EncoderDecoderModel:
    """A model of this size with random weights; each call makes the same weights."""
    half = dict(
        vocab_size=size.vocabulary, hidden_size=size.hidden, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, intermediate_size=size.intermediate, initializer_range=0.05,
    )  # fmt: skip
    special = dict(pad_token_id=PAD, eos_token_id=END, bos_token_id=START, decoder_start_token_id=START)
    decoder = dict(half, is_decoder=True, add_cross_attention=True)
    torch.manual_seed(0)
    return endless(EncoderDecoderModel(EncoderDecoderConfig(encoder=half, decoder=decoder, **special)).eval())


def load_model(path: str) -> EncoderDecoderModel:
    """A checkpoint in float32.

    Raises:
        ConfigError: its special ids are not those of a bert-generation model.
    """
    model = EncoderDecoderModel.from_pretrained(path, dtype=torch.float32).eval()
    config = model.config
    ids = config.pad_token_id, config.eos_token_id, config.decoder_start_token_id
    if ids != (PAD, END, START):
        raise ConfigError(f"{path} has ids {ids} to pad, end and start; those of {PAD, END, START} can be measured")
    return endless(model)


def endless(model: EncoderDecoderModel) -> EncoderDecoderModel:
    """Exclude the special ids from the output of the model, in place."""
    with torch.no_grad():
        model.decoder.head.bias[[PAD, END, START]] = OUT_OF_REACH
    return model


def size_of(path: str) -> Size:
    """The size of a checkpoint, from its configuration.

    Raises:
        ConfigError: its halves differ in depth or width.
    """
    config = EncoderDecoderConfig.from_pretrained(path)
    halves = [
        Size(h.hidden_size, h.num_hidden_layers, h.intermediate_size, h.num_attention_heads, h.vocab_size)
        for h in (config.encoder, config.decoder)
    ]
    if halves[0] != halves[1]:
        raise ConfigError(
            f"{path} has an encoder of {halves[0]} and a decoder of {halves[1]}: they have to be the same"
        )
    return halves[1]


def made_up(count: int, vocabulary: int) -> tuple[Tokens, list[int]]:
    """Sources of random ids with lengths of sentences, and lengths of outputs."""
    draw = random.Random(0)
    lengths = [min(LONGEST - 1, max(8, round(draw.lognormvariate(4.1, 0.4)))) for _ in range(count)]
    sources = [[draw.randrange(FIRST, vocabulary) for _ in range(n)] for n in lengths]
    return sources, [min(LONGEST - 1, max(4, round(n * draw.uniform(0.9, 1.3)))) for n in lengths]


def texts(data: Path | None, count: int, vocabulary: int, tokenizer: str = "demo") -> tuple[Tokens, list[int]]:
    """Sources, and lengths of their targets, at most LONGEST - 1.

    Args:
        data: lines of source TAB target, or of sources only, whose outputs are as long as the sources; None gives
            random ids and lengths.
        tokenizer: of the texts; ids outside the vocabulary are mapped into it.
    """
    if data is None:
        return made_up(count, vocabulary)
    check_name(data, "tsv", "text")
    pairs = [line.split("\t")[:2] for line in read_texts(data, count)]
    if not pairs:
        raise InputError(f"{data} has no lines")
    words = AutoTokenizer.from_pretrained(tokenizer)
    sources, targets = (words.encode_batch([pair[at] for pair in pairs]) for at in (0, -1))
    fitting = [[FIRST + id % (vocabulary - FIRST) for id in ids[: LONGEST - 1]] or [FIRST] for ids in sources]
    return fitting, [max(1, min(len(ids), LONGEST - 1)) for ids in targets]


def cases(
    kind: str,
    data: Path | None,
    count: int,
    size: Size,
    beams: tuple[int, ...] = (1, 4),
    length: int = FIXED,
    source_length: int | None = None,
    tokenizer: str = "demo",
) -> list[Case]:
    """One for each number of beams.

    Args:
        length: of every output of the kind "fixed". source_length: of every source, which then has random ids.
    """
    sources, lengths = texts(data, count, size.vocabulary, tokenizer)
    if source_length is not None:
        draw = random.Random(0)
        sources = [[draw.randrange(FIRST, size.vocabulary) for _ in range(source_length)] for _ in range(count)]
    if kind == "fixed":
        lengths = [length] * len(sources)
    return [Case(kind, n, sources, lengths[: len(sources)]) for n in beams]
