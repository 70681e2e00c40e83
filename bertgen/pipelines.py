"""`pipeline`, with the face that transformers 4 gave it and 5 took away."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from .arguments import older, settled
from .config import GenerationConfig
from .config.validators import check_integer, check_mapping
from .errors import CheckpointError, ConfigError, UnsupportedError, quoted
from .generator import LOADING, Generator, Output
from .generator.texts import checked_texts
from .hub import OPTIONS
from .model import EncoderDecoderModel
from .tokenizer import Tokenizer

STARTS = ("decoder_start_token_id", "bos_token_id")  # what outputs begin with
# Task -> what its results are called.
TASKS = {"text2text-generation": "generated", "summarization": "summary", "translation": "translation"}


def pipeline(
    task: str = "text2text-generation",
    model: EncoderDecoderModel | str | os.PathLike | None = None,
    tokenizer: Tokenizer | str | os.PathLike | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | int | None = None,
    model_kwargs: dict[str, Any] | None = None,
    framework: str | None = None,
    **options: Any,
) -> Pipeline:
    """Make a callable that gives results in the form of transformers 4: `[{"generated_text": ...}]`.

    Args:
        task: "text2text-generation", "summarization", "translation" or "translation_xx_to_yy". It names the key of the
            results ("summary_text", "translation_text"). Options that a config.json has for the task
            (`task_specific_params`) hold where `options` has no others; a `prefix` goes before each text.
        model, tokenizer, dtype, device: as `Generator`'s.
        model_kwargs: arguments of loading, see `Generator`; those may stand among the options, too (torch_dtype,
            device_map, revision, ..). What changes nothing is accepted.
        framework: None or "pt".
        options: defaults of the calls' options, see `Pipeline`.

    Raises:
        UnsupportedError: another task or framework. ConfigError, CheckpointError, BackendError: as `Generator`.
    """
    name = check_task(task)
    if model is None:
        raise ConfigError('pipeline needs a model: an object, a path, a hub id, or "demo"')
    if framework is not None and not (isinstance(framework, str) and framework == "pt"):
        raise UnsupportedError(f"framework={quoted(framework)}: models are PyTorch's ('pt')")
    check_mapping(model_kwargs, "model_kwargs")
    for unused in (
        "use_fast",
        "num_workers",
        "binary_output",
    ):  # one tokenizer of each kind; no loader; no pickled results
        options.pop(unused, None)
    options = settled(options)
    older_names = ("torch_dtype", "use_auth_token")
    loading = {name: options.pop(name) for name in (*OPTIONS, *LOADING, *older_names) if name in options}
    generation = loading.pop("generation_config", None)
    if generation is not None:
        options["generation_config"] = generation
    loading = {name: value for name, value in {**loading, **(model_kwargs or {})}.items() if value is not None}
    generator = Generator(model, tokenizer, device=device, dtype=older(loading, "dtype", dtype), **loading)
    own = _options_of_task(generator.model, task)
    return Pipeline(generator, task, name, {**own, **options})


class Pipeline:
    """`Generator` with the calls and results of a pipeline of transformers 4; made by `pipeline`."""

    def __init__(self, generator: Generator, task: str, return_name: str, defaults: dict[str, Any]):
        self.generator, self.task, self.return_name, self.defaults = generator, task, return_name, defaults
        self(())  # a bad option is refused here, not at the first text

    @property
    def model(self) -> EncoderDecoderModel:
        return self.generator.model

    @property
    def tokenizer(self) -> Tokenizer:
        return self.generator.tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Write the model and the tokenizer."""
        self.model.save_pretrained(save_directory)
        self.tokenizer.save_pretrained(save_directory)

    def __call__(self, texts: str | Sequence[str], **options: Any) -> list[Any]:
        """Generate for one text or a list of them.

        Args:
            texts: a str gives a list of dicts, one per output; a list gives a list of dicts or, with
                `num_return_sequences`, a list of lists of dicts.
            options: as `Generator.generate` (`num_beams`, `truncation`, `clean_up_tokenization_spaces`, ...), and
                `batch_size`, texts in a batch at most; the Generator's limit of tokens holds beside it; `prefix`;
                `return_tensors=True`: "..._token_ids" in place of the texts, int64 [L] on the CPU, start token first,
                without padding; `stop_sequence`: a text whose first token ends outputs (`stop_strings` knows longer).
        """
        options = {**self.defaults, **options}
        options.pop("num_workers", None)  # there is no loader
        as_ids = self._returns_ids(options)
        self._stop(options)
        prefix = options.pop("prefix", None)
        if prefix is not None and not isinstance(prefix, str):
            raise ConfigError(f"prefix must be a str, got {quoted(prefix)}")
        given = [(prefix or "") + text if isinstance(text, str) else text for text in _listed(texts)]
        size = options.pop("batch_size", None)
        size = None if size is None else check_integer(1, size, "batch_size")
        outputs = self.generator.generate(given, max_batch_size=size, **options)
        results = [[self._record(one, options if as_ids else None) for one in (o, *o.alternatives)] for o in outputs]
        if isinstance(texts, str):
            return results[0]
        return list(chain(*results)) if all(len(result) == 1 for result in results) else results

    def _returns_ids(self, options: dict[str, Any]) -> bool:
        """What transformers' three options for it ask for; they are taken out."""
        text, ids, kind = (options.pop(name, None) for name in ("return_text", "return_tensors", "return_type"))
        if kind is not None:
            kind = getattr(kind, "value", kind)
            if kind not in (0, 1):  # transformers' ReturnType: TENSORS, TEXT
                raise ConfigError(f"return_type must be 0 (tensors) or 1 (text), got {kind!r}")
            return kind == 0
        return bool(ids) if ids is not None else text is False

    def _stop(self, options: dict[str, Any]) -> None:
        """As transformers, the first token of `stop_sequence` becomes the end token."""
        text = options.pop("stop_sequence", None)
        if text is None:
            return
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if not ids:
            raise ConfigError(f"stop_sequence={text!r} has no tokens")
        if len(ids) > 1:
            warnings.warn(
                f"stop_sequence={text!r} has {len(ids)} tokens, of which the first ends outputs, as in transformers; "
                "stop_strings=[...] looks for all of it",
                stacklevel=3,
            )
        options["eos_token_id"] = ids[0]

    def _record(self, output: Output, options: dict[str, Any] | None) -> dict[str, Any]:
        """One result; as ids where `options` of the call are given."""
        if options is None:
            return {f"{self.return_name}_text": output.text}
        levels = (
            GenerationConfig.from_dict({}, **{n: options[n] for n in STARTS if options.get(n) is not None})
            .over(options.get("generation_config"))
            .over(self.model.generation_config)
        )
        start = next(value for name in STARTS if (value := getattr(levels, name)) is not None)
        ids = torch.tensor([start, *output.token_ids], dtype=torch.int64, device="cpu")
        return {f"{self.return_name}_token_ids": ids}


def _options_of_task(model: EncoderDecoderModel, task: str) -> dict[str, Any]:
    """What the `task_specific_params` of a config.json say of a task."""
    tasks = model.config.extra.get("task_specific_params") or {}
    options = (tasks.get(task) or {}) if isinstance(tasks, dict) else None
    if not isinstance(options, dict):
        raise CheckpointError(
            f"{model.name_or_path or 'config'}: task_specific_params must be a dict of options of each task"
        )
    return options


def check_task(task: str) -> str:
    """What a task's results are called; UnsupportedError where it is none that pipelines have."""
    if not isinstance(task, str):
        raise ConfigError(f"task must be the name of one, got {quoted(task)}")
    name = TASKS.get("translation" if re.fullmatch(r"translation_\w+_to_\w+", task) else task)
    if name is None:
        raise UnsupportedError(f"task {task!r} is not one of {', '.join(TASKS)}, translation_xx_to_yy")
    return name


def _listed(texts: Any) -> list[Any]:
    if isinstance(texts, str):
        return [texts]
    return list(checked_texts(texts))
