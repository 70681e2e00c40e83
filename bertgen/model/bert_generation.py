"""BertGenerationEncoder and BertGenerationDecoder: a stack on packed tokens, and the stack with a language-model head.

The other kinds of encoders and decoders are subclasses. They differ in names, token types, positions and heads only.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ..arguments import cache_alias
from ..cache.cache import Cache
from ..config import BertGenerationConfig, GenerationConfig
from ..config.validators import check_flag
from ..errors import ConfigError, InputError, UnsupportedError
from ..kernels.plain import is_traced
from ..layers.attention import AttentionContext, Attentions
from ..layers.decoder_step import decoder_step, is_wide
from ..layers.embeddings import Embeddings
from ..layers.heads import LMHead
from ..layers.inspection import is_plain
from ..layers.linear import Int4Linear
from ..layers.stack import Stack
from ..outputs import BaseModelOutputWithPastAndCrossAttentions, CausalLMOutputWithCrossAttentions
from ..packing import Packing
from .generation import GenerationMixin
from .inputs import (
    check_cache,
    check_dense_mask,
    check_items,
    check_kept,
    check_labels,
    check_mask,
    check_states,
    check_tensors,
    check_tokens,
    check_types,
    key_limits,
    next_positions,
    option_or_default,
    pack_source,
    positions_of,
)
from .loss import cross_entropy
from .pretrained import PretrainedModel
from .resize import check_rows, resized_embedding, resized_linear, size_of
from .state_dict import rename_tensors

logger = logging.getLogger(__name__)


class BertGenerationEncoder(PretrainedModel):
    """A BERT stack without token types: the encoder, and as `decoder.bert` the body of the decoder.

    Args:
        config: shape and options; with `is_decoder` the stack is causal, with `add_cross_attention` too it attends
            to encoder states.
    """

    config_class: ClassVar[type[BertGenerationConfig]] = BertGenerationConfig
    # The model whose vocabulary has to be resized with this one. In a list, so that it is no submodule.
    owner: Sequence[Any] = ()

    def __init__(self, config: BertGenerationConfig):
        super().__init__()
        self.config = config = self.config_class.of_argument(config)
        if config.add_cross_attention and not config.is_decoder:
            raise ConfigError("add_cross_attention=True needs is_decoder=True")
        self.generation_config = GenerationConfig.from_model_config(config)
        self.embeddings = Embeddings(config)
        self.encoder = Stack(config)
        self.initialize(config.initializer_range, self.modules())

    def _mapped(self, state: dict[str, torch.Tensor], own: set[str]) -> dict[str, torch.Tensor]:
        state = super()._mapped(state, own)
        return state if own & set(state) else _without_prefix(state)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        self.embeddings.word_embeddings = embeddings

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Change the size of the vocabulary; remaining tokens keep their embeddings.

        The head of a decoder is resized too, with new biases of 0, and so is the other half of a model whose halves
        share their weights (`tie_encoder_decoder`).

        Args:
            new_num_tokens: the new size; None keeps it.
            pad_to_multiple_of: round the size up to a multiple.
            mean_resizing: new embeddings are the mean of the old ones, else sampled from N(0, initializer_range).

        Returns:
            The new table.
        """
        return _resized(self, new_num_tokens, pad_to_multiple_of, mean_resizing)

    def resize(self, rows: int, std: float | None) -> None:
        """Resize the table to `rows`; new rows are the mean of the old ones (std None), or sampled from N(0, std)."""
        self.set_input_embeddings(resized_embedding(self.get_input_embeddings(), rows, std))
        self.config.vocab_size = rows

    def saved_config(self) -> dict[str, Any]:
        """As `PretrainedModel.saved_config`."""
        check_rows(self.get_input_embeddings().num_embeddings, self.config.vocab_size, "word_embeddings")
        return super().saved_config()

    def packed(
        self,
        ids: torch.Tensor | None,
        positions: torch.Tensor,
        context: AttentionContext,
        embeds: torch.Tensor | None = None,
        states: list[torch.Tensor] | None = None,
        types: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The stack on packed tokens: ids, positions, types int64 [T] or embeds [T, hidden] -> [T, hidden]."""
        return self.encoder(self.embeddings(ids, positions, embeds, types), context, states)

    @cache_alias
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        token_type_ids: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions | tuple:
        """Encode, or decode with `is_decoder`.

        Args:
            input_ids: int64 [B, L]; or inputs_embeds: [B, L, hidden].
            attention_mask: [B, L], 0 where a token is padding. In a cached decoder it covers the past as well. Or
                [B, 1 or heads, L, past + L], bool or added to the scores: then it is the whole mask.
            position_ids: int64 [B, L] or [1, L]; 0 .. L - 1 (after the past) by default.
            encoder_hidden_states: [B, S, encoder hidden], encoder_attention_mask: [B, S].
            past_key_values: the cache of an earlier call; use_cache: return one (decoders do by default).
            token_type_ids: int64 [B, L]; must be 0 for a model without token types.
            output_hidden_states, output_attentions: return the states, the attention weights of all layers.
            return_dict: False returns a tuple.

        Raises:
            InputError: shapes, dtypes, ids or positions outside the model's limits.
        """
        output = self.run(
            input_ids, attention_mask, position_ids, inputs_embeds, encoder_hidden_states, encoder_attention_mask,
            past_key_values, use_cache, token_type_ids, output_hidden_states, output_attentions,
        )  # fmt: skip
        return output if option_or_default(return_dict, self.config.return_dict) else output.to_tuple()

    def run(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor | None,
        encoder_attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        use_cache: bool | None,
        token_type_ids: torch.Tensor | None,
        output_hidden_states: bool | None,
        output_attentions: bool | None,
        keep_padding: bool = False,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """As `forward`. With `keep_padding` states are computed at padding too, where the mask hides its keys only."""
        config = self.config
        inputs = check_tokens(input_ids, inputs_embeds, config)
        rows, length, device = inputs.shape[0], inputs.shape[1], inputs.device
        check_tensors(
            device, attention_mask=attention_mask, position_ids=position_ids, token_type_ids=token_type_ids,
            encoder_hidden_states=encoder_hidden_states, encoder_attention_mask=encoder_attention_mask,
        )  # fmt: skip
        past_key_values = check_cache(past_key_values, config, len(self.encoder.layer))
        states: list[torch.Tensor] | None = (
            [] if option_or_default(output_hidden_states, config.output_hidden_states) else None
        )
        attentions = Attentions() if option_or_default(output_attentions, config.output_attentions) else None
        past = 0 if past_key_values is None else past_key_values.length
        positions = positions_of(position_ids, input_ids, rows, length, past, config, device)
        types = check_types(token_type_ids, (rows, length), config)

        mask = dense = None
        if attention_mask is not None and attention_mask.dim() == 4:
            shape = (rows, config.num_attention_heads, length, past + length)
            dense = check_dense_mask(attention_mask, shape, "attention_mask")
        else:
            mask = check_mask(attention_mask, rows, past + length, "attention_mask")

        real = tokens = Packing.full(rows, length, device)
        cache = source = key_len = key_mask = None
        if not config.is_decoder:
            if encoder_hidden_states is not None or past_key_values is not None:
                raise InputError("encoder_hidden_states and past_key_values are for decoders; is_decoder is False")
            real = Packing.of_mask(mask, rows, length, device)
            if dense is None and attentions is None and not keep_padding:
                tokens = real
            else:
                key_len, key_mask = key_limits(mask)
        else:
            if encoder_hidden_states is not None and not (past_key_values and past_key_values.has_cross):
                check_states(encoder_hidden_states, config.hidden_size, "encoder_hidden_states")
                source = pack_source(encoder_hidden_states, encoder_attention_mask, rows)
            traced = is_traced() or torch.compiler.is_compiling()
            if traced and (past_key_values is not None or use_cache):
                raise UnsupportedError(
                    "a trace or a graph cannot hold a cache, which allocates slots on the host: use_cache=False"
                )
            uses_cache = option_or_default(use_cache, config.use_cache) and not self._recomputes() and not traced
            if past_key_values is not None or uses_cache:
                cache = past_key_values
                if cache is None:
                    cache = self.new_cache(rows, length, device, None if source is None else source[1])
                if cache.rows != rows:
                    raise InputError(f"past_key_values hold {cache.rows} rows, the input has {rows}")
                key_mask = None if mask is None or bool(mask.all()) else mask.bool()
            else:
                key_len, key_mask = key_limits(mask)
        context = AttentionContext(tokens, config.is_decoder, key_len, key_mask, cache, source, dense, attentions)

        with nullcontext() if cache is None else cache.step(length):
            hidden = self.packed(
                None if input_ids is None else tokens.pack(input_ids),
                tokens.pack(positions),
                context,
                None if inputs_embeds is None else tokens.pack(inputs_embeds),
                states,
                None if types is None else tokens.pack(types),
            )

        def padded(x: torch.Tensor) -> torch.Tensor:
            if tokens is real or keep_padding:
                return tokens.unpack(x)
            return real.unpack(x if real.index is None else x[real.index])  # zeros at padding, however it was computed

        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=padded(hidden),
            past_key_values=cache,
            hidden_states=None if states is None else tuple(map(padded, states)),
            attentions=None if attentions is None else tuple(attentions.own),
            cross_attentions=tuple(attentions.cross) if attentions is not None and attentions.cross else None,
        )

    def new_cache(self, rows: int, columns: int, device: torch.device, source: Packing | None) -> Cache:
        """An empty cache for `rows` prefixes of `columns` tokens (with padding), which attend to `source` if given."""
        config = self.config
        return Cache.of_batch(
            len(self.encoder.layer), config.num_attention_heads, config.head_dim, self.dtype, device,
            rows=rows, positions=columns + config.max_tokens, source=source,
        )  # fmt: skip

    def _recomputes(self) -> bool:
        """Whether the backward pass will run the layers again; they must not write to a cache then."""
        return self.encoder.recompute is not None and self.training and torch.is_grad_enabled()


class BertGenerationDecoder(GenerationMixin, PretrainedModel):
    """A BertGeneration stack with a language-model head, causal with `config.is_decoder`."""

    config_class: ClassVar[type[BertGenerationConfig]] = BertGenerationConfig
    # Names of the parts in this kind of model; they are those of checkpoints.
    body_class: ClassVar[type[BertGenerationEncoder]] = BertGenerationEncoder
    body_name: ClassVar[str] = "bert"
    head_class: ClassVar[type[nn.Module]] = LMHead
    head_name: ClassVar[str] = "lm_head"
    head_path: ClassVar[str] = "lm_head"
    owner: Sequence[Any] = ()  # as of the encoder

    def __init__(self, config: BertGenerationConfig):
        super().__init__()
        self.config = config = self.config_class.of_argument(config)
        self.generation_config = GenerationConfig.from_model_config(config)
        setattr(self, self.body_name, self._new_body(config))
        setattr(self, self.head_name, self.head_class(config))
        self.initialize(config.initializer_range, getattr(self, self.head_name).modules())
        self.body.owner = [self]
        self.tie_weights()

    def _new_body(self, config: BertGenerationConfig) -> BertGenerationEncoder:
        return self.body_class(config)

    @property
    def body(self) -> BertGenerationEncoder:
        """The stack, under its name in this kind of model."""
        return getattr(self, self.body_name)

    @property
    def base_model(self) -> BertGenerationEncoder:
        """The stack, by transformers' name."""
        return self.body

    @property
    def head(self) -> LMHead:
        """The language-model head: [T, hidden] -> [T, vocab]."""
        return self.get_submodule(self.head_path)  # type: ignore[return-value]

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            if not isinstance(self.head.decoder, Int4Linear):  # a quantized head has its own weight
                self.head.decoder.weight = self.body.get_input_embeddings().weight
            self.head.decoder.bias = self.head.bias

    def _mapped(self, state: dict[str, torch.Tensor], own: set[str]) -> dict[str, torch.Tensor]:
        state = super()._mapped(state, own)
        if not any(k.startswith(f"{self.body_name}.") for k in state):  # of another kind, or encoder-only
            head = f"{self.head_name}."
            state = {k if k.startswith(head) else f"{self.body_name}.{k}": t for k, t in _without_prefix(state).items()}
        return self.complete_ties(state)

    def complete_ties(self, state: dict[str, torch.Tensor], prefix: str = "") -> dict[str, torch.Tensor]:
        """Add tied weights that a checkpoint does not have; untie those that it has with different values."""
        head, state = f"{prefix}{self.head_path}.", dict(state)
        pairs = [(head + "decoder.bias", head + "bias")]
        if self.config.tie_word_embeddings and head + "decoder.packed" not in state:
            pairs.append((head + "decoder.weight", f"{prefix}{self.body_name}.embeddings.word_embeddings.weight"))
        for a, b in pairs:
            if a in state and b in state:
                if self.config.tie_word_embeddings and not torch.equal(state[a], state[b]):
                    logger.warning("%s and %s differ in the checkpoint: they are not tied", a, b)
                    self.config.tie_word_embeddings = False
            elif a in state or b in state:
                state[a] = state[b] = state[a if a in state else b]
        return state

    def derived_names(self, prefix: str = "") -> set[str]:
        """Names of tied weights, which are not saved: loading restores them."""
        linear, head = self.head.decoder, f"{prefix}{self.head_path}.decoder."
        if not self.config.tie_word_embeddings or self._is_untied():
            return set()
        return {head + "weight", head + "bias"} if linear.bias is self.head.bias else {head + "weight"}

    def _is_untied(self) -> bool:
        """Whether the head has another weight than the embeddings although the configuration ties them."""
        linear = self.head.decoder
        return not isinstance(linear, Int4Linear) and linear.weight is not self.get_input_embeddings().weight

    def _saved_state(self, deduplicate: bool) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        return {k: t for k, t in self.state_dict().items() if k not in self.derived_names()}, {}

    def saved_config(self) -> dict[str, Any]:
        """As `PretrainedModel.saved_config`, with `tie_word_embeddings` as the weights are."""
        values = self.body.saved_config()
        check_rows(self.head.decoder.out_features, self.config.vocab_size, f"{self.head_path}.decoder")
        return {**values, "tie_word_embeddings": self.config.tie_word_embeddings and not self._is_untied()}

    def get_input_embeddings(self) -> nn.Embedding:
        return self.body.get_input_embeddings()

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        self.body.set_input_embeddings(embeddings)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head.decoder

    def set_output_embeddings(self, embeddings: nn.Linear) -> None:
        self.head.decoder = embeddings
        if embeddings.bias is not None:
            self.head.bias = embeddings.bias

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As `BertGenerationEncoder.resize_token_embeddings`."""
        return _resized(self, new_num_tokens, pad_to_multiple_of, mean_resizing)

    def resize(self, rows: int, std: float | None) -> None:
        """As `BertGenerationEncoder.resize`, with the head."""
        head = resized_linear(self.head.decoder, rows, std)
        self.body.resize(rows, std)
        # An untied head has a second bias, which is not used.
        unused = None if self.config.tie_word_embeddings else self.head.bias
        self.set_output_embeddings(head)
        if unused is not None:
            self.head.bias = nn.Parameter(unused.detach().new_zeros(rows))
        self.tie_weights()

    @cache_alias
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        token_type_ids: torch.Tensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithCrossAttentions | tuple:
        """Logits of the next token at every position, and with `labels` [B, L] the loss.

        Arguments as `BertGenerationEncoder.forward`, and:
            labels: int64 [B, L], -100 where there is none; label i + 1 is the target of position i.
            logits_to_keep: number of last positions to compute, or an index tensor of positions; 0 is all.
            num_items_in_batch: the summed loss is divided by it, instead of by the number of labels.
        """
        check_tensors(None, input_ids=input_ids, inputs_embeds=inputs_embeds, labels=labels)
        first, items = input_ids if inputs_embeds is None else inputs_embeds, check_items(num_items_in_batch)
        kept = check_kept(logits_to_keep, 0 if first is None or first.dim() < 2 else first.shape[1])
        arguments: dict[str, Any] = dict(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states, encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values, use_cache=False if labels is not None else use_cache,
            token_type_ids=token_type_ids, output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )  # fmt: skip
        if is_plain(self.body):
            states = self.body.run(**arguments, keep_padding=True)
        else:
            states = self.body(**arguments, return_dict=True)
        logits = self.head(states.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            check_labels(labels, logits.shape)
            shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
            loss = cross_entropy(logits.flatten(0, 1).float(), shifted.flatten(), items)
        output = CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            past_key_values=states.past_key_values,
            hidden_states=states.hidden_states,
            attentions=states.attentions,
            cross_attentions=states.cross_attentions,
        )
        return output if option_or_default(return_dict, self.config.return_dict) else output.to_tuple()

    def step(self, tokens: torch.Tensor, context: AttentionContext) -> torch.Tensor:
        """Decode one token of each row of a cache; torch.compile makes one graph for rows of any lengths.

        The caller allocates its slots: the call is made within `cache.step(1)`.

        Args:
            tokens: int64 [R], the newest token of each running row; not checked.
            context: of those rows, `AttentionContext.of_step(cache)`.

        Returns:
            Logits [R, vocab] of the next token; float32 where all between is float32, too (`decoder_step.is_wide`).
        """
        assert context.cache is not None
        positions, embeddings = next_positions(tokens, context.cache.lengths, self.config), self.body.embeddings
        if is_wide(embeddings, self.head):
            x = embeddings(tokens, positions, dtype=torch.float32)
            if (hidden := decoder_step(self.body.encoder.layer, x, context)) is not None:
                return self.head(hidden)
        return self.head(self.body.packed(tokens, positions, context))


def _resized(half: Any, size: int | None, multiple: int | None, mean_resizing: bool) -> nn.Embedding:
    """`resize_token_embeddings` of an encoder or decoder, and of the other half that shares its weights."""
    mean_resizing = check_flag(mean_resizing, "mean_resizing")
    if half.owner:
        half.owner[0].resize_token_embeddings(size, multiple, mean_resizing)
    else:
        rows = size_of(size, half.config.vocab_size, multiple)
        half.resize(rows, None if mean_resizing else half.config.initializer_range)
    return half.get_input_embeddings()


def is_bare(decoder: BertGenerationDecoder) -> bool:
    """Whether the layers and head can be called in place of the decoder and its stack: these have no hooks."""
    return is_plain(decoder) and is_plain(decoder.body)


def _without_prefix(state: dict[str, Any]) -> dict[str, Any]:
    """Names of a stack without the prefix of its model."""
    return rename_tensors(state, lambda name: name.removeprefix("bert.").removeprefix("roberta."))
