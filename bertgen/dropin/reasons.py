"""Reasons why a transformers model must run its own code: hooks, replaced modules, patched functions.

bertgen computes a whole layer on packed tokens and does not call each of its modules. So it runs a model only if every
module has the class it was built with, the code of that class is transformers' or torch's own, no hook is set, and the
attributes are those of the configuration.

Importing this module imports transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn
from transformers import GenerationMixin
from transformers.generation import logits_process, stopping_criteria
from transformers.generation import utils as generation_utils
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from ..config import BertGenerationConfig, EncoderDecoderConfig, RobertaConfig
from ..kernels.layernorm_gelu import activation_function
from ..layers.attention import Attention
from ..layers.block import Intermediate, Layer
from ..layers.embeddings import Embeddings
from ..layers.heads import Pooler, Transform
from ..layers.linear import Int4Linear
from ..layers.stack import Stack
from ..model.pretrained import PretrainedModel
from .hooks import HOOKS, global_hooks, hooks_of
from .patches import is_known, is_original, patched_method, patched_value
from .wrapped_model import WrappedModel

# Classes that may replace a Linear, LayerNorm or Embedding: they compute each token by itself. So may a subclass that
# inherits its forward, such as a layer with a parametrization.
_LEAVES = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.PReLU, Int4Linear)
_ADAPTERS = frozenset({
    "peft.tuners.lora.layer.Linear",
    "peft.tuners.lora.layer.Embedding",
    "peft.tuners.ia3.layer.Linear",
    "peft.utils.other.ModulesToSaveWrapper",
    "transformers.activations.XIELUActivation",
})  # fmt: skip
# Functions of torch that the models' forwards call and that Python code can patch.
_FUNCTIONS = (
    "linear", "embedding", "layer_norm", "dropout", "softmax", "scaled_dot_product_attention", "cross_entropy",
)  # fmt: skip
# The files of transformers' generation loop.
_LOOP_FILES = (generation_utils, logits_process, stopping_criteria)


def forward_dependencies(model: nn.Module) -> list[Mapping[Any, Any]]:
    """The dicts outside of a model's modules that `why_not_forward` depends on."""
    classes = _classes(model)
    files = [sys.modules[name] for name in sorted({cls.__module__ for cls in classes if _is_model_code(cls)})]
    configs = {id(c): vars(c) for m in model.modules() if (c := m.__dict__.get("config")) is not None}
    return [
        *map(vars, classes), *map(vars, files), *configs.values(), *global_hooks(), vars(F), LOSS_MAPPING,
        AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping,
        *(table._local_mapping for table in _local_tables(files)),
    ]  # fmt: skip


def generate_dependencies() -> list[Mapping[Any, Any]]:
    """The dicts that `why_not_generate` depends on besides those of `forward_dependencies`."""
    return [*map(vars, _LOOP_FILES), *map(vars, _loop_classes())]


def why_not_forward(wrapped: WrappedModel) -> str | None:
    """Why a call must go through the original modules; None if bertgen can run it."""
    return next(_reasons(wrapped), None)


def why_not_generate(model: Any) -> str | None:
    """Why `generate` must be transformers' loop around the model's forward; None if bertgen can search."""
    if (reason := _why_not_untouched(model)) is not None:
        return f"{reason}: bertgen's search does not call it"
    for cls, names in ((type(model), vars(GenerationMixin)), *((cls, None) for cls in (type(model), *_loop_classes()))):
        if (name := patched_method(cls, names)) is not None:
            return f"{name} is patched"
    for file in _LOOP_FILES:
        if (name := patched_value(file)) is not None:
            return f"{name} is patched"
    return None


def _loop_classes() -> list[type]:
    """The classes of transformers' generation loop."""
    return [
        c for file in _LOOP_FILES for c in vars(file).values() if isinstance(c, type) and c.__module__ == file.__name__
    ]


def _classes(model: nn.Module) -> list[type]:
    """The classes of all modules of a model, and their bases."""
    return list(dict.fromkeys(cls for m in model.modules() for cls in type(m).__mro__ if cls is not object))


def _is_model_code(cls: type) -> bool:
    """Whether a class is defined in one of transformers' model files."""
    return cls.__module__.startswith("transformers.models.") and cls.__module__ in sys.modules


def _local_tables(files: list[ModuleType]) -> list[Any]:
    """The tables of attention functions in model files, and those in the file of masks."""
    masks = sys.modules[AttentionMaskInterface.__module__]
    kinds = AttentionInterface, AttentionMaskInterface
    return [value for file in (*files, masks) for value in vars(file).values() if isinstance(value, kinds)]


def _reasons(wrapped: WrappedModel) -> Iterator[str]:
    """All reasons why a call must go through the original modules."""
    original = wrapped.original
    if any(global_hooks()):
        yield "torch has a hook on all modules (torch.nn.modules.module)"
    modules = {module: path for path, module in wrapped.original_modules}
    for module, path in modules.items():
        if module is not original and (reason := _why_not_untouched(module)) is not None:
            yield f"{reason}{path and f' ({path})'}"
    if (name := _overridden(original, ignored=("forward", *vars(GenerationMixin)))) is not None:
        yield f"{name} is patched"
    base = _transformers_class(type(original))
    own = [name for name in vars(base) if name != "forward" and name not in vars(GenerationMixin)]
    methods: dict[type, list[str] | None] = {type(original): own, base: None}
    methods |= {type(module): None for module in modules if module is not original}
    for cls, names in methods.items():
        if (name := patched_method(cls, names)) is not None:
            yield f"{name} is patched"
    files = {cls.__module__ for cls in map(_transformers_class, methods) if _is_model_code(cls)}
    for file in sorted(files):
        if (name := patched_value(sys.modules[file])) is not None:
            yield f"{name} is patched"
    for name in _FUNCTIONS:
        if not is_original(getattr(F, name)):
            yield f"torch.nn.functional.{name} is patched"
    for path, kind, leaf in wrapped.leaves:
        if not _is_equivalent(leaf, kind):
            yield f"{path} is a {_qualified(type(leaf))}"
    for _, _, dropout in wrapped.dropouts:
        if type(dropout) is not nn.Dropout:
            yield f"a dropout is a {_qualified(type(dropout))}"
    for path, module, block in wrapped.blocks:
        if isinstance(module, PretrainedModel):
            yield from _half_reasons(module.config, block)
        else:
            yield from (f"{path}: {reason}" for reason in _block_reasons(wrapped, path, module, block))
    if not isinstance(wrapped.model.config, EncoderDecoderConfig):
        if "_loss_function" in original.__dict__ or not is_original(LOSS_MAPPING["ForCausalLM"]):
            yield "its loss function is custom"


def _qualified(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _transformers_class(cls: type) -> type:
    """The transformers class that an accelerated class, or a subclass of one, derives from."""
    return next((c for c in cls.__mro__ if _is_model_code(c)), cls)


def _why_not_untouched(module: nn.Module) -> str | None:
    """Why a module does more than its class says: a hook, a compiled call, an overridden method. Else None."""
    hooks = [hook for kind in HOOKS for hook in hooks_of(module, kind).values() if not _enables_gradients(module, hook)]
    compiled = module.__dict__.get("_compiled_call_impl") is not None
    if compiled or not all(map(_only_records, hooks)) or _overridden(module) is not None:
        return f"{type(module).__name__} has a hook or an overridden method"
    return None


def _only_records(hook: Any) -> bool:
    """Whether transformers records outputs by this hook. It does nothing unless such outputs are requested."""
    return getattr(hook, "__module__", None) == "transformers.utils.output_capturing"


def _enables_gradients(module: nn.Module, hook: Any) -> bool:
    """Whether transformers or PEFT makes an Embedding's output require gradients by this hook.

    bertgen calls the Embedding, so the hook acts here as well.
    """
    known = is_known(getattr(hook, "__module__", None) or "")
    return known and isinstance(module, nn.Embedding) and getattr(hook, "__name__", "").startswith("make_inputs_requ")


def _overridden(module: nn.Module, ignored: Collection[str] = ()) -> str | None:
    """The first method of its class that a module overrides with an attribute, except those in `ignored`."""
    cls = type(module)
    for name, value in module.__dict__.items():
        if callable(value) and name not in ignored and callable(method := getattr(cls, name, None)):
            if getattr(value, "__self__", None) is not module or getattr(value, "__func__", None) is not method:
                return f"{cls.__name__}.{name}"
    return None


def _is_equivalent(leaf: Any, kind: type) -> bool:
    """Whether a module can be called like one of this class: it computes each token by itself, without side effects."""
    if kind is nn.Dropout:
        return type(leaf) is nn.Dropout
    cls = type(leaf)
    if _qualified(cls) not in _ADAPTERS:
        return next(c for c in cls.__mro__ if "forward" in vars(c)) in _LEAVES
    variants = getattr(leaf, "lora_variant", {}).values()  # some of them depend on positions
    inner = [m for name, m in leaf.named_children() if name in ("base_layer", "original_module")]
    inner += getattr(leaf, "modules_to_save", {}).values()
    return all(type(v).__name__.startswith("Dora") for v in variants) and all(_is_equivalent(m, kind) for m in inner)


def _half_reasons(config: Any, original: Any) -> Iterator[str]:
    """Reasons in an encoder's or decoder's configuration: another kind of attention."""
    if isinstance(config, EncoderDecoderConfig):
        return
    if config.is_decoder and not getattr(original.config, "is_causal", True):
        yield f"the configuration of {type(original).__name__} has is_causal=False"
    implementation = _implementation(original.config)
    masks = sys.modules[AttentionMaskInterface.__module__]
    for file in (sys.modules[_transformers_class(type(original)).__module__], masks):
        for table in _local_tables([file]):
            function = table.get(implementation) if implementation != "eager" else table._local_mapping.get("eager")
            if function is not None and not is_original(function):
                yield f"attention of {type(original).__name__} is a custom function, {implementation!r}"


def _implementation(config: Any) -> str:
    """The attention implementation of a transformers configuration."""
    return getattr(config, "_attn_implementation", None) or "eager"


def _block_reasons(wrapped: WrappedModel, path: str, module: nn.Module, original: Any) -> Iterator[str]:
    """Reasons in a module with a counterpart: its class, its attributes, the parts of it without a counterpart."""
    half, config = wrapped.half(path)
    if isinstance(module, nn.ModuleList):
        if type(original) is not nn.ModuleList:
            yield f"is a {_qualified(type(original))}"
        return
    if type(original).__module__ != _transformers_class(type(half)).__module__:
        yield f"is a {_qualified(type(original))}"
    for part, attributes in _expected(module, original, config):
        for name, expected in attributes.items():
            value = part.__dict__.get(name, expected)
            if type(value) is not type(expected) or value != expected:
                yield f"{name} is {value!r}, by its configuration {expected!r}"
    if isinstance(module, Attention):
        if module.cross != type(original.self).__name__.endswith("CrossAttention"):
            yield f"is a {_qualified(type(original.self))}"
        # A layer may have a copy of its model's configuration, and reads only this option of it.
        if _implementation(original.self.config) != _implementation(half.config):
            yield "its attention implementation is not its model's"
        if original.self.training and not wrapped.original.training and original.self.dropout.p:
            yield "its dropout is active in a model in evaluation mode"
    for act, name in _activations(module, original):
        if not _computes(act, name):
            yield f"its activation is not {name}"
    if isinstance(module, Embeddings):
        for name in ("position_ids", "token_type_ids"):
            if (buffer := original._buffers.get(name)) is not None and not _is_initial(name, buffer):
                yield f"{name} were changed"
    if isinstance(module, Stack):
        for layer in original.layer:
            function = layer.__dict__.get("_gradient_checkpointing_func")
            function = getattr(function, "func", function)
            if layer.gradient_checkpointing and function is not torch.utils.checkpoint.checkpoint:
                yield "gradient checkpointing has a custom function"


def _expected(
    module: nn.Module, original: Any, config: BertGenerationConfig
) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """Original modules, and their attributes that a forward reads, with the values a new model has."""
    causal = config.is_decoder
    if isinstance(module, Layer):
        # chunk_size_feed_forward changes no result, as each token is computed by itself.
        yield original, dict(seq_len_dim=1, is_decoder=causal, add_cross_attention=config.add_cross_attention)
    if isinstance(module, Attention):
        width, heads = config.head_dim, config.num_attention_heads
        yield original, dict(is_cross_attention=module.cross)
        yield original.self, dict(num_attention_heads=heads, attention_head_size=width, all_head_size=heads * width)
        yield original.self, dict(scaling=width**-0.5, layer_idx=module.index, is_decoder=causal)
        yield original.self, dict(is_causal=causal and not module.cross)
    if isinstance(module, Embeddings) and isinstance(config, RobertaConfig):
        yield original, dict(padding_idx=config.pad_token_id)


def _activations(module: nn.Module, original: Any) -> Iterator[tuple[Any, str]]:
    """Original activations without parameters, and the names of the functions that bertgen computes instead."""
    if isinstance(module, Intermediate) and module.activation is not None:
        yield original.intermediate_act_fn, module.activation
    if isinstance(module, Transform) and module.transform_act_fn is None:
        yield original.transform_act_fn, module.activation
    if isinstance(module, Pooler):
        yield original.activation, "tanh"
    if type(module).__name__ == "RobertaLMHead":
        yield vars(sys.modules[type(original).__module__])["gelu"], "gelu"


def _computes(act: Any, name: str) -> bool:
    """Whether an activation computes the function of that name.

    Its values are compared, because its class, its attributes and transformers' table of activations may be patched.
    """
    if isinstance(act, nn.Module) and (act._modules or not is_known(type(act).__module__)):
        return False
    with torch.no_grad():
        x = torch.linspace(-12.0, 12.0, 97, dtype=torch.float32, device="cpu")
        x = torch.cat((x, x * 100))
        y = act(x)
        return isinstance(y, torch.Tensor) and torch.allclose(y, activation_function(name)(x), rtol=1e-4, atol=1e-5)


def _is_initial(name: str, buffer: torch.Tensor) -> bool:
    """Whether a buffer of positions or token types has the values a new model has."""
    if buffer.is_meta:
        return True
    positions = torch.arange(buffer.shape[-1], dtype=buffer.dtype, device=buffer.device)
    return bool((buffer == (positions if name == "position_ids" else 0 * positions)).all())
