"""`accelerate` makes a transformers model run on bertgen; `restore` undoes it; `explain` describes how a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import ops
from ..config import Int4Config, int4_config
from ..errors import ConfigError, UnsupportedError, quoted
from ..layers.linear import Int4Linear
from ..model.int4_layers import layers_to_quantize
from ..optional_imports import load_transformers
from .state import AccelerationState, is_accelerated, set_state, state_of, take_state
from .wrapped_model import MODELS, AlteredError, WrappedModel


@dataclass(frozen=True)
class Explanation:
    """How an accelerated model runs.

    Attributes:
        models: names of the accelerated modules ("" is the model itself) -> names of their classes.
        operators: name of each operator, and the backend that runs it, with the reason.
        detours: name of each accelerated module -> "method: reason" -> calls that went through transformers' own code.
        obstacles: name of each accelerated module that now runs transformers' own code in every call -> the reason. It
            begins with "generate: " if only `generate` does.
    """

    models: dict[str, str]
    operators: list[tuple[str, str]]
    detours: dict[str, dict[str, int]]
    obstacles: dict[str, str]

    def __str__(self) -> str:
        lines = []
        for name, kind in self.models.items():
            lines.append(f"{name or '(the model)'}: {kind}")
            if name in self.obstacles:
                lines.append(f"  runs transformers' own code: {self.obstacles[name]}")
            counts = self.detours.get(name, {}).items()
            lines += [f"  {count} calls ran transformers' own code, {reason}" for reason, count in counts]
        lines += [f"{name}: {backend}" for name, backend in self.operators]
        return "\n".join(lines) or "nothing is accelerated"


def accelerate(model: nn.Module, backend: str = "auto", quantization: Any = None, generate: bool = True) -> Any:
    """Make a transformers model run bertgen's operators on its own parameters, in place.

    The model's class becomes a subclass of the one it had, with the same name. Modules, parameters, their names and
    saved files stay as they are. A call that bertgen does not support goes through transformers' own code; the reason
    is logged.

    Args:
        model: a transformers `EncoderDecoderModel`, `BertGenerationEncoder` or `BertGenerationDecoder`, or a module
            that contains one, such as a PeftModel. Halves may also be `BertModel`, `BertLMHeadModel`, `RobertaModel` or
            `RobertaForCausalLM`.
        backend: a name for `bertgen.ops.set_backend`, in effect while this model runs. "auto" keeps the backend of the
            process, by default the fastest one.
        quantization: an `Int4Config` (or another `quantization_config` of `from_pretrained`), or "int4", "nf4", "fp4":
            hold the weights of linear layers in 4 bits. This replaces the weights: the model is then for
            inference only, and `restore` gives floats with the rounded values.
        generate: let `model.generate` search with bertgen. It returns the same tokens and outputs as transformers.

    Returns:
        The model.

    Raises:
        UnsupportedError: no module of the model has such a class, or bertgen does not have its architecture.
        ConfigError: an invalid quantization. InputError: weights that cannot be divided into groups.
        BackendError: transformers is not installed, or the backend is unknown.
    """
    _check_module(model)
    accelerated_classes = _accelerated_classes()
    ops.set_backend(ops.set_backend(backend))  # checks the name
    classes = {*accelerated_classes, *accelerated_classes.values()}
    supported: list[Any] = [module for module in model.modules() if type(module) in classes]
    if not supported:
        raise UnsupportedError(
            f"nothing in a {type(model).__name__} can be accelerated; models that can: {', '.join(MODELS)}"
        )
    outermost = list(_outermost(supported))
    for module in outermost:
        with suppress(AlteredError):  # it falls back to transformers until the alteration is undone
            WrappedModel(module)  # an UnsupportedError comes before anything is changed
    if quantization is not None:
        config = int4_config(Int4Config(quantization) if isinstance(quantization, str) else quantization)
        for module in outermost:
            _quantize(module, config)
    for module in supported:
        if type(module) in accelerated_classes:
            module.__class__ = accelerated_classes[type(module)]
        former = take_state(module)
        quantized = quantization is not None or (former is not None and former.quantized)
        set_state(module, AccelerationState(backend, generate, quantized))
    return model


def restore(model: nn.Module) -> Any:
    """Undo `accelerate`, in place: classes are transformers' again, and weights it put into 4 bits become floats.

    Returns:
        The model, also if nothing in it was accelerated.
    """
    _check_module(model)
    accelerated: list[Any] = [module for module in model.modules() if is_accelerated(module)]
    for module in accelerated:
        module.__class__, state = type(module).__base__, take_state(module)
        if state is None or not state.quantized:
            continue
        for path, layer in list(module.named_modules()):
            if isinstance(layer, Int4Linear):
                module.set_submodule(path, layer.to_linear())
        if hasattr(module.config, "quantization_config"):
            del module.config.quantization_config
    return model


def explain(model: nn.Module) -> Explanation:
    """The accelerated modules, the backend of each operator, and the calls that fell back to transformers and why.

    Returns:
        An `Explanation`; print it for a readable form.
    """
    _check_module(model)
    accelerated: dict[str, Any] = {name: module for name, module in model.named_modules() if is_accelerated(module)}
    device = next((p.device.type for p in model.parameters()), "cpu")
    reasons: dict[str, str] = {}
    for name, module in accelerated.items():
        reason = state_of(module).why_not_forward(module)
        if reason is None and hasattr(module, "generate"):
            reason = state_of(module).why_not_generate(module)
            reason = None if reason is None else f"generate: {reason}"
        if reason is not None:
            reasons[name] = reason
    fallbacks = {name: dict(state_of(module).fallbacks) for name, module in accelerated.items()}
    return Explanation(
        models={name: type(module).__name__ for name, module in accelerated.items()},
        operators=ops.explain(device) if accelerated else [],
        detours={name: counts for name, counts in fallbacks.items() if counts},
        obstacles=reasons,
    )


def _check_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module, got {quoted(model)}")


def _accelerated_classes() -> dict[Any, Any]:
    load_transformers("accelerate")
    from . import models

    return models.ACCELERATED


def _outermost(modules: list[nn.Module]) -> Iterator[nn.Module]:
    """The modules that none of the others contains."""
    inner = {id(child) for module in modules for child in module.modules() if child is not module}
    return (module for module in modules if id(module) not in inner)


def _quantize(original: Any, config: Int4Config) -> None:
    """Replace linear layers by layers in 4 bits."""
    model = WrappedModel(original).model
    if model.quantization is not None:
        raise UnsupportedError(f"the model is quantized already ({model.quantization.format})")
    for path in layers_to_quantize(model, config):
        original.set_submodule(path, Int4Linear.from_linear(original.get_submodule(path), config))
    original.config.quantization_config = config.to_dict()
