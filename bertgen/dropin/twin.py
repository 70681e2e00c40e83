"""A model of bertgen around the layers of a model of transformers: the same parameters, and no second copy.

Both libraries name their modules as checkpoints do. So the modules that hold parameters (Linear, Embedding, LayerNorm,
and whatever an adapter put in their place) are taken from the other model as they are, and only what is around them is
bertgen's. Nothing here imports transformers.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..config import EncoderDecoderConfig, half_config
from ..errors import UnsupportedError
from ..layers import AddNorm, Attention
from ..linear import is_plain
from ..model import BertModel, EncoderDecoderModel, RobertaModel
from ..model.encoder_decoder import DECODERS, ENCODERS
from ..outline import outlined
from ..pretrained import PretrainedModel
from ..stack import Stack

# Name of the class there -> the class here; the kind of half must be that of the configuration.
MODELS: dict[str, type[PretrainedModel]] = {
    cls.__name__: cls for cls in (*ENCODERS.values(), *DECODERS.values(), EncoderDecoderModel)
}


class Twin:
    """bertgen's model over the layers of `theirs`.

    Args:
        theirs: a model of transformers, of a class whose name is in MODELS.

    Attributes:
        ours: the model. Its own modules hold no parameters but those of `theirs`.

    Raises:
        UnsupportedError: an architecture, an activation or a module that bertgen does not have.
    """

    def __init__(self, theirs: Any):
        self.theirs = theirs
        self.ours = _outline(theirs)
        # Every place of a module there, to see that it is still the one that was taken.
        self._places = [(parent, name, child) for parent in theirs.modules() for name, child in parent._modules.items()]
        self._blocks: list[nn.Module] = []  # there; what has a counterpart here, whose forward is not called
        self._modes: list[tuple[nn.Module, nn.Module]] = []  # here and there
        self._dropouts: list[tuple[AddNorm | Attention, Any]] = []
        self._stacks: list[tuple[Stack, Any]] = []
        self._adopt()

    def _adopt(self) -> None:
        """Put the layers of the other model into the outline."""
        for path, module in list(self.ours.named_modules()):
            try:
                twin = self.theirs.get_submodule(path)
            except AttributeError:
                raise UnsupportedError(f"{type(self.theirs).__name__} has no module {path}") from None
            if not _is_leaf(module):
                if not isinstance(module, (AddNorm, Attention)):  # those follow a dropout
                    self._modes.append((module, twin))
                if type(twin).__module__.partition(".")[0] not in ("transformers", "torch", "bertgen"):
                    raise UnsupportedError(f"{path} is a {type(twin).__qualname__}, which bertgen does not know")
                self._blocks.append(twin)
                for name in module._parameters:  # the bias of a head, which its layer has too
                    module._parameters[name] = getattr(twin, name)
            elif path:
                parent, _, name = path.rpartition(".")
                self.ours.get_submodule(parent)._modules[name] = twin
            if isinstance(module, AddNorm):
                self._dropouts.append((module, twin.get_submodule("dropout")))
            elif isinstance(module, Attention):
                self._dropouts.append((module, twin.get_submodule("self.dropout")))
            elif isinstance(module, Stack):
                self._stacks.append((module, twin))

    @property
    def is_current(self) -> bool:
        """Whether the other model still consists of the modules that were taken."""
        return all(parent._modules.get(name) is child for parent, name, child in self._places)

    def obstacle(self) -> str | None:
        """Why a call must go through the other model's own modules; None where nothing stands in the way."""
        for block in self._blocks:
            if block is not self.theirs and not is_plain(block) and not _only_records(block):
                return f"something is hung on {type(block).__name__} (a hook, or a forward of its own)"
        return None

    def follow(self) -> None:
        """Take over what may have been set on the other model since: modes, dropout, checkpointing, special ids."""
        for module, twin in self._modes:  # writing an attribute of a module is slow
            if module.training != twin.training:
                module.training = twin.training
        for module, dropout in self._dropouts:
            if module.training != dropout.training:
                module.training = dropout.training
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
        return any(module.training and module.dropout for module, _ in self._dropouts)


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
                if kind not in classes or classes[kind].__name__ != type(module).__name__:
                    raise UnsupportedError(f"the {half} is a {type(module).__name__}: bertgen has no such half")
                halves[half] = _outline(module)
            joint = EncoderDecoderConfig.from_dict(config.to_dict(), **{n: m.config for n, m in halves.items()})
            return EncoderDecoderModel(joint, **halves)
        cls, own = MODELS[name], half_config(config)
        if cls not in (ENCODERS[own.model_type], DECODERS[own.model_type]):
            raise UnsupportedError(f"a {name} of kind {own.model_type!r} cannot be accelerated")
        pooler = {"add_pooling_layer": theirs.pooler is not None} if cls in (BertModel, RobertaModel) else {}
        return cls(own, **pooler)


def _is_leaf(module: nn.Module) -> bool:
    """Whether a module of ours is one that transformers has as well: torch's own, or an activation."""
    return not module._modules and not isinstance(module, nn.ModuleList)


def _only_records(block: nn.Module) -> bool:
    """Whether all that is hung on a module are the hooks by which transformers records outputs, idle but for that."""
    recorders = [h.__module__ == "transformers.utils.output_capturing" for h in block._forward_hooks.values()]
    others = block._forward_pre_hooks, block._backward_hooks, block._backward_pre_hooks, "forward" in block.__dict__
    return all(recorders) and not any(others)


def _recompute(layers: Any) -> dict[str, Any] | None:
    """Options of torch.utils.checkpoint of layers of transformers; None where they keep everything."""
    if not any(getattr(layer, "gradient_checkpointing", False) for layer in layers):
        return None
    options = getattr(layers[0]._gradient_checkpointing_func, "keywords", {})
    return {"use_reentrant": False, **options}
