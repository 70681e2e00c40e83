"""The metadata of a job: what its records depend on besides the lines. The same metadata gives the same bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import torch

from .. import __version__, ops
from ..config import GenerationConfig
from ..generator import Generator
from ..model.weights_digest import weights_digest
from ..ops import extension
from ..tokenizer import Tokenizer

_OF_STREAM = ("seed", "scores", "truncation", "clean_up_tokenization_spaces", "max_batch_size")


def job_metadata(
    generator: Generator, format_settings: dict[str, Any], window: int, options: dict[str, Any]
) -> dict[str, Any]:
    """What the outputs of a generator depend on besides the lines, each under its name, as a JSON object.

    Weights and tokenizer are recorded by their digests, not by paths and times. Those change when a folder is copied to
    another machine, and stay the same when weights are changed in memory or the hub has another revision under the
    same name. The digest of a model takes a second for each GB. All that decides how sums are rounded is recorded, too:
    sizes of batches, dtype, device, threads, kernels, and torch's version.

    Args:
        format_settings: of the records, by `generate.format_settings`.
        window: lines of a window.
        options: of `Generator.stream`.
    """
    model, device = generator.model, generator.model.device
    # Without num_return_sequences, which is `n_best` of the records.
    config = generation_config_of(
        generator, {name: value for name, value in options.items() if name != "num_return_sequences"}
    )
    return {
        **format_settings,
        **{name: value for name, value in config.to_dict().items() if name not in config.extra},
        **{name: options.get(name) for name in _OF_STREAM},
        "truncation": generator.truncation if options.get("truncation") is None else options["truncation"],
        "window": window,
        **dataclasses.asdict(generator.engine.config),
        "max_input_length": generator.max_input_length,
        "special tokens": generator.special_tokens,
        "weights": weights_digest(model),
        "tokenizer": tokenizer_digest(generator.tokenizer),
        "dtype": str(model.dtype),
        "device": ", ".join(map(_device, generator.devices)),
        **{f"operator {name}": how for name, how in ops.explain("cuda" if device.type == "cuda" else "cpu")},
        "C++ extension": "loaded" if extension.available() else "not there",
        "bertgen": __version__,
        "torch": torch.__version__,
    }


def generation_config_of(generator: Generator, options: dict[str, Any]) -> GenerationConfig:
    """The options of generation that hold for a call of `Generator.stream`, the model's own among them."""
    return GenerationConfig.of_call(
        {name: value for name, value in options.items() if name not in (*_OF_STREAM, "generation_config")},
        options.get("generation_config"),
        generator.model.generation_config,
    )


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """The digest of the files a tokenizer saves, which are its complete state."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(map(Path, tokenizer.save_pretrained(folder))):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
