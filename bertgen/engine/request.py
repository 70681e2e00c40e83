"""A request: its source, options, progress and result, in one object from submit to output."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..config import GenerationConfig
from ..config.generation import SAMPLE_OPTIONS

if TYPE_CHECKING:  # the scheduler and its tests run without torch
    from ..decoding.logits_processors import AllowedTokens, LogitsProcessor
    from ..decoding.stopping_criteria import StoppingCriterion


class RequestState(enum.Enum):
    """Stage of a request in the engine."""

    NEW = enum.auto()
    WAITING = enum.auto()
    RUNNING = enum.auto()
    FINISHED = enum.auto()
    FAILED = enum.auto()
    CANCELLED = enum.auto()


@dataclass(eq=False)
class Request:
    """Source ids with their options, state and result. It is submitted once.

    Attributes:
        ids: of the source, at least one; kept as a tuple.
        options: resolved.
        seed, number: key of the random numbers, together with the step. Equal keys reproduce equal samples.
        scored: add up the log-probabilities of greedy and sampled outputs too.
        truncated: the ids are the beginning of a longer source.
        tokenizer: for `stop_strings`.
        logits_processor, stopping_criteria, prefix_allowed_tokens_fn: as of `model.generate`. They see this request
            only; its `number` is the index of the source.
        on_tokens: called with the newest token of each row after every step, unless there are beams.

        state: written by the thread that steps.
        cancelled: set by any thread; the scheduler drops the request at the next opportunity.
        outputs: tokens of each output after the start token, best first; None before it is finished.
        scores: log-probability / length ** length_penalty of each output; None where it was not requested.
        error: why it failed.
        callback_failed: a callback of the request raised the error.
        callback_started: `time.monotonic()` at the start of the callback that is running; None where none is.
        on_done: called once with the request when it is finished or has failed, not when it was cancelled.
        serial: position in the order of arrival.
        source_key: requests with equal keys share the encoded source.
        group: number of its search group.
        ended_rows: tokens and score of each row that has ended while other rows of the request continue.
        why_not_static: why its steps cannot be static, whatever the device; None where they can.
        reported_length: tokens for which `on_tokens` was called, with the start token.
    """

    ids: Sequence[int]
    options: GenerationConfig
    seed: int = 0
    number: int = 0
    scored: bool = False
    truncated: bool = False
    tokenizer: Any = None
    logits_processor: Sequence[LogitsProcessor] | None = None
    stopping_criteria: Sequence[StoppingCriterion] | None = None
    prefix_allowed_tokens_fn: AllowedTokens | None = None
    on_tokens: Callable[[list[int]], Any] | None = None

    state: RequestState = field(default=RequestState.NEW, init=False)
    cancelled: bool = field(default=False, init=False)
    outputs: list[list[int]] | None = field(default=None, init=False)
    scores: list[float | None] | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)
    callback_failed: bool = field(default=False, init=False)
    callback_started: float | None = field(default=None, init=False)
    on_done: Callable[[Request], Any] | None = field(default=None, init=False)
    serial: int = field(default=-1, init=False)
    source_key: int = field(default=-1, init=False)
    group: int = field(default=-1, init=False)
    ended_rows: dict[int, tuple[list[int], float | None]] = field(default_factory=dict, init=False)
    why_not_static: str | None = field(default=None, init=False)
    reported_length: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.ids = tuple(self.ids)  # the caller may change the list later

    @property
    def rows(self) -> int:
        """Sequences that it decodes."""
        return max(self.options.num_beams, self.options.num_return_sequences)

    @property
    def positions(self) -> int:
        """Cache positions of each row, in the worst case. The last token of an output is not fed to the decoder."""
        return self.options.max_length - 1

    @functools.cached_property
    def search_key(self) -> SearchKey:
        """Decides which requests can share a search group."""
        return SearchKey(self)

    @property
    def done(self) -> bool:
        """Whether it has outputs or an error."""
        return self.state is RequestState.FINISHED or self.state is RequestState.FAILED

    def restart(self) -> None:
        """Return to the queue without the outputs so far; they are generated again."""
        self.state = RequestState.WAITING
        self.outputs = self.scores = None
        self.ended_rows = {}

    def finish(self) -> None:
        """Mark the request as finished: the outputs are complete."""
        self.state = RequestState.FINISHED

    def fail(self, error: Exception, by_callback: bool = False) -> None:
        """Mark the request as failed by an error."""
        self.state, self.error, self.callback_failed = RequestState.FAILED, error, by_callback

    def cancel(self) -> None:
        """Mark the request as cancelled: the scheduler has dropped it."""
        self.state, self.on_done = RequestState.CANCELLED, None


class SearchKey:
    """Options that requests of one search group have in common. It outlives the request that it was made from."""

    def __init__(self, request: Request):
        self.options, self.scored, self.tokenizer = request.options, request.scored, request.tokenizer
        self.is_exclusive = _needs_own_search(request)

    def matches(self, other: SearchKey) -> bool:
        """Whether a request of each key can be in one search group."""
        if self.is_exclusive or other.is_exclusive or self.scored != other.scored:
            return False
        if self.options is not other.options and self._shared_options != other._shared_options:
            return False
        return self.options.stop_strings is None or self.tokenizer is other.tokenizer

    def matches_static(self, other: SearchKey) -> bool:
        """Whether requests of each key, whose steps are static, can be in one static search."""
        return self.scored == other.scored and (
            self.options is other.options or self._static_options == other._static_options
        )

    @functools.cached_property
    def _static_options(self) -> dict[str, Any]:
        """Options that must be equal in a static search. Each of its rows has its own limits of sampling."""
        return {name: value for name, value in self._shared_options.items() if name not in SAMPLE_OPTIONS}

    @functools.cached_property
    def _shared_options(self) -> dict[str, Any]:
        """Options that must be equal. Each request has its own longest output."""
        values = self.options.to_dict()
        if self.options.forced_eos_token_id is None:  # its processor depends on the length
            del values["max_length"]
            values.pop("max_new_tokens", None)
        return values


def _needs_own_search(request: Request) -> bool:
    """Whether a processor or criterion of the request must see this request only."""
    options = request.options
    # `is not None`: a callable object may define its own length or truth value.
    callbacks = request.logits_processor or request.stopping_criteria or request.prefix_allowed_tokens_fn is not None
    reads_source = options.encoder_repetition_penalty != 1.0 or options.encoder_no_repeat_ngram_size > 0
    return bool(callbacks or reads_source or options.max_time is not None)
