"""The same model here and in transformers, side by side on the same texts: the tokens, and the time they take."""

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
from .optional_imports import load_transformers, quiet
from .packing import padded


@dataclass(frozen=True)
class Speed:
    """Seconds of generation and the tokens that came of it, end tokens included."""

    seconds: float
    tokens: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Difference:
    """Two outputs of one text that are not the same.

    Attributes:
        index: of the text.
        position: of the first token that differs, from 0.
        tokens: ours and theirs there; None where an output has ended before.
        texts: ours and theirs.
        margin: how far the model holds the two apart: the difference of the log-probabilities that it gives to the
            two tokens behind what is common, or under beams, if that is smaller, of the outputs' scores; infinite
            where an output has ended before.
    """

    index: int
    position: int
    tokens: tuple[int | None, int | None]
    texts: tuple[str, str]
    margin: float


@dataclass(frozen=True)
class Comparison:
    """What came of it: texts compared, those whose outputs differ, and the speed of both.

    `missing` are weights that transformers did not find in the checkpoint: it was given them from here, as transformers
    5 cannot load weights that encoder and decoder share and that were written once.
    """

    texts: int
    ours: Speed
    theirs: Speed
    differences: list[Difference] = field(default_factory=list)
    missing: tuple[str, ...] = ()


def compare(
    generator: Generator, path_or_id: str | os.PathLike, texts: Sequence[str], *, batch_size: int = 32, **options: Any
) -> Comparison:
    """Generate for the texts here and in transformers.

    Args:
        generator: the model as it runs here; what it is given in tokens, transformers is given too.
        path_or_id: where transformers finds the same checkpoint, with the dtype and on the device of the generator's.
        texts: those without tokens are left out.
        batch_size: texts of like length that transformers gets at once.
        options: of `GenerationConfig`, for both.

    Raises:
        InputError: a text that cannot be used (its index).
        UnsupportedError: options under which outputs are not determined, or that transformers has not.
        BackendError: transformers is not installed. CheckpointError: it cannot load the checkpoint.
    """
    if not isinstance(generator, Generator):
        raise ConfigError(f"generator must be a Generator, got {quoted(generator)}")
    batch_size = check_integer(1, batch_size, "batch_size")
    config = GenerationConfig.of_call(options, None, generator.model.generation_config)
    if config.do_sample:
        raise UnsupportedError("do_sample=True: the draws differ, whatever the seed; compare greedy search or beams")
    if (config.num_beam_groups or 1) > 1:
        raise UnsupportedError(f"num_beam_groups={config.num_beam_groups}: transformers 5 has no diverse beams itself")
    if config.max_length is None and config.max_new_tokens is None:
        options = {**options, "max_length": generator.model.config.decoder.max_tokens}
    as_path(path_or_id)
    model, missing = _load(path_or_id, generator)
    rows = generator.encode_sources(texts)
    for index, row in enumerate(rows):
        if row.reason is not None:
            raise InputError(f"text {index}: {row.reason}")
    places = [index for index, row in enumerate(rows) if row.ids]
    texts = [texts[index] for index in places]
    sources = [rows[index].ids for index in places]

    generator.generate(texts[:1], **options)  # what only the first call does is not timed
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
        position = _common(ours[i], theirs[i])
        tokens = (_at(ours[i], position), _at(theirs[i], position))
        differences.append(Difference(places[i], position, tokens, (outputs[i].text, text), margin))
    return Comparison(
        len(texts),
        Speed(middle - start, sum(map(len, ours))),
        Speed(end - middle, sum(map(len, theirs))),
        differences,
        missing,
    )


def _load(path_or_id: str | os.PathLike, generator: Generator) -> tuple[Any, tuple[str, ...]]:
    """The model in transformers, and the weights that it did not find."""
    transformers = load_transformers("a comparison")
    own = generator.model
    try:
        with quiet(transformers):
            model, found = transformers.EncoderDecoderModel.from_pretrained(
                local_directory(path_or_id) or path_or_id, dtype=own.dtype, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"transformers cannot load {path_or_id}: {error}") from error
    missing, known = sorted(found["missing_keys"]), own.state_dict()
    foreign = [name for name, t in model.state_dict().items() if name in known and known[name].shape != t.shape]
    if foreign:
        raise CheckpointError(f"path_or_id {path_or_id} is another model than the generator's: {foreign[0]} differs")
    model.load_state_dict({name: known[name] for name in missing if name in known}, strict=False)
    return model.eval().to(own.device), tuple(missing)


@torch.no_grad()
def _generate(
    model: Any, sources: list[list[int]], config: GenerationConfig, batch_size: int, options: dict[str, Any]
) -> list[tuple[int, ...]]:
    """Outputs of transformers as token ids: no start token, nothing behind the end token."""
    found: list[tuple[int, ...]] = [()] * len(sources)
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
            found[i] = tuple(tokens[:length])
    return found


def _margins(
    generator: Generator, cases: list[tuple[str, tuple[int, ...], tuple[int, ...]]], config: GenerationConfig
) -> list[float]:
    """How far the model holds the outputs of each text apart, at the first token that differs or as a whole."""
    texts = [text for text, *_ in cases for _ in range(2)]
    outputs = [output for _, *pair in cases for output in pair]
    scored = generator.score(texts, outputs) if cases else []
    margins = []
    for one, other in zip(scored[::2], scored[1::2]):
        position = _common(one.token_ids, other.token_ids)
        if position == min(len(one.token_ids), len(other.token_ids)):
            margins.append(float("inf"))
            continue
        margin = abs(one.log_probs[position] - other.log_probs[position])
        if (config.num_beams or 1) > 1:
            margin = min(margin, abs(one.score - other.score))
        margins.append(margin)
    return margins


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that two rows begin with alike."""
    pairs = enumerate(zip(one, other))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _at(row: Sequence[int], position: int) -> int | None:
    return row[position] if position < len(row) else None
