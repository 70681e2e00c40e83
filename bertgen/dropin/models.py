"""Accelerated classes of transformers' models. `accelerate` sets the class of an instance to one of these.

Each class has the name of its transformers class, because `save_pretrained` writes that name into config.json.
Importing this module imports transformers.
"""

from __future__ import annotations

import transformers

from .forward import accelerated_forward
from .generation import accelerated_generate
from .state import Accelerated


class BertGenerationEncoder(transformers.BertGenerationEncoder, Accelerated):
    """transformers' class of that name, on bertgen's operators."""

    forward = accelerated_forward(transformers.BertGenerationEncoder)


class BertGenerationDecoder(transformers.BertGenerationDecoder, Accelerated):
    """transformers' class of that name, on bertgen's operators."""

    forward = accelerated_forward(transformers.BertGenerationDecoder)
    generate = accelerated_generate(transformers.BertGenerationDecoder)


class BertModel(transformers.BertModel, Accelerated):
    """transformers' class of that name, on bertgen's operators."""

    forward = accelerated_forward(transformers.BertModel)


class BertLMHeadModel(transformers.BertLMHeadModel, Accelerated):
    """transformers' class of that name, on bertgen's operators."""

    forward = accelerated_forward(transformers.BertLMHeadModel)
    generate = accelerated_generate(transformers.BertLMHeadModel)


class RobertaModel(transformers.RobertaModel, Accelerated):
    """transformers' class of that name, on bertgen's operators."""

    forward = accelerated_forward(transformers.RobertaModel)


class RobertaForCausalLM(transformers.RobertaForCausalLM, Accelerated):
    """transformers' class of that name, on bertgen's operators."""

    forward = accelerated_forward(transformers.RobertaForCausalLM)
    generate = accelerated_generate(transformers.RobertaForCausalLM)


class EncoderDecoderModel(transformers.EncoderDecoderModel, Accelerated):
    """transformers' class of that name, on bertgen's operators."""

    forward = accelerated_forward(transformers.EncoderDecoderModel)
    generate = accelerated_generate(transformers.EncoderDecoderModel)


# transformers' class -> accelerated class.
ACCELERATED = {
    cls.__base__: cls
    for cls in (
        BertGenerationEncoder, BertGenerationDecoder, BertModel, BertLMHeadModel, RobertaModel, RobertaForCausalLM,
        EncoderDecoderModel,
    )
}  # fmt: skip
