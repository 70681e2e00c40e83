"""process: change the scores of each row, in place, by what the row has said so far.

    s[v] <- s[v] / penalty where s[v] > 0, s[v] * penalty where s[v] < 0        for the row's tokens v, each once
    s[v] <- -inf        for v that would complete an n-gram again, end a row that is too short, or are banned

Shapes: scores [R, V], tokens [R, T]. The options of each row are tensors, so that rows of different requests share a
batch and nothing is read back by the host. All of it is one launch.

Limits on an H200: it touches some hundred elements of a row, and reads V bytes where there is a mask of banned tokens.
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
    """Change scores in place by what each row has said so far.

    In this order: the scores of a row's tokens are divided by its repetition penalty where they are positive and
    multiplied where they are negative, each once (Keskar et al. 2019, arXiv 1909.05858); tokens that would complete an
    n-gram which the row has already become -inf; so do the end tokens of a row that is too short, and banned tokens.

    Args:
        scores: float32 [R, V].
        tokens: int64 or int32 [R, T]. Ids that are not in 0 .. V - 1 have no score, and change none.
        lengths: int64 or int32 [R], how many tokens each row has; what lies behind is not looked at.
        repetition_penalty: float32 [R]; 1 changes nothing.
        no_repeat_ngram: int32 or int64 [R], the size of n-grams that may not come twice; 0 allows all.
        min_length: int64 or int32 [R]: shorter rows may not end.
        end_tokens: int64 or int32 [E] or [R, E], what `min_length` forbids; -1 is none.
        banned: bool [V] or [R, V], True at tokens that are forbidden.

    Raises:
        ValueError: a shape, dtype or device that does not fit; `min_length` without `end_tokens`, or these without it.
    """
    _check_process(scores, tokens, lengths, repetition_penalty, no_repeat_ngram, min_length, end_tokens, banned)
    rows, vocabulary = scores.shape
    width = tokens.shape[1]
    place = torch.arange(width, device=scores.device)
    known = (tokens >= 0) & (tokens < vocabulary)
    penalized = known & (place < lengths[:, None]) & (repetition_penalty != 1)[:, None]
    row, column = penalized.nonzero(as_tuple=True)
    token, penalty = tokens[row, column].long(), repetition_penalty[row]
    score = scores[row, token]
    scores[row, token] = torch.where(score < 0, score * penalty, score / penalty)

    for size in no_repeat_ngram.unique().tolist():
        if not 0 < size <= width:
            continue
        some = (no_repeat_ngram == size).nonzero().squeeze(1)
        end = lengths[some, None].clamp(max=width)
        ngrams = tokens[some].unfold(1, size, 1)
        last = tokens[some].gather(1, (end - size + 1 + place[: size - 1]).clamp(min=0).long())
        repeats = (ngrams[..., :-1] == last[:, None]).all(-1) & (place[: ngrams.shape[1]] + size <= end)
        row, column = (repeats & known[some, size - 1 :]).nonzero(as_tuple=True)
        scores[some[row], ngrams[row, column, -1].long()] = -torch.inf

    if min_length is not None:
        ends = end_tokens.expand(rows, -1)
        row, column = ((lengths < min_length)[:, None] & (ends >= 0) & (ends < vocabulary)).nonzero(as_tuple=True)
        scores[row, ends[row, column].long()] = -torch.inf
    if banned is not None:
        scores.masked_fill_(banned, -torch.inf)


def _check_process(scores, tokens, lengths, repetition_penalty, no_repeat_ngram, min_length, end_tokens, banned):
    check_scores(scores, (torch.float32, torch.float64))
    rows, vocabulary = scores.shape
    width = tokens.shape[-1] if tokens.dim() else 0
    check_argument(scores, "tokens", tokens, INTEGERS, ((rows, width),))
    check_argument(scores, "lengths", lengths, INTEGERS)
    check_argument(scores, "repetition_penalty", repetition_penalty, real_dtypes(scores))
    check_argument(scores, "no_repeat_ngram", no_repeat_ngram, INTEGERS)
    if (min_length is None) != (end_tokens is None):
        raise ValueError("min_length and end_tokens go together: one of them is missing")
    if min_length is not None:
        ends = end_tokens.shape[-1] if end_tokens.dim() else 0
        check_argument(scores, "min_length", min_length, INTEGERS)
        check_argument(scores, "end_tokens", end_tokens, INTEGERS, ((ends,), (rows, ends)))
    if banned is not None:
        check_argument(scores, "banned", banned, (torch.bool,), ((vocabulary,), (rows, vocabulary)))


@triton.jit
def _known(tokens, place, there, vocabulary):
    """Tokens at some places of a row, and which of them have a score."""
    token = tl.load(tokens + place, mask=there, other=-1).to(tl.int64)
    return token, (token >= 0) & (token < vocabulary)


@triton.jit(
    do_not_specialize=["width", "vocabulary", "stride", "tokens_stride", "ends_stride", "banned_stride", "ends"]
)
def _process_kernel(
    scores,  # float32 [R, vocabulary], rows `stride` apart, changed in place
    tokens,  # [R, width], rows tokens_stride apart
    lengths,  # [R]
    repetition_penalty,  # float32 [R]
    no_repeat_ngram,  # [R]
    min_length,  # [R] or None
    end_tokens,  # [R, ends], rows ends_stride apart, or None
    banned,  # uint8 [R, vocabulary], rows banned_stride apart, or None
    changed,  # float32 [R, width]: penalized scores of the tokens, on their way
    width,
    vocabulary,
    stride,
    tokens_stride,
    ends_stride,
    banned_stride,
    ends,
    parts,  # programs of a row
    BLOCK: tl.constexpr,
    ENDS: tl.constexpr,  # a power of two that has room for `ends`
    BANS: tl.constexpr,
):
    """For each row one program for what its tokens change, and one for each BANS columns of `banned`."""
    program = tl.program_id(0).to(tl.int64)
    row, part = program // parts, program % parts
    scores += row * stride
    if banned is not None:
        banned += row * banned_stride
    if part == 0:
        tokens += row * tokens_stride
        given = tl.load(lengths + row).to(tl.int64)
        length = tl.minimum(tl.maximum(given, 0), width).to(tl.int32)
        penalty = tl.load(repetition_penalty + row)
        changed += row * width
        if penalty != 1.0:
            # All scores are read before one is changed: a token that comes twice is penalized once.
            for start in range(0, length, BLOCK):
                place = start + tl.arange(0, BLOCK)
                token, known = _known(tokens, place, place < length, vocabulary)
                x = tl.load(scores + token, mask=known, other=0.0)
                x = tl.where(x < 0, x * penalty, tl.div_rn(x, tl.broadcast_to(penalty, (BLOCK,))))
                tl.store(changed + place, x, mask=known)
            tl.debug_barrier()
            for start in range(0, length, BLOCK):
                place = start + tl.arange(0, BLOCK)
                token, known = _known(tokens, place, place < length, vocabulary)
                x = tl.load(changed + place, mask=known, other=0.0)
                if banned is not None:  # another program may have been there
                    x = tl.where(tl.load(banned + token, mask=known, other=0) != 0, float("-inf"), x)
                tl.store(scores + token, x, mask=known)
            tl.debug_barrier()
        size = tl.load(no_repeat_ngram + row).to(tl.int64)
        if (size > 0) & (size <= length):
            others = (size - 1).to(tl.int32)
            last = length - others  # where an n-gram would begin that ends with the next token
            for start in range(0, last, BLOCK):
                place = start + tl.arange(0, BLOCK)
                same = place < last
                for i in range(0, others):
                    token = tl.load(tokens + place + i, mask=same, other=0)
                    same = same & (token == tl.load(tokens + last + i))
                token, known = _known(tokens, place + others, same, vocabulary)
                tl.store(scores + token, float("-inf"), mask=known)
        if min_length is not None:
            if given < tl.load(min_length + row):
                place = tl.arange(0, ENDS)
                token, known = _known(end_tokens + row * ends_stride, place, place < ends, vocabulary)
                tl.store(scores + token, float("-inf"), mask=known)
    elif banned is not None:
        column = (part - 1) * BANS + tl.arange(0, BANS)
        inside = column < vocabulary
        inside = inside & (tl.load(banned + column, mask=inside, other=0) != 0)
        tl.store(scores + column, float("-inf"), mask=inside)


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
    """`process_reference`, to the bit, in one launch; scores, tokens, end_tokens and banned with any stride of rows.

    Raises:
        ValueError: as the reference; float64, a last dimension that is not contiguous, or rows of scores that overlap.
    """
    _check_process(scores, tokens, lengths, repetition_penalty, no_repeat_ngram, min_length, end_tokens, banned)
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
    changed = torch.empty((rows, width), dtype=torch.float32, device=scores.device)
    ends = 0 if end_tokens is None else end_tokens.shape[-1]
    launch = tuning.process(tuning.architecture(scores.device), width)
    parts = 1 if banned is None else 1 + -(-vocabulary // launch.tiles["BANS"])
    _process_kernel[(rows * parts,)](
        scores, tokens, lengths, repetition_penalty, no_repeat_ngram, min_length, end_tokens,
        None if banned is None else banned.view(torch.uint8), changed, width, vocabulary, scores.stride(0),
        tokens.stride(0), end_tokens.stride(0) if end_tokens is not None and end_tokens.dim() == 2 else 0,
        banned.stride(0) if banned is not None and banned.dim() == 2 else 0, ends, parts,
        ENDS=tuning.power_of_2(ends), **launch.tiles, num_warps=launch.num_warps,
    )  # fmt: skip
