"""RobertaModel and RobertaForCausalLM: RoBERTa encoders and decoders. Positions start after the padding id."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from ..config import RobertaConfig
from ..layers.heads import RobertaLMHead
from .bert import BertLMHeadModel, BertModel
from .bert_generation import BertGenerationEncoder


class RobertaModel(BertModel):
    """A RoBERTa stack with its pooler (Liu et al. 2019, arXiv 1907.11692)."""

    config_class: ClassVar[type[RobertaConfig]] = RobertaConfig


class RobertaForCausalLM(BertLMHeadModel):
    """A RoBERTa stack with RoBERTa's language-model head, causal with `config.is_decoder`."""

    config_class: ClassVar[type[RobertaConfig]] = RobertaConfig
    body_class: ClassVar[type[BertGenerationEncoder]] = RobertaModel
    body_name: ClassVar[str] = "roberta"
    head_class: ClassVar[type[nn.Module]] = RobertaLMHead
    head_name: ClassVar[str] = "lm_head"
    head_path: ClassVar[str] = "lm_head"
