"""What was generated for one text."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BertgenError


@dataclass(frozen=True)
class Output:
    """What was generated for one text.

    Attributes:
        index: which of the given texts it answers.
        text: the generated text, without special tokens.
        token_ids: as generated: no start token, no padding; the end token comes last unless the length ran out.
        score: log-probability / length ** length_penalty, length and probability including the end token. Beams have
            it always, as transformers' `sequences_scores`; greedy and sampled outputs where `scores=True`, and then
            the probability is the model's own, whatever the penalties and limits they were chosen under.
        alternatives: under `num_return_sequences` the other outputs, best first under beams; fewer where what the call
            forbids leaves fewer. Where beams may say nothing at all, the output is empty and its score -inf.
        truncated: the text was longer than the limit and its end was not read.
        error: why there is no output, where `stream(return_errors=True)` met such a text.
        input_tokens: of the text, special tokens included, as the model read them.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    score: float | None = None
    alternatives: tuple[Output, ...] = ()
    truncated: bool = False
    error: BertgenError | None = None
    input_tokens: int = 0
