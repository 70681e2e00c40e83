"""process: the logits processors, in place: change the scores of each row by the tokens it has so far.

    s[v] <- s[v] / penalty where s[v] > 0, s[v] * penalty where s[v] < 0        for each distinct token v of the row
    s[v] <- -inf        where v would repeat an n-gram, is an end token of a row that is too short, or is banned

Shapes: scores [R, V], tokens [R, T]. The options of each row are tensors, so rows of different requests share
a batch and the host reads nothing back. The kernel is one launch.

Limits on an H200: it reads and writes some hundred elements of a row, and V bytes of the mask of banned tokens.
"""

from __future__ import annotations

import torch

from . import tuning
from .language import tl, triton
from .scores import INTEGERS, check_argument, check_kernel, check_scores, real_dtypes


def process_reference(
    scores: torch.Tensor,
    tokens: torch.Tensor,
    lengths: torch.Tensor,
    repetition_penalty: torch.Tensor,
    no_repeat_ngram: torch.Tensor,
    min_length: torch.Tensor | None = None,
    end_tokens: torch.Tensor | None = None,
    banned: torch.Tensor | None = None,
) -> None:
    """Process the scores of each row in place.

    In this order: the scores of the row's distinct tokens are divided by its repetition penalty where they are positive
    and multiplied where they are negative (Keskar et al. 2019, arXiv 1909.05858); tokens that would complete an n-gram
    that the row already has become -inf; so do the end tokens of a row that is too short, and banned tokens.

    Args:
        scores: float32 [R, V].
        tokens: int64 or int32 [R, T]. Ids outside 0 .. V - 1 are ignored.
        lengths: int64 or int32 [R], number of tokens of each row; tokens after them are ignored.
        repetition_penalty: float32 [R]; 1 changes nothing.
        no_repeat_ngram: int32 or int64 [R], size of the n-grams that may not repeat; 0 allows all.
        min_length: int64 or int32 [R]; the end tokens of shorter rows become -inf.
        end_tokens: int64 or int32 [E] or [R, E], the tokens that `min_length` forbids; -1 is padding.
        banned: bool [V] or [R, V], True at forbidden tokens.

    Raises:
        ValueError: a shape, dtype or device that does not fit; only one of `min_length` and `end_tokens`.
    """
    check_arguments(scores, tokens, lengths, repetition_penalty, no_repeat_ngram, min_length, end_tokens, banned)
    rows, vocabulary = scores.shape
    width = tokens.shape[1]
    position = torch.arange(width, device=scores.device)
    valid = (tokens >= 0) & (tokens < vocabulary)
    penalized = valid & (position < lengths[:, None]) & (repetition_penalty != 1)[:, None]
    row, column = penalized.nonzero(as_tuple=True)
    token, penalty = tokens[row, column].long(), repetition_penalty[row]
    score = scores[row, token]
    scores[row, token] = torch.where(score < 0, score * penalty, score / penalty)

    for size in no_repeat_ngram.unique().tolist():
        if not 0 < size <= width:
            continue
        subset = (no_repeat_ngram == size).nonzero().squeeze(1)
        end = lengths[subset, None].clamp(max=width)
        ngrams = tokens[subset].unfold(1, size, 1)
        suffix = tokens[subset].gather(1, (end - size + 1 + position[: size - 1]).clamp(min=0).long())
        repeats = (ngrams[..., :-1] == suffix[:, None]).all(-1) & (position[: ngrams.shape[1]] + size <= end)
        row, column = (repeats & valid[subset, size - 1 :]).nonzero(as_tuple=True)
        scores[subset[row], ngrams[row, column, -1].long()] = -torch.inf

    if min_length is not None:
        ends = end_tokens.expand(rows, -1)
        row, column = ((lengths < min_length)[:, None] & (ends >= 0) & (ends < vocabulary)).nonzero(as_tuple=True)
        scores[row, ends[row, column].long()] = -torch.inf
    if banned is not None:
        scores.masked_fill_(banned, -torch.inf)


def check_arguments(
    scores, tokens, lengths, repetition_penalty, no_repeat_ngram, min_length, end_tokens, banned
) -> None:
    """Raise ValueError for arguments that `process_reference` does not take."""
    check_scores(scores, (torch.float32, torch.float64))
    rows, vocabulary = scores.shape
    width = tokens.shape[-1] if tokens.dim() else 0
    check_argument(scores, "tokens", tokens, INTEGERS, ((rows, width),))
    check_argument(scores, "lengths", lengths, INTEGERS)
    check_argument(scores, "repetition_penalty", repetition_penalty, real_dtypes(scores))
    check_argument(scores, "no_repeat_ngram", no_repeat_ngram, INTEGERS)
    if (min_length is None) != (end_tokens is None):
        raise ValueError("min_length and end_tokens must be given together: one of them is None")
    if min_length is not None:
        num_ends = end_tokens.shape[-1] if end_tokens.dim() else 0
        check_argument(scores, "min_length", min_length, INTEGERS)
        check_argument(scores, "end_tokens", end_tokens, INTEGERS, ((num_ends,), (rows, num_ends)))
    if banned is not None:
        check_argument(scores, "banned", banned, (torch.bool,), ((vocabulary,), (rows, vocabulary)))


@triton.jit
def _load_tokens(tokens_ptr, offs, mask, vocabulary):
    """Tokens as int64, and which of them are ids of the vocabulary."""
    token = tl.load(tokens_ptr + offs, mask=mask, other=-1).to(tl.int64)
    return token, (token >= 0) & (token < vocabulary)


@triton.jit(
    do_not_specialize=[
        "width", "vocabulary", "stride_scores", "stride_tokens", "stride_ends", "stride_banned", "num_ends"
    ]
)  # fmt: skip
def _process_kernel(
    scores_ptr,  # float32 [R, vocabulary], rows stride_scores apart, changed in place
    tokens_ptr,  # [R, width], rows stride_tokens apart
    lengths_ptr,  # [R]
    repetition_penalty_ptr,  # float32 [R]
    no_repeat_ngram_ptr,  # [R]
    min_length_ptr,  # [R] or None
    end_tokens_ptr,  # [R, num_ends], rows stride_ends apart, or None
    banned_ptr,  # uint8 [R, vocabulary], rows stride_banned apart, or None
    penalized_ptr,  # float32 [R, width]: workspace for the penalized scores of the tokens
    width,
    vocabulary,
    stride_scores,
    stride_tokens,
    stride_ends,
    stride_banned,
    num_ends,
    programs_per_row,
    BLOCK: tl.constexpr,
    BLOCK_ENDS: tl.constexpr,  # power of two >= num_ends
    BLOCK_BANNED: tl.constexpr,
):
    """For each row: the first program processes its tokens, each other one BLOCK_BANNED columns of `banned`."""
    program = tl.program_id(0).to(tl.int64)
    row, part = program // programs_per_row, program % programs_per_row
    scores_ptr += row * stride_scores
    if banned_ptr is not None:
        banned_ptr += row * stride_banned
    if part == 0:
        tokens_ptr += row * stride_tokens
        row_length = tl.load(lengths_ptr + row).to(tl.int64)
        length = tl.minimum(tl.maximum(row_length, 0), width).to(tl.int32)
        penalty = tl.load(repetition_penalty_ptr + row)
        penalized_ptr += row * width
        if penalty != 1.0:
            # Read all scores before changing one, so that a token that occurs twice is penalized once.
            for start in range(0, length, BLOCK):
                offs = start + tl.arange(0, BLOCK)
                token, valid = _load_tokens(tokens_ptr, offs, offs < length, vocabulary)
                x = tl.load(scores_ptr + token, mask=valid, other=0.0)
                x = tl.where(x < 0, x * penalty, tl.div_rn(x, tl.broadcast_to(penalty, (BLOCK,))))
                tl.store(penalized_ptr + offs, x, mask=valid)
            tl.debug_barrier()
            for start in range(0, length, BLOCK):
                offs = start + tl.arange(0, BLOCK)
                token, valid = _load_tokens(tokens_ptr, offs, offs < length, vocabulary)
                x = tl.load(penalized_ptr + offs, mask=valid, other=0.0)
                if banned_ptr is not None:  # another program may have written -inf there already
                    x = tl.where(tl.load(banned_ptr + token, mask=valid, other=0) != 0, float("-inf"), x)
                tl.store(scores_ptr + token, x, mask=valid)
            tl.debug_barrier()
        size = tl.load(no_repeat_ngram_ptr + row).to(tl.int64)
        if (size > 0) & (size <= length):
            prefix_len = (size - 1).to(tl.int32)
            suffix = length - prefix_len  # start of the n-gram that would end with the next token
            for start in range(0, suffix, BLOCK):
                offs = start + tl.arange(0, BLOCK)
                match = offs < suffix
                for i in range(0, prefix_len):
                    token = tl.load(tokens_ptr + offs + i, mask=match, other=0)
                    match = match & (token == tl.load(tokens_ptr + suffix + i))
                token, valid = _load_tokens(tokens_ptr, offs + prefix_len, match, vocabulary)
                tl.store(scores_ptr + token, float("-inf"), mask=valid)
        if min_length_ptr is not None:
            if row_length < tl.load(min_length_ptr + row):
                offs = tl.arange(0, BLOCK_ENDS)
                token, valid = _load_tokens(end_tokens_ptr + row * stride_ends, offs, offs < num_ends, vocabulary)
                tl.store(scores_ptr + token, float("-inf"), mask=valid)
    elif banned_ptr is not None:
        offs_v = (part - 1) * BLOCK_BANNED + tl.arange(0, BLOCK_BANNED)
        mask = offs_v < vocabulary
        mask = mask & (tl.load(banned_ptr + offs_v, mask=mask, other=0) != 0)
        tl.store(scores_ptr + offs_v, float("-inf"), mask=mask)


def process_triton(
    scores: torch.Tensor,
    tokens: torch.Tensor,
    lengths: torch.Tensor,
    repetition_penalty: torch.Tensor,
    no_repeat_ngram: torch.Tensor,
    min_length: torch.Tensor | None = None,
    end_tokens: torch.Tensor | None = None,
    banned: torch.Tensor | None = None,
) -> None:
    """`process_reference`, bit for bit, in one launch; scores, tokens, end_tokens and banned with any stride of rows.

    Raises:
        ValueError: as the reference; also for float64, a last dimension that is not contiguous, or overlapping rows.
    """
    check_arguments(scores, tokens, lengths, repetition_penalty, no_repeat_ngram, min_length, end_tokens, banned)
    check_kernel(
        scores, tokens=tokens, lengths=lengths, repetition_penalty=repetition_penalty, no_repeat_ngram=no_repeat_ngram,
        min_length=min_length, end_tokens=end_tokens, banned=banned,
    )  # fmt: skip
    rows, vocabulary = scores.shape
    if rows > 1 and abs(scores.stride(0)) < vocabulary:
        raise ValueError(f"rows of scores overlap: {vocabulary} columns with a stride of {scores.stride(0)}")
    if rows == 0:
        return
    width = tokens.shape[1]
    penalized = torch.empty((rows, width), dtype=torch.float32, device=scores.device)
    num_ends = 0 if end_tokens is None else end_tokens.shape[-1]
    launch = tuning.process(tuning.architecture(scores.device), width)
    programs_per_row = 1 if banned is None else 1 + -(-vocabulary // launch.tiles["BLOCK_BANNED"])
    _process_kernel[(rows * programs_per_row,)](
        scores, tokens, lengths, repetition_penalty, no_repeat_ngram, min_length, end_tokens,
        None if banned is None else banned.view(torch.uint8), penalized, width, vocabulary, scores.stride(0),
        tokens.stride(0), end_tokens.stride(0) if end_tokens is not None and end_tokens.dim() == 2 else 0,
        banned.stride(0) if banned is not None and banned.dim() == 2 else 0, num_ends, programs_per_row,
        BLOCK_ENDS=tuning.power_of_2(num_ends), **launch.tiles, num_warps=launch.num_warps,
    )  # fmt: skip
