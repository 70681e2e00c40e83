"""process by the C++ extension, in float32 on a CPU; the code is csrc/processors_cpu.cpp."""

from __future__ import annotations

import torch

from . import cpp
from .plain import is_plain_tensor, why_not_gradients
from .process import check_arguments


def process_cpp(
    scores: torch.Tensor,
    tokens: torch.Tensor,
    lengths: torch.Tensor,
    repetition_penalty: torch.Tensor,
    no_repeat_ngram: torch.Tensor,
    min_length: torch.Tensor | None = None,
    end_tokens: torch.Tensor | None = None,
    banned: torch.Tensor | None = None,
) -> None:
    """`process_reference`, bit for bit, where why_not_process_cpp is None and the extension is loaded.

    Raises:
        ValueError: as the reference.
    """
    check_arguments(scores, tokens, lengths, repetition_penalty, no_repeat_ngram, min_length, end_tokens, banned)
    integers = [
        None if t is None else t.long().contiguous() for t in (lengths, no_repeat_ngram, min_length, end_tokens)
    ]
    lengths, no_repeat_ngram, *ends = integers
    bans = None if banned is None else banned.contiguous().view(torch.uint8)
    cpp.process(
        scores, tokens.long().contiguous(), lengths, repetition_penalty.contiguous(), no_repeat_ngram, *ends, bans
    )


def why_not_process_cpp(
    scores: torch.Tensor,
    tokens: torch.Tensor,
    lengths: torch.Tensor,
    repetition_penalty: torch.Tensor,
    no_repeat_ngram: torch.Tensor,
    min_length: torch.Tensor | None = None,
    end_tokens: torch.Tensor | None = None,
    banned: torch.Tensor | None = None,
) -> str | None:
    """Why process_cpp does not take these arguments, as one clause; None where it does."""
    if scores.dtype != torch.float32 or scores.dim() != 2 or not scores.is_contiguous():
        return f"scores are {scores.dtype} {tuple(scores.shape)}, and not contiguous rows in float32"
    others = (tokens, lengths, repetition_penalty, no_repeat_ngram, min_length, end_tokens, banned)
    if not all(t is None or (t.is_cpu and is_plain_tensor(t)) for t in others):
        return "an argument is no plain tensor on a CPU"
    return why_not_gradients(scores)
