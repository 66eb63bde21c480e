"""Reading ahead: storage answers slowly, and many answers can be waited for at once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = 16

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def read_ahead(read: Callable[[Item], Answer], items: Iterable[Item], threads: int = THREADS) -> Iterator[Answer]:
    """What `read` gives for each item, in order; threads are at most `2 * threads` items ahead of who takes it.

    Raises what `read` raised, at its item's turn.
    """
    in_flight: deque[Future[Answer]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            in_flight.append(pool.submit(read, item))
            if len(in_flight) >= 2 * threads:
                yield in_flight.popleft().result()
        while in_flight:
            yield in_flight.popleft().result()
