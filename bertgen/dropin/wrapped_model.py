"""Wraps a transformers model: a bertgen model around the same layers, with the same parameters and no second copy.

Both libraries name their modules as checkpoints do. The modules that hold parameters (Linear, Embedding, LayerNorm, and
adapters in their place) are taken from the original model as they are. Only the modules around them are
bertgen's. This module does not import transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..config import BertGenerationConfig, EncoderDecoderConfig, RobertaConfig, half_config
from ..errors import UnsupportedError
from ..layers.add_norm import AddNorm
from ..layers.attention import Attention
from ..layers.meta_init import init_empty_weights
from ..layers.stack import Stack
from ..model import BertModel, EncoderDecoderModel, RobertaModel
from ..model.encoder_decoder import DECODERS, ENCODERS
from ..model.pretrained import PretrainedModel

# Name of transformers' class -> bertgen's class; a configuration of the same kind belongs to it.
MODELS: dict[str, type[PretrainedModel]] = {
    cls.__name__: cls for cls in (*ENCODERS.values(), *DECODERS.values(), EncoderDecoderModel)
}


class AlteredError(UnsupportedError):
    """A supported model in which a module was replaced, added or removed: it must run transformers' own code."""


class WrappedModel:
    """A bertgen model around the layers of a transformers model.

    Args:
        original: a transformers model of a class that MODELS names.

    Attributes:
        original: the transformers model.
        model: the bertgen model. All of its parameters are those of `original`.
        blocks: (path, bertgen module, original module) of the modules with a counterpart; the forward of the original
            one is not called.
        leaves: (path, torch class, original module) of the modules that are called in place of that torch class.
        dropouts: (bertgen module, original module that switches dropout by its mode, original Dropout).

    Raises:
        UnsupportedError: an architecture or an activation that bertgen does not have.
        AlteredError: a module is missing, replaced or additional.
    """

    def __init__(self, original: Any):
        self.original = original
        self.model = _outline(original)
        # The parent and name of every original module, and the configurations: `is_current` compares them.
        self._places = [
            (parent, name, child) for parent in original.modules() for name, child in parent._modules.items()
        ]
        self._settings = self._current_settings()
        self.blocks: list[tuple[str, nn.Module, Any]] = []
        self.leaves: list[tuple[str, type, nn.Module]] = []
        self._modes: list[tuple[nn.Module, nn.Module]] = []  # bertgen module, original module
        self.dropouts: list[tuple[AddNorm | Attention, nn.Module, Any]] = []
        self._stacks: list[tuple[Stack, Any]] = []
        self._adopt()

    def _adopt(self) -> None:
        """Put the original layers into the outline."""
        for path, module in list(self.model.named_modules()):
            original = self._original_at(path)
            if not _is_leaf(module):
                if not isinstance(module, (AddNorm, Attention)):  # their mode follows a dropout
                    self._modes.append((module, original))
                self.blocks.append((path, module, original))
                if isinstance(module, nn.ModuleList) and len(module._modules) != len(original._modules):
                    raise AlteredError(f"{path} has {len(original._modules)} layers, its configuration {len(module)}")
                for name in module._parameters:  # the bias of a head, which its layer has as well
                    module._parameters[name] = getattr(original, name)
            elif path:
                parent, _, name = path.rpartition(".")
                self.leaves.append((path, type(module), original))
                self.model.get_submodule(parent)._modules[name] = original
            if isinstance(module, AddNorm):
                dropout = self._original_at(f"{path}.dropout")
                self.dropouts.append((module, dropout, dropout))
            elif isinstance(module, Attention):  # transformers drops weights by the mode of the attention module
                self.dropouts.append((module, original.self, self._original_at(f"{path}.self.dropout")))
            elif isinstance(module, Stack):
                self._stacks.append((module, original))

    def _original_at(self, path: str) -> Any:
        try:
            return self.original.get_submodule(path)
        except AttributeError:
            raise AlteredError(f"{type(self.original).__name__} has no module {path}") from None

    @property
    def original_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Paths and original modules that a call runs, those inside leaves included."""
        for path, _, module in self.blocks:
            yield path, module
            for name, child in module._modules.items():  # dropouts and activations too, which have no counterpart
                if child is not None:
                    yield f"{path}.{name}".lstrip("."), child
        for path, _, leaf in self.leaves:
            for name, module in leaf.named_modules(prefix=path):
                yield name, module

    def half(self, path: str) -> tuple[Any, BertGenerationConfig]:
        """The original encoder or decoder that the block at a path belongs to, and its bertgen configuration."""
        if not isinstance(self.model, EncoderDecoderModel):
            return self.original, self.model.config
        name = path.partition(".")[0]
        return getattr(self.original, name), getattr(self.model, name).config

    @property
    def is_current(self) -> bool:
        """Whether the original model still has the modules that were taken, and the same configuration."""
        same = all(parent._modules.get(name) is child for parent, name, child in self._places)
        return same and self._settings == self._current_settings()

    def _current_settings(self) -> list[Any]:
        configs = [module.__dict__.get("config") for module in self.original.modules()]
        return [{**vars(config)} for config in {id(c): c for c in configs if c is not None}.values()]

    def sync(self) -> None:
        """Copy from the original what may have changed: modes, dropout, gradient checkpointing, special ids."""
        for module, original in self._modes:  # compared first: setting an attribute of a module is slow
            if module.training != original.training:
                module.training = original.training
        for module, switch, dropout in self.dropouts:
            if module.training != switch.training:
                module.training = switch.training
            if module.dropout != dropout.p:
                module.dropout = dropout.p
        for stack, original in self._stacks:
            recompute = _recompute(original.layer)
            if stack.recompute != recompute:
                stack.recompute = recompute
        config, original_config = self.model.config, self.original.config
        if isinstance(config, EncoderDecoderConfig):
            config.pad_token_id = original_config.pad_token_id
            config.decoder_start_token_id = original_config.decoder_start_token_id

    @property
    def has_active_dropout(self) -> bool:
        """Whether a call drops anything at random."""
        return any(module.training and module.dropout for module, _, _ in self.dropouts)


def _outline(original: Any) -> Any:
    """A bertgen model of the original's configuration, without weights."""
    name, config = type(original).__name__, original.config
    if name not in MODELS:
        raise UnsupportedError(f"a {name} cannot be accelerated; models that can: {', '.join(MODELS)}")
    with init_empty_weights():
        if name == EncoderDecoderModel.__name__:
            halves = {}
            for half, classes in (("encoder", ENCODERS), ("decoder", DECODERS)):
                kind, module = getattr(config, half).model_type, getattr(original, half)
                if kind not in classes:
                    raise UnsupportedError(f"the {half} is a {type(module).__name__}: bertgen has no such half")
                if classes[kind].__name__ != type(module).__name__:
                    raise AlteredError(f"the {half} is a {type(module).__name__}, not a {classes[kind].__name__}")
                halves[half] = _outline(module)
            joint = EncoderDecoderConfig.from_dict(config.to_dict(), **{n: m.config for n, m in halves.items()})
            return EncoderDecoderModel(joint, **halves)
        cls, own = MODELS[name], half_config(config)
        if cls not in (ENCODERS[own.model_type], DECODERS[own.model_type]):
            raise UnsupportedError(f"a {name} of kind {own.model_type!r} cannot be accelerated")
        if isinstance(own, RobertaConfig):  # positions count from the padding id that the model was made with
            own.pad_token_id = getattr(original, original.base_model_prefix, original).embeddings.padding_idx
        pooler = {"add_pooling_layer": original.pooler is not None} if cls in (BertModel, RobertaModel) else {}
        return cls(own, **pooler)


def _is_leaf(module: nn.Module) -> bool:
    """Whether a bertgen module is one that transformers has as well: torch's own, or an activation."""
    return not module._modules and not isinstance(module, nn.ModuleList)


def _recompute(layers: Any) -> dict[str, Any] | None:
    """Options of torch.utils.checkpoint that transformers layers use; None without gradient checkpointing."""
    if not any(getattr(layer, "gradient_checkpointing", False) for layer in layers):
        return None
    options = getattr(layers[0]._gradient_checkpointing_func, "keywords", {})
    return {"use_reentrant": False, **options}
