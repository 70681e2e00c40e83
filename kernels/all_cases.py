"""The checks of all operators that have a kernel."""

from __future__ import annotations

from . import (
    attention_cases,
    decode_attention_cases,
    int4_matmul_cases,
    layernorm_gelu_cases,
    linear_gelu_cases,
    process_cases,
    sample_cases,
    top_log_probs_cases,
)
from .checks import Check

CHECKS: dict[str, Check] = {
    "attention": attention_cases.CHECK,
    "decode_attention": decode_attention_cases.CHECK,
    "cross_decode_attention": decode_attention_cases.CROSS_CHECK,
    **layernorm_gelu_cases.CHECKS,
    **linear_gelu_cases.CHECKS,
    "int4_matmul": int4_matmul_cases.CHECK,
    "top_log_probs": top_log_probs_cases.CHECK,
    "process": process_cases.CHECK,
    "sample": sample_cases.CHECK,
}
