"""4-bit weights: quantization, the packed layout, and checkpoints of bitsandbytes."""

from .int4 import dequantize as dequantize
from .int4 import quantize as quantize
from .int4 import signal_to_noise as signal_to_noise
