"""EncoderDecoderModel: an encoder and a decoder with cross-attention, of any kinds.

Attribute names are those of checkpoints. `forward` packs a padded batch, computes on [tokens, hidden], and returns
zeros at padding.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .. import decoding
from ..arguments import IGNORED, UNSUPPORTED, cache_alias
from ..cache.block_allocator import Admission
from ..cache.cache import Cache
from ..config import EncoderDecoderConfig, GenerationConfig, read_json
from ..errors import ConfigError, InputError, UnsupportedError
from ..hub import resolve_file, split_hub_options
from ..kernels.plain import is_traced
from ..layers.attention import AttentionContext, Attentions
from ..layers.inspection import is_plain
from ..layers.linear import apply, check_dtype
from ..outputs import CausalLMOutputWithCrossAttentions, Seq2SeqLMOutput
from ..packing import Packing
from .bert import BertLMHeadModel, BertModel
from .bert_generation import BertGenerationDecoder, BertGenerationEncoder, is_bare
from .generation import GenerationMixin
from .generation_inputs import GenerationInputs
from .inputs import (
    check_encoded,
    check_items,
    check_labels,
    check_mask,
    check_tensors,
    check_tokens,
    check_types,
    key_limits,
    option_or_default,
    pack_source,
    positions_of,
)
from .loss import cross_entropy
from .pretrained import PretrainedModel
from .resize import size_of
from .roberta import RobertaForCausalLM, RobertaModel
from .static_generation import static_sequences

logger = logging.getLogger(__name__)

ENCODERS = {
    "bert-generation": BertGenerationEncoder,
    "bert": BertModel,
    "roberta": RobertaModel,
}
DECODERS = {
    "bert-generation": BertGenerationDecoder,
    "bert": BertLMHeadModel,
    "roberta": RobertaForCausalLM,
}


class EncoderDecoderModel(GenerationMixin, PretrainedModel):
    """An encoder and a decoder with cross-attention: text in, text out (Rothe et al. 2020, arXiv 1907.12461).

    Args:
        config: of both halves.
        encoder, decoder: existing models; without `config` it is made from theirs.
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
        config = self.config_class.of_argument(config)
        # The configurations of existing models win over those in `config`.
        if encoder is not None:
            config.encoder = encoder.config
        if decoder is not None:
            config.decoder = decoder.config
        if not config.decoder.is_decoder or not config.decoder.add_cross_attention:
            raise ConfigError("the decoder's config needs is_decoder=True and add_cross_attention=True")
        width, cross = config.encoder.hidden_size, config.decoder.cross_attention_hidden_size
        if cross is not None and not cross == width == config.decoder.hidden_size:
            raise ConfigError(
                f"cross_attention_hidden_size {cross} means that there is no projection between the halves, but their "
                f"hidden sizes are {width} and {config.decoder.hidden_size}"
            )
        self.config = config
        self.encoder = encoder if encoder is not None else ENCODERS[config.encoder.model_type](config.encoder)
        self.decoder = decoder if decoder is not None else DECODERS[config.decoder.model_type](config.decoder)
        if any(not hasattr(layer, "crossattention") for layer in self.decoder.body.encoder.layer):
            raise ConfigError("the decoder was built without add_cross_attention=True")
        if cross is None and width != config.decoder.hidden_size:
            placement = dict(device=self.decoder.device, dtype=self.decoder.dtype)
            self.enc_to_dec_proj = nn.Linear(width, config.decoder.hidden_size, **placement)
            self.initialize(config.decoder.initializer_range, [self.enc_to_dec_proj])
        self.generation_config = GenerationConfig.from_model_config(config)
        self.tie_weights()
        if config.extra.get("gradient_checkpointing"):  # in files of older versions of transformers
            self.gradient_checkpointing_enable()

    @property
    def _initializer_range(self) -> float:
        return self.config.decoder.initializer_range

    def tie_weights(self) -> None:
        self.decoder.tie_weights()
        self.encoder.owner = self.decoder.owner = [self] if self.config.tie_encoder_decoder else []
        if self.config.tie_encoder_decoder:
            shared = dict(self.decoder.body.named_parameters())
            for path, module in self.encoder.named_modules():
                for name, own in list(module.named_parameters(recurse=False)):
                    if path.startswith("pooler."):  # decoders have no pooler
                        continue
                    other = shared.get(f"{path}.{name}")
                    if other is None or other.shape != own.shape:
                        raise ConfigError(
                            f"tie_encoder_decoder: {path}.{name} has no equal in the decoder; "
                            "tie_encoder_decoder=False keeps separate weights"
                        )
                    setattr(module, name, other)

    def _mapped(self, state: dict[str, torch.Tensor], own: set[str]) -> dict[str, torch.Tensor]:
        state = self.decoder.complete_ties(super()._mapped(state, own), "decoder.")
        if self.config.tie_encoder_decoder and (differing := self._differing(state)):
            logger.warning(
                "%s and its tied weight in the decoder differ in the checkpoint: they are not shared", differing
            )
            self.config.tie_encoder_decoder = False
        if self.config.tie_encoder_decoder:  # the file may have the weights of either half
            for name in own - set(state):
                other = self._tied_name(name)
                if other in state:
                    state[name] = state[other]
        return state

    def _differing(self, state: dict[str, torch.Tensor]) -> str | None:
        """The name of the first tensor of the encoder that differs from that of the decoder."""
        for name, own in state.items():
            other = state.get(self._tied_name(name)) if name.startswith("encoder.") else None
            if other is None or other.data_ptr() == own.data_ptr():
                continue
            if other.dtype != own.dtype or not torch.equal(other, own):
                return name
        return None

    def _is_shared(self) -> bool:
        """Whether all weights of the encoder are those of the decoder."""
        shared = dict(self.decoder.body.named_parameters())
        own = ((n, p) for n, p in self.encoder.named_parameters() if not n.startswith("pooler."))
        return all(shared.get(name) is parameter for name, parameter in own)

    def _tied_name(self, name: str) -> str:
        """The name of the same weight in the other half."""
        body = f"decoder.{self.decoder.body_name}."
        if name.startswith(body):
            return "encoder." + name.removeprefix(body)
        return body + name.removeprefix("encoder.")

    def _saved_state(self, deduplicate: bool) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        derived = self.decoder.derived_names("decoder.")
        state = {k: t for k, t in self.state_dict().items() if k not in derived}
        if not deduplicate or not self.config.tie_encoder_decoder or not self._is_shared():
            return state, {}
        aliases = {
            name: self._tied_name(name)
            for name in state
            if name.startswith("encoder.") and self._tied_name(name) in state
        }
        return {k: t for k, t in state.items() if k not in aliases}, aliases

    def saved_config(self) -> dict[str, Any]:
        """As `PretrainedModel.saved_config`, with `tie_encoder_decoder` as the weights are."""
        return {
            **super().saved_config(),
            "encoder": self.encoder.saved_config(),
            "decoder": self.decoder.saved_config(),
            "tie_encoder_decoder": self.config.tie_encoder_decoder and self._is_shared(),
        }

    def get_encoder(self) -> BertGenerationEncoder:
        return self.encoder

    def get_decoder(self) -> BertGenerationDecoder:
        return self.decoder

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Linear:
        return self.decoder.get_output_embeddings()

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        self.encoder.set_input_embeddings(embeddings)

    def set_output_embeddings(self, embeddings: nn.Linear) -> None:
        self.decoder.set_output_embeddings(embeddings)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As `BertGenerationEncoder.resize_token_embeddings`, for halves that share their weights.

        Raises:
            UnsupportedError: the halves do not share their weights, as in transformers.
        """
        if not self.config.tie_encoder_decoder:
            raise UnsupportedError("resize one half: model.encoder or model.decoder.resize_token_embeddings")
        rows = size_of(new_num_tokens, self.config.decoder.vocab_size, pad_to_multiple_of)
        std = None if mean_resizing else self._initializer_range
        self.decoder.resize(rows, std)
        self.encoder.resize(rows, std)
        self.tie_weights()
        return self.get_input_embeddings()

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Labels int64 [B, T] -> decoder inputs: the start token, then all labels but the last, padding for -100."""
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        for name, value in (("decoder_start_token_id", start), ("pad_token_id", pad)):
            if value is None:
                raise ConfigError(f"labels need model.config.{name}, which is not set")
        shifted = torch.full_like(labels, start)
        shifted[:, 1:] = labels[:, :-1]
        return shifted.masked_fill(shifted == -100, pad)

    @cache_alias
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
        token_type_ids: torch.Tensor | None = None,
        decoder_token_type_ids: torch.Tensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqLMOutput | tuple:
        """Teacher-forced logits of the decoder, and with `labels` the loss.

        Args:
            input_ids: int64 [B, S]; attention_mask: [B, S], 0 at padding.
            decoder_input_ids: int64 [B, T]; by default made from `labels`. decoder_attention_mask: [B, T].
            encoder_outputs: return value of the encoder, or a tuple whose first item is [B, S, hidden]; the encoder
                is not called then.
            labels: int64 [B, T], -100 where there is none. Label i is the target of logit i, without a shift. Without
                `decoder_input_ids` the logits after the last label of a row are not computed: they are zeros.
            num_items_in_batch: the summed loss is divided by it, instead of by the number of labels (gradient
                accumulation).
            decoder_inputs_embeds: [B, T, hidden], in place of decoder_input_ids.
            past_key_values, use_cache, position_ids, token_type_ids, output_hidden_states, output_attentions,
                return_dict: as of the encoder; those of the decoder begin with decoder_.

        Raises:
            InputError: shapes, dtypes, ids or positions outside the model's limits.
        """
        check_tensors(
            None, decoder_input_ids=decoder_input_ids, decoder_inputs_embeds=decoder_inputs_embeds,
            decoder_attention_mask=decoder_attention_mask, decoder_position_ids=decoder_position_ids,
            decoder_token_type_ids=decoder_token_type_ids, labels=labels,
        )  # fmt: skip
        num_items_in_batch = check_items(num_items_in_batch)
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                inputs_embeds=inputs_embeds, token_type_ids=token_type_ids,
                output_hidden_states=output_hidden_states, output_attentions=output_attentions, return_dict=True,
            )  # fmt: skip
        else:
            encoder_outputs = check_encoded(encoder_outputs, self.config.encoder.hidden_size)
        states = encoder_outputs.last_hidden_state

        from_labels = labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None
        if from_labels and not is_bare(self.decoder):
            decoder_input_ids, use_cache = self.prepare_decoder_input_ids_from_labels(labels), False
            if decoder_attention_mask is None:
                decoder_attention_mask = decoder_input_ids != self.config.pad_token_id
        try:
            if from_labels and is_bare(self.decoder):
                decoded = self._teacher_forced_output(
                    labels, pack_source(self.bridged(states), attention_mask, states.shape[0]), decoder_attention_mask,
                    decoder_position_ids, decoder_token_type_ids, output_hidden_states, output_attentions,
                    num_items_in_batch,
                )  # fmt: skip
            else:
                decoded = self.decoder(
                    input_ids=decoder_input_ids, attention_mask=decoder_attention_mask,
                    position_ids=decoder_position_ids, inputs_embeds=decoder_inputs_embeds,
                    token_type_ids=decoder_token_type_ids, encoder_hidden_states=self.bridged(states),
                    encoder_attention_mask=attention_mask, past_key_values=past_key_values,
                    use_cache=use_cache if labels is None else False,
                    output_hidden_states=output_hidden_states, output_attentions=output_attentions, return_dict=True,
                )  # fmt: skip
                if labels is not None:
                    check_labels(labels, decoded.logits.shape)
                    decoded.loss = cross_entropy(decoded.logits.flatten(0, 1), labels.flatten(), num_items_in_batch)
        except InputError as error:  # the decoder's arguments have other names here
            raise InputError(f"decoder: {error}") from None
        output = Seq2SeqLMOutput(
            loss=decoded.loss,
            logits=decoded.logits,
            past_key_values=decoded.past_key_values,
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=states,
            encoder_hidden_states=getattr(encoder_outputs, "hidden_states", None),
            encoder_attentions=getattr(encoder_outputs, "attentions", None),
        )
        return output if option_or_default(return_dict, self.config.return_dict) else output.to_tuple()

    def target_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, vocab] of the positions of `labels` [B, T] that hold a label, and those labels int64 [N].

        For training loops: as `forward`, without the padded [B, T, vocab] tensor.
        """
        if not (is_plain(self) and is_bare(self.decoder)):
            logits = self(input_ids=input_ids, attention_mask=attention_mask, labels=labels, return_dict=True).logits
            has_label = labels != -100
            return logits[has_label], labels[has_label]
        tokens, states = self.encoded(input_ids, attention_mask)
        logits, rows = self._teacher_forced(labels, (states, tokens))
        targets = rows.pack(labels)
        has_label = targets != -100
        return (logits, targets) if bool(has_label.all()) else (logits[has_label], targets[has_label])

    def target_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        decoder_input_ids: torch.Tensor,
        read: torch.Tensor,
        shares: list[int] | None = None,
    ) -> tuple[torch.Tensor, Packing]:
        """Packed states [N, hidden] of the decoder, before its head, at the positions in `read`, and their rows.

        Args:
            input_ids: int64 [S, L]; attention_mask: [S, L].
            decoder_input_ids: int64 [B, T]; pad ids are no padding.
            read: bool [B, T], True and then False in each row.
            shares: number of adjacent rows of each source; None for one each.
        """
        self.refuse_hooks()
        tokens, states = self.encoded(input_ids, attention_mask)
        return self._decoded(decoder_input_ids, read, (states, tokens), shares=shares)

    def refuse_hooks(self) -> None:
        """Raise UnsupportedError for a hook or a patched forward on the model, its decoder or the decoder's stack.

        Callers of this method call the layers of these modules and not the modules.
        """
        for module in (self, self.decoder, self.decoder.body):
            if not is_plain(module):
                raise UnsupportedError(
                    f"the {type(module).__name__} has a hook or a patched forward, which is not called here: only its "
                    "layers are; model.generate and the model's forward call it"
                )

    def _static_sequences(
        self, inputs: GenerationInputs, options: GenerationConfig, search: decoding.Search
    ) -> torch.Tensor | None:
        if not all(map(is_plain, (self, self.decoder, self.decoder.body))):
            return None
        return static_sequences(self.decoder, inputs, options, search)

    def bridged(self, states: torch.Tensor) -> torch.Tensor:
        """Encoder states [.., encoder hidden] as the decoder's cross-attention reads them."""
        if not hasattr(self, "enc_to_dec_proj"):
            return states
        check_dtype(states, self.enc_to_dec_proj, "encoder states")
        return apply(self.enc_to_dec_proj, states)

    def encoded(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor | None = None,
        types: torch.Tensor | None = None,
    ) -> tuple[Packing, torch.Tensor]:
        """The packing of a padded batch, and its packed states [T, hidden] as cross-attention reads them."""
        config = self.config.encoder
        rows, length = check_tokens(ids, None, config).shape
        tokens = Packing.of_mask(check_mask(mask, rows, length, "attention_mask"), rows, length, ids.device)
        positions = positions_of(positions, ids, rows, length, 0, config, ids.device)
        types = check_types(types, (rows, length), config)
        if not is_plain(self.encoder):
            padded = self.encoder(
                input_ids=ids, attention_mask=mask, position_ids=positions, token_type_ids=types, return_dict=True
            ).last_hidden_state  # fmt: skip
            return tokens, self.bridged(tokens.pack(padded))
        states = self.encoder.packed(
            tokens.pack(ids), tokens.pack(positions), AttentionContext(tokens),
            types=None if types is None else tokens.pack(types),
        )  # fmt: skip
        return tokens, self.bridged(states)

    def prefill(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache,
        admissions: Sequence[Admission],
    ) -> None:
        """Encode sources, packed, and write the decoder's cross-attention keys and values of each into a cache.

        Args:
            input_ids: int64 [S, L], padded; attention_mask: [S, L], 0 at padding.
            cache: with the decoder's number of layers; each gets keys and values [tokens, heads, head_dim].
            admissions: S of them, as `Cache.admit` returned them, one for each row of `input_ids`, in its order and
                with its number of tokens.

        Raises:
            UnsupportedError: a layer whose cross-attention is hidden in another module.
        """
        _, states = self.encoded(input_ids, attention_mask)
        cache.begin_sources(admissions)
        self.decoder.body.encoder.write_sources(cache, states)

    def _teacher_forced(
        self,
        labels: torch.Tensor,
        source: tuple[torch.Tensor, Packing],
        mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        types: torch.Tensor | None = None,
        layers: list[torch.Tensor] | None = None,
        attentions: Attentions | None = None,
    ) -> tuple[torch.Tensor, Packing]:
        """Logits [T, vocab] of the decoder for `labels`, without the positions after each row's last label."""
        config = self.config.decoder
        check_labels(labels, (source[1].shape[0], *labels.shape[-1:], config.vocab_size))
        ids = self.prepare_decoder_input_ids_from_labels(labels)
        if mask is None:
            mask = ids != self.config.pad_token_id
        else:
            mask = check_mask(mask, ids.shape[0], ids.shape[1], "decoder_attention_mask").bool()
        # The shapes of a graph cannot depend on where labels end, so a graph computes the positions after them too.
        read = None if _is_graph() else _until_last_label(labels)
        hidden, rows = self._decoded(ids, read, source, mask, positions, types, layers, attentions)
        return self.decoder.head(hidden), rows

    def _decoded(
        self,
        ids: torch.Tensor,
        read: torch.Tensor | None,
        source: tuple[torch.Tensor, Packing],
        mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        types: torch.Tensor | None = None,
        layers: list[torch.Tensor] | None = None,
        attentions: Attentions | None = None,
        shares: list[int] | None = None,
    ) -> tuple[torch.Tensor, Packing]:
        """Packed states [T, hidden] of the decoder with input ids [B, L], at the positions in `read`.

        Args:
            read: bool [B, L], True and then False in each row; None reads all.
            mask: bool [B, L], False hides a position in `read` from later ones; None hides none.
            shares: number of adjacent rows of each source; None for one each.
            positions, types, layers, attentions: as in `_teacher_forced`.
        """
        config, shape = self.config.decoder, (ids.shape[0], ids.shape[1])
        rows = Packing.of_mask(read, *shape, ids.device)
        positions = positions_of(positions, ids, *shape, 0, config, ids.device)
        types = check_types(types, shape, config)
        max_seqlen = rows.max_seqlen if attentions is None else shape[1]
        visible = mask if mask is None or read is None else mask | ~read
        key_len, key_mask = key_limits(None if visible is None else visible[:, :max_seqlen])
        source_queries = None if shares is None else rows.joined(shares)
        context = AttentionContext(
            rows, True, key_len, key_mask, source=source, askers=source_queries, attentions=attentions
        )
        hidden = self.decoder.body.packed(
            rows.pack(ids), rows.pack(positions), context, states=layers,
            types=None if types is None else rows.pack(types),
        )  # fmt: skip
        return hidden, rows

    def _teacher_forced_output(
        self,
        labels: torch.Tensor,
        source: tuple[torch.Tensor, Packing],
        mask: torch.Tensor | None,
        positions: torch.Tensor | None,
        types: torch.Tensor | None,
        output_hidden_states: bool | None,
        output_attentions: bool | None,
        items: int | torch.Tensor | None,
    ) -> CausalLMOutputWithCrossAttentions:
        """The decoder's output for `labels`, padded."""
        config = self.config.decoder
        layers: list[torch.Tensor] | None = (
            [] if option_or_default(output_hidden_states, config.output_hidden_states) else None
        )
        attentions = Attentions() if option_or_default(output_attentions, config.output_attentions) else None
        logits, rows = self._teacher_forced(labels, source, mask, positions, types, layers, attentions)

        def padded(x: torch.Tensor) -> torch.Tensor:
            x = rows.unpack(x)
            return x * _until_last_label(labels)[..., None] if _is_graph() else x

        return CausalLMOutputWithCrossAttentions(
            loss=cross_entropy(logits, rows.pack(labels), items),
            logits=padded(logits),
            hidden_states=None if layers is None else tuple(map(padded, layers)),
            attentions=None if attentions is None else tuple(attentions.own),
            cross_attentions=None if attentions is None else tuple(attentions.cross),
        )

    @classmethod
    def from_encoder_decoder_pretrained(
        cls,
        encoder_pretrained_model_name_or_path: str | os.PathLike | None = None,
        decoder_pretrained_model_name_or_path: str | os.PathLike | None = None,
        **options: Any,
    ) -> EncoderDecoderModel:
        """Join two checkpoints (warm start). Weights that the decoder's file lacks (cross-attention) are initialised.

        Args:
            encoder_pretrained_model_name_or_path, decoder_pretrained_model_name_or_path: directories or hub ids.
            options: encoder_<name> and decoder_<name> are arguments of the `from_pretrained` of the halves
                (encoder_model and decoder_model are models to use instead). Arguments of `from_pretrained` that are no
                options of a configuration (dtype, device_map, ..) go to both. Other names are options of the
                `EncoderDecoderConfig`, `decoder_start_token_id` among them.

        Raises:
            ConfigError: neither a path nor a model for a half; options for a half that is a model; an unknown option.
            CheckpointError: as `from_pretrained`.
        """
        config_options = {
            f for f in EncoderDecoderConfig.__dataclass_fields__ if f not in ("encoder", "decoder", "extra")
        }
        halves: dict[str, dict[str, Any]] = {"encoder": {}, "decoder": {}}
        joint: dict[str, Any] = {}
        both: dict[str, Any] = {}
        for name, value in options.items():
            half, _, option = name.partition("_")
            if half in halves and name not in config_options:
                halves[half][option] = value
            else:
                (both if name in _OF_BOTH else joint)[name] = value
        for name, half_options in halves.items():
            if half_options.get("model") is not None and len(half_options) > 1:
                rest = ", ".join(f"{name}_{option}" for option in half_options if option != "model")
                raise ConfigError(f"{rest} has no effect on {name}_model, which is not loaded")
        causal = {"is_decoder": True, "add_cross_attention": True}
        encoder = _half_model("encoder", encoder_pretrained_model_name_or_path, ENCODERS, both | halves["encoder"])
        decoder = _half_model(
            "decoder", decoder_pretrained_model_name_or_path, DECODERS, causal | both | halves["decoder"]
        )
        config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config, **joint)
        return cls(config, encoder, decoder).eval()


# Arguments of `from_encoder_decoder_pretrained` without a prefix that go to both halves.
_OF_BOTH = frozenset(
    "dtype torch_dtype device device_map revision cache_dir token use_auth_token local_files_only force_download "
    "subfolder use_safetensors variant key_mapping ignore_mismatched_sizes fold_embeddings quantization_config "
    "load_in_4bit load_in_8bit gradient_checkpointing".split()
) | {*IGNORED, *UNSUPPORTED}


def _is_graph() -> bool:
    """Whether a graph is recorded: it must be right for other labels, which end at other positions, too."""
    return torch.compiler.is_compiling() or is_traced()


def _until_last_label(labels: torch.Tensor) -> torch.Tensor:
    """bool [B, T], the positions of each row up to its last label."""
    return (labels != -100).flip(1).cumsum(1).flip(1) > 0


def _half_model(name: str, path: str | os.PathLike | None, classes: dict[str, Any], options: dict[str, Any]) -> Any:
    """The model `options["model"]`, or one loaded from `path` by the class of its kind."""
    model = options.pop("model", None)
    if model is not None:
        return model
    if path is None:
        raise ConfigError(f"from_encoder_decoder_pretrained needs the {name}'s path, or {name}_model=")
    if hasattr(options.get("config"), "model_type"):
        kind = options["config"].model_type
    else:
        hub = split_hub_options(options)[1]
        kind = read_json(resolve_file(path, "config.json", hub)).get("model_type")
    if kind not in tuple(classes):
        raise UnsupportedError(f"{path} is of kind {kind!r}; bertgen runs halves of the kinds {', '.join(classes)}")
    return classes[kind].from_pretrained(path, **options)
