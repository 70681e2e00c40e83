"""4-bit weights: rounding, the packed layout, and the files of bitsandbytes."""

from .int4 import dequantize as dequantize
from .int4 import quantize as quantize
from .int4 import signal_to_noise as signal_to_noise
