"""`accelerate`: one line that makes a model of transformers fast, and `restore`, which undoes it."""

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
from .state import State
from .wrapped_model import MODELS, AlteredError, Twin


@dataclass(frozen=True)
class Explanation:
    """How an accelerated model runs.

    Attributes:
        models: names of the modules that are accelerated, "" for the model itself, and their classes.
        operators: of each operator its name, and which backend it takes and why.
        detours: of each accelerated module, method and reason -> calls that went through transformers' own code.
        obstacles: of each accelerated module that would take such a detour now whatever it is called with, the reason;
            behind "generate: " where only `generate` would.
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
                lines.append(f"  runs as transformers has it: {self.obstacles[name]}")
            lines += [f"  {n} calls as transformers has it, {why}" for why, n in self.detours.get(name, {}).items()]
        return "\n".join([*lines, *(f"{name}: {why}" for name, why in self.operators)]) or "nothing is accelerated"


def accelerate(model: nn.Module, backend: str = "auto", quantization: Any = None, generate: bool = True) -> Any:
    """Make a model of transformers run bertgen's operators over its own parameters, in place.

    Its class becomes a subclass of the one it had, of the same name; modules, parameters, their names and what is
    saved stay as they are. Calls that bertgen does not know go through transformers' own code, and the log says why.

    Args:
        model: an `EncoderDecoderModel`, a `BertGenerationEncoder` or `BertGenerationDecoder` of transformers, or a
            module that holds one, such as a PeftModel. Halves that are `BertModel`, `BertLMHeadModel`, `RobertaModel`
            or `RobertaForCausalLM` count as well.
        backend: as `bertgen.ops.set_backend` takes it; holds while this model runs. "auto" leaves the choice to the
            process, which is the fastest backend unless it was told otherwise.
        quantization: an `Int4Config` (or what `from_pretrained` takes as `quantization_config`), or "int4", "nf4",
            "fp4": hold the weights of linear layers in 4 bits. This replaces them: the model is for inference then, and
            `restore` gives floats that are the rounded values.
        generate: let `model.generate` search with bertgen, with the tokens and outputs of transformers.

    Returns:
        The model.

    Raises:
        UnsupportedError: nothing in the model is of such a class, or its architecture is one bertgen does not have.
        ConfigError: a quantization that is none. InputError: weights that the groups do not divide.
        BackendError: transformers is not installed; an unknown backend.
    """
    _check_module(model)
    accelerated = _classes()
    ops.set_backend(ops.set_backend(backend))  # checks the name
    found: list[Any] = [m for m in model.modules() if type(m) in accelerated or type(m) in accelerated.values()]
    if not found:
        raise UnsupportedError(
            f"nothing in a {type(model).__name__} can be accelerated; models that can: {', '.join(MODELS)}"
        )
    tops = list(_outermost(model, found))
    for top in tops:
        with suppress(AlteredError):  # it runs as it is, until that is taken out of it again
            Twin(top)  # or UnsupportedError, before anything is changed
    if quantization is not None:
        config = int4_config(Int4Config(quantization) if isinstance(quantization, str) else quantization)
        for top in tops:
            _quantize(top, config)
    for module in found:
        if type(module) in accelerated:
            module.__class__ = accelerated[type(module)]
        quantized = quantization is not None or ("_bertgen" in module.__dict__ and module._bertgen.quantized)
        module.__dict__["_bertgen"] = State(backend, generate, quantized)
    return model


def restore(model: nn.Module) -> Any:
    """Undo `accelerate`, in place: classes are those of transformers again, weights it put into 4 bits become floats.

    Returns:
        The model, also where nothing in it was accelerated.
    """
    _check_module(model)
    found: list[Any] = [module for module in model.modules() if hasattr(type(module), "_bertgen")]
    for module in found:
        module.__class__, state = type(module).__base__, module.__dict__.pop("_bertgen", None)
        if state is None or not state.quantized:
            continue
        for path, layer in list(module.named_modules()):
            if isinstance(layer, Int4Linear):
                module.set_submodule(path, layer.to_linear())
        if hasattr(module.config, "quantization_config"):
            del module.config.quantization_config
    return model


def explain(model: nn.Module) -> Explanation:
    """What of a model is accelerated, which backend each operator takes, and which calls went another way and why."""
    _check_module(model)
    found: dict[str, Any] = {name: m for name, m in model.named_modules() if hasattr(type(m), "_bertgen")}
    device = next((p.device.type for p in model.parameters()), "cpu")
    ready = {name: m._bertgen.ready(m) for name, m in found.items()}
    loops = {name: m._bertgen.ready_to_generate(m) for name, m in found.items() if hasattr(m, "generate")}
    loops = {name: f"generate: {why}" for name, why in loops.items() if isinstance(why, str)}
    return Explanation(
        models={name: type(m).__name__ for name, m in found.items()},
        operators=ops.explain(device) if found else [],
        detours={name: dict(m._bertgen.detours) for name, m in found.items() if m._bertgen.detours},
        obstacles=loops | {name: why for name, why in ready.items() if isinstance(why, str)},
    )


def _check_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module, got {quoted(model)}")


def _classes() -> dict[Any, Any]:
    load_transformers("accelerate")
    from . import models

    return models.ACCELERATED


def _outermost(model: nn.Module, found: list[nn.Module]) -> Iterator[nn.Module]:
    """Those of the modules that are in none of the others."""
    inner = {id(m) for one in found for m in one.modules() if m is not one}
    return (one for one in found if id(one) not in inner)


def _quantize(model: Any, config: Int4Config) -> None:
    """Replace linear layers by ones in 4 bits."""
    ours = Twin(model).ours
    if ours.quantization is not None:
        raise UnsupportedError(f"the model is quantized already ({ours.quantization.format})")
    for path in layers_to_quantize(ours, config):
        model.set_submodule(path, Int4Linear.from_linear(model.get_submodule(path), config))
    model.config.quantization_config = config.to_dict()
