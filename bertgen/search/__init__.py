"""Search: from the logits of each step to sequences. Greedy, sampling and beam search, and the one decode loop.

Nothing here knows a model: a `Decoder` gives logits for tokens. A search holds any number of sources which have the
same options; they may join it and leave it at any step, so their lengths differ.
"""

from .base import Search as Search
from .beam_search import BeamSearch as BeamSearch
from .draws import KeyedDraws as KeyedDraws
from .draws import TorchDraws as TorchDraws
from .loop import Decoder as Decoder
from .loop import begin as begin
from .loop import decode as decode
from .loop import step as step
from .options import settle as settle
from .sampling import Sampling as Sampling
