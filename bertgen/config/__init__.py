"""Configurations of models, generation, quantization and the engine.

Unknown names raise an error, and values are checked when they are set.
"""

from .base import read_json as read_json
from .base import write_json as write_json
from .engine import EngineConfig as EngineConfig
from .generation import GenerationConfig as GenerationConfig
from .generation import special_ids as special_ids
from .model import HALVES as HALVES
from .model import BertConfig as BertConfig
from .model import BertGenerationConfig as BertGenerationConfig
from .model import EncoderDecoderConfig as EncoderDecoderConfig
from .model import RobertaConfig as RobertaConfig
from .model import half_config as half_config
from .quantization import BitsAndBytesConfig as BitsAndBytesConfig
from .quantization import Int4Config as Int4Config
from .quantization import int4_config as int4_config
