"""Search: from the logits of each step to sequences. Greedy, sampling and beam search, and the one decode loop.

Nothing here knows a model: a `Decoder` gives logits for tokens. A search holds any number of sources which have the
same options; they may join it and leave it at any step, so their lengths differ.
"""

from .beam_search import BeamSearch as BeamSearch
from .loop import Decoder as Decoder
from .loop import begin as begin
from .loop import decode as decode
from .loop import step as step
from .options import settle as settle
from .rng import KeyedDraws as KeyedDraws
from .rng import TorchDraws as TorchDraws
from .sampling import Sampling as Sampling
from .search import Search as Search
