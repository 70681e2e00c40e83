"""All lanes, and their rows in the cache."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import count, islice

import torch

from .. import decoding
from ..cache.block_allocator import Admission
from ..cache.cache import Cache
from ..model import EncoderDecoderModel
from .callback_errors import Failed
from .request import Ticket
from .search_group import Answer, Lane


class Lanes:
    """The lanes that run. Their rows lie in the cache one lane behind the other."""

    def __init__(self, model: EncoderDecoderModel):
        self.model = model
        self._lanes: list[Lane] = []

    def __len__(self) -> int:
        return len(self._lanes)

    def clear(self) -> None:
        """Forget all of them."""
        self._lanes = []

    def join(self, entering: Mapping[Ticket, Admission], cache: Cache) -> dict[Ticket, Failed]:
        """Requests begin to run, each in a lane that takes it or in one of its own; returns those that cannot.

        In the cache their rows come behind all others, and then into the order of the lanes.
        """
        by_lane: dict[Lane, list[Ticket]] = {}
        failures: dict[Ticket, Failed] = {}
        for ticket in entering:
            lane = next((lane for lane in self._lanes if lane.takes(ticket.request)), None)
            if lane is None:
                try:
                    lane = Lane(ticket, self.model)
                except Exception as error:
                    failures[ticket] = Failed.of_request(error)
                    cache.pages.release(entering[ticket].request)
                    continue
                self._lanes.append(lane)
            by_lane.setdefault(lane, []).append(ticket)
        old, new = iter(range(cache.rows)), count(cache.rows)
        order: list[int] = []
        for lane in self._lanes:
            order += islice(old, lane.rows)
            if tickets := by_lane.get(lane):
                lane.join(tickets)
                cache.join([entering[ticket] for ticket in tickets])
                order += islice(new, sum(ticket.request.rows for ticket in tickets))
        if order != [*range(len(order))]:
            cache.select(torch.tensor(order, dtype=torch.int64, device="cpu"))
        return failures

    def step(self, decoder: decoding.Decoder) -> None:
        """One token for every row."""
        decoding.step_searches(decoder, self._lanes)

    def tell(self) -> None:
        """Give the newest tokens to those who want them."""
        for lane in self._lanes:
            lane.tell()

    def expel(self, cache: Cache) -> dict[Ticket, Failed]:
        """Take out what has failed."""
        failures = {ticket: failed for lane in self._lanes for ticket, failed in lane.failures.items()}
        if failures:
            self.drop(failures, cache)
            for lane in self._lanes:
                lane.failures = {}
        return failures

    def collect(self, cache: Cache) -> list[Answer]:
        """Take out what has ended."""
        ended = [lane.ended() for lane in self._lanes]
        answers = [answer for lane, places in zip(self._lanes, ended) for answer in lane.take(places)]
        self._leave([places[:0] if lane.failures else places for lane, places in zip(self._lanes, ended)], cache)
        return answers

    def drop(self, tickets: Collection[Ticket], cache: Cache) -> None:
        """Requests leave without an answer."""
        self._leave([lane.places(tickets) for lane in self._lanes], cache)

    def _leave(self, places: Sequence[torch.Tensor], cache: Cache) -> None:
        """Those at some places of each lane leave, and so do their rows in the cache."""
        if not any(map(len, places)):
            return
        stay, first = [], 0
        for lane, leaving in zip(self._lanes, places):
            rows = lane.rows
            stay.append(lane.search.leave(leaving) + first)
            first += rows
        cache.select(torch.cat(stay))
        self._lanes = [lane for lane in self._lanes if lane.rows]
