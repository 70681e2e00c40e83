"""The running batch: all search groups, and their rows in the cache."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import count, islice

import torch

from ..cache.block_allocator import Admission
from ..cache.cache import Cache
from ..model import EncoderDecoderModel
from .callback_errors import RequestFailure
from .request import Request
from .search_group import SearchGroup


class RunningBatch:
    """The search groups that are decoded together. The rows of each group are adjacent in the cache.

    Attributes:
        groups: in the order of their rows.
    """

    def __init__(self, model: EncoderDecoderModel):
        self.model = model
        self.groups: list[SearchGroup] = []

    def __len__(self) -> int:
        return len(self.groups)

    def clear(self) -> None:
        """Drop all groups."""
        self.groups = []

    def join(self, admissions: Mapping[Request, Admission], cache: Cache) -> dict[Request, RequestFailure]:
        """Append requests to their groups, and open new groups; returns the requests that cannot run.

        The cache appends rows at the end; they are then sorted into the order of the groups.
        """
        by_number = {group.number: group for group in self.groups}
        joining: dict[SearchGroup, list[Request]] = {}
        failures: dict[Request, RequestFailure] = {}
        for request, admission in admissions.items():
            group = by_number.get(request.group)
            if group is None:
                try:
                    group = SearchGroup(request, self.model)
                except Exception as error:
                    failure = RequestFailure.of_step(error)
                    if failure is None:
                        raise
                    failures[request] = failure
                    cache.allocator.release(admission.request)
                    continue
                by_number[request.group] = group
                self.groups.append(group)
            joining.setdefault(group, []).append(request)
        old, new = iter(range(cache.rows)), count(cache.rows)
        order: list[int] = []
        for group in self.groups:
            order += islice(old, group.rows)
            if requests := joining.get(group):
                group.join(requests)
                cache.join([admissions[request] for request in requests])
                order += islice(new, sum(request.rows for request in requests))
        if order != [*range(len(order))]:
            cache.select(torch.tensor(order, dtype=torch.int64, device="cpu"))
        return failures

    def report_tokens(self) -> None:
        """Call `on_tokens` of the requests with their newest tokens."""
        for group in self.groups:
            group.report_tokens()

    def remove_failed(self, cache: Cache) -> dict[Request, RequestFailure]:
        """Remove the requests that have failed, and return them."""
        failures = {request: failure for group in self.groups for request, failure in group.failures.items()}
        if failures:
            for group in self.groups:  # before they leave: an exception in `failures` may refer to its group
                group.failures = {}
            self.remove(failures, cache)
        return failures

    def remove_finished(self, cache: Cache) -> list[Request]:
        """Remove the rows that have ended, and return the requests that are complete, with their outputs."""
        ended = [group.ended_units() for group in self.groups]
        completed = [request for group, units in zip(self.groups, ended) for request in group.complete(units)]
        self._remove([units[:0] if group.failures else units for group, units in zip(self.groups, ended)], cache)
        return completed

    def remove(self, requests: Collection[Request], cache: Cache) -> None:
        """Remove requests and their rows, whatever their state."""
        self._remove([group.units_of(requests) for group in self.groups], cache)

    def _remove(self, units: Sequence[torch.Tensor], cache: Cache) -> None:
        """Remove the units of these indices of each group, and their rows from the cache."""
        if not any(map(len, units)):
            return
        kept, first = [], 0
        for group, leaving in zip(self.groups, units):
            rows = group.rows
            kept.append(group.search.leave(leaving) + first)
            first += rows
        cache.select(torch.cat(kept))
        self.groups = [group for group in self.groups if group.rows]
