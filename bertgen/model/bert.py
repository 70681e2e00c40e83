"""BertModel and BertLMHeadModel: BERT encoders and decoders, with token types, a pooler and BERT's head."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from ..arguments import cache_alias
from ..cache.cache import Cache
from ..config import BertConfig
from ..layers.heads import BertLMHead, Pooler
from ..outputs import BaseModelOutputWithPoolingAndCrossAttentions, CausalLMOutputWithCrossAttentions
from .bert_generation import BertGenerationDecoder, BertGenerationEncoder
from .inputs import option_or_default


class BertModel(BertGenerationEncoder):
    """A BERT stack with its pooler (Devlin et al. 2018, arXiv 1810.04805).

    Args:
        config: shape and options.
        add_pooling_layer: with the pooler; decoders have none.
    """

    config_class: ClassVar[type[BertConfig]] = BertConfig
    arguments: ClassVar[tuple[str, ...]] = ("add_pooling_layer",)

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.pooler = Pooler(config) if add_pooling_layer else None
        if self.pooler is not None:
            self.initialize(config.initializer_range, self.pooler.modules())

    @cache_alias
    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions | tuple:
        """As `BertGenerationEncoder.forward`; token_type_ids int64 [B, L]. Adds `pooler_output` [B, hidden]."""
        states = self.run(
            input_ids, attention_mask, position_ids, inputs_embeds, encoder_hidden_states, encoder_attention_mask,
            past_key_values, use_cache, token_type_ids, output_hidden_states, output_attentions,
        )  # fmt: skip
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=states.last_hidden_state,
            pooler_output=None if self.pooler is None else self.pooler(states.last_hidden_state),
            hidden_states=states.hidden_states,
            past_key_values=states.past_key_values,
            attentions=states.attentions,
            cross_attentions=states.cross_attentions,
        )
        return output if option_or_default(return_dict, self.config.return_dict) else output.to_tuple()


class BertLMHeadModel(BertGenerationDecoder):
    """A BERT stack with BERT's language-model head, causal with `config.is_decoder`."""

    config_class: ClassVar[type[BertConfig]] = BertConfig
    body_class: ClassVar[type[BertGenerationEncoder]] = BertModel
    head_class: ClassVar[type[nn.Module]] = BertLMHead
    head_name: ClassVar[str] = "cls"
    head_path: ClassVar[str] = "cls.predictions"

    def _new_body(self, config: BertConfig) -> BertGenerationEncoder:  # type: ignore[override]
        return self.body_class(config, add_pooling_layer=False)  # type: ignore[call-arg]

    @cache_alias
    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **options: Any,
    ) -> CausalLMOutputWithCrossAttentions | tuple:
        """As `BertGenerationDecoder.forward`; token_type_ids int64 [B, L]."""
        return super().forward(
            input_ids, attention_mask, position_ids, inputs_embeds, encoder_hidden_states, encoder_attention_mask,
            labels, past_key_values, use_cache, logits_to_keep, token_type_ids, **options,
        )  # fmt: skip
