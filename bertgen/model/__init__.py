"""Models: encoders, decoders and encoder-decoders, with loading, saving and generation."""

from .bert import BertLMHeadModel as BertLMHeadModel
from .bert import BertModel as BertModel
from .bert_generation import BertGenerationDecoder as BertGenerationDecoder
from .bert_generation import BertGenerationEncoder as BertGenerationEncoder
from .encoder_decoder import EncoderDecoderModel as EncoderDecoderModel
from .roberta import RobertaForCausalLM as RobertaForCausalLM
from .roberta import RobertaModel as RobertaModel
