"""The output of a text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from ..engine import Request
from ..errors import BertgenError, CallbackError, InputError
from ..tokenizer import Tokenizer


@dataclass(frozen=True)
class Output:
    """The generated text and tokens for one text.

    Attributes:
        index: of the text in the call.
        text: the generated text, without special tokens.
        token_ids: as generated: no start token, no padding; the end token comes last unless the length ran out.
        score: log-probability / length ** length_penalty, length and probability including the end token. Beams have
            it always, as transformers' `sequences_scores`; greedy and sampled outputs where `scores=True`, and then
            the probability is the model's own, before penalties and limits.
        alternatives: the other outputs of `num_return_sequences`, best first under beams; fewer where constraints leave
            fewer. Where constraints forbid every output of a beam search, the output is empty and its score -inf.
        truncated: the text was longer than the limit, and its end was cut off.
        error: why there is no output, in `stream(return_errors=True)`.
        input_tokens: tokens of the text that the model read, special tokens included.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    score: float | None = None
    alternatives: tuple[Output, ...] = ()
    truncated: bool = False
    error: BertgenError | None = None
    input_tokens: int = 0


def output_of(request: Request, tokenizer: Tokenizer, clean_up: bool | None, return_errors: bool) -> Output:
    """The output of a request that is done. An error that is raised is taken from the request.

    Args:
        clean_up: remove spaces before punctuation; None as the tokenizer is set.
        return_errors: put a BertgenError, or an exception of a callback, into the output instead of raising it.

    Raises:
        the request's error.
    """
    index = request.number
    if request.error is not None:
        error = request.error
        if return_errors and request.callback_failed and not isinstance(error, BertgenError):
            error = CallbackError(f"a function of the request raised {error!r}")
            error.__cause__ = request.error
        if return_errors and isinstance(error, BertgenError):
            return Output(index, "", truncated=request.truncated, error=error)
        request.error = None
        try:
            raise error
        finally:
            del error  # its traceback has this frame and that of the caller with the request: reference cycles
    rows, scores = request.outputs or [], request.scores or []
    texts = _texts_of(rows, tokenizer, clean_up)
    best, *others = (
        Output(index, text, tuple(row), score, truncated=request.truncated)
        for text, row, score in zip(texts, rows, scores, strict=True)
    )
    return replace(best, alternatives=tuple(others), input_tokens=len(request.ids))


def _texts_of(rows: list[list[int]], tokenizer: Tokenizer, clean_up: bool | None) -> list[str]:
    """The texts of ids. Ids without a piece are skipped: a model may have more of them than its tokenizer."""
    decode = partial(tokenizer.batch_decode, skip_special_tokens=True, clean_up_tokenization_spaces=clean_up)
    try:
        return decode(rows)
    except InputError:
        unknown = {token for row in rows for token in row if not _has_piece(tokenizer, token)}
        return decode([[token for token in row if token not in unknown] for row in rows])


def _has_piece(tokenizer: Tokenizer, token: int) -> bool:
    try:
        tokenizer.decode([token])
    except InputError:
        return False
    return True
