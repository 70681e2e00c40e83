"""The models."""

from .encoder_decoder import BertGenerationDecoder as BertGenerationDecoder
from .encoder_decoder import BertGenerationEncoder as BertGenerationEncoder
from .encoder_decoder import EncoderDecoderModel as EncoderDecoderModel
