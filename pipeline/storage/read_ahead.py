"""Reads many items in parallel, ahead of the caller: storage answers slowly, but it answers many requests at once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = 16

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def read_ahead(read: Callable[[Item], Answer], items: Iterable[Item], threads: int = THREADS) -> Iterator[Answer]:
    """The answer of `read` for each item, in order. The threads are at most `2 * threads` items ahead of the caller.

    An error that `read` raises is raised again when it is that item's turn.
    """
    in_flight: deque[Future[Answer]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            in_flight.append(pool.submit(read, item))
            if len(in_flight) >= 2 * threads:
                yield in_flight.popleft().result()
        while in_flight:
            yield in_flight.popleft().result()
