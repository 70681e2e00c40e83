"""The one registry of operators: name -> backends, the choice between them, and why.

A layer calls `ops.<name>(...)`. The call goes straight to the chosen backend's function: a kernel on a GPU, the
reference elsewhere and wherever the kernel does not take the arguments. `explain()` says which and why. The variable
BERTGEN_BACKEND, or `set_backend`, asks for one by name: then nothing falls back without a word.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..errors import BackendError, quoted
from ..kernels.attention import attention_reference, attention_triton, masked_attention_reference
from ..kernels.decode_attention import (
    cross_decode_attention_reference,
    cross_decode_attention_triton,
    decode_attention_reference,
    decode_attention_triton,
)
from ..kernels.int4_matmul import int4_matmul_reference, int4_matmul_triton
from ..kernels.int4_matmul_cpp import (
    Weight,
    int4_matmul_cpp,
    int4_matmuls_cpp,
    why_not_int4_matmul_cpp,
    why_not_int4_matmuls_cpp,
)
from ..kernels.language import HAS_TRITON, INTERPRETED
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
from ..kernels.linear import (
    ONEDNN_ELEMENTS,
    few_rows,
    linear_cpp,
    linear_onednn,
    linear_reference,
    linears_cpp,
    why_not_linear_cpp,
    why_not_linear_onednn,
    why_not_linears_cpp,
)
from ..kernels.linear_gelu import linear_gelu_reference, linear_gelu_triton, why_not_linear_gelu
from ..kernels.plain import why_not_kernel
from ..kernels.process import process_reference, process_triton
from ..kernels.sample import sample_reference, sample_triton
from ..kernels.select import perturb_reference, select_reference, warp_reference
from ..kernels.top_log_probs import top_log_probs_reference, top_log_probs_triton
from . import extension, torch_library

Function = Callable[..., Any]
BACKENDS = ("auto", "reference", "triton", "cpp")


@dataclass(frozen=True)
class Op:
    """One operator: what it computes, its definition in plain torch, and what else honours the same contract.

    Attributes:
        triton: the kernel's launcher, for CUDA tensors (and for CPU tensors where Triton interprets).
        refuses: why the kernel does not take these arguments, None where it does.
        cpp: the function of the C++ extension, for CPU tensors; cpp_refuses: why it does not take these arguments.
        cpu, cuda: what else runs there, and when.
    """

    name: str
    meaning: str
    reference: Function
    triton: Function | None = None
    refuses: Callable[..., str | None] = lambda *arguments, **named: None
    cpp: Function | None = None
    cpp_refuses: Callable[..., str | None] = lambda *arguments, **named: None
    cpu: str | None = None
    cuda: str | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not arguments:
            arguments = (named.pop(self._first),)
        if torch.compiler.is_compiling() and (self.has_kernel(arguments[0]) or self.cpp is not None):
            # One node of the graph. Dropout would be drawn anew on the way back, so it is traced instead.
            if named.get("dropout"):
                return self.reference(*arguments, **named)
            given = {**NODES[self.name], **dict(zip(NODES[self.name], arguments)), **named}
            given.pop("dropout", None)
            return getattr(torch.ops.bertgen, self.name)(**given)
        return self.run(*arguments, **named)

    @functools.cached_property
    def _first(self) -> str:
        return next(iter(inspect.signature(self.reference).parameters))

    def run(self, first: torch.Tensor, *rest: Any, **named: Any) -> Any:
        """Call the backend that suits the arguments."""
        if self.has_kernel(first):
            kernel, name, reason = self.triton, "triton", self._obstacle(first, *rest, **named)
        elif self.cpp is not None and uses_cpp():
            kernel, name, reason = self.cpp, "cpp", self._cpp_obstacle(first, *rest, **named)
        else:
            return self.reference(first, *rest, **named)
        if reason is None:
            return kernel(first, *rest, **named)
        if _backend == name:
            raise BackendError(f"{self.name}: the {name} kernel was asked for, but {reason}")
        return self.reference(first, *rest, **named)

    def has_kernel(self, first: torch.Tensor) -> bool:
        """Whether a call on such a tensor goes to the kernel, unless that refuses."""
        if self.triton is None or _backend in ("reference", "cpp"):
            return False
        return _backend == "triton" or first.is_cuda

    def _obstacle(self, first: torch.Tensor, *rest: Any, **named: Any) -> str | None:
        if not HAS_TRITON:
            return "triton is not installed"
        if first.device.type != "cuda" and not INTERPRETED:
            return f"the tensors are on {first.device} and not on a CUDA device"
        return why_not_kernel(first) or self.refuses(first, *rest, **named)

    def _cpp_obstacle(self, first: torch.Tensor, *rest: Any, **named: Any) -> str | None:
        if not first.is_cpu:
            return f"the tensors are on {first.device} and not on a CPU"
        return extension.absence() or why_not_kernel(first) or self.cpp_refuses(first, *rest, **named)


def _known(name: str) -> str:
    if not isinstance(name, str) or name not in BACKENDS:
        raise BackendError(f"backend {quoted(name)} is not one of {', '.join(BACKENDS)} (BERTGEN_BACKEND, set_backend)")
    return name


_backend = _known(os.environ.get("BERTGEN_BACKEND") or "auto")


def set_backend(name: str) -> str:
    """Choose how operators with a kernel run, in this process.

    Args:
        name: "auto" takes the kernel on CUDA devices, and the C++ function on CPUs, wherever it takes the arguments;
            "reference" neither; "triton" and "cpp" that one wherever there is one, and raise BackendError where it
            cannot.

    Returns:
        The name that held before.

    Raises:
        BackendError: another name.
    """
    global _backend
    before, _backend = _backend, _known(name)
    return before


def uses_cpp() -> bool:
    """Whether functions of the C++ extension are wanted on a CPU."""
    return _backend in ("auto", "cpp")


def _attention_refuses(q: torch.Tensor, *rest: Any, key_mask: torch.Tensor | None = None, **named: Any) -> str | None:
    if key_mask is not None:
        return "a mask that lengths cannot express is the reference's"
    return _heads_refuse(q)


def _heads_refuse(q: torch.Tensor, *rest: Any, **named: Any) -> str | None:
    return f"the head dimension is {q.shape[-1]}, the kernel takes 128" if q.shape[-1] > 128 else _dtype_refuses(q)


def _decode_refuses(q: torch.Tensor, *rest: Any, **named: Any) -> str | None:
    return _wants_gradients(q, *rest, *named.values()) or _heads_refuse(q)


def _decode_cpp_refuses(q: torch.Tensor, *rest: Any, **named: Any) -> str | None:
    for t in (q, *rest):
        if t.__class__ is not int and t.dtype is not torch.float32 and t.is_floating_point():
            return f"{t.dtype} is not float32"
    return _wants_gradients(q, *rest, *named.values())


def _decode_attention_cpp(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, key_pool: torch.Tensor, value_pool: torch.Tensor,
    slots: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    heads, books = map(_dense_heads, (q, k, v)), (t.contiguous() for t in (slots, table, lengths))
    return torch.ops.bertgen_C.decode_attention.default(*heads, key_pool, value_pool, *books)


def _cross_decode_attention_cpp(
    q: torch.Tensor, key_pool: torch.Tensor, value_pool: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor,
    cu_rows: torch.Tensor, max_rows: int,
) -> torch.Tensor:  # fmt: skip
    books = (t.contiguous() for t in (table, lengths, cu_rows))
    return torch.ops.bertgen_C.cross_decode_attention.default(_dense_heads(q), key_pool, value_pool, *books)


def _dense_heads(x: torch.Tensor) -> torch.Tensor:
    """[R, H, D] whose last dimension is contiguous."""
    return x if x.stride(2) == 1 else x.contiguous()


def _int4_refuses(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None,
    bias: torch.Tensor | None = None, codebook: torch.Tensor | None = None, int8: bool = False,
) -> str | None:  # fmt: skip
    if int8:
        return "the kernel does not round x to 8 bits"
    return _wants_gradients(x, scale, zero, bias, codebook) or _dtype_refuses(x)


def _scores_refuse(scores: torch.Tensor, *rest: Any, **named: Any) -> str | None:
    return _wants_gradients(scores) or _dtype_refuses(scores)


def _dtype_refuses(x: torch.Tensor) -> str | None:
    known = (torch.float32, torch.float16, torch.bfloat16)
    return None if x.dtype in known else f"{x.dtype} is none of float32, float16 and bfloat16"


def _wants_gradients(*tensors: Any) -> str | None:
    wanted = torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in tensors)
    return "the kernel has no gradient, and one is wanted" if wanted else None


attention = Op(
    "attention", "packed self, cross and causal attention", attention_reference, attention_triton, _attention_refuses
)
masked_attention = Op("masked_attention", "a padded batch under any mask, with its weights", masked_attention_reference)
decode_attention = Op(
    "decode_attention", "one query per row over slot-table keys", decode_attention_reference,
    decode_attention_triton, _decode_refuses, _decode_attention_cpp, _decode_cpp_refuses,
)  # fmt: skip
cross_decode_attention = Op(
    "cross_decode_attention", "the rows of a source over its shared keys", cross_decode_attention_reference,
    cross_decode_attention_triton, _decode_refuses, _cross_decode_attention_cpp, _decode_cpp_refuses,
)  # fmt: skip
add_layer_norm = Op(
    "add_layer_norm", "LayerNorm(dropout(x + bias) + residual)", add_layer_norm_reference,
    add_layer_norm_triton, why_not_add_layer_norm,
)  # fmt: skip
bias_gelu = Op("bias_gelu", "gelu(x + bias)", bias_gelu_reference, bias_gelu_triton, why_not_bias_gelu)
layer_norm_gelu = Op(
    "layer_norm_gelu", "gelu(LayerNorm(x))", layer_norm_gelu_reference, layer_norm_gelu_triton, why_not_layer_norm_gelu
)
gelu_layer_norm = Op(
    "gelu_layer_norm", "LayerNorm(gelu(x))", gelu_layer_norm_reference, gelu_layer_norm_triton, why_not_layer_norm_gelu
)
int4_matmul = Op(
    "int4_matmul", "x dequant(W)^T + b, 4-bit groups or codebooks, x in 8 bits or not", int4_matmul_reference,
    int4_matmul_triton, _int4_refuses, int4_matmul_cpp, why_not_int4_matmul_cpp,
)  # fmt: skip
linear_gelu = Op(
    "linear_gelu", "gelu(x W^T + b), in one kernel or in two", linear_gelu_reference,
    linear_gelu_triton, why_not_linear_gelu,
)  # fmt: skip
warp = Op("warp", "the limits of sampling, temperature to eta", warp_reference)
select = Op("select", "best or drawn tokens of each row", select_reference)
process = Op("process", "penalties and bans of each row, in place", process_reference, process_triton, _scores_refuse)
top_log_probs = Op(
    "top_log_probs", "log-softmax, and the best of each source's rows", top_log_probs_reference,
    top_log_probs_triton, _scores_refuse,
)  # fmt: skip
sample = Op(
    "sample", "a token of each row, by its own limits and random numbers", sample_reference,
    sample_triton, _scores_refuse,
)  # fmt: skip
perturb = Op("perturb", "scores and Gumbel noise, by key", perturb_reference)
_linear = Op(
    "linear",
    "x W^T + b, with an activation as epilogue",
    linear_reference,
    cpu=f"in float32 inference cpp for at most {few_rows()} rows, where the extension is, and onednn for weights of at "
    f"least {ONEDNN_ELEMENTS} elements, else reference",
    cuda="torch's product (cuBLAS), with an activation linear_gelu or bias_gelu behind it",
)

OPS = {
    op.name: op
    for op in (
        _linear, attention, masked_attention, decode_attention, cross_decode_attention, add_layer_norm, bias_gelu,
        layer_norm_gelu, gelu_layer_norm, linear_gelu, int4_matmul, warp, select,
        process, top_log_probs, sample, perturb,
    )
}  # fmt: skip


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    others: int = 0,
) -> torch.Tensor:
    """x [M, K] @ weight [N, K]^T + bias [N], then the named activation, by the backend that suits the arguments.

    Args:
        others: how many weights of this size x is multiplied with beside this one.
    """
    if _backend != "reference":
        if why_not_linear_cpp(x, weight) is None and extension.absence() is None:
            return linear_cpp(x, weight, bias, activation)
        if why_not_linear_onednn(x, weight, others) is None:
            return linear_onednn(x, weight, bias, activation)
    if activation is None or not bias_gelu.has_kernel(x):
        return linear_reference(x, weight, bias, activation)
    if activation == "gelu" and linear_gelu.refuses(x, weight, bias) is None:
        return linear_gelu(x, weight, bias)
    return bias_gelu(F.linear(x, weight), bias, activation)


def linears(
    x: torch.Tensor, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
) -> tuple[torch.Tensor, ...]:
    """x [M, K] @ weight [N, K]^T + bias [N] of each: [M, N] each.

    Weights stay where they lie. For few rows on a CPU one call computes all of them, if they have one shape.
    """
    if _backend != "reference" and why_not_linears_cpp(x, weights, biases) is None and extension.absence() is None:
        given = [b for b in biases if b is not None]
        return linears_cpp(x, weights, given).chunk(len(weights), dim=1)
    others = len(weights) - 1
    return tuple(linear(x, weight, bias, others=others) for weight, bias in zip(weights, biases, strict=True))


def int4_matmuls(
    x: torch.Tensor, weights: Sequence[Weight], codebook: torch.Tensor | None, int8: bool
) -> tuple[torch.Tensor, ...]:
    """As `linears`, of weights in 4 bits."""
    if (
        len(weights) > 1
        and uses_cpp()
        and x.is_cpu
        and not torch.compiler.is_compiling()
        and why_not_kernel(x) is None
        and extension.absence() is None
        and why_not_int4_matmuls_cpp(x, weights, codebook, int8) is None
    ):
        return int4_matmuls_cpp(x, weights, codebook, int8).chunk(len(weights), dim=1)
    return tuple(int4_matmul(x, *weight, codebook, int8) for weight in weights)


# What each operator of torch.library takes, with the defaults of the operator's definition.
NODES: dict[str, dict[str, Any]] = {}


def _define(op: Op, schema: str, fake: Function, differentiable: bool = False) -> None:
    """Register an operator with torch.library. It runs as a call of `op` does, outside of what is compiled."""
    names = [word.split()[-1] for word in schema[1 : schema.index(") ->")].split(", ")]
    known = inspect.signature(op.reference).parameters
    NODES[op.name] = {name: known[name].default for name in names}

    def run(*arguments: Any) -> Any:
        return op.run(arguments[0], **dict(zip(names[1:], arguments[1:], strict=True)))

    torch_library.define(op.name, schema, run, fake, differentiable)


def _like(x: torch.Tensor, *rest: Any) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


# Without dropout, whose random numbers a second run on the way back would not repeat.
_define(
    attention,
    "(Tensor q, Tensor k, Tensor v, Tensor cu_q, Tensor cu_k, int max_q, int max_k, bool causal, Tensor? q_start, "
    "Tensor? key_len, Tensor? key_mask) -> Tensor",
    _like,
    differentiable=True,
)
_define(
    decode_attention,
    "(Tensor q, Tensor k, Tensor v, Tensor(a!) key_pool, Tensor(b!) value_pool, Tensor slots, Tensor table, "
    "Tensor lengths) -> Tensor",
    _like,
)
_define(
    cross_decode_attention,
    "(Tensor q, Tensor key_pool, Tensor value_pool, Tensor table, Tensor lengths, Tensor cu_rows, int max_rows) "
    "-> Tensor",
    _like,
)
_define(
    add_layer_norm,
    "(Tensor x, Tensor? bias, Tensor? residual, Tensor weight, Tensor shift, float eps) -> Tensor",
    _like,
    differentiable=True,
)
_define(bias_gelu, "(Tensor x, Tensor? bias, str activation) -> Tensor", _like, differentiable=True)
for _op in (layer_norm_gelu, gelu_layer_norm):
    _define(
        _op, "(Tensor x, Tensor weight, Tensor shift, float eps, str activation) -> Tensor", _like, differentiable=True
    )
_define(
    linear_gelu,
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]),
)
_define(
    process,
    "(Tensor(a!) scores, Tensor tokens, Tensor lengths, Tensor repetition_penalty, Tensor no_repeat_ngram, "
    "Tensor? min_length, Tensor? end_tokens, Tensor? banned) -> ()",
    lambda *arguments: None,
)
_define(
    top_log_probs,
    "(Tensor scores, int count, Tensor? offsets, int group) -> (Tensor, Tensor)",
    lambda scores, count, offsets, group: (
        scores.new_empty(scores.shape[0] // group, count, dtype=torch.float32),
        scores.new_empty(scores.shape[0] // group, count, dtype=torch.int64),
    ),
)
_define(
    sample,
    "(Tensor scores, Tensor seed, Tensor request, Tensor step, Tensor temperature, Tensor top_k, Tensor top_p, "
    "Tensor min_p) -> (Tensor, Tensor)",
    lambda scores, *rest: (
        scores.new_empty(scores.shape[0], dtype=torch.int64),
        scores.new_empty(scores.shape[0], dtype=torch.float32),
    ),
)
_define(
    int4_matmul,
    "(Tensor x, Tensor packed, Tensor scale, Tensor? zero, Tensor? bias, Tensor? codebook, bool int8) -> Tensor",
    lambda x, packed, *rest: x.new_empty(x.shape[0], packed.shape[0]),
)


def explain(device: str = "cpu") -> list[tuple[str, str]]:
    """For each operator: its name, and which backend it takes on `device` ("cpu" or "cuda") and why."""
    return [(op.name, _explained(op, device)) for op in OPS.values()]


def _explained(op: Op, device: str) -> str:
    if _backend == "reference":
        return "reference: BERTGEN_BACKEND or set_backend asks for it"
    if op.cpp is not None and device == "cpu" and _backend in ("auto", "cpp"):
        reason = extension.absence()
        return (
            "cpp in float32, else reference" if reason is None else f"reference: the C++ extension is absent: {reason}"
        )
    if op.triton is None or _backend == "cpp":
        return (op.cpu if device == "cpu" else op.cuda) or "reference: plain torch, there is no kernel"
    if not HAS_TRITON:
        return "reference: plain torch, triton is not installed"
    if device == "cuda":
        return "triton, and reference for arguments the kernel does not take"
    if INTERPRETED:
        return "triton's interpreter where asked for by name, else reference: plain torch"
    return "reference: plain torch, the kernel needs a CUDA device"
