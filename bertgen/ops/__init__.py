"""The operators: `ops.NAME(...)` runs the backend that suits the arguments."""

from .registry import OPS as OPS
from .registry import add_layer_norm as add_layer_norm
from .registry import attention as attention
from .registry import bias_gelu as bias_gelu
from .registry import cross_decode_attention as cross_decode_attention
from .registry import decode_attention as decode_attention
from .registry import explain as explain
from .registry import gelu_layer_norm as gelu_layer_norm
from .registry import int4_matmul as int4_matmul
from .registry import int4_matmuls as int4_matmuls
from .registry import layer_norm_gelu as layer_norm_gelu
from .registry import linear as linear
from .registry import linear_gelu as linear_gelu
from .registry import linears as linears
from .registry import masked_attention as masked_attention
from .registry import perturb as perturb
from .registry import process as process
from .registry import sample as sample
from .registry import select as select
from .registry import set_backend as set_backend
from .registry import top_log_probs as top_log_probs
from .registry import uses_cpp as uses_cpp
from .registry import warp as warp
