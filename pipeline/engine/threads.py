"""Helpers for the threads of a worker: a meter of seconds by name, and a pool that bounds the calls it holds."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")


class Meter:
    """Seconds spent by name, added up over threads."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[name] += time.perf_counter() - start


class BoundedPool:
    """Threads that hold at most `capacity` calls, running or waiting; `submit` waits for a free place."""

    def __init__(self, threads: int, capacity: int, name: str) -> None:
        self._places = threading.BoundedSemaphore(capacity)
        self._pool = ThreadPoolExecutor(threads, name)

    def submit(self, call: Callable[[Item], None], item: Item) -> None:
        self._places.acquire()
        self._pool.submit(self._run, call, item)

    def _run(self, call: Callable[[Item], None], item: Item) -> None:
        try:
            call(item)
        finally:
            self._places.release()

    def shutdown(self) -> None:
        """Wait for all calls to end."""
        self._pool.shutdown()
