"""Decoding: from the logits of each step to sequences. Greedy search, sampling and beam search share one decode loop.

This package does not depend on a model: a `Decoder` returns logits for tokens. A search holds any number of sources
with the same options. Sources may join and leave at any step, so their lengths differ.
"""

from .beam_search import BeamSearch as BeamSearch
from .options import resolve_generation_config as resolve_generation_config
from .rng import KeyedRng as KeyedRng
from .rng import TorchRng as TorchRng
from .sampling import Sampling as Sampling
from .search import Search as Search
from .search_loop import Decoder as Decoder
from .search_loop import empty_search as empty_search
from .search_loop import new_search as new_search
from .search_loop import run_search as run_search
from .search_loop import search_class as search_class
from .search_loop import step_searches as step_searches
from .static_search import StaticSearch as StaticSearch
from .static_search import why_not_static as why_not_static
