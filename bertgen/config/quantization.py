"""Int4Config and BitsAndBytesConfig: formats of weights in 4 bits."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from ..errors import ConfigError, UnsupportedError, quoted
from .validators import check_choice, check_flag

FORMATS = ("int4", "nf4", "fp4")
GROUP_SIZES = (32, 64, 128)
SCALES = ("mse", "absmax")
DTYPES = ("float32", "float16", "bfloat16")
METHOD = "bertgen"  # `quant_method` in config.json for files with bertgen's layout


@dataclass(frozen=True)
class Int4Config:
    """Weights of linear layers in 4 bits; groups along a row share a scale. Embeddings and norms are not quantized.

    Args:
        format: "int4" has 16 equidistant levels; "nf4" and "fp4" are those of bitsandbytes (`bertgen.quantization`).
        group_size: 32, 64 or 128 weights share a scale.
        symmetric: int4 levels are -8 .. 7 times the scale; otherwise each group has a zero point.
        scales: "mse" minimizes the squared error of a group, "absmax" sets the scale by the largest weight.
        double_quant: round scales to 8 bits, as bitsandbytes does; for nf4 and fp4. They are stored as floats, so this
            saves no memory here.
        compute_dtype: dtype of products, "float32", "float16", "bfloat16" or such a torch.dtype; None is the dtype of
            the layer's input. "int8", for the format int4: on a CPU each row of the input is rounded to 8 bits, and
            products are of integers; elsewhere as None.
        head: quantize the output layer too, even if it is tied to the embeddings, which are not quantized.
        skip: names of modules that are not quantized, with their submodules: full names, or parts between dots.

    Raises:
        ConfigError: an unknown name, or a value outside its limits.
    """

    quant_method: ClassVar[str] = METHOD  # transformers chooses the quantizer by it

    format: str = "int4"
    group_size: int = 64
    symmetric: bool = True
    scales: str = "mse"
    double_quant: bool = False
    compute_dtype: Any = None
    head: bool = False
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, limits in (("format", FORMATS), ("group_size", GROUP_SIZES), ("scales", SCALES)):
            object.__setattr__(self, name, check_choice(limits, getattr(self, name), name))
        for name in ("symmetric", "double_quant", "head"):
            object.__setattr__(self, name, check_flag(getattr(self, name), name))
        if self.format == "int4" and self.double_quant:
            raise ConfigError("double_quant=True is for the formats nf4 and fp4, got 'int4'")
        if self.format != "int4" and not self.symmetric:
            raise ConfigError(f"symmetric=False is for the format int4, got {self.format!r}")
        compute_dtype = _dtype_name(self.compute_dtype, "compute_dtype", (*DTYPES, "int8"))
        if compute_dtype == "int8" and self.format != "int4":
            raise ConfigError(f"compute_dtype='int8' is for the format int4, got {self.format!r}")
        object.__setattr__(self, "compute_dtype", compute_dtype)
        object.__setattr__(self, "skip", _names(self.skip, "skip"))

    def to_dict(self) -> dict[str, Any]:
        """The `quantization_config` of config.json."""
        return {"quant_method": METHOD, **asdict(self), "skip": list(self.skip)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Int4Config:
        """The inverse of `to_dict`."""
        return cls(**_known(cls, {name: value for name, value in values.items() if name != "quant_method"}))


@dataclass(frozen=True)
class BitsAndBytesConfig:
    """4-bit weights with the names, defaults and meaning of transformers' `BitsAndBytesConfig`.

    A block of 64 weights shares a scale. The output layer and the embeddings are not quantized.
    `bnb_4bit_quant_storage` and the options for 8 bits (llm_int8..) have no effect.

    Raises:
        UnsupportedError: load_in_8bit. ConfigError: an unknown name, or a value outside its limits.
    """

    load_in_8bit: bool = False
    load_in_4bit: bool = False
    llm_int8_threshold: float = 6.0
    llm_int8_skip_modules: tuple[str, ...] | None = None
    llm_int8_enable_fp32_cpu_offload: bool = False
    llm_int8_has_fp16_weight: bool = False
    bnb_4bit_compute_dtype: Any = None
    bnb_4bit_quant_type: str = "fp4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_quant_storage: Any = None

    def __init__(self, load_in_8bit: bool = False, load_in_4bit: bool = False, **options: Any):
        options = _known(type(self), options)
        for f in fields(self):
            object.__setattr__(self, f.name, options.get(f.name, f.default))
        object.__setattr__(self, "load_in_8bit", check_flag(load_in_8bit, "load_in_8bit"))
        object.__setattr__(self, "load_in_4bit", check_flag(load_in_4bit, "load_in_4bit"))
        if self.load_in_8bit:
            raise UnsupportedError("load_in_8bit=True: weights are held in 4 bits (load_in_4bit=True), 16 or 32")
        self.int4()

    def int4(self) -> Int4Config:
        """The same format as an `Int4Config`."""
        return Int4Config(
            format=check_choice(("fp4", "nf4"), self.bnb_4bit_quant_type, "bnb_4bit_quant_type"),
            scales="absmax",
            double_quant=check_flag(self.bnb_4bit_use_double_quant, "bnb_4bit_use_double_quant"),
            compute_dtype=_dtype_name(self.bnb_4bit_compute_dtype, "bnb_4bit_compute_dtype") or "float32",
            skip=_names(
                () if self.llm_int8_skip_modules is None else self.llm_int8_skip_modules, "llm_int8_skip_modules"
            ),
        )


def int4_config(value: Any) -> Int4Config:
    """The `Int4Config` for an object, or for the `quantization_config` of a config.json.

    Args:
        value: an `Int4Config`, a `BitsAndBytesConfig` of ours or of transformers, or a dict of either.

    Raises:
        UnsupportedError: another method, or 8 bits. ConfigError: anything else.
    """
    if isinstance(value, Int4Config):
        return value
    if isinstance(value, BitsAndBytesConfig):
        if not value.load_in_4bit:
            raise ConfigError("a BitsAndBytesConfig needs load_in_4bit=True")
        return value.int4()
    if hasattr(value, "to_dict"):  # an object of transformers
        value = value.to_dict()
    if not isinstance(value, dict):
        raise ConfigError(f"quantization_config must be an Int4Config or a BitsAndBytesConfig, got {quoted(value)}")
    foreign = "load_in_4bit" in value or "load_in_8bit" in value
    named = value.get("quant_method", "bitsandbytes" if foreign else METHOD)
    method = str(getattr(named, "value", named))
    if method == METHOD:
        return Int4Config.from_dict(value)
    if method != "bitsandbytes":
        raise UnsupportedError(
            f"weights quantized by {method!r} are not supported, only by {METHOD!r} and 'bitsandbytes'"
        )
    ours = {name: v for name, v in value.items() if name != "quant_method" and not name.startswith("_")}
    return int4_config(BitsAndBytesConfig(**ours))


def _known(cls: type, options: dict[str, Any]) -> dict[str, Any]:
    names = [f.name for f in fields(cls)]
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 1)
            raise ConfigError(
                f"{cls.__name__} has no option {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    return options


def _dtype_name(value: Any, name: str, known: tuple[str, ...] = DTYPES) -> str | None:
    if value is None:
        return None
    text = quoted(value) if not isinstance(value, str) else value  # a torch.dtype, without importing torch
    return check_choice(known, text.removeprefix("torch."), name)


def _names(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) and v for v in value):
        raise ConfigError(f"{name} must be a list of names of modules, got {quoted(value)}")
    return tuple(value)
