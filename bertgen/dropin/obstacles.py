"""Why a model of transformers must run as it is: what somebody has hung on it, replaced in it or patched over it.

bertgen computes what a model's modules say together, not what each of them does on its own, and on packed tokens. So it
takes a model only where every module is of the class that it was built of, whose code is transformers' or torch's own,
with no hook, and with the attributes that its configuration says.

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
from transformers.generation import utils as generation
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
from .origin import is_known, is_original, patched_method, patched_value
from .watch import HOOKS, global_hooks, hooks_of
from .wrapped_model import Twin

# What may stand in the place of a Linear, LayerNorm or Embedding, as it treats each token by itself. So may a subclass
# whose forward is that of the class: a layer with a parametrization is one.
_LEAVES = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.PReLU, Int4Linear)
_ADAPTED = frozenset({
    "peft.tuners.lora.layer.Linear",
    "peft.tuners.lora.layer.Embedding",
    "peft.tuners.ia3.layer.Linear",
    "peft.utils.other.ModulesToSaveWrapper",
    "transformers.activations.XIELUActivation",
})  # fmt: skip
# What the forwards of these models call of torch, as far as Python code may take its place.
_FUNCTIONS = (
    "linear", "embedding", "layer_norm", "dropout", "softmax", "scaled_dot_product_attention", "cross_entropy",
)  # fmt: skip


def watched(model: nn.Module) -> list[Mapping[Any, Any]]:
    """Dicts outside of a model's modules that `forward_obstacle` rests on."""
    classes = _classes(model)
    files = [sys.modules[name] for name in sorted({cls.__module__ for cls in classes if _is_of_a_model(cls)})]
    configs = {id(c): vars(c) for m in model.modules() if (c := m.__dict__.get("config")) is not None}
    return [
        *map(vars, classes), *map(vars, files), *configs.values(), *global_hooks(), vars(F), LOSS_MAPPING,
        AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping,
        *(table._local_mapping for table in _local_tables(files)),
    ]  # fmt: skip


def watched_in_generation() -> list[Mapping[Any, Any]]:
    """Dicts that `generation_obstacle` rests on besides those."""
    return [*map(vars, _LOOP), *map(vars, _loop_classes())]


def forward_obstacle(twin: Twin) -> str | None:
    """Why a call must go through the modules of the model itself; None where nothing stands in the way."""
    return next(_obstacles(twin), None)


def generation_obstacle(model: Any) -> str | None:
    """Why `generate` must be transformers' loop around the model's forward; None where nothing stands in the way."""
    if (why := _hung(model)) is not None:
        return f"{why}: bertgen's search does not call it"
    for cls, names in ((type(model), vars(GenerationMixin)), *((cls, None) for cls in (type(model), *_loop_classes()))):
        if (name := patched_method(cls, names)) is not None:
            return f"{name} is not transformers' own"
    for file in _LOOP:
        if (name := patched_value(file)) is not None:
            return f"{name} is not transformers' own"
    return None


# Where transformers' loop is written.
_LOOP = (generation, logits_process, stopping_criteria)


def _loop_classes() -> list[type]:
    """The classes of transformers' loop."""
    return [c for file in _LOOP for c in vars(file).values() if isinstance(c, type) and c.__module__ == file.__name__]


def _classes(model: nn.Module) -> list[type]:
    """The classes of all modules of a model and their bases."""
    return list(dict.fromkeys(cls for m in model.modules() for cls in type(m).__mro__ if cls is not object))


def _is_of_a_model(cls: type) -> bool:
    return cls.__module__.startswith("transformers.models.") and cls.__module__ in sys.modules


def _local_tables(files: list[ModuleType]) -> list[Any]:
    """Attention functions that only one file of models, or only that of masks, knows by another name."""
    masks = sys.modules[AttentionMaskInterface.__module__]
    kinds = AttentionInterface, AttentionMaskInterface
    return [value for file in (*files, masks) for value in vars(file).values() if isinstance(value, kinds)]


def _obstacles(twin: Twin) -> Iterator[str]:
    theirs = twin.theirs
    if any(global_hooks()):
        yield "a hook hangs on all modules (torch.nn.modules.module)"
    parts = {m: path for path, m in twin.parts}
    for module, path in parts.items():
        if module is not theirs and (why := _hung(module)) is not None:
            yield f"{why}{path and f' ({path})'}"
    if (name := _shadowed(theirs, but=("forward", *vars(GenerationMixin)))) is not None:
        yield f"{name} is not the original one"
    base = _base(type(theirs))
    own = [name for name in vars(base) if name != "forward" and name not in vars(GenerationMixin)]
    names: dict[type, list[str] | None] = {type(theirs): own, base: None}
    names |= {type(m): None for m in parts if m is not theirs}
    for cls, some in names.items():
        if (name := patched_method(cls, some)) is not None:
            yield f"{name} is not the original one"
    files = {cls.__module__ for cls in map(_base, names) if _is_of_a_model(cls)}
    for file in sorted(files):
        if (name := patched_value(sys.modules[file])) is not None:
            yield f"{name} is not the original one"
    for name in _FUNCTIONS:
        if not is_original(getattr(F, name)):
            yield f"torch.nn.functional.{name} is not the original one"
    for path, kind, leaf in twin.leaves:
        if not _stands_for(leaf, kind):
            yield f"{path} is a {_name(type(leaf))}"
    for _, _, dropout in twin.dropouts:
        if type(dropout) is not nn.Dropout:
            yield f"a dropout is a {_name(type(dropout))}"
    for path, ours, block in twin.blocks:
        if isinstance(ours, PretrainedModel):
            yield from _of_model(ours.config, block)
        else:
            yield from (f"{path}: {why}" for why in _of_block(twin, path, ours, block))
    if not isinstance(twin.ours.config, EncoderDecoderConfig):
        if "_loss_function" in theirs.__dict__ or not is_original(LOSS_MAPPING["ForCausalLM"]):
            yield "the loss is a function of its own"


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _base(cls: type) -> type:
    """The class of transformers that an accelerated one, or a subclass of one, stands for."""
    return next((c for c in cls.__mro__ if _is_of_a_model(c)), cls)


def _hung(module: nn.Module) -> str | None:
    """What is hung on a module: a hook, a compiled call, a method of its own."""
    hooks = [hook for kind in HOOKS for hook in hooks_of(module, kind).values() if not _lets_train(module, hook)]
    compiled = module.__dict__.get("_compiled_call_impl") is not None
    if compiled or not all(map(_only_records, hooks)) or _shadowed(module) is not None:
        return f"something is hung on {type(module).__name__} (a hook, or a method of its own)"
    return None


def _only_records(hook: Any) -> bool:
    """Whether a hook is one by which transformers records outputs: idle, unless those are asked for."""
    return getattr(hook, "__module__", None) == "transformers.utils.output_capturing"


def _lets_train(module: nn.Module, hook: Any) -> bool:
    """Whether a hook on an Embedding is one by which transformers and PEFT let gradients begin at its output: it acts
    here as well, as an Embedding is called."""
    known = is_known(getattr(hook, "__module__", None) or "")
    return known and isinstance(module, nn.Embedding) and getattr(hook, "__name__", "").startswith("make_inputs_requ")


def _shadowed(module: nn.Module, but: Collection[str] = ()) -> str | None:
    """The first method that a module has in the place of one of its class, other than those named."""
    cls = type(module)
    for name, value in module.__dict__.items():
        if callable(value) and name not in but and callable(method := getattr(cls, name, None)):
            if getattr(value, "__self__", None) is not module or getattr(value, "__func__", None) is not method:
                return f"{cls.__name__}.{name}"
    return None


def _stands_for(leaf: Any, kind: type) -> bool:
    """Whether a module does what one of this kind does: something for each token by itself, with no other effect."""
    if kind is nn.Dropout:
        return type(leaf) is nn.Dropout
    cls = type(leaf)
    if _name(cls) not in _ADAPTED:
        return next(c for c in cls.__mro__ if "forward" in vars(c)) in _LEAVES
    variants = getattr(leaf, "lora_variant", {}).values()  # some of which look at positions
    inner = [m for name, m in leaf.named_children() if name in ("base_layer", "original_module")]
    inner += getattr(leaf, "modules_to_save", {}).values()
    return all(type(v).__name__.startswith("Dora") for v in variants) and all(_stands_for(m, kind) for m in inner)


def _of_model(config: Any, theirs: Any) -> Iterator[str]:
    """Of a half: how its configuration says that attention is computed."""
    if isinstance(config, EncoderDecoderConfig):
        return
    if config.is_decoder and not getattr(theirs.config, "is_causal", True):
        yield f"the configuration of {type(theirs).__name__} has is_causal=False"
    implementation = _implementation(theirs.config)
    masks = sys.modules[AttentionMaskInterface.__module__]
    for file in (sys.modules[_base(type(theirs)).__module__], masks):
        for table in _local_tables([file]):
            function = table.get(implementation) if implementation != "eager" else table._local_mapping.get("eager")
            if function is not None and not is_original(function):
                yield f"attention of {type(theirs).__name__} is a function of its own, {implementation!r}"


def _implementation(config: Any) -> str:
    """Which attention a configuration of transformers asks for."""
    return getattr(config, "_attn_implementation", None) or "eager"


def _of_block(twin: Twin, path: str, ours: nn.Module, theirs: Any) -> Iterator[str]:
    """Of what has a counterpart here: its class, its attributes, what is in it that has none."""
    half, config = twin.half(path)
    if isinstance(ours, nn.ModuleList):
        if type(theirs) is not nn.ModuleList:
            yield f"is a {_name(type(theirs))}"
        return
    if type(theirs).__module__ != _base(type(half)).__module__:
        yield f"is a {_name(type(theirs))}"
    for module, expected in _expected(ours, theirs, config):
        for name, value in expected.items():
            found = module.__dict__.get(name, value)
            if type(found) is not type(value) or found != value:
                yield f"{name} is {found!r}, which its configuration makes {value!r}"
    if isinstance(ours, Attention):
        if ours.cross != type(theirs.self).__name__.endswith("CrossAttention"):
            yield f"is a {_name(type(theirs.self))}"
        # Halves that are joined get a copy of their configuration; a layer reads nothing else of its own.
        if _implementation(theirs.self.config) != _implementation(half.config):
            yield "its configuration asks for another attention than its model's"
        if theirs.self.training and not twin.theirs.training and theirs.self.dropout.p:
            yield "it drops weights in a model that is in evaluation mode"
    for act, name in _activations(ours, theirs):
        if not _acts_as(act, name):
            yield f"its activation is not {name}"
    if isinstance(ours, Embeddings):
        for name in ("position_ids", "token_type_ids"):
            if (buffer := theirs._buffers.get(name)) is not None and not _is_as_made(name, buffer):
                yield f"{name} are not as they were made"
    if isinstance(ours, Stack):
        for layer in theirs.layer:
            function = layer.__dict__.get("_gradient_checkpointing_func")
            function = getattr(function, "func", function)
            if layer.gradient_checkpointing and function is not torch.utils.checkpoint.checkpoint:
                yield "gradient checkpointing has a function of its own"


def _expected(ours: nn.Module, theirs: Any, config: BertGenerationConfig) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """Attributes that forwards read, and what they are in a model that nobody has touched."""
    causal = config.is_decoder
    if isinstance(ours, Layer):
        # chunk_size_feed_forward changes no result: each token is computed by itself.
        yield theirs, dict(seq_len_dim=1, is_decoder=causal, add_cross_attention=config.add_cross_attention)
    if isinstance(ours, Attention):
        width, heads = config.head_dim, config.num_attention_heads
        yield theirs, dict(is_cross_attention=ours.cross)
        yield theirs.self, dict(num_attention_heads=heads, attention_head_size=width, all_head_size=heads * width)
        yield theirs.self, dict(scaling=width**-0.5, layer_idx=ours.index, is_decoder=causal)
        yield theirs.self, dict(is_causal=causal and not ours.cross)
    if isinstance(ours, Embeddings) and isinstance(config, RobertaConfig):
        yield theirs, dict(padding_idx=config.pad_token_id)


def _activations(ours: nn.Module, theirs: Any) -> Iterator[tuple[Any, str]]:
    """Activations without parameters there, and the names of what is computed in their place here."""
    if isinstance(ours, Intermediate) and ours.activation is not None:
        yield theirs.intermediate_act_fn, ours.activation
    if isinstance(ours, Transform) and ours.transform_act_fn is None:
        yield theirs.transform_act_fn, ours.activation
    if isinstance(ours, Pooler):
        yield theirs.activation, "tanh"
    if type(ours).__name__ == "RobertaLMHead":
        yield vars(sys.modules[type(theirs).__module__])["gelu"], "gelu"


def _acts_as(act: Any, name: str) -> bool:
    """Whether an activation has the values of the one of that name: its class, its attributes and the table of
    transformers that it came from may all have been changed."""
    if isinstance(act, nn.Module) and (act._modules or not is_known(type(act).__module__)):
        return False
    with torch.no_grad():
        x = torch.linspace(-12.0, 12.0, 97, dtype=torch.float32, device="cpu")
        x = torch.cat((x, x * 100))
        y = act(x)
        return isinstance(y, torch.Tensor) and torch.allclose(y, activation_function(name)(x), rtol=1e-4, atol=1e-5)


def _is_as_made(name: str, buffer: torch.Tensor) -> bool:
    if buffer.is_meta:
        return True
    made = torch.arange(buffer.shape[-1], dtype=buffer.dtype, device=buffer.device)
    return bool((buffer == (made if name == "position_ids" else 0 * made)).all())
