"""Compares a model in bertgen and in transformers on the same texts: the tokens, and the time they take."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .config import GenerationConfig
from .config.validators import check_integer
from .errors import CheckpointError, ConfigError, InputError, UnsupportedError, quoted
from .generator import Generator
from .hub import as_path, local_directory
from .optional_imports import load_transformers, silence
from .packing import padded

PURPOSE = "a comparison"  # what transformers is needed for
# Dtype -> differences of log-probabilities that rounding explains; in 16 bits, the rounding of all layers.
MARGINS = {"float64": 1e-4, "float32": 1e-4, "float16": 0.05, "bfloat16": 0.4}


@dataclass(frozen=True)
class Speed:
    """Seconds of generation, and the tokens that were generated, end tokens included."""

    seconds: float
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Difference:
    """Two different outputs of one text.

    Attributes:
        index: index of the text.
        position: position of the first token that differs, from 0.
        tokens: bertgen's and transformers' token there; None if an output ended before.
        texts: bertgen's and transformers'.
        margin: difference of the log-probabilities of the two tokens, in bertgen's model; with beams the difference of
            the outputs' scores if it is smaller; infinite if an output ended before.
    """

    index: int
    position: int
    tokens: tuple[int | None, int | None]
    texts: tuple[str, str]
    margin: float


@dataclass(frozen=True)
class Comparison:
    """Comparison result.

    Attributes:
        texts: number of texts compared.
        ours, theirs: speed of bertgen and of transformers.
        differences: the texts with different outputs.
        missing: weights that transformers did not find in the checkpoint and got from bertgen's model: transformers 5
            cannot load weights that encoder and decoder share and that were written once.
    """

    texts: int
    ours: Speed
    theirs: Speed
    differences: list[Difference] = field(default_factory=list)
    missing: tuple[str, ...] = ()


def compare(
    generator: Generator, path_or_id: str | os.PathLike, texts: Sequence[str], *, batch_size: int = 32, **options: Any
) -> Comparison:
    """Generate for the texts with bertgen and with transformers.

    Args:
        generator: bertgen's model. transformers gets the same tokens.
        path_or_id: the same checkpoint, which transformers loads with the generator's dtype, on its device.
        texts: texts without tokens are left out.
        batch_size: texts in a batch of transformers; their lengths are similar.
        options: options of `GenerationConfig`, for both.

    Raises:
        InputError: an invalid text, with its index.
        UnsupportedError: options with random outputs, or that transformers does not have.
        BackendError: transformers is not installed. CheckpointError: it cannot load the checkpoint.
    """
    if not isinstance(generator, Generator):
        raise ConfigError(f"generator must be a Generator, got {quoted(generator)}")
    batch_size = check_integer(1, batch_size, "batch_size")
    config = GenerationConfig.of_call(options, None, generator.model.generation_config)
    if config.do_sample:
        raise UnsupportedError("do_sample=True: the draws differ, whatever the seed; compare greedy search or beams")
    if (config.num_beam_groups or 1) > 1:
        raise UnsupportedError(f"num_beam_groups={config.num_beam_groups}: transformers 5 has no diverse beams")
    if config.max_length is None and config.max_new_tokens is None:
        options = {**options, "max_length": generator.model.config.decoder.max_tokens}
    as_path(path_or_id)
    model, missing = _load(path_or_id, generator)
    rows = generator.encode_sources(texts)
    for index, row in enumerate(rows):
        if row.problem is not None:
            raise InputError(f"text {index}: {row.problem}")
    places = [index for index, row in enumerate(rows) if row.ids]
    texts = [texts[index] for index in places]
    sources = [rows[index].ids for index in places]

    generator.generate(texts[:1], **options)  # the first call does more, so it is not timed
    _generate(model, sources[:1], config, 1, options)
    start = time.monotonic()
    outputs = generator.generate(texts, **options)
    middle = time.monotonic()
    theirs = _generate(model, sources, config, batch_size, options)
    end = time.monotonic()

    ours = [output.token_ids for output in outputs]
    different = [i for i in range(len(texts)) if ours[i] != theirs[i]]
    margins = _margins(generator, [(texts[i], ours[i], theirs[i]) for i in different], config)
    decode = generator.tokenizer.batch_decode
    their_texts = decode([list(theirs[i]) for i in different], skip_special_tokens=True)
    differences = []
    for i, margin, text in zip(different, margins, their_texts, strict=True):
        position = _common_length(ours[i], theirs[i])
        tokens = (_token_at(ours[i], position), _token_at(theirs[i], position))
        differences.append(Difference(places[i], position, tokens, (outputs[i].text, text), margin))
    return Comparison(
        len(texts),
        Speed(middle - start, sum(map(len, ours))),
        Speed(end - middle, sum(map(len, theirs))),
        differences,
        missing,
    )


def _load(path_or_id: str | os.PathLike, generator: Generator) -> tuple[Any, tuple[str, ...]]:
    """The model in transformers, and the names of the weights that it did not find."""
    transformers = load_transformers(PURPOSE)
    own = generator.model
    try:
        with silence(transformers):
            model, info = transformers.EncoderDecoderModel.from_pretrained(
                local_directory(path_or_id) or path_or_id, dtype=own.dtype, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"transformers cannot load {path_or_id}: {error}") from error
    missing, weights = sorted(info["missing_keys"]), own.state_dict()
    foreign = [name for name, t in model.state_dict().items() if name in weights and weights[name].shape != t.shape]
    if foreign:
        raise CheckpointError(f"path_or_id {path_or_id} is not the generator's model: {foreign[0]} has another shape")
    model.load_state_dict({name: weights[name] for name in missing if name in weights}, strict=False)
    return model.eval().to(own.device), tuple(missing)


@torch.no_grad()
def _generate(
    model: Any, sources: list[list[int]], config: GenerationConfig, batch_size: int, options: dict[str, Any]
) -> list[tuple[int, ...]]:
    """Outputs of transformers as token ids, from after the start token to the end token."""
    outputs: list[tuple[int, ...]] = [()] * len(sources)
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]), reverse=True)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        ids, mask = padded([sources[i] for i in batch], 0, model.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = model.generate(ids, attention_mask=mask.long(), **options).tolist()
        for i, row in zip(batch, rows, strict=True):
            tokens = row[1:]  # without the start token
            length = next((k + 1 for k, token in enumerate(tokens) if token in config.end_tokens), len(tokens))
            outputs[i] = tuple(tokens[:length])
    return outputs


def _margins(
    generator: Generator, cases: list[tuple[str, tuple[int, ...], tuple[int, ...]]], config: GenerationConfig
) -> list[float]:
    """The `Difference.margin` of each text and its two outputs."""
    texts = [text for text, *_ in cases for _ in range(2)]
    outputs = [output for _, *pair in cases for output in pair]
    scored = generator.score(texts, outputs) if cases else []
    margins = []
    for one, other in zip(scored[::2], scored[1::2]):
        position = _common_length(one.token_ids, other.token_ids)
        if position == min(len(one.token_ids), len(other.token_ids)):
            margins.append(float("inf"))
            continue
        margin = abs(one.log_probs[position] - other.log_probs[position])
        if (config.num_beams or 1) > 1:
            margin = min(margin, abs(one.score - other.score))
        margins.append(margin)
    return margins


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """The number of equal tokens at the beginning of two rows."""
    pairs = enumerate(zip(one, other))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _token_at(row: Sequence[int], position: int) -> int | None:
    return row[position] if position < len(row) else None
