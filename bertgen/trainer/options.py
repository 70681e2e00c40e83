"""The options of a training run, defined once: dataclass fields here, flags of `bertgen train` from the same fields."""

from __future__ import annotations

import argparse
import dataclasses
import os
import typing
from dataclasses import MISSING, dataclass, field
from typing import Any

from ..config.validators import check_flag, check_integer, check_number
from ..errors import ConfigError, quoted


def option(help: str, default: Any = MISSING, choices: tuple[str, ...] = (), free: bool = False) -> Any:
    """Declare a field; `free` options may differ between a run and its resumption (they do not change the weights)."""
    return field(default=default, metadata={"help": help, "choices": choices, "free": free})


def _typed(value: Any, kind: Any, name: str) -> Any:
    """The value as the type of its field; ConfigError for another one."""
    kinds = typing.get_args(kind) or (kind,)
    if value is None and type(None) in kinds:
        return None
    if bool in kinds:
        return check_flag(value, name)
    if int in kinds:
        limit = 2**63 if name == "seed" else 2**31
        return check_integer(-limit, value, name, limit - 1)
    if float in kinds:
        return check_number(-1e30, 1e30, value, name)
    if not isinstance(value, (str, os.PathLike)):
        raise ConfigError(f"{name} must be a str, got {quoted(value)}")
    return value


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a training run; see `bertgen train --help` for the same list."""

    train: str = option("training pairs, one per line: source TAB target", free=True)
    output: str = option("folder for the checkpoints, the history and the training state", free=True)
    dev: str | None = option(
        "development pairs; lines with the same source are references of one another", None, free=True
    )
    source_column: int = option("column of the source text, from 1", 1)
    target_column: int = option("column of the target text, from 1", 2)
    max_length: int = option("longest source and target, in pieces; longer pairs are skipped and counted", 128)

    tokenizer: str | None = option(
        "folder or hub id of a tokenizer; default: the model's, or one is trained", None, free=True
    )
    vocab_size: int = option("pieces of the vocabulary trained on both sides of the training pairs", 8000)

    model: str | None = option("checkpoint to start from; default: random weights of the shape below", None, free=True)
    layers: int = option("layers of the encoder and of the decoder", 4)
    hidden: int = option("width of a layer", 256)
    heads: int = option("attention heads", 4)
    intermediate: int = option("width inside the feed-forward block", 1024)
    positions: int = option("longest sequence the model can take", 128)
    dropout: float = option("dropout of embeddings, attention and layer outputs", 0.1)
    tie_encoder_decoder: bool = option("share the encoder's weights with the decoder", True)

    seed: int = option("seed of weights, order of the batches and dropout", 1)
    batch_tokens: int = option("source and target pieces per batch, padding included", 4096)
    accumulation: int = option("batches per update (on each device)", 1)

    learning_rate: float = option("peak learning rate", 1e-3)
    warmup_steps: int = option("updates over which the rate rises from zero to its peak", 1000)
    schedule: str = option("how the rate falls after warm-up", "inverse-sqrt", ("inverse-sqrt", "linear", "cosine"))
    decay_steps: int | None = option("linear, cosine: the update at which the rate is zero and training ends", None)
    weight_decay: float = option("decoupled weight decay of matrices (not of biases and LayerNorm)", 0.01)
    label_smoothing: float = option("probability spread evenly over the vocabulary", 0.1)
    clip: float = option("largest norm of the gradient; 0: no clipping", 1.0)
    average: float = option("decay of the running average of weights that is evaluated and saved; 0: none", 0.999)
    precision: str = option(
        "arithmetic; auto: bfloat16 or else float16 on a GPU, float32 on a CPU",
        "auto",
        ("auto", "float32", "bfloat16", "float16"),
    )
    device: str | None = option("cpu, cuda, cuda:1, ...; default: a GPU where there is one", None, free=True)

    epochs: int | None = option("stop after so many passes over the training pairs", None, free=True)
    steps: int | None = option("stop after so many updates", None, free=True)
    max_minutes: float | None = option("stop after so many minutes of training, resumed runs added up", None, free=True)
    evaluate_every: int = option("updates between two evaluations", 1000, free=True)
    bleu_sentences: int = option("dev sentences translated for BLEU at an evaluation; 0: choose by loss", 200)
    save_minutes: float = option("minutes between two saves of the training state", 10.0, free=True)
    save_dtype: str = option("type of the saved weights", "float32", ("float32", "float16", "bfloat16"), free=True)
    resume: bool = option("continue from the training state in the output folder", False, free=True)
    log_seconds: float = option("seconds between two progress lines where there is no terminal", 30.0, free=True)
    quiet: bool = option("no progress", False, free=True)

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):
            object.__setattr__(self, item.name, _typed(getattr(self, item.name), kinds[item.name], item.name))
        for name in ("source_column", "target_column", "max_length", "vocab_size", "layers", "hidden", "heads"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("intermediate", "positions", "batch_tokens", "accumulation", "warmup_steps", "evaluate_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("epochs", "steps", "decay_steps", "max_minutes"):
            self._require(name, getattr(self, name) is None or getattr(self, name) > 0, "above 0")
        for name in ("weight_decay", "clip", "bleu_sentences", "save_minutes", "log_seconds"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("dropout", "label_smoothing", "average"):
            self._require(name, 0 <= getattr(self, name) < 1, "in [0, 1)")
        self._require("learning_rate", self.learning_rate > 0, "above 0")
        for item in dataclasses.fields(self):
            choices = item.metadata["choices"]
            self._require(item.name, not choices or getattr(self, item.name) in choices, f"one of {', '.join(choices)}")
        self._require("hidden", self.hidden % self.heads == 0, f"a multiple of heads={self.heads}")
        if self.model is None:
            self._require("max_length", self.max_length <= self.positions, f"at most positions={self.positions}")
        else:
            for name in ("layers", "hidden", "heads", "intermediate", "positions", "dropout", "tie_encoder_decoder"):
                default = self.__dataclass_fields__[name].default
                self._require(
                    name, getattr(self, name) == default, f"left out with model={self.model!r}: the checkpoint decides"
                )
        if (self.schedule == "inverse-sqrt") != (self.decay_steps is None):
            raise ConfigError(
                f"decay_steps={self.decay_steps}: needed by the schedules linear and cosine, and by no other"
            )
        if self.decay_steps is not None:
            self._require("warmup_steps", self.warmup_steps < self.decay_steps, f"below decay_steps={self.decay_steps}")
        if self.epochs is None and self.steps is None and self.max_minutes is None and self.decay_steps is None:
            raise ConfigError("no end: give epochs, steps, max_minutes or decay_steps")

    def _require(self, name: str, holds: bool, limit: str) -> None:
        if not holds:
            raise ConfigError(f"{name}={getattr(self, name)!r}: must be {limit}")

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add one flag per field to `parser`: `--batch-tokens N`, `--resume`, `--no-tie-encoder-decoder`, ..."""
        types = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            flag = "--" + item.name.replace("_", "-")
            text, required = item.metadata["help"], item.default is MISSING
            if types[item.name] is bool:
                parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=item.default, help=text)
                continue
            kind = next(t for t in (typing.get_args(types[item.name]) or (types[item.name],)) if t is not type(None))
            if item.default not in (MISSING, None):
                text += f" (default: {item.default})"
            parser.add_argument(
                flag,
                type=kind,
                required=required,
                default=None if required else item.default,
                choices=item.metadata["choices"] or None,
                help=text,
                metavar=None if item.metadata["choices"] else {int: "N", float: "X"}.get(kind),
            )

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> TrainingConfig:
        """Build the config from parsed flags; other attributes of `args` are left alone."""
        return cls(**{item.name: getattr(args, item.name) for item in dataclasses.fields(cls)})

    def fixed(self) -> dict[str, Any]:
        """Return the options that a resumed run may not change."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if not item.metadata["free"]}
