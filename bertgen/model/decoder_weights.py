"""DecoderWeights: the weights of a decoder as C++ reads them, and whether they still are those of the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..kernels import cpp
from ..layers.decoder_step import ABSENT, KINDS, Collector, Unsupported
from ..layers.embeddings import Embeddings
from ..layers.heads import BertLMHead, BertPredictions, LMHead, RobertaLMHead, Transform
from ..layers.inspection import has_library_forward
from ..layers.stack import Stack
from ..ops.decode_steps_layout import DecoderParts
from ..ops.step_layout import Part
from .bert import BertLMHeadModel, BertModel
from .bert_generation import BertGenerationDecoder, BertGenerationEncoder
from .roberta import RobertaForCausalLM, RobertaModel
from .tensor_addresses import WATCHED

DECODERS = (BertGenerationDecoder, BertLMHeadModel, RobertaForCausalLM)
BODIES = (BertGenerationEncoder, BertModel, RobertaModel)
HEADS = (LMHead, BertPredictions, RobertaLMHead)
_CALLED = (*KINDS, *DECODERS, *BODIES, *HEADS, Embeddings, Stack, Transform, nn.Embedding, nn.Dropout)
_GELU = ("gelu", "gelu_python")


class DecoderWeights:
    """Addresses of the parameters of a decoder.

    Args:
        decoder: with contiguous parameters on a CPU, all in float32, bfloat16 or float16, or weights in 4 bits beside
            float32, without hooks and in evaluation mode.
        cross: with its cross-attention.

    Attributes:
        dtype: of the parameters, but for weights in 4 bits.
        capsule: for `cpp.decode_steps`, while this object lives.

    Raises:
        Unsupported: another module, or a parameter that C++ cannot read; the reason.
    """

    def __init__(self, decoder: nn.Module, cross: bool):
        self._decoder = decoder
        collector = Collector(cross)
        parts = _decoder_parts(decoder, collector)
        body: Any = decoder.body
        stack = _child(collector, body, "encoder", Stack)
        layers = _child(collector, stack, "layer", nn.ModuleList)
        for layer in layers:
            collector.add(layer)
        if collector.eps is None:
            raise Unsupported("the decoder has no layers")
        self._vocabulary, outputs = decoder.config.vocab_size, len(parts.head[0])  # type: ignore[union-attr]
        if outputs != self._vocabulary:
            raise Unsupported(f"the head has {outputs} outputs; vocab_size is {self._vocabulary}")
        parameters = [tensor for part in parts for tensor in part] + collector.parameters
        assert collector.dtype is not None  # the norms have one
        self.dtype = collector.dtype
        # The memory stays while C++ may read it, also where a parameter gets another one meanwhile.
        self._held = [tensor.detach() for tensor in parameters]
        self._first_position = decoder.config.first_position  # type: ignore[union-attr]
        self.capsule = cpp.decoder_weights(
            parameters, collector.codebook, len(layers), cross, collector.heads, self._first_position, collector.eps,
            body.embeddings.LayerNorm.eps, _head_eps(decoder.head), collector.int8,
        )  # fmt: skip
        self._watch = cpp.watch_modules(collector.modules, (*WATCHED, "training"))

    def are_current(self) -> bool:
        """Whether the model has these parameters in this memory, and still computes nothing but what C++ does."""
        return (
            has_library_forward(*_CALLED)
            and self._decoder.config.first_position == self._first_position  # type: ignore[union-attr]
            and self._decoder.config.vocab_size == self._vocabulary  # type: ignore[union-attr]
            and bool(cpp.are_unchanged(self._watch))
        )


def _decoder_parts(decoder: Any, collector: Collector) -> DecoderParts:
    """The parameters before those of the layers; the modules are added to the collector."""
    if not has_library_forward(*_CALLED):
        raise Unsupported("a class of modules has another forward, or all modules have a hook")
    collector.children(decoder, _kind(decoder, DECODERS))
    if type(decoder) is BertLMHeadModel:
        _child(collector, decoder, "cls", BertLMHead)
    body = decoder.body
    collector.children(body, _kind(body, BODIES))
    embeddings = _child(collector, body, "embeddings", Embeddings)
    if _child(collector, embeddings, "dropout", nn.Dropout).training:
        raise Unsupported("the embeddings are in training mode")
    words = _table(collector, embeddings.word_embeddings)
    positions = _table(collector, embeddings.position_embeddings)
    types = ABSENT
    if hasattr(embeddings, "token_type_embeddings"):
        types = _table(collector, embeddings.token_type_embeddings)[0]
    head = decoder.head
    collector.children(head, _kind(head, HEADS))
    transform: Part = [ABSENT]
    transform_norm: Part = []
    if type(head) is BertPredictions:
        block = _child(collector, head, "transform", Transform)
        if block.activation not in _GELU or block.transform_act_fn is not None:
            raise Unsupported("the activation of the head is not GELU")
        transform, transform_norm = collector.dense(block.dense), _norm(collector, block.LayerNorm)
    elif type(head) is RobertaLMHead:
        transform, transform_norm = collector.dense(head.dense), _norm(collector, head.layer_norm)
    return DecoderParts(
        words=[words],
        positions=[positions],
        type=[types.detach()],
        embedding_norm=_norm(collector, embeddings.LayerNorm),
        head=collector.dense(head.decoder),
        transform=transform,
        transform_norm=transform_norm,
    )


def _kind(module: nn.Module, kinds: tuple[type, ...]) -> type:
    """The class of the module, one of these."""
    if type(module) not in kinds:
        raise Unsupported(f"a {type(module).__name__} is none of {', '.join(kind.__name__ for kind in kinds)}")
    return type(module)


def _child(collector: Collector, module: nn.Module, name: str, kind: type) -> Any:
    child = getattr(module, name)
    collector.children(child, kind)
    return child


def _table(collector: Collector, table: nn.Embedding) -> torch.Tensor:
    (weight,) = collector.tensors(table, nn.Embedding, ("weight",))
    if table.max_norm is not None:
        raise Unsupported("a table of embeddings has a max_norm")
    return weight


def _norm(collector: Collector, norm: nn.LayerNorm) -> Part:
    tensors = collector.tensors(norm, nn.LayerNorm, ("weight", "bias"))
    if any(t is ABSENT for t in tensors):
        raise Unsupported("a norm has no bias")
    return tensors


def _head_eps(head: Any) -> float:
    """Of the norm of the transform; 0 without one."""
    if type(head) is BertPredictions:
        return head.transform.LayerNorm.eps
    return head.layer_norm.eps if type(head) is RobertaLMHead else 0.0
