"""A model of bertgen around the layers of a model of transformers: the same parameters, and no second copy.

Both libraries name their modules as checkpoints do. So the modules that hold parameters (Linear, Embedding, LayerNorm,
and whatever an adapter put in their place) are taken from the other model as they are, and only what is around them is
bertgen's. Nothing here imports transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..config import BertGenerationConfig, EncoderDecoderConfig, RobertaConfig, half_config
from ..errors import UnsupportedError
from ..layers.add_norm import AddNorm
from ..layers.attention import Attention
from ..layers.meta_init import outlined
from ..layers.stack import Stack
from ..model import BertModel, EncoderDecoderModel, RobertaModel
from ..model.encoder_decoder import DECODERS, ENCODERS
from ..model.pretrained import PretrainedModel

# Name of the class there -> the class here; the kind of half must be that of the configuration.
MODELS: dict[str, type[PretrainedModel]] = {
    cls.__name__: cls for cls in (*ENCODERS.values(), *DECODERS.values(), EncoderDecoderModel)
}


class AlteredError(UnsupportedError):
    """A model that bertgen knows has something else in the place of one of its modules, and must run as it is."""


class Twin:
    """bertgen's model over the layers of `theirs`.

    Args:
        theirs: a model of transformers, of a class whose name is in MODELS.

    Attributes:
        ours: the model. Its own modules hold no parameters but those of `theirs`.
        blocks: paths, modules here and modules there; what has a counterpart here, whose forward is not called.
        dropouts: modules here, modules there whose mode says whether they drop, and the Dropouts there.
        leaves: paths, kinds and modules there that stand for modules of torch of that kind, and are called.

    Raises:
        UnsupportedError: an architecture or an activation that bertgen does not have.
        AlteredError: modules are missing, or in excess.
    """

    def __init__(self, theirs: Any):
        self.theirs = theirs
        self.ours = _outline(theirs)
        # Every place of a module there, to see that it is still the one that was taken; and what built ours.
        self._places = [(parent, name, child) for parent in theirs.modules() for name, child in parent._modules.items()]
        self._settings = self._now()
        self.blocks: list[tuple[str, nn.Module, Any]] = []
        self.leaves: list[tuple[str, type, nn.Module]] = []
        self._modes: list[tuple[nn.Module, nn.Module]] = []  # here and there
        self.dropouts: list[tuple[AddNorm | Attention, nn.Module, Any]] = []
        self._stacks: list[tuple[Stack, Any]] = []
        self._adopt()

    def _adopt(self) -> None:
        """Put the layers of the other model into the outline."""
        for path, module in list(self.ours.named_modules()):
            twin = self._theirs_at(path)
            if not _is_leaf(module):
                if not isinstance(module, (AddNorm, Attention)):  # those follow a dropout
                    self._modes.append((module, twin))
                self.blocks.append((path, module, twin))
                if isinstance(module, nn.ModuleList) and len(module._modules) != len(twin._modules):
                    raise AlteredError(f"{path} holds {len(twin._modules)} layers, its configuration {len(module)}")
                for name in module._parameters:  # the bias of a head, which its layer has too
                    module._parameters[name] = getattr(twin, name)
            elif path:
                parent, _, name = path.rpartition(".")
                self.leaves.append((path, type(module), twin))
                self.ours.get_submodule(parent)._modules[name] = twin
            if isinstance(module, AddNorm):
                dropout = self._theirs_at(f"{path}.dropout")
                self.dropouts.append((module, dropout, dropout))
            elif isinstance(module, Attention):  # whose function is told whether to drop by the attention's mode
                self.dropouts.append((module, twin.self, self._theirs_at(f"{path}.self.dropout")))
            elif isinstance(module, Stack):
                self._stacks.append((module, twin))

    def _theirs_at(self, path: str) -> Any:
        try:
            return self.theirs.get_submodule(path)
        except AttributeError:
            raise AlteredError(f"{type(self.theirs).__name__} has no module {path}") from None

    @property
    def parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Paths and modules there that a call runs, those in leaves as well."""
        for path, _, module in self.blocks:
            yield path, module
            for name, child in module._modules.items():  # also what has no counterpart here: dropouts, activations
                if child is not None:
                    yield f"{path}.{name}".lstrip("."), child
        for path, _, leaf in self.leaves:
            for name, module in leaf.named_modules(prefix=path):
                yield name, module

    def half(self, path: str) -> tuple[Any, BertGenerationConfig]:
        """The model there that the block of a path belongs to, and its configuration here."""
        if not isinstance(self.ours, EncoderDecoderModel):
            return self.theirs, self.ours.config
        name = path.partition(".")[0]
        return getattr(self.theirs, name), getattr(self.ours, name).config

    @property
    def is_current(self) -> bool:
        """Whether the other model still consists of the modules that were taken, under the configuration they had."""
        same = all(parent._modules.get(name) is child for parent, name, child in self._places)
        return same and self._settings == self._now()

    def _now(self) -> list[Any]:
        configs = [module.__dict__.get("config") for module in self.theirs.modules()]
        return [{**vars(config)} for config in {id(c): c for c in configs if c is not None}.values()]

    def follow(self) -> None:
        """Take over what may have been set on the other model since: modes, dropout, checkpointing, special ids."""
        for module, twin in self._modes:  # writing an attribute of a module is slow
            if module.training != twin.training:
                module.training = twin.training
        for module, switch, dropout in self.dropouts:
            if module.training != switch.training:
                module.training = switch.training
            if module.dropout != dropout.p:
                module.dropout = dropout.p
        for stack, twin in self._stacks:
            recompute = _recompute(twin.layer)
            if stack.recompute != recompute:
                stack.recompute = recompute
        config, theirs = self.ours.config, self.theirs.config
        if isinstance(config, EncoderDecoderConfig):
            config.pad_token_id, config.decoder_start_token_id = theirs.pad_token_id, theirs.decoder_start_token_id

    @property
    def drops(self) -> bool:
        """Whether a call drops anything at random."""
        return any(module.training and module.dropout for module, _, _ in self.dropouts)


def _outline(theirs: Any) -> Any:
    """Our model of their configuration, without weights."""
    name, config = type(theirs).__name__, theirs.config
    if name not in MODELS:
        raise UnsupportedError(f"a {name} cannot be accelerated; models that can: {', '.join(MODELS)}")
    with outlined():
        if name == EncoderDecoderModel.__name__:
            halves = {}
            for half, classes in (("encoder", ENCODERS), ("decoder", DECODERS)):
                kind, module = getattr(config, half).model_type, getattr(theirs, half)
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
            own.pad_token_id = getattr(theirs, theirs.base_model_prefix, theirs).embeddings.padding_idx
        pooler = {"add_pooling_layer": theirs.pooler is not None} if cls in (BertModel, RobertaModel) else {}
        return cls(own, **pooler)


def _is_leaf(module: nn.Module) -> bool:
    """Whether a module of ours is one that transformers has as well: torch's own, or an activation."""
    return not module._modules and not isinstance(module, nn.ModuleList)


def _recompute(layers: Any) -> dict[str, Any] | None:
    """Options of torch.utils.checkpoint of layers of transformers; None where they keep everything."""
    if not any(getattr(layer, "gradient_checkpointing", False) for layer in layers):
        return None
    options = getattr(layers[0]._gradient_checkpointing_func, "keywords", {})
    return {"use_reentrant": False, **options}
