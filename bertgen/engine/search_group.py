"""A lane: requests that share a search."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from .. import decoding
from ..decoding import logits_processors, stopping_criteria
from ..errors import ConfigError, UnsupportedError
from ..model import EncoderDecoderModel
from .callback_errors import Failed, all_blamed, blamed
from .request import Request, Ticket

Answer = tuple[Ticket, list[list[int]], list[float | None]]  # a ticket that is done, its outputs and their scores


class Lane:
    """Requests that share a search, which the first of them opens.

    Whatever fails in it is the matter of its requests: it takes part in the step to its end, as rows that nobody
    advances, so that the other lanes stay where they are, and then its requests are taken out.

    Attributes:
        failures: of its tickets, since they were last taken out.
    """

    def __init__(self, ticket: Ticket, model: EncoderDecoderModel):
        request, options = ticket.request, ticket.request.options
        if options.decoder_start_token_id is None:
            raise ConfigError("generation needs decoder_start_token_id or bos_token_id")
        vocabulary = model.config.decoder.vocab_size
        logits_processors.check_ids("decoder_start_token_id", [options.decoder_start_token_id], vocabulary)
        start = torch.tensor([[options.decoder_start_token_id]], dtype=torch.int64, device=model.device)
        allowed = blamed(ticket, request.prefix_allowed_tokens_fn)
        number = request.number
        rules = logits_processors.build_logits_processors(
            options, vocabulary, start,
            source_ids=torch.tensor([request.ids], dtype=torch.int64, device=model.device) if request.alone else None,
            allowed=None if allowed is None else (lambda _, tokens: allowed(number, tokens)),
            custom=all_blamed(ticket, request.logits_processor),
        )  # fmt: skip
        criteria = stopping_criteria.build_stopping_criteria(
            options, request.tokenizer, all_blamed(ticket, request.stopping_criteria)
        )
        if (
            stopping_criteria.with_custom_limits(options, 1, request.stopping_criteria) is not options
        ):  # the request is planned already
            raise UnsupportedError("MaxLengthCriteria and EosTokenCriteria here are max_length= and eos_token_id=")
        kind = decoding.BeamSearch if options.num_beams > 1 else decoding.Sampling
        self.search: decoding.Search = kind(options, rules, criteria, decoding.KeyedRng(), request.scored)
        self.request, self.start = request, start
        self.failures: dict[Ticket, Failed] = {}
        self.keeps_rows = rules.by_row or criteria.by_row
        # Of a ticket with several rows those that have ended; no more of it once the ticket is forgotten.
        self._parts: WeakKeyDictionary[Ticket, dict[int, tuple[list[int], float | None]]] = WeakKeyDictionary()

    @property
    def rows(self) -> int:
        """Sequences that are decoded."""
        return len(self.search.owners) * self.search.width

    @property
    def tickets(self) -> list[Ticket]:
        """Of each owner in the search: that is a ticket, or one of its rows."""
        return [_ticket(owner) for owner in self.search.owners]

    @property
    def tokens(self) -> torch.Tensor:
        """As a search's."""
        return self.search.tokens

    @property
    def parents(self) -> torch.Tensor | None:
        """As a search's; a lane that has failed leaves its rows as they are."""
        return None if self.failures else self.search.parents

    def advance(self, logits: torch.Tensor) -> bool:
        """As a search's, but what it raises is the failure of its requests."""
        try:
            # A function that keeps what it is given keeps this, and not the scores of all requests.
            return self.search.advance(logits.clone() if self.keeps_rows else logits)
        except BaseException as error:
            self._fail(error)
            return False

    def _fail(self, error: BaseException) -> None:
        self.failures = dict.fromkeys(self.tickets, Failed.of_request(error))

    def takes(self, request: Request) -> bool:
        """Whether the request can share this search."""
        mine = self.request
        if mine.alone or request.alone or mine.scored != request.scored:
            return False
        same = mine.options is request.options or mine.shared_options == request.shared_options
        return same and (mine.options.stop_strings is None or mine.tokenizer is request.tokenizer)

    def join(self, tickets: Sequence[Ticket]) -> None:
        """Requests join, behind those that are here."""
        asked = [ticket.request for ticket in tickets]
        keys = [[request.seed, request.number, request.options.max_length] for request in asked]
        self.search.join(
            self.start.expand(len(tickets), 1),
            tickets,
            *torch.tensor(keys, dtype=torch.int64, device=self.start.device).unbind(1),
        )

    def tell(self) -> None:
        """Give the newest tokens to those who want them."""
        tickets = self.tickets
        if self.search.width > 1 or all(ticket.request.on_tokens is None for ticket in tickets):
            return
        newest: dict[Ticket, list[int]] = {}
        for ticket, token in zip(tickets, self.search.tokens[:, -1].tolist()):
            newest.setdefault(ticket, []).append(token)
        steps = dict(zip(tickets, self.search.lengths.tolist()))  # those of all rows of a ticket are equal
        for ticket, tokens in newest.items():
            if ticket.request.on_tokens is not None and steps[ticket] > ticket.told:  # not twice after a restart
                ticket.told = steps[ticket]
                try:
                    blamed(ticket, ticket.request.on_tokens)(tokens)
                except Failed as failed:
                    self.failures[ticket] = failed

    def places(self, tickets: Collection[Ticket]) -> torch.Tensor:
        """int64, the places of the owners that belong to some tickets, on the host."""
        places = [i for i, ticket in enumerate(self.tickets) if ticket in tickets]
        return torch.tensor(places, dtype=torch.int64, device="cpu")

    def ended(self) -> torch.Tensor:
        """int64, the places of the owners that can leave with an answer, on the host."""
        ended = self.search.ended()
        if self.keeps_rows and len(ended) < len(self.search.owners):
            return ended[:0]
        return ended

    def take(self, places: torch.Tensor) -> list[Answer]:
        """The answers that those who ended at these places complete."""
        answers: list[Answer] = []
        try:
            taken = self.search.results(places)
        except BaseException as error:
            self._fail(error)
            return []
        for place, (outputs, scores) in zip(places.tolist(), taken):
            owner = self.search.owners[place]
            if not isinstance(owner, tuple):
                answers.append((owner, outputs, scores))
                continue
            ticket, row = owner
            parts = self._parts.setdefault(ticket, {})
            parts[row] = outputs[0], scores[0]
            if len(parts) == ticket.request.options.num_return_sequences:
                found = [parts[i] for i in sorted(self._parts.pop(ticket))]
                answers.append((ticket, [tokens for tokens, _ in found], [score for _, score in found]))
        return answers


def _ticket(owner: Any) -> Ticket:
    """The ticket of an owner: itself, or (ticket, which row)."""
    return owner[0] if isinstance(owner, tuple) else owner
