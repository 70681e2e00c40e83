"""Outputs of models and `generate`: dataclasses with the interface of a dict and a tuple, without None fields."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .cache.cache import Cache

Tensors = tuple[torch.Tensor, ...]


class _Output:
    """Access by attribute, key and position; fields that are None have no key and position, as in transformers.

    The field `past_key_values` is also found under `cache`, its name in transformers from 5.24 on.
    """

    @property
    def cache(self) -> Any:
        return self.past_key_values

    @cache.setter
    def cache(self, cache: Any) -> None:
        self.past_key_values = cache

    def keys(self) -> list[str]:
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]  # type: ignore[arg-type]

    def values(self) -> list[Any]:
        return [getattr(self, name) for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.keys()]

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            key = _field(key)
            if key not in self.keys():
                raise KeyError(key)
            return getattr(self, key)
        return self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        key = _field(key)
        if key not in (f.name for f in fields(self)):  # type: ignore[arg-type]
            raise KeyError(key)
        setattr(self, key, value)

    def __iter__(self):
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: object) -> bool:
        return _field(name) in self.keys()


def _field(name: Any) -> Any:
    """The field with this name or alias."""
    return "past_key_values" if name == "cache" else name


@dataclass(eq=False)
class BaseModelOutputWithPastAndCrossAttentions(_Output):
    """last_hidden_state [B, L, hidden]; hidden_states: embeddings and each layer, of the same shape."""

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass(eq=False)
class BaseModelOutputWithPoolingAndCrossAttentions(_Output):
    """last_hidden_state [B, L, hidden]; pooler_output [B, hidden] where there is a pooler."""

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: Tensors | None = None
    past_key_values: Cache | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass(eq=False)
class CausalLMOutputWithCrossAttentions(_Output):
    """logits [B, L, vocab]; loss where there are labels."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass(eq=False)
class Seq2SeqLMOutput(_Output):
    """logits [B, T, vocab] of the decoder; loss where there are labels; states of both halves."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    decoder_hidden_states: Tensors | None = None
    decoder_attentions: Tensors | None = None
    cross_attentions: Tensors | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: Tensors | None = None
    encoder_attentions: Tensors | None = None


@dataclass(eq=False)
class GenerateOutput(_Output):
    """Result of `generate(return_dict_in_generate=True)`: N outputs from R rows of the decoder, one step per token.

    sequences: int64 [N, L].
    sequences_scores: float32 [N], log-probability / length ** length_penalty; beams only.
    scores, logits: per step the processed scores (log-probabilities with beams) and the logits of the model, float32
        [R, vocab].
    beam_indices: int32 [N, L - prefix], the row each token came from, -1 past the end; beams only.
    """

    sequences: torch.Tensor | None = None
    sequences_scores: torch.Tensor | None = None
    scores: Tensors | None = None
    logits: Tensors | None = None
    beam_indices: torch.Tensor | None = None


@dataclass(eq=False)
class GenerateEncoderDecoderOutput(GenerateOutput):
    """Result of `generate` of an encoder-decoder.

    encoder_attentions, encoder_hidden_states: per layer, as the encoder returns them, of the B sources.
    decoder_attentions, cross_attentions: per step and layer [R, heads, T, tokens so far or S], T tokens in the step.
    decoder_hidden_states: per step, of the embeddings and each layer [R, T, hidden].
    past_key_values: of the R rows, without the last token.
    """

    encoder_attentions: Tensors | None = None
    encoder_hidden_states: Tensors | None = None
    decoder_attentions: tuple[Tensors, ...] | None = None
    cross_attentions: tuple[Tensors, ...] | None = None
    decoder_hidden_states: tuple[Tensors, ...] | None = None
    past_key_values: Cache | None = None


@dataclass(eq=False)
class GenerateDecoderOnlyOutput(GenerateOutput):
    """Result of `generate` of a decoder on its own.

    attentions: per step and layer [R, heads, T, tokens so far], T tokens in the step.
    hidden_states: per step, of the embeddings and each layer [R, T, hidden].
    past_key_values: of the R rows, without the last token; None where the decoder is not causal.
    """

    attentions: tuple[Tensors, ...] | None = None
    hidden_states: tuple[Tensors, ...] | None = None
    past_key_values: Cache | None = None
