"""Windows: the lines or texts that are read before the first of them is processed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def windows(
    items: Iterable[Item],
    count: int,
    *,
    size_of: Callable[[Item], int],
    limit: int,
    ends: Callable[[], bool] = lambda: False,
) -> Iterator[list[Item]]:
    """Cut an iterable into lists, at places that depend on nothing but the number of items and their sizes.

    Args:
        items: lines or texts.
        count: most items of a window.
        size_of: size of an item, in bytes or characters.
        limit: a window ends with the item that brings its size to this or above.
        ends: called after each item; True ends the window there.
    """
    window: list[Item] = []
    size = 0
    for item in items:
        window.append(item)
        size += size_of(item)
        if len(window) >= count or size >= limit or ends():
            yield window
            window, size = [], 0
    if window:
        yield window
