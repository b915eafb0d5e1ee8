"""Measure how long the items of an iterator take to be made."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def timed(items: Iterable[Item], add: Callable[[float], None]) -> Iterator[Item]:
    """Yield items, and tell how long each took to be made, without what is done with it.

    Args:
        items: The items, which are made one by one; none of them is None.
        add: Called with the seconds of each item, and with those of finding that there are no more.
    """
    iterator = iter(items)
    while True:
        began = time.perf_counter()
        item = next(iterator, None)
        add(time.perf_counter() - began)
        if item is None:
            return
        yield item
