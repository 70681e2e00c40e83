"""What the engine is asked: a request, and the ticket it is given for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config import GenerationConfig
from ..decoding.logits_processors import AllowedTokens, LogitsProcessor
from ..decoding.stopping_criteria import StoppingCriterion


@dataclass(frozen=True, eq=False)
class Request:
    """What to generate from, and how.

    Attributes:
        ids: of the source, at least one.
        options: settled.
        seed, number: what the draws depend on, besides the step: a request that has both again draws the same.
        scored: add up the log-probabilities of greedy and sampled outputs too.
        tokenizer: for `stop_strings`.
        logits_processor, stopping_criteria, prefix_allowed_tokens_fn: as of `model.generate`; they see this request
            only, and its `number` where they are told of a source.
        on_tokens: is called with the newest token of each of its rows, after every step, unless there are beams.
    """

    ids: Sequence[int]
    options: GenerationConfig
    seed: int = 0
    number: int = 0
    scored: bool = False
    tokenizer: Any = None
    logits_processor: Sequence[LogitsProcessor] | None = None
    stopping_criteria: Sequence[StoppingCriterion] | None = None
    prefix_allowed_tokens_fn: AllowedTokens | None = None
    on_tokens: Callable[[list[int]], Any] | None = None

    @property
    def rows(self) -> int:
        """Sequences it decodes."""
        return max(self.options.num_beams, self.options.num_return_sequences)

    @functools.cached_property
    def shared_options(self) -> dict[str, Any]:
        """What must be equal for a search in common: how long an output may be is each source's own."""
        values = self.options.to_dict()
        if self.options.forced_eos_token_id is None:  # a processor would know the length
            del values["max_length"]
            values.pop("max_new_tokens", None)
        return values

    @property
    def alone(self) -> bool:
        """Whether something of it looks at one request only, so that it needs a search of its own."""
        options = self.options
        # A function may be an object that has a length, or a truth, of its own.
        calls = self.logits_processor or self.stopping_criteria or self.prefix_allowed_tokens_fn is not None
        source = options.encoder_repetition_penalty != 1.0 or options.encoder_no_repeat_ngram_size > 0
        return bool(calls or source or options.max_time is not None)


@dataclass(eq=False)
class Ticket:
    """A request in the engine.

    Attributes:
        outputs: tokens of each output behind the start token, best first; None until it is done.
        scores: log-probability / length ** length_penalty of each; None where it was not asked for.
        error: why it failed.
        called: a function that the request brought along raised it.
        cancelled: it is to be forgotten.
        calling: since when (`time.monotonic`) a function of the request runs; None where none does.
        on_done: is called with the ticket when it is done or has failed; not when it was cancelled.
    """

    request: Request
    serial: int
    on_done: Callable[[Ticket], Any]
    outputs: list[list[int]] | None = None
    scores: list[float | None] | None = None
    error: Exception | None = None
    called: bool = False
    cancelled: bool = False
    calling: float | None = None
    told: int = 0  # steps that on_tokens knows of
    source: tuple[int, ...] = field(init=False)  # the ids, whatever becomes of the list they came in

    def __post_init__(self) -> None:
        self.source = tuple(self.request.ids)

    @property
    def done(self) -> bool:
        """Whether there is an answer."""
        return self.outputs is not None or self.error is not None
