"""The table of operators: `OPS` has all of them by name, and the package exports each as `ops.NAME`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..kernels import cpp
from ..kernels.attention import attention_reference, attention_triton, masked_attention_reference
from ..kernels.attention_cpp import attention_cpp, why_not_attention_cpp
from ..kernels.decode_attention import (
    cross_decode_attention_reference,
    cross_decode_attention_triton,
    decode_attention_reference,
    decode_attention_triton,
)
from ..kernels.decode_attention_cpp import (
    cross_decode_attention_cpp,
    decode_attention_cpp,
    why_not_decode_attention_cpp,
)
from ..kernels.int4_matmul import int4_matmul_reference, int4_matmul_triton
from ..kernels.int4_matmul_cpp import (
    Weight,
    int4_matmul_cpp,
    int4_matmuls_cpp,
    why_not_int4_matmul_cpp,
    why_not_int4_matmuls_cpp,
)
from ..kernels.layernorm_gelu import (
    add_layer_norm_reference,
    add_layer_norm_triton,
    bias_gelu_reference,
    bias_gelu_triton,
    gelu_layer_norm_reference,
    gelu_layer_norm_triton,
    layer_norm_gelu_reference,
    layer_norm_gelu_triton,
    why_not_add_layer_norm,
    why_not_bias_gelu,
    why_not_layer_norm_gelu,
)
from ..kernels.layernorm_gelu_cpp import (
    add_layer_norm_cpp,
    gelu_layer_norm_cpp,
    why_not_add_layer_norm_cpp,
    why_not_gelu_layer_norm_cpp,
)
from ..kernels.linear import (
    ONEDNN_ELEMENTS,
    as_float32,
    few_rows_by_dtype,
    has_onednn,
    linear_cpp,
    linear_onednn,
    linear_reference,
    linears_cpp,
    onednn_multiplies,
    why_not_cpu_inference,
    why_not_linear_cpp,
    why_not_linear_onednn,
    why_not_linears_cpp,
)
from ..kernels.linear_gelu import linear_gelu_reference, linear_gelu_triton, why_not_linear_gelu
from ..kernels.linear_wide import linear_wide, why_not_linear_wide
from ..kernels.log_softmax import log_softmax_reference
from ..kernels.plain import why_not_kernel
from ..kernels.process import process_reference, process_triton
from ..kernels.process_cpp import process_cpp, why_not_process_cpp
from ..kernels.sample import sample_reference, sample_triton
from ..kernels.select import perturb_reference, select_reference, warp_reference
from ..kernels.selection_cpp import (
    log_softmax_cpp,
    sample_cpp,
    select_cpp,
    top_log_probs_cpp,
    why_not_log_softmax_cpp,
    why_not_sample_cpp,
    why_not_select_cpp,
    why_not_top_log_probs_cpp,
)
from ..kernels.top_log_probs import top_log_probs_reference, top_log_probs_triton
from . import extension, registry
from .reasons import why_not_attention, why_not_decode_attention, why_not_int4_matmul, why_not_scores
from .registry import KernelOp, Op, why_not_extension
from .step_layout import StepArguments

attention = KernelOp(
    "attention", "packed self, cross and causal attention", attention_reference,
    attention_triton, why_not_attention, attention_cpp, why_not_attention_cpp, infers=True,
)  # fmt: skip
masked_attention = KernelOp(
    "masked_attention", "a padded batch under any mask, with its attention weights", masked_attention_reference
)
decode_attention = KernelOp(
    "decode_attention", "one query per row over keys in a table of slots", decode_attention_reference,
    decode_attention_triton, why_not_decode_attention, decode_attention_cpp, why_not_decode_attention_cpp,
)  # fmt: skip
cross_decode_attention = KernelOp(
    "cross_decode_attention", "the rows of a source over its shared keys", cross_decode_attention_reference,
    cross_decode_attention_triton, why_not_decode_attention, cross_decode_attention_cpp, why_not_decode_attention_cpp,
)  # fmt: skip
add_layer_norm = KernelOp(
    "add_layer_norm", "LayerNorm(dropout(x + bias) + residual)", add_layer_norm_reference,
    add_layer_norm_triton, why_not_add_layer_norm, add_layer_norm_cpp, why_not_add_layer_norm_cpp, infers=True,
)  # fmt: skip
bias_gelu = KernelOp("bias_gelu", "activation(x + bias)", bias_gelu_reference, bias_gelu_triton, why_not_bias_gelu)
layer_norm_gelu = KernelOp(
    "layer_norm_gelu", "activation(LayerNorm(x))", layer_norm_gelu_reference,
    layer_norm_gelu_triton, why_not_layer_norm_gelu,
)  # fmt: skip
gelu_layer_norm = KernelOp(
    "gelu_layer_norm", "LayerNorm(activation(x))", gelu_layer_norm_reference,
    gelu_layer_norm_triton, why_not_layer_norm_gelu, gelu_layer_norm_cpp, why_not_gelu_layer_norm_cpp, infers=True,
)  # fmt: skip
linear_gelu = KernelOp(
    "linear_gelu", "gelu(x W^T + b), in one kernel or in two", linear_gelu_reference,
    linear_gelu_triton, why_not_linear_gelu,
)  # fmt: skip
int4_matmul = KernelOp(
    "int4_matmul", "x dequant(W)^T + b, 4-bit groups or codebooks, x optionally in 8 bits", int4_matmul_reference,
    int4_matmul_triton, why_not_int4_matmul, int4_matmul_cpp, why_not_int4_matmul_cpp,
)  # fmt: skip
warp = KernelOp("warp", "the warpers of sampling, temperature to eta", warp_reference)
select = KernelOp(
    "select", "the best or drawn tokens of each row", select_reference, cpp=select_cpp, why_not_cpp=why_not_select_cpp,
    infers=True,
)  # fmt: skip
log_softmax = KernelOp(
    "log_softmax", "log-probabilities of each row", log_softmax_reference, cpp=log_softmax_cpp,
    why_not_cpp=why_not_log_softmax_cpp, infers=True,
)  # fmt: skip
process = KernelOp(
    "process", "penalties and bans of each row, in place", process_reference,
    process_triton, why_not_scores, process_cpp, why_not_process_cpp, infers=True,
)  # fmt: skip
top_log_probs = KernelOp(
    "top_log_probs", "log-softmax, and the best of each source's rows", top_log_probs_reference,
    top_log_probs_triton, why_not_scores, top_log_probs_cpp, why_not_top_log_probs_cpp, infers=True,
)  # fmt: skip
sample = KernelOp(
    "sample", "a token of each row, by its own warpers and random numbers", sample_reference,
    sample_triton, why_not_scores, sample_cpp, why_not_sample_cpp, infers=True,
)  # fmt: skip
perturb = KernelOp("perturb", "scores plus Gumbel noise, by key", perturb_reference)


class Linear(Op):
    """A product of floating weights. No backend covers training, so one that is selected by name may decline."""

    def __call__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        activation: str | None = None,
        others: int = 0,
    ) -> torch.Tensor:
        """x [M, K] @ weight [N, K]^T + bias [N], then the named activation.

        Args:
            others: number of further weights of this size that the same x is multiplied with.
        """
        if registry._backend != "reference":
            if why_not_linear_cpp(x, weight) is None and extension.why_not() is None:
                return linear_cpp(x, weight, bias, activation)
            if why_not_linear_onednn(x, weight, others) is None:
                return linear_onednn(x, weight, bias, activation)
            if why_not_linear_wide(x, weight) is None:
                return linear_wide(x, weight, bias, activation)
        if activation is None or not bias_gelu.prefers_triton(x):
            return linear_reference(x, weight, bias, activation)
        if activation == "gelu" and why_not_linear_gelu(x, weight, bias) is None:
            return linear_gelu(x, weight, bias)
        return bias_gelu(F.linear(x, weight), bias, activation)

    def _explain(self, device: str) -> str:
        if device == "cuda":
            product = "torch's product (cuBLAS)"
            return (
                product if registry.backend() == "cpp" else f"{product}, and linear_gelu or bias_gelu for an activation"
            )
        reason = extension.why_not()
        choices = [f"cpp for at most {few_rows_by_dtype()}"] if reason is None else []
        if has_onednn():
            choices.append(f"onednn for float32 weights of at least {ONEDNN_ELEMENTS} elements")
        wide = [str(dtype)[6:] for dtype in (torch.bfloat16, torch.float16) if not onednn_multiplies(dtype)]
        if wide:
            choices.append(f"widened blocks of weights in {' and '.join(wide)}")
        text = f"in inference {', '.join(choices)}; else reference" if choices else "reference"
        return text if reason is None else f"{text}; the C++ extension cannot be used: {reason}"


class Linears(Op):
    """Products of one input with several weights."""

    def __call__(
        self, x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
    ) -> tuple[torch.Tensor, ...]:
        """x [M, K] @ weight [N, K]^T + bias [N] of each weight: [M, N] each.

        The weights stay in their own memory. One call computes all of them where they have one shape and x few rows.
        """
        if (
            registry._backend != "reference"
            and why_not_linears_cpp(x, weights, biases) is None
            and extension.why_not() is None
        ):
            return linears_cpp(x, weights, [b for b in biases if b is not None]).chunk(len(weights), dim=1)
        others = len(weights) - 1
        return tuple(linear(x, weight, bias, others=others) for weight, bias in zip(weights, biases, strict=True))

    def _explain(self, device: str) -> str:
        if device == "cpu" and extension.why_not() is None:
            return f"cpp, all weights in one call, in inference for at most {few_rows_by_dtype()}; else linear"
        return "linear, one call for each weight"


class Int4Matmuls(Op):
    """Products of one input with several 4-bit weights."""

    def __call__(
        self, x: torch.Tensor, weights: Sequence[Weight], codebook: torch.Tensor | None, int8: bool
    ) -> tuple[torch.Tensor, ...]:
        """As `linears`, of weights in 4 bits in the same format."""
        if (
            len(weights) > 1
            and registry._backend in ("auto", "cpp")
            and x.is_cpu
            and not torch.compiler.is_compiling()
            and why_not_kernel(x) is None
            and extension.why_not() is None
            and why_not_int4_matmuls_cpp(x, weights, codebook, int8) is None
        ):
            return int4_matmuls_cpp(x, weights, codebook, int8).chunk(len(weights), dim=1)
        return tuple(int4_matmul(x, *weight, codebook, int8) for weight in weights)

    def _explain(self, device: str) -> str:
        if device == "cpu" and why_not_extension() is None:
            return "cpp, all weights in one call, in float32; else int4_matmul"
        return "int4_matmul, one call for each weight"


class DecoderStep(Op):
    """All layers of a decoder for one token of each row. The fallback, and the reference, is to call the layers."""

    def __call__(self, arguments: StepArguments) -> torch.Tensor:
        """[R, hidden], the output of the last layer; for arguments where `why_not` is None for their x.

        Between x and the result all but parameters and pools is float32; the result has the dtype of x.
        """
        x = arguments.x
        out = torch.empty_like(x, dtype=torch.float32)
        cpp.decoder_step(*arguments._replace(x=as_float32(x)), out)
        return out.to(x.dtype)

    def why_not(self, x: torch.Tensor) -> str | None:
        """Why the operator cannot compute a step of x [R, hidden]; None where it can.

        Above `kernels.linear.few_rows` of the dtype of the parameters it is not the fastest.
        """
        return why_not_cpu_inference(x, x) or why_not_extension()

    def _explain(self, device: str) -> str:
        if device == "cpu" and why_not_extension() is None:
            rows = f"at most {few_rows_by_dtype()}, in 4 bits as in float32"
            return f"cpp, all layers in one call, in inference for {rows}; else layer by layer"
        return "layer by layer"


linear = Linear("linear", "x W^T + b, then an activation")
linears = Linears("linears", "x W^T + b of several weights")
int4_matmuls = Int4Matmuls("int4_matmuls", "x dequant(W)^T + b of several 4-bit weights")
decoder_step = DecoderStep("decoder_step", "the layers of a decoder, one token of each row")

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        linear, linears, attention, masked_attention, decode_attention, cross_decode_attention, add_layer_norm,
        bias_gelu, layer_norm_gelu, gelu_layer_norm, linear_gelu, int4_matmul, int4_matmuls, warp, select,
        log_softmax, process, top_log_probs, sample, perturb, decoder_step,
    )
}  # fmt: skip


def explain(device: str = "cpu") -> list[tuple[str, str]]:
    """For each operator: its name, and which backend it uses on `device` ("cpu" or "cuda") and why."""
    return [(op.name, op.explain(device)) for op in OPS.values()]
