"""Text to ids and back."""

from .auto import AutoTokenizer as AutoTokenizer
from .base import Tokenizer as Tokenizer
from .bert import BertTokenizer as BertTokenizer
from .bert_generation import BertGenerationTokenizer as BertGenerationTokenizer
from .encoding import BatchEncoding as BatchEncoding
from .roberta import RobertaTokenizer as RobertaTokenizer
from .tokens import AddedToken as AddedToken
