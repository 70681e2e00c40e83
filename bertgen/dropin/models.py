"""transformers' models, accelerated: an instance becomes one of these by `accelerate`, and is one again when unpickled.

Each class has the name of the one it stands for, as `save_pretrained` writes that into config.json. Importing this
module imports transformers.
"""

from __future__ import annotations

import transformers

from .forward import accelerated_forward
from .generation import accelerated_generate


class BertGenerationEncoder(transformers.BertGenerationEncoder):
    """transformers' class of that name, on bertgen's operators."""

    forward = accelerated_forward(transformers.BertGenerationEncoder)


class BertGenerationDecoder(transformers.BertGenerationDecoder):
    """transformers' class of that name, on bertgen's operators."""

    forward = accelerated_forward(transformers.BertGenerationDecoder)
    generate = accelerated_generate(transformers.BertGenerationDecoder)


class BertModel(transformers.BertModel):
    """transformers' class of that name, on bertgen's operators."""

    forward = accelerated_forward(transformers.BertModel)


class BertLMHeadModel(transformers.BertLMHeadModel):
    """transformers' class of that name, on bertgen's operators."""

    forward = accelerated_forward(transformers.BertLMHeadModel)
    generate = accelerated_generate(transformers.BertLMHeadModel)


class RobertaModel(transformers.RobertaModel):
    """transformers' class of that name, on bertgen's operators."""

    forward = accelerated_forward(transformers.RobertaModel)


class RobertaForCausalLM(transformers.RobertaForCausalLM):
    """transformers' class of that name, on bertgen's operators."""

    forward = accelerated_forward(transformers.RobertaForCausalLM)
    generate = accelerated_generate(transformers.RobertaForCausalLM)


class EncoderDecoderModel(transformers.EncoderDecoderModel):
    """transformers' class of that name, on bertgen's operators."""

    forward = accelerated_forward(transformers.EncoderDecoderModel)
    generate = accelerated_generate(transformers.EncoderDecoderModel)


# transformers' class -> ours.
ACCELERATED = {
    cls.__base__: cls
    for cls in (
        BertGenerationEncoder, BertGenerationDecoder, BertModel, BertLMHeadModel, RobertaModel, RobertaForCausalLM,
        EncoderDecoderModel,
    )
}  # fmt: skip
