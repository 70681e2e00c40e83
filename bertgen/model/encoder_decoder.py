"""The models: BertGenerationEncoder, BertGenerationDecoder, and EncoderDecoderModel that joins them.

Attribute names are the checkpoint's names. A padded batch is packed at the door of `forward`; inside, everything is
[tokens, hidden]; on the way out dropped positions are zeros.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..cache import Cache
from ..config import BertGenerationConfig, EncoderDecoderConfig, GenerationConfig
from ..errors import ConfigError, UnsupportedError
from ..generation import FIRST_CAPACITY, GenerationMixin
from ..inputs import (
    check_labels,
    check_mask,
    check_tokens,
    key_limits,
    pack_source,
    positions_of,
    refuse_attentions,
)
from ..layers import AttentionContext, Embeddings, LMHead, Stack
from ..outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    Seq2SeqLMOutput,
)
from ..packing import Packing
from ..pretrained import PretrainedModel


class BertGenerationEncoder(PretrainedModel):
    """A BERT stack without token types; the encoder, and as `decoder.bert` the body of the decoder.

    Args:
        config: shape and options; with `is_decoder` the stack is causal, with `add_cross_attention` too it attends
            to encoder states.
    """

    config_class = BertGenerationConfig

    def __init__(self, config: BertGenerationConfig):
        super().__init__()
        if config.add_cross_attention and not config.is_decoder:
            raise ConfigError("add_cross_attention=True needs is_decoder=True")
        self.config = config
        self.generation_config = GenerationConfig.from_model_config(config)
        self.embeddings = Embeddings(config)
        self.encoder = Stack(config)
        self.initialize(config.initializer_range, self.modules())

    @property
    def _initializer_range(self) -> float:
        return self.config.initializer_range

    def _mapped(self, state: dict[str, torch.Tensor], own: set[str]) -> dict[str, torch.Tensor]:
        state = super()._mapped(state, own)
        if not own & set(state):  # a decoder's or a pre-training checkpoint: the stack lies under "bert."
            return {k.removeprefix("bert."): t for k, t in state.items() if k.startswith("bert.")} or state
        return state

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def packed(
        self,
        ids: torch.Tensor | None,
        positions: torch.Tensor,
        context: AttentionContext,
        embeds: torch.Tensor | None = None,
        states: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The stack on packed tokens: ids int64 [T] or embeds [T, hidden], positions int64 [T] -> [T, hidden]."""
        return self.encoder(self.embeddings(ids, positions, embeds), context, states)

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
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions | tuple:
        """Encode, or decode with `is_decoder`.

        Args:
            input_ids: int64 [B, L]; or inputs_embeds: [B, L, hidden].
            attention_mask: [B, L], 0 where a token is padding. In a cached decoder it covers the past as well.
            position_ids: int64 [B, L] or [1, L]; 0 .. L - 1 (after the past) by default.
            encoder_hidden_states: [B, S, encoder hidden], encoder_attention_mask: [B, S].
            past_key_values: the cache an earlier call returned; use_cache: return one (decoders do by default).
            output_hidden_states: return the states of all layers. return_dict: False returns a tuple.

        Raises:
            InputError: shapes, dtypes, ids or positions outside the model's limits.
        """
        refuse_attentions(output_attentions)
        config = self.config
        given = check_tokens(input_ids, inputs_embeds, config)
        rows, length, device = given.shape[0], given.shape[1], given.device
        states: list[torch.Tensor] | None = [] if _either(output_hidden_states, config.output_hidden_states) else None
        past = 0 if past_key_values is None else past_key_values.length
        positions = positions_of(position_ids, rows, length, past, config, device)
        mask = check_mask(attention_mask, rows, past + length, "attention_mask")

        cache = None
        if not config.is_decoder:
            tokens = Packing.of_mask(mask, rows, length, device)
            context = AttentionContext(tokens)
        else:
            tokens = Packing.full(rows, length, device)
            source = None
            if encoder_hidden_states is not None and not (past_key_values and past_key_values.has_cross):
                source = pack_source(encoder_hidden_states, encoder_attention_mask, rows)
            if past_key_values is not None or _either(use_cache, config.use_cache):
                cache = past_key_values or self.new_cache(rows, max(FIRST_CAPACITY, length), given)
                cache.reserve(past + length)
                if source is not None:
                    cache.source_mask = source[1].mask()
                if mask is not None and not bool(mask.all()):
                    raise UnsupportedError(
                        "a decoder mask with padding cannot be combined with a cache; use_cache=False"
                    )
                context = AttentionContext(tokens, causal=True, cache=cache, source=source)
            else:
                key_len, key_mask = key_limits(mask)
                context = AttentionContext(tokens, True, key_len, key_mask, source=source)

        ids = None if input_ids is None else tokens.pack(input_ids)
        embeds = None if inputs_embeds is None else tokens.pack(inputs_embeds)
        hidden = self.packed(ids, tokens.pack(positions), context, embeds, states)
        if cache is not None:
            cache.advance(length)
        output = BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=tokens.unpack(hidden),
            past_key_values=cache,
            hidden_states=None if states is None else tuple(tokens.unpack(s) for s in states),
        )
        return output if _either(return_dict, config.return_dict) else output.to_tuple()

    def new_cache(self, rows: int, capacity: int, like: torch.Tensor) -> Cache:
        """An empty cache for so many rows and positions, on the device of `like`."""
        config = self.config
        return Cache(
            config.num_hidden_layers, rows, capacity, config.num_attention_heads, config.head_dim,
            self.dtype, like.device,
        )  # fmt: skip


class BertGenerationDecoder(PretrainedModel):
    """A BertGeneration stack with a language-model head, causal with `config.is_decoder`."""

    config_class = BertGenerationConfig

    def __init__(self, config: BertGenerationConfig):
        super().__init__()
        self.config = config
        self.generation_config = GenerationConfig.from_model_config(config)
        self.bert = BertGenerationEncoder(config)
        self.lm_head = LMHead(config)
        self.initialize(config.initializer_range, [self.lm_head.decoder])
        self.tie_weights()

    @property
    def _initializer_range(self) -> float:
        return self.config.initializer_range

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.decoder.weight = self.bert.embeddings.word_embeddings.weight
            self.lm_head.decoder.bias = self.lm_head.bias

    def _mapped(self, state: dict[str, torch.Tensor], own: set[str]) -> dict[str, torch.Tensor]:
        state = super()._mapped(state, own)
        if not any(k.startswith("bert.") for k in state):  # an encoder-only checkpoint
            state = {k if k.startswith("lm_head.") else f"bert.{k}": t for k, t in state.items()}
        return _tied_names(state, "lm_head.", "bert.embeddings.", self.config.tie_word_embeddings)

    def _saved_state(self, deduplicate: bool) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        return {k: t for k, t in self.state_dict().items() if k not in self._derived_names()}, {}

    def _derived_names(self, prefix: str = "") -> set[str]:
        """Names of weights that ties restore on loading."""
        if not self.config.tie_word_embeddings:
            return set()
        return {f"{prefix}lm_head.decoder.weight", f"{prefix}lm_head.decoder.bias"}

    def get_input_embeddings(self) -> nn.Embedding:
        return self.bert.embeddings.word_embeddings

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head.decoder

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
        num_items_in_batch: int | torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithCrossAttentions | tuple:
        """Logits of the next token at every position, and with `labels` [B, L] the loss.

        Arguments as `BertGenerationEncoder.forward`, and:
            labels: int64 [B, L], -100 where there is none; position i is judged by label i + 1.
            logits_to_keep: only the last so many positions, or those of an index tensor; 0 keeps all.
            num_items_in_batch: divides the summed loss in place of the number of labels.
        """
        states = self.bert(
            input_ids, attention_mask, position_ids, inputs_embeds, encoder_hidden_states, encoder_attention_mask,
            past_key_values, False if labels is not None else use_cache, output_hidden_states, output_attentions, True,
        )  # fmt: skip
        hidden = states.last_hidden_state
        if isinstance(logits_to_keep, torch.Tensor):
            hidden = hidden[:, logits_to_keep]
        elif logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            check_labels(labels, logits.shape)
            shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
            loss = _cross_entropy(logits.flatten(0, 1).float(), shifted.flatten(), num_items_in_batch)
        output = CausalLMOutputWithCrossAttentions(
            loss=loss, logits=logits, past_key_values=states.past_key_values, hidden_states=states.hidden_states
        )
        return output if _either(return_dict, self.config.return_dict) else output.to_tuple()


class EncoderDecoderModel(GenerationMixin, PretrainedModel):
    """An encoder and a decoder with cross-attention: text in, text out (Rothe et al. 2020, arXiv 1907.12461).

    Args:
        config: both halves; or
        encoder, decoder: models that exist already (a config is made from theirs).
    """

    config_class = EncoderDecoderConfig

    def __init__(
        self,
        config: EncoderDecoderConfig | None = None,
        encoder: BertGenerationEncoder | None = None,
        decoder: BertGenerationDecoder | None = None,
    ):
        super().__init__()
        if config is None:
            if encoder is None or decoder is None:
                raise ConfigError("EncoderDecoderModel needs a config, or an encoder and a decoder")
            config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
        if not config.decoder.is_decoder or not config.decoder.add_cross_attention:
            raise ConfigError("the decoder's config needs is_decoder=True and add_cross_attention=True")
        width = config.decoder.cross_attention_hidden_size or config.decoder.hidden_size
        if config.encoder.hidden_size != width:
            raise UnsupportedError(
                f"encoder and decoder differ in hidden size ({config.encoder.hidden_size} and {width}); "
                "a projection between them is not supported"
            )
        self.config = config
        self.encoder = encoder if encoder is not None else BertGenerationEncoder(config.encoder)
        self.decoder = decoder if decoder is not None else BertGenerationDecoder(config.decoder)
        if any(not hasattr(layer, "crossattention") for layer in self.decoder.bert.encoder.layer):
            raise ConfigError("the decoder was built without add_cross_attention=True")
        self.generation_config = GenerationConfig.from_model_config(config)
        self.tie_weights()

    @property
    def _initializer_range(self) -> float:
        return self.config.decoder.initializer_range

    def tie_weights(self) -> None:
        self.decoder.tie_weights()
        if self.config.tie_encoder_decoder:
            shared = dict(self.decoder.bert.named_parameters())
            for path, module in self.encoder.named_modules():
                for name, own in list(module.named_parameters(recurse=False)):
                    other = shared.get(f"{path}.{name}")
                    if other is None or other.shape != own.shape:
                        raise ConfigError(f"tie_encoder_decoder: {path}.{name} has no equal in the decoder")
                    setattr(module, name, other)

    def _mapped(self, state: dict[str, torch.Tensor], own: set[str]) -> dict[str, torch.Tensor]:
        state = super()._mapped(state, own)
        state = _tied_names(
            state, "decoder.lm_head.", "decoder.bert.embeddings.", self.config.decoder.tie_word_embeddings
        )
        if self.config.tie_encoder_decoder:  # either half may be the one that was written
            for name in own - set(state):
                other = self._twin(name)
                if other in state:
                    state[name] = state[other]
        return state

    @staticmethod
    def _twin(name: str) -> str:
        """The name of the same weight in the other half."""
        if name.startswith("decoder.bert."):
            return "encoder." + name.removeprefix("decoder.bert.")
        return "decoder.bert." + name.removeprefix("encoder.")

    def _saved_state(self, deduplicate: bool) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        derived = self.decoder._derived_names("decoder.")
        state = {k: t for k, t in self.state_dict().items() if k not in derived}
        if not deduplicate or not self.config.tie_encoder_decoder:
            return state, {}
        aliases = {name: self._twin(name) for name in state if name.startswith("encoder.")}
        return {k: t for k, t in state.items() if k not in aliases}, aliases

    def get_encoder(self) -> BertGenerationEncoder:
        return self.encoder

    def get_decoder(self) -> BertGenerationDecoder:
        return self.decoder

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder.get_output_embeddings()

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """[B, T] labels -> decoder inputs: the start token, then the labels but the last; -100 becomes padding."""
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        for name, value in (("decoder_start_token_id", start), ("pad_token_id", pad)):
            if value is None:
                raise ConfigError(f"labels need model.config.{name}, which is not set")
        shifted = torch.full_like(labels, start)
        shifted[:, 1:] = labels[:, :-1]
        return shifted.masked_fill(shifted == -100, pad)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        position_ids: torch.Tensor | None = None,
        decoder_position_ids: torch.Tensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqLMOutput | tuple:
        """Teacher-forced logits of the decoder, and with `labels` the loss.

        Args:
            input_ids: int64 [B, S]; attention_mask: [B, S], 0 at padding.
            decoder_input_ids: int64 [B, T]; made from `labels` where absent. decoder_attention_mask: [B, T].
            encoder_outputs: what the encoder returned, or a tuple whose first item is [B, S, hidden]; saves encoding.
            labels: int64 [B, T], -100 where there is none. Logit i is judged by label i: no shift. Behind the last
                label of a row nothing is computed where `decoder_input_ids` came from the labels: zeros.
            num_items_in_batch: divides the summed loss in place of the number of labels (gradient accumulation).
            past_key_values, use_cache, position_ids, output_hidden_states, return_dict: as in the halves.

        Raises:
            InputError: shapes, dtypes, ids or positions outside the model's limits.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids, attention_mask, position_ids, inputs_embeds,
                output_hidden_states=output_hidden_states, output_attentions=output_attentions, return_dict=True,
            )  # fmt: skip
        elif isinstance(encoder_outputs, (tuple, list)):
            encoder_outputs = BaseModelOutputWithPastAndCrossAttentions(*encoder_outputs[:1])
        states = encoder_outputs.last_hidden_state

        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            source = pack_source(states, attention_mask, states.shape[0])
            layers: list[torch.Tensor] | None = (
                [] if _either(output_hidden_states, self.config.output_hidden_states) else None
            )
            logits, rows = self._teacher_forced(labels, source, decoder_attention_mask, decoder_position_ids, layers)
            loss = _cross_entropy(logits, rows.pack(labels), num_items_in_batch)
            logits, cache = rows.unpack(logits), None
            decoder_states = None if layers is None else tuple(rows.unpack(x) for x in layers)
        else:
            decoded = self.decoder(
                decoder_input_ids, decoder_attention_mask, decoder_position_ids, decoder_inputs_embeds, states,
                attention_mask, None, past_key_values, use_cache,
                output_hidden_states=output_hidden_states, output_attentions=output_attentions, return_dict=True,
            )  # fmt: skip
            logits, decoder_states, cache = decoded.logits, decoded.hidden_states, decoded.past_key_values
            loss = None
            if labels is not None:
                check_labels(labels, logits.shape)
                loss = _cross_entropy(logits.flatten(0, 1), labels.flatten(), num_items_in_batch)
        output = Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=cache,
            decoder_hidden_states=decoder_states,
            encoder_last_hidden_state=states,
            encoder_hidden_states=encoder_outputs.hidden_states,
        )
        return output if _either(return_dict, self.config.return_dict) else output.to_tuple()

    def target_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, vocab] of the positions of `labels` [B, T] that hold a label, and those labels int64 [N].

        What `forward` computes its loss from, without the padded [B, T, vocab] tensor: for training loops.
        """
        tokens, states = self._encoded(input_ids, attention_mask)
        logits, rows = self._teacher_forced(labels, (states, tokens))
        targets = rows.pack(labels)
        held = targets != -100
        return (logits, targets) if bool(held.all()) else (logits[held], targets[held])

    def _encoded(
        self, ids: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None = None
    ) -> tuple[Packing, torch.Tensor]:
        """Packed encoder states [T, hidden] of a padded batch, and where its tokens are."""
        config = self.config.encoder
        rows, length = check_tokens(ids, None, config).shape
        tokens = Packing.of_mask(check_mask(mask, rows, length, "attention_mask"), rows, length, ids.device)
        positions = positions_of(positions, rows, length, 0, config, ids.device)
        return tokens, self.encoder.packed(tokens.pack(ids), tokens.pack(positions), AttentionContext(tokens))

    def _teacher_forced(
        self,
        labels: torch.Tensor,
        source: tuple[torch.Tensor, Packing],
        mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        layers: list[torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, Packing]:
        """Logits [T, vocab] of the decoder fed with `labels`, without the positions behind each row's last label."""
        config = self.config.decoder
        check_labels(labels, (source[1].shape[0], labels.shape[-1], config.vocab_size))
        ids = self.prepare_decoder_input_ids_from_labels(labels)
        shape = ids.shape[0], ids.shape[1]
        mask = ids != self.config.pad_token_id if mask is None else check_mask(mask, *shape, "decoder_attention_mask")
        read = (labels != -100).flip(1).cumsum(1).flip(1) > 0
        rows = Packing.of_mask(read, *shape, ids.device)
        positions = positions_of(positions, *shape, 0, config, ids.device)
        key_len, key_mask = key_limits((mask.bool() | ~read)[:, : rows.longest])
        context = AttentionContext(rows, True, key_len, key_mask, source=source)
        hidden = self.decoder.bert.packed(rows.pack(ids), rows.pack(positions), context, states=layers)
        return self.decoder.lm_head(hidden), rows


def _either(given: bool | None, default: bool) -> bool:
    return default if given is None else given


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, items: int | torch.Tensor | None) -> torch.Tensor:
    """Mean over labels that are not -100, or their sum over `items`; logits [N, V], labels [N]."""
    if items is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, reduction="sum") / items


def _tied_names(state: dict[str, torch.Tensor], head: str, embeddings: str, tied: bool) -> dict[str, torch.Tensor]:
    """Complete a head and the embeddings it is tied to from each other: a checkpoint may hold either."""
    pairs = [(head + "decoder.bias", head + "bias")]
    if tied:
        pairs.append((head + "decoder.weight", embeddings + "word_embeddings.weight"))
    state = dict(state)
    for a, b in pairs:
        for have, lack in ((a, b), (b, a)):
            if have in state and lack not in state:
                state[lack] = state[have]
    return state
