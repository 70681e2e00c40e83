"""Text to ids and back."""

from .auto import AutoTokenizer as AutoTokenizer
from .bert_generation import BertGenerationTokenizer as BertGenerationTokenizer
from .encoding import BatchEncoding as BatchEncoding
from .tokens import AddedToken as AddedToken
