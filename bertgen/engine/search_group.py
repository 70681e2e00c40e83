"""A search group: requests of equal options that share one search."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import TypeAlias

import torch

from .. import decoding
from ..decoding import logits_processors, stopping_criteria
from ..decoding.logits_processors import AllowedTokens
from ..errors import ConfigError, UnsupportedError
from ..model import EncoderDecoderModel
from .callback_errors import RequestFailure, guarded, guarded_all
from .request import Request

# Of a unit; with the number of its return sequence, where there are several.
Owner: TypeAlias = Request | tuple[Request, int]


class SearchGroup:
    """Requests that share a search. It is made from the options of its first request, which then has to `join`.

    When a request of the group fails inside a step, its rows stay until the end of the step and do not advance, so that
    the rows of other groups keep their places; then `RunningBatch.remove_failed` removes the request.

    Attributes:
        number: as the scheduler counts groups.
        failures: requests that failed since the last removal.
    """

    def __init__(self, request: Request, model: EncoderDecoderModel):
        options = request.options
        if options.decoder_start_token_id is None:
            raise ConfigError("generation needs decoder_start_token_id or bos_token_id")
        vocabulary = model.config.decoder.vocab_size
        logits_processors.check_ids("decoder_start_token_id", [options.decoder_start_token_id], vocabulary)
        start = torch.tensor([[options.decoder_start_token_id]], dtype=torch.int64, device=model.device)
        source = None
        if request.search_key.is_exclusive:
            source = torch.tensor([request.ids], dtype=torch.int64, device=model.device)
        allowed = guarded(request, request.prefix_allowed_tokens_fn)
        processors = logits_processors.build_logits_processors(
            options, vocabulary, start,
            source_ids=source,
            allowed=None if allowed is None else partial(_call_allowed, allowed, request.number),
            custom=guarded_all(request, request.logits_processor),
        )  # fmt: skip
        criteria = stopping_criteria.build_stopping_criteria(
            options, request.tokenizer, guarded_all(request, request.stopping_criteria)
        )
        # The scheduler has admitted the request with its own limits.
        if stopping_criteria.with_custom_limits(options, 1, request.stopping_criteria) is not options:
            raise UnsupportedError(
                "stopping_criteria of a request cannot be a MaxLengthCriteria or EosTokenCriteria: pass max_length= or "
                "eos_token_id="
            )
        search_class = decoding.search_class(options)
        self.search = search_class(options, processors, criteria, decoding.KeyedRng(), request.scored)
        self.number, self.start = request.group, start
        self.failures: dict[Request, RequestFailure] = {}
        self.keeps_rows = processors.by_row or criteria.by_row

    @property
    def rows(self) -> int:
        """Sequences that are decoded."""
        return len(self.search.owners) * self.search.width

    @property
    def requests(self) -> list[Request]:
        """The request of each unit of the search; one with several return sequences has several units."""
        return [request_of(owner) for owner in self.search.owners]

    @property
    def tokens(self) -> torch.Tensor:
        """As `Search.tokens`."""
        return self.search.tokens

    @property
    def parents(self) -> torch.Tensor | None:
        """As `Search.parents`; None after a failure, which leaves the rows in place."""
        return None if self.failures else self.search.parents

    def advance(self, logits: torch.Tensor) -> bool:
        """As `Search.advance`, but an exception is the failure of the group's requests."""
        try:
            # A callback that keeps its argument keeps this copy, and not the scores of all requests.
            return self.search.advance(logits.clone() if self.keeps_rows else logits)
        except BaseException as error:
            if not self._fail(error):
                raise
            return False

    def _fail(self, error: BaseException) -> bool:
        """Make an exception the failure of the group's requests; False where the caller has to re-raise it."""
        failure = RequestFailure.of_step(error)
        if failure is not None:
            self.failures = dict.fromkeys(self.requests, failure)
        return failure is not None

    def join(self, requests: Sequence[Request]) -> None:
        """Append requests to the search."""
        keys = [[request.seed, request.number, request.options.max_length] for request in requests]
        self.search.join(
            self.start.expand(len(requests), 1),
            requests,
            *torch.tensor(keys, dtype=torch.int64, device=self.start.device).unbind(1),
        )

    def report_tokens(self) -> None:
        """Call `on_tokens` of the requests that have one with the newest token of each of their rows."""
        requests = self.requests
        if self.search.width > 1 or all(request.on_tokens is None for request in requests):
            return
        newest: dict[Request, list[int]] = {}
        for request, token in zip(requests, self.search.tokens[:, -1].tolist()):
            newest.setdefault(request, []).append(token)
        lengths = dict(zip(requests, self.search.lengths.tolist()))  # equal for all rows of a request
        for request, tokens in newest.items():
            # Not a second time for steps that are repeated after a restart.
            if request.on_tokens is not None and lengths[request] > request.reported_length:
                request.reported_length = lengths[request]
                try:
                    guarded(request, request.on_tokens)(tokens)
                except RequestFailure as failure:
                    self.failures[request] = failure

    def units_of(self, requests: Collection[Request]) -> torch.Tensor:
        """int64 on the host: indices of the units that belong to these requests."""
        units = [i for i, request in enumerate(self.requests) if request in requests]
        return torch.tensor(units, dtype=torch.int64, device="cpu")

    def ended_units(self) -> torch.Tensor:
        """int64 on the host: indices of the units that have ended and can leave."""
        ended = self.search.ended()
        if self.keeps_rows and len(ended) < len(self.search.owners):
            return ended[:0]
        return ended

    def complete(self, units: torch.Tensor) -> list[Request]:
        """Write the results of ended units into their requests; returns the requests that are complete."""
        try:
            results = self.search.results(units)
        except BaseException as error:
            if not self._fail(error):
                raise
            return []
        completed: list[Request] = []
        for unit, (outputs, scores) in zip(units.tolist(), results):
            owner = self.search.owners[unit]
            if store_results(owner, outputs, scores):
                completed.append(request_of(owner))
        return completed


def _call_allowed(allowed: AllowedTokens, number: int, _: int, tokens: torch.Tensor) -> Sequence[int]:
    """Call `prefix_allowed_tokens_fn` with the request's number as the index of the source."""
    return allowed(number, tokens)


def request_of(owner: Owner) -> Request:
    """The request of a unit's owner."""
    return owner[0] if isinstance(owner, tuple) else owner


def store_results(owner: Owner, outputs: list[list[int]], scores: list[float | None]) -> bool:
    """Write the results of a unit that has ended into its request; True where the request is complete."""
    if not isinstance(owner, tuple):
        owner.outputs, owner.scores = outputs, scores
        return True
    request, row = owner
    request.ended_rows[row] = outputs[0], scores[0]
    if len(request.ended_rows) < request.options.num_return_sequences:
        return False
    rows = [request.ended_rows[i] for i in sorted(request.ended_rows)]
    request.outputs, request.scores = [tokens for tokens, _ in rows], [score for _, score in rows]
    request.ended_rows = {}
    return True
