"""Layers of a post-LN BERT encoder or decoder, on packed tokens.

`AttentionContext` is public. Pickles of models that were written before the layers had files of their own name the
other classes by this module.
"""

from .add_norm import AddNorm as AddNorm
from .attention import Attention as Attention
from .attention import AttentionContext as AttentionContext
from .attention import Projections as Projections
from .block import Intermediate as Intermediate
from .block import Layer as Layer
from .embeddings import Embeddings as Embeddings
