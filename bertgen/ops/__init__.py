"""The operators: `ops.NAME(...)` runs the backend that suits the arguments."""

from . import schemas as schemas
from .operators import OPS as OPS
from .operators import add_layer_norm as add_layer_norm
from .operators import attention as attention
from .operators import bias_gelu as bias_gelu
from .operators import cross_decode_attention as cross_decode_attention
from .operators import decode_attention as decode_attention
from .operators import decoder_step as decoder_step
from .operators import explain as explain
from .operators import gelu_layer_norm as gelu_layer_norm
from .operators import int4_matmul as int4_matmul
from .operators import int4_matmuls as int4_matmuls
from .operators import layer_norm_gelu as layer_norm_gelu
from .operators import linear as linear
from .operators import linear_gelu as linear_gelu
from .operators import linears as linears
from .operators import log_softmax as log_softmax
from .operators import masked_attention as masked_attention
from .operators import perturb as perturb
from .operators import process as process
from .operators import sample as sample
from .operators import select as select
from .operators import top_log_probs as top_log_probs
from .operators import warp as warp
from .registry import backend as backend
from .registry import set_backend as set_backend
