"""Whose fault it is: functions that a request brought along may raise whatever they like."""

from __future__ import annotations

import functools
from typing import Any

from .request import Ticket


class Failed(Exception):
    """What a request brought along has failed."""

    def __init__(self, ticket: Ticket, error: Exception):
        super().__init__(str(error))
        self.ticket, self.error = ticket, error


def blamed(ticket: Ticket, function: Any) -> Any:
    """A function that a request brought along, if it did; what it raises is that request's error."""
    if function is None:
        return None

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise Failed(ticket, error) from error

    return call


def all_blamed(ticket: Ticket, functions: Any) -> Any:
    """A list of such functions."""
    if not isinstance(functions, (list, tuple)) or not all(map(callable, functions)):
        return functions  # whoever takes them says what is wrong
    return [blamed(ticket, function) for function in functions]
