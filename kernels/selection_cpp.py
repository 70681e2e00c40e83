"""select, log_softmax, top_log_probs and sample by the C++ extension, in float32 on a CPU.

The code is csrc/selection_cpu.cpp and csrc/sample_cpu.cpp. Arguments, shapes and results are those of
`select_reference`, `log_softmax_reference`, `top_log_probs_reference` and `sample_reference`. Each row is
bit-identical for any number of rows.
"""

from __future__ import annotations

import torch

from . import cpp
from .plain import is_plain_tensor, why_not_gradients


def select_cpp(
    scores: torch.Tensor, count: int = 1, sample: bool = False, generator: torch.Generator | None = None
) -> torch.Tensor:
    """As select_reference, where why_not_select_cpp is None and the extension is loaded."""
    tokens = scores.new_empty(len(scores), dtype=torch.int64)
    cpp.best(scores, tokens)
    return tokens[:, None]


def why_not_select_cpp(
    scores: torch.Tensor, count: int = 1, sample: bool = False, generator: torch.Generator | None = None
) -> str | None:
    """Why select_cpp does not take these arguments, as one clause; None where it does."""
    if sample or count != 1:
        return "it takes only the best token of each row"
    return _why_not_scores(scores)


def log_softmax_cpp(scores: torch.Tensor) -> torch.Tensor:
    """As log_softmax_reference, where why_not_log_softmax_cpp is None and the extension is loaded."""
    out = torch.empty_like(scores)
    cpp.log_softmax(scores, out)
    return out


def why_not_log_softmax_cpp(scores: torch.Tensor) -> str | None:
    """Why log_softmax_cpp does not take these scores, as one clause; None where it does."""
    return _why_not_scores(scores)


def top_log_probs_cpp(
    scores: torch.Tensor, count: int, offsets: torch.Tensor | None = None, group: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """As top_log_probs_reference, where why_not_top_log_probs_cpp is None and the extension is loaded."""
    sources = len(scores) // group
    values, indices = scores.new_empty(sources, count), scores.new_empty(sources, count, dtype=torch.int64)
    cpp.top_log_probs(scores, count, offsets, group, values, indices)
    return values, indices


def why_not_top_log_probs_cpp(
    scores: torch.Tensor, count: int, offsets: torch.Tensor | None = None, group: int = 1
) -> str | None:
    """Why top_log_probs_cpp does not take these arguments, as one clause; None where it does."""
    reason = _why_not_scores(scores)
    if reason is not None:
        return reason
    if group < 1 or len(scores) % group or not 1 <= count <= group * scores.shape[1]:
        return f"{len(scores)} rows in groups of {group} have no {count} best"
    return None if offsets is None else _why_not_rows(scores, torch.float32, offsets)


def sample_cpp(
    scores: torch.Tensor, seed: torch.Tensor, request: torch.Tensor, step: torch.Tensor, temperature: torch.Tensor,
    top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """As sample_reference, where why_not_sample_cpp is None and the extension is loaded.

    The random bits equal those of the reference. Sums and logarithms may differ in their last bits, and with them a
    token: where the mass above a token is within about 1e-6 of top_p, or the best two tokens draw values as close.
    """
    rows = len(scores)
    tokens, log_probs = scores.new_empty(rows, dtype=torch.int64), scores.new_empty(rows)
    cpp.sample(scores, seed, request, step, temperature, top_k.long(), top_p, min_p, tokens, log_probs)
    return tokens, log_probs


def why_not_sample_cpp(
    scores: torch.Tensor, seed: torch.Tensor, request: torch.Tensor, step: torch.Tensor, temperature: torch.Tensor,
    top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor,
) -> str | None:  # fmt: skip
    """Why sample_cpp does not take these arguments, as one clause; None where it does."""
    return (
        _why_not_scores(scores)
        or _why_not_rows(scores, torch.int64, seed, request, step)
        or _why_not_rows(scores, torch.int32 if top_k.dtype == torch.int32 else torch.int64, top_k)
        or _why_not_rows(scores, torch.float32, temperature, top_p, min_p)
    )


def _why_not_scores(scores: torch.Tensor) -> str | None:
    """Why functions on scores do not take these, as one clause; None where they do."""
    if scores.dtype != torch.float32:
        return f"{scores.dtype} is not float32"
    if scores.dim() != 2 or scores.shape[1] == 0 or not scores.is_contiguous():
        return f"scores are {tuple(scores.shape)} with strides {scores.stride()}, and not contiguous rows"
    return why_not_gradients(scores)


def _why_not_rows(scores: torch.Tensor, dtype: torch.dtype, *tensors: torch.Tensor) -> str | None:
    """Why tensors are not contiguous, of this dtype, with a number for each row, as one clause; None where they are."""
    for t in tensors:
        if t.dtype != dtype or t.shape != scores.shape[:1] or not (t.is_cpu and t.is_contiguous()):
            return f"an argument is {t.dtype} {tuple(t.shape)}, and not contiguous {dtype} of each row"
        if not is_plain_tensor(t):
            return f"a {type(t).__name__} is no plain tensor"
    return None
