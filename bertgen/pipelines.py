"""`pipeline`, with the face that transformers 4 gave it and 5 took away."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch

from .errors import ConfigError, InputError, UnsupportedError
from .generator import Generator
from .model import EncoderDecoderModel
from .tokenizer import Tokenizer

# Task -> what its results are called.
TASKS = {"text2text-generation": "generated", "summarization": "summary", "translation": "translation"}


def pipeline(
    task: str = "text2text-generation",
    model: EncoderDecoderModel | str | os.PathLike | None = None,
    tokenizer: Tokenizer | str | os.PathLike | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    **options: Any,
) -> Pipeline:
    """Make a callable that gives results in the form of transformers 4: `[{"generated_text": ...}]`.

    Args:
        task: "text2text-generation", "summarization", "translation" or "translation_xx_to_yy". It names the key of the
            results ("summary_text", "translation_text"). Options that a config.json has for the task
            (`task_specific_params`) hold where `options` has no others; a `prefix` goes before each text.
        model, tokenizer, dtype, device: as `Generator`'s. torch_dtype: the old name of dtype.
        revision, cache_dir, token, local_files_only: as in `huggingface_hub.hf_hub_download`.
        options: defaults of the calls' options, see `Pipeline`.

    Raises:
        UnsupportedError: another task. ConfigError, CheckpointError, BackendError: as `Generator`.
    """
    name = check_task(task)
    if model is None:
        raise ConfigError('pipeline needs a model: an object, a path, a hub id, or "demo"')
    hub: dict[str, Any] = dict(revision=revision, cache_dir=cache_dir, token=token, local_files_only=local_files_only)
    hub = {key: value for key, value in hub.items() if value}
    generator = Generator(model, tokenizer, device=device, dtype=torch_dtype if dtype is None else dtype, **hub)
    own = (generator.model.config.extra.get("task_specific_params") or {}).get(task) or {}
    return Pipeline(generator, f"{name}_text", {**own, **options})


class Pipeline:
    """`Generator` with the calls and results of a pipeline of transformers 4; made by `pipeline`."""

    def __init__(self, generator: Generator, key: str, defaults: dict[str, Any]):
        self.generator, self.key, self.defaults = generator, key, defaults
        self(())  # a bad option is refused here, not at the first text

    @property
    def model(self) -> EncoderDecoderModel:
        return self.generator.model

    @property
    def tokenizer(self) -> Tokenizer:
        return self.generator.tokenizer

    def __call__(self, texts: str | Sequence[str], **options: Any) -> list[Any]:
        """Generate for one text or a list of them.

        Args:
            texts: a str gives a list of dicts, one per output; a list gives a list of dicts or, with
                `num_return_sequences`, a list of lists of dicts.
            options: as `Generator.generate` (`num_beams`, `truncation`, `clean_up_tokenization_spaces`, ...), and
                `batch_size`, texts in a batch at most; the Generator's limit of tokens holds beside it; `prefix`.
        """
        options = {**self.defaults, **options}
        prefix = options.pop("prefix", None) or ""
        given = [prefix + text if isinstance(text, str) else text for text in _listed(texts)]
        outputs = self.generator.generate(given, max_batch_size=options.pop("batch_size", None), **options)
        results = [[{self.key: one.text} for one in (output, *output.alternatives)] for output in outputs]
        if isinstance(texts, str):
            return results[0]
        return list(chain(*results)) if all(len(result) == 1 for result in results) else results


def check_task(task: str) -> str:
    """What a task's results are called; UnsupportedError where it is none that pipelines have."""
    name = TASKS.get("translation" if re.fullmatch(r"translation_\w+_to_\w+", task) else task)
    if name is None:
        raise UnsupportedError(f"task {task!r} is not one of {', '.join(TASKS)}, translation_xx_to_yy")
    return name


def _listed(texts: Any) -> list[Any]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise InputError(f"expected a text or a list of texts, got {type(texts).__name__}")
    return list(texts)
