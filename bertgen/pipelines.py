"""`pipeline`, with the interface of transformers 4, which transformers 5 removed."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from .arguments import supported_options, value_or_alias
from .config import GenerationConfig
from .config.validators import check_integer, check_mapping
from .errors import CheckpointError, ConfigError, UnsupportedError, quoted
from .generator import LOADING, Generator, Output
from .generator.texts import checked_texts
from .hub import HUB_OPTIONS
from .model import EncoderDecoderModel
from .tokenizer import Tokenizer

START_OPTIONS = ("decoder_start_token_id", "bos_token_id")  # the first token of outputs
# Task -> prefix of the keys of its results.
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
    """Make a callable that returns results in the form of transformers 4: `[{"generated_text": ...}]`.

    Args:
        task: "text2text-generation", "summarization", "translation" or "translation_xx_to_yy". It names the key of the
            results ("summary_text", "translation_text"). Options of the task in config.json (`task_specific_params`)
            are defaults; `options` overrides them. A `prefix` is put before each text.
        model, tokenizer, dtype, device: as `Generator`.
        model_kwargs: arguments of loading, see `Generator`; they may also be among the options (torch_dtype,
            device_map, revision, ..). Arguments without effect are accepted.
        framework: None or "pt".
        options: defaults of the options of calls, see `Pipeline`.

    Raises:
        UnsupportedError: another task or framework. ConfigError, CheckpointError, BackendError: as `Generator`.
    """
    name = check_task(task)
    if model is None:
        raise ConfigError('pipeline needs a model: an object, a path, a hub id, or "demo"')
    if framework is not None and not (isinstance(framework, str) and framework == "pt"):
        raise UnsupportedError(f"framework={quoted(framework)}: models are PyTorch's ('pt')")
    check_mapping(model_kwargs, "model_kwargs")
    # No effect here: each tokenizer has one implementation, and no data loader or pickled results exist.
    for ignored in ("use_fast", "num_workers", "binary_output"):
        options.pop(ignored, None)
    options = supported_options(options)
    aliases = ("torch_dtype", "use_auth_token")
    loading = {name: options.pop(name) for name in (*HUB_OPTIONS, *LOADING, *aliases) if name in options}
    generation = loading.pop("generation_config", None)
    if generation is not None:
        options["generation_config"] = generation
    loading = {name: value for name, value in {**loading, **(model_kwargs or {})}.items() if value is not None}
    generator = Generator(model, tokenizer, device=device, dtype=value_or_alias(dtype, loading, "dtype"), **loading)
    task_options = _options_of_task(generator.model, task)
    return Pipeline(generator, task, name, {**task_options, **options})


class Pipeline:
    """`Generator` with the calls and results of a pipeline of transformers 4; made by `pipeline`."""

    def __init__(self, generator: Generator, task: str, return_name: str, defaults: dict[str, Any]):
        self.generator, self.task, self.return_name, self.defaults = generator, task, return_name, defaults
        self(())  # raises for an invalid option here, not at the first text

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
            texts: for a str the result is a list of dicts, one per output; for a list it is a list of dicts or, with
                `num_return_sequences`, a list of lists of dicts.
            options: as `Generator.generate` (`num_beams`, `truncation`, `clean_up_tokenization_spaces`, ...), and
                `batch_size`: maximum number of texts in a batch; the Generator's limit of tokens holds too.
                `prefix`: put before each text.
                `return_tensors=True`: "..._token_ids" in place of the texts, int64 [L] on the CPU, start token first,
                without padding.
                `stop_sequence`: a text; its first token ends outputs (`stop_strings` takes longer ones).
        """
        options = {**self.defaults, **options}
        options.pop("num_workers", None)  # no data loader exists
        as_ids = self._returns_ids(options)
        self._set_end_token(options)
        prefix = options.pop("prefix", None)
        if prefix is not None and not isinstance(prefix, str):
            raise ConfigError(f"prefix must be a str, got {quoted(prefix)}")
        prefixed = [(prefix or "") + text if isinstance(text, str) else text for text in _listed(texts)]
        size = options.pop("batch_size", None)
        size = None if size is None else check_integer(1, size, "batch_size")
        outputs = self.generator.generate(prefixed, max_batch_size=size, **options)
        results = [[self._record(one, options if as_ids else None) for one in (o, *o.alternatives)] for o in outputs]
        if isinstance(texts, str):
            return results[0]
        return list(chain(*results)) if all(len(result) == 1 for result in results) else results

    def _returns_ids(self, options: dict[str, Any]) -> bool:
        """Whether the results are ids, by three options of transformers, which are removed from `options`."""
        text, ids, kind = (options.pop(name, None) for name in ("return_text", "return_tensors", "return_type"))
        if kind is not None:
            kind = getattr(kind, "value", kind)
            if kind not in (0, 1):  # transformers' ReturnType: TENSORS, TEXT
                raise ConfigError(f"return_type must be 0 (tensors) or 1 (text), got {kind!r}")
            return kind == 0
        return bool(ids) if ids is not None else text is False

    def _set_end_token(self, options: dict[str, Any]) -> None:
        """Make the first token of `stop_sequence` the end token, as transformers does."""
        text = options.pop("stop_sequence", None)
        if text is None:
            return
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if not ids:
            raise ConfigError(f"stop_sequence={text!r} has no tokens")
        if len(ids) > 1:
            warnings.warn(
                f"stop_sequence={text!r} has {len(ids)} tokens, and the first one ends outputs, as in transformers; "
                "stop_strings=[...] looks for all of them",
                stacklevel=3,
            )
        options["eos_token_id"] = ids[0]

    def _record(self, output: Output, options: dict[str, Any] | None) -> dict[str, Any]:
        """One result; as ids if the options of the call are passed."""
        if options is None:
            return {f"{self.return_name}_text": output.text}
        levels = (
            GenerationConfig.from_dict({}, **{n: options[n] for n in START_OPTIONS if options.get(n) is not None})
            .over(options.get("generation_config"))
            .over(self.model.generation_config)
        )
        start = next(value for name in START_OPTIONS if (value := getattr(levels, name)) is not None)
        ids = torch.tensor([start, *output.token_ids], dtype=torch.int64, device="cpu")
        return {f"{self.return_name}_token_ids": ids}


def _options_of_task(model: EncoderDecoderModel, task: str) -> dict[str, Any]:
    """The options of a task in the `task_specific_params` of a config.json."""
    tasks = model.config.extra.get("task_specific_params") or {}
    options = (tasks.get(task) or {}) if isinstance(tasks, dict) else None
    if not isinstance(options, dict):
        raise CheckpointError(
            f"{model.name_or_path or 'config'}: task_specific_params must be a dict of the options of each task"
        )
    return options


def check_task(task: str) -> str:
    """The prefix of the keys of a task's results; UnsupportedError if pipelines do not have the task."""
    if not isinstance(task, str):
        raise ConfigError(f"task must be a str, got {quoted(task)}")
    name = TASKS.get("translation" if re.fullmatch(r"translation_\w+_to_\w+", task) else task)
    if name is None:
        raise UnsupportedError(f"task {task!r} is not one of {', '.join(TASKS)}, translation_xx_to_yy")
    return name


def _listed(texts: Any) -> list[Any]:
    if isinstance(texts, str):
        return [texts]
    return list(checked_texts(texts))
