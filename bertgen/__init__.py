"""Text generation and training with BertGeneration encoder-decoder models.

The public names are loaded on first use: importing bertgen imports nothing heavy and touches no device.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import BertConfig as BertConfig
    from .config import BertGenerationConfig as BertGenerationConfig
    from .config import BitsAndBytesConfig as BitsAndBytesConfig
    from .config import EncoderDecoderConfig as EncoderDecoderConfig
    from .config import GenerationConfig as GenerationConfig
    from .config import Int4Config as Int4Config
    from .config import RobertaConfig as RobertaConfig
    from .decoding.streamers import TextIteratorStreamer as TextIteratorStreamer
    from .decoding.streamers import TextStreamer as TextStreamer
    from .dropin.accelerate import accelerate as accelerate
    from .dropin.accelerate import explain as explain
    from .dropin.accelerate import restore as restore
    from .dropin.cache import PagedCache as PagedCache
    from .dropin.registration import register_with_transformers as register_with_transformers
    from .errors import BackendError as BackendError
    from .errors import BertgenError as BertgenError
    from .errors import CallbackError as CallbackError
    from .errors import CapacityError as CapacityError
    from .errors import CheckpointError as CheckpointError
    from .errors import ConfigError as ConfigError
    from .errors import InputError as InputError
    from .errors import OutputError as OutputError
    from .errors import UnsupportedError as UnsupportedError
    from .generator import Generator as Generator
    from .generator import Output as Output
    from .generator.scorer import Likelihood as Likelihood
    from .model import BertGenerationDecoder as BertGenerationDecoder
    from .model import BertGenerationEncoder as BertGenerationEncoder
    from .model import BertLMHeadModel as BertLMHeadModel
    from .model import BertModel as BertModel
    from .model import EncoderDecoderModel as EncoderDecoderModel
    from .model import RobertaForCausalLM as RobertaForCausalLM
    from .model import RobertaModel as RobertaModel
    from .pipelines import pipeline as pipeline
    from .tokenizer import AutoTokenizer as AutoTokenizer
    from .tokenizer import BertGenerationTokenizer as BertGenerationTokenizer
    from .tokenizer import BertTokenizer as BertTokenizer
    from .tokenizer import RobertaTokenizer as RobertaTokenizer

__version__ = "0.1.0"

_PUBLIC = {
    "config": (
        "BertConfig",
        "BertGenerationConfig",
        "BitsAndBytesConfig",
        "EncoderDecoderConfig",
        "GenerationConfig",
        "Int4Config",
        "RobertaConfig",
    ),
    "dropin.accelerate": ("accelerate", "explain", "restore"),
    "dropin.cache": ("PagedCache",),
    "dropin.registration": ("register_with_transformers",),
    "errors": (
        "BackendError",
        "BertgenError",
        "CallbackError",
        "CapacityError",
        "CheckpointError",
        "ConfigError",
        "InputError",
        "OutputError",
        "UnsupportedError",
    ),
    "generator": ("Generator", "Output"),
    "generator.scorer": ("Likelihood",),
    "model": (
        "BertGenerationDecoder",
        "BertGenerationEncoder",
        "BertLMHeadModel",
        "BertModel",
        "EncoderDecoderModel",
        "RobertaForCausalLM",
        "RobertaModel",
    ),
    "pipelines": ("pipeline",),
    "decoding.streamers": ("TextIteratorStreamer", "TextStreamer"),
    "tokenizer": ("AutoTokenizer", "BertGenerationTokenizer", "BertTokenizer", "RobertaTokenizer"),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [*_MODULE_OF, "__version__"]
__path__ = [*__path__, f"{__path__[0]}/moved"]  # modules under their old names, for pickles

if not TYPE_CHECKING:  # a type checker that sees this function accepts any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'bertgen' has no attribute {name!r}")
        value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
