"""4-bit weights in any transformers model: `from_pretrained(.., quantization_config=bertgen.Int4Config())`.

A weight is rounded as soon as it is read, and its Linear becomes an `Int4Linear`. Saved files have the layout of
docs/quantization.md, which bertgen reads as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..config import Int4Config, int4_config
from ..config.quantization import METHOD
from ..errors import CheckpointError, ConfigError, InputError
from ..layers.linear import Int4Linear
from ..layers.meta_init import init_empty_weights
from ..quantization.int4 import why_not_int4_weight

_LOADED = "_is_hf_initialized"  # attribute that transformers sets on parameters that are loaded


class StoredInt4Config(QuantizationConfigMixin):
    """The class by which transformers reads the `quantization_config` of a config.json.

    It is another class than `Int4Config` on purpose: transformers raises an error for an `Int4Config` if the checkpoint
    has this class, so that no checkpoint is quantized twice.

    Raises:
        ConfigError: an unknown option, or a value outside its limits.
    """

    quant_method: Any = METHOD

    def __init__(self, **values: Any):
        self.options = Int4Config.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        return self.options.to_dict()


class Int4Quantizer(HfQuantizer):
    """Rounds weights while transformers loads a model.

    All Linear layers are rounded, except the output layer (unless `head`), layers with a tied weight, and the modules
    that `skip` names.

    Raises:
        ConfigError: another method, or `skip` names no module. InputError: weights that cannot be divided into
            groups, or that are not finite. CheckpointError: 4-bit weights that are missing or do not fit together.
    """

    def __init__(self, quantization_config: Any, **options: Any):
        super().__init__(int4_config(quantization_config), **options)
        self.error: InputError | None = None  # the first error of a weight; raised when all are loaded
        self.shared: dict[str, str] = {}  # name that is left out of files -> name of the same weight

    @property
    def config(self) -> Int4Config:
        return self.quantization_config

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[None, dict[str, str]]:
        """None for transformers' own state; for the file's header, the names left out -> names of the same weights."""
        tensors = model.state_dict(keep_vars=True)
        return None, {name: other for name, other in self.shared.items() if tensors[name] is tensors[other]}

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **options: Any) -> bool:
        path, _, name = param_name.rpartition(".")
        return name == "weight" and path in self.paths

    def get_quantize_ops(self) -> Round:
        return Round(self)

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **options: Any) -> None:
        config, heads, ties = self.config, _heads(model), model.all_tied_weights_keys
        tied = {name.removesuffix(".weight") for name in (*ties, *ties.values())}
        modules = dict(model.named_modules())
        for skipped in config.skip:
            if not any(_is_within(path, skipped) for path in modules):
                raise ConfigError(f"skip has {skipped!r}, but a {type(model).__name__} has no module of that name")
        linears = {
            path: module
            for path, module in modules.items()
            if type(module) is nn.Linear and not any(_is_within(path, skipped) for skipped in config.skip)
        }
        self.heads = {path for path in linears if path in heads and config.head}
        self.paths = {path for path in linears if path not in heads and path not in tied}
        for path, linear in linears.items():
            rows, columns = linear.out_features, linear.in_features
            if path not in self.heads | self.paths:
                continue
            if columns % 32 or (columns if config.format == "int4" else rows * columns) % config.group_size:
                raise InputError(
                    f"{path}: a weight of {columns} columns has no groups of {config.group_size} "
                    "(skip= leaves modules as they are)"
                )
        if self.pre_quantized:
            for path in self.heads | self.paths:
                _install(model, path, _empty(linears[path], config))
            _untie(model, self.heads)
            self.shared = _share(model)

    def round(self, model: PreTrainedModel, path: str, weight: torch.Tensor) -> None:
        """Replace a Linear by a layer in 4 bits; an error of a weight is kept until all are loaded."""
        linear = model.get_submodule(path)
        with init_empty_weights():
            source = nn.Linear(linear.in_features, linear.out_features, bias=False)
        source.weight = nn.Parameter(weight.to(linear.weight.dtype), requires_grad=False)
        try:
            layer = Int4Linear.from_linear(source, self.config)
        except InputError as error:
            self.error = self.error or InputError(f"{path}: {error} (skip= leaves modules as they are)")
            return
        layer.bias = linear.bias
        for tensor in (layer.packed, layer.scale, layer.zero):
            if tensor is not None:
                setattr(tensor, _LOADED, True)
        _install(model, path, layer)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **options: Any) -> PreTrainedModel:
        if not self.pre_quantized:
            # A tied output layer gets its own weight only now.
            for path in sorted(self.heads | self.paths):
                linear = model.get_submodule(path)
                if isinstance(linear, Int4Linear) or self.error is not None:
                    continue
                if not getattr(linear.weight, _LOADED, False):
                    raise CheckpointError(
                        f"the checkpoint holds no float weight of {path} (skip= leaves modules as they are; bertgen "
                        "convert --int4 rounds checkpoints with shared weights that are written once)"
                    )
                self.round(model, path, linear.weight.detach())
            _untie(model, self.heads)
        if self.error is not None:
            raise self.error
        for path in sorted(self.heads | self.paths):
            layer = model.get_submodule(path)
            self._check(path, layer)
            for parameter in layer.parameters(recurse=False):
                parameter.requires_grad = False
        return model

    def _check(self, path: str, layer: Int4Linear) -> None:
        for name in ("packed", "scale", "zero"):
            tensor = getattr(layer, name)
            if tensor is not None and not getattr(tensor, _LOADED, False):
                raise CheckpointError(f"{path}.{name} is missing: config.json says that the layer is in 4 bits")
        shape = layer.out_features, layer.in_features
        reason = why_not_int4_weight(*shape, layer.packed, layer.scale, layer.zero, self.config)
        if reason is not None:
            raise CheckpointError(f"{path}: {reason}")

    def _dequantize(self, model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
        for path, module in list(model.named_modules()):
            if isinstance(module, Int4Linear):
                model.set_submodule(path, module.to_linear().to(dtype))
        return model


class Round(ConversionOps):
    """Conversion of a weight that was read into a 4-bit layer of the model."""

    def __init__(self, quantizer: Int4Quantizer):
        self.quantizer = quantizer

    def convert(
        self, input_dict: dict[str, Any], model: Any = None, missing_keys: set[str] | None = None, **options: Any
    ) -> dict[str, torch.Tensor]:
        rest = {}
        for name, value in input_dict.items():
            if not self.quantizer.param_needs_quantization(model, name):
                rest[name] = value
                continue
            weight = value[0] if isinstance(value, list) else value
            self.quantizer.round(model, name.removesuffix(".weight"), weight)
            if missing_keys is not None:
                missing_keys.discard(name)
        return rest


def _is_within(path: str, part: str) -> bool:
    """Whether a module has a name or is inside a module of that name, compared from dot to dot."""
    return f".{part}." in f".{path}."


def _heads(model: PreTrainedModel) -> set[str]:
    """Names of the output layers of the model and of the models inside it."""
    heads = (part.get_output_embeddings() for part in model.modules() if isinstance(part, PreTrainedModel))
    ids = {id(head) for head in heads if head is not None}
    return {path for path, module in model.named_modules() if id(module) in ids}


def _empty(linear: nn.Linear, config: Int4Config) -> Int4Linear:
    """The 4-bit layer of a Linear, without values."""
    weight, group = linear.weight, config.group_size
    rows, columns = weight.shape
    groups = columns // (32 if columns % group else group)  # blocks of codebooks may continue in the next row
    scale = torch.empty(rows, groups, dtype=weight.dtype, device="meta")
    packed = torch.empty(rows, columns // 2, dtype=torch.uint8, device="meta")
    return Int4Linear(packed, scale, None if config.symmetric else torch.empty_like(scale), linear.bias, config)


def _install(model: PreTrainedModel, path: str, layer: Int4Linear) -> None:
    """Put a layer into a model that is being loaded."""
    model.set_submodule(path, layer)
    # Some models initialize a module's children by their weights, which no longer exist.
    setattr(model.get_submodule(path.rpartition(".")[0]), _LOADED, True)


def _untie(model: PreTrainedModel, heads: set[str]) -> None:
    """Untie the output layers, which now have 4-bit weights, from the embeddings."""
    weights = {f"{path}.weight" for path in heads}
    for prefix, part in model.named_modules():
        keys = getattr(part, "_tied_weights_keys", None) if isinstance(part, PreTrainedModel) else None
        if keys:
            part._tied_weights_keys = {
                name: other for name, other in keys.items() if f"{prefix}.{name}".lstrip(".") not in weights
            }
            part.all_tied_weights_keys = part.get_expanded_tied_weights_keys(all_submodels=True)
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)


def _share(model: PreTrainedModel) -> dict[str, str]:
    """Tie the weights that both halves of an encoder-decoder share: the checkpoint holds them once.

    Returns:
        The encoder's names -> the decoder's.
    """
    if not getattr(model.config, "tie_encoder_decoder", False):
        return {}
    body = model.decoder.base_model_prefix
    names = {name for name, _ in model.named_parameters()}
    shared = {}
    for name in names:
        decoder_name = f"decoder.{body}.{name.removeprefix('encoder.')}"
        if name.startswith("encoder.") and decoder_name in names:
            shared[name] = decoder_name
    model._tied_weights_keys = {**(model._tied_weights_keys or {}), **shared}
    model.all_tied_weights_keys = {**model.all_tied_weights_keys, **shared}
    return shared
