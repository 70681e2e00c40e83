"""What every engine is asked: a random model, sources, and the length at which each output stops.

Random weights seldom stop, and where they do is no matter of the engine. So the head has a bias that puts the three
special ids out of reach, the same in every engine, and each request stops at a length that is given.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

import torch

from bertgen import AutoTokenizer, EncoderDecoderConfig, EncoderDecoderModel

PAD, END, START = 0, 1, 2
FIRST = 5  # ids below it are special
OUT_OF_REACH = -1e4
FIXED, LONGEST = 32, 128
KINDS = ("fixed", "mixed", "single")
Tokens = list[list[int]]


class Size(NamedTuple):
    """Of a model; `layers` in each half."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    vocabulary: int

    @property
    def of_source_token(self) -> int:
        """Weights that a token of the source meets: the encoder's, and those of the decoder's keys and values."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate + 2 * self.hidden**2)

    @property
    def of_output_token(self) -> int:
        """Weights that a token of an output meets: of the decoder's layers and of the head."""
        return self.of_source_token + self.vocabulary * self.hidden


SIZES = {
    "base": Size(768, 6, 3072, 12, 32000),
    "demo": Size(256, 4, 1024, 4, 8000),
    "smoke": Size(64, 2, 128, 4, 500),
}


class Case(NamedTuple):
    """Requests, and at which length each one's output stops."""

    kind: str
    beams: int
    sources: Tokens
    lengths: list[int]

    @property
    def name(self) -> str:
        return f"{self.kind}, {'greedy' if self.beams == 1 else f'beam {self.beams}'}"

    def flop(self, size: Size) -> float:
        """Of the matrix products that the asked tokens need: two for each weight and token."""
        source, output = sum(map(len, self.sources)), sum(self.lengths) * self.beams
        return 2.0 * (source * size.of_source_token + output * size.of_output_token)

    def limit(self, size: Size, flops: float, bandwidth: float) -> float:
        """Seconds that no engine can beat: the products at full speed, or the decoder's weights read once a step."""
        if self.kind == "single":
            alone = [Case("fixed", self.beams, [ids], [n]) for ids, n in zip(self.sources, self.lengths)]
            return sum(case.limit(size, flops, bandwidth) for case in alone)
        return max(self.flop(size) / flops, max(self.lengths) * 4 * size.of_output_token / bandwidth)


def build(size: Size) -> EncoderDecoderModel:
    """The model of a size; each call makes the same."""
    half = dict(
        vocab_size=size.vocabulary, hidden_size=size.hidden, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, intermediate_size=size.intermediate, initializer_range=0.05,
    )  # fmt: skip
    special = dict(pad_token_id=PAD, eos_token_id=END, bos_token_id=START, decoder_start_token_id=START)
    decoder = dict(half, is_decoder=True, add_cross_attention=True)
    torch.manual_seed(0)
    model = EncoderDecoderModel(EncoderDecoderConfig(encoder=half, decoder=decoder, **special)).eval()
    with torch.no_grad():
        model.decoder.head.bias[[PAD, END, START]] = OUT_OF_REACH
    return model


def texts(data: Path | None, count: int, vocabulary: int) -> tuple[Tokens, list[int]]:
    """Sources, and lengths of their targets, at most LONGEST.

    Args:
        data: lines of source TAB target; None makes up ids and lengths.
    """
    if data is None:
        draw = random.Random(0)
        lengths = [min(LONGEST, max(8, round(draw.lognormvariate(4.1, 0.4)))) for _ in range(count)]
        sources = [[draw.randrange(FIRST, vocabulary) for _ in range(n)] for n in lengths]
        return sources, [min(LONGEST, max(4, round(n * draw.uniform(0.9, 1.3)))) for n in lengths]
    tokenizer = AutoTokenizer.from_pretrained("demo")
    with data.open(encoding="utf-8") as file:
        pairs = [line.rstrip("\n").split("\t")[:2] for line, _ in zip(file, range(count))]
    sources, targets = (tokenizer.encode_batch(list(side)) for side in zip(*pairs))
    fitting = [[FIRST + id % (vocabulary - FIRST) for id in ids[:LONGEST]] for ids in sources]
    return fitting, [min(len(ids), LONGEST) for ids in targets]


def cases(kind: str, data: Path | None, count: int, size: Size) -> list[Case]:
    """Greedy, and with four beams."""
    sources, lengths = texts(data, count, size.vocabulary)
    if kind == "fixed":
        lengths = [FIXED] * len(sources)
    return [Case(kind, beams, sources, lengths) for beams in (1, 4)]
