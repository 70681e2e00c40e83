"""Text in, text out: `Generator`."""

from .generator import LOADING as LOADING
from .generator import Generator as Generator
from .output import Output as Output
from .texts import LOOKAHEAD as LOOKAHEAD
