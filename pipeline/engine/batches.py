"""Cuts batches out of the items that readers hand over, whichever shards they belong to."""

import threading
from collections.abc import Callable
from queue import Empty, Queue

from pipeline.engine.shard_attempt import Item
from pipeline.engine.threads import Meter

POLL_SECONDS = 0.02


class Batches:
    """Items that wait for the device, bounded, and how many more readers will hand over.

    Readers call `put` and `arrived`, the device thread alone calls `next`. `is_idle` says whether the worker has no
    shard at all, which the meter counts apart from waiting for readers.
    """

    def __init__(self, capacity: int, meter: Meter, is_idle: Callable[[], bool]) -> None:
        self.meter, self.is_idle = meter, is_idle
        self._ready: Queue[Item] = Queue(capacity)
        self._held: Item | None = None  # of another stage than the batch before it
        self._on_the_way = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def expect(self, count: int) -> None:
        """Note that readers begin with so many items."""
        with self._lock:
            self._on_the_way += count

    def put(self, item: Item) -> None:
        """Hand over an item; waits while the queue is full."""
        self._ready.put(item)

    def arrived(self) -> None:
        """Note that a reader is done with one item, handed over or not."""
        with self._lock:
            self._on_the_way -= 1

    def next(self, size: int, wait: bool = True) -> list[Item]:
        """Items of one stage, as many as a batch holds or are to be had; empty when closed or, unless `wait`, when no
        item is on its way.

        A batch is not full only if no item is on its way.
        """
        batch: list[Item] = []
        while len(batch) < size:
            item, self._held = self._held or self._take(wait=wait and not batch), None
            if item is None:
                break
            if batch and item.attempt.stage != batch[0].attempt.stage:
                self._held = item
                break
            if not item.attempt.future.done():
                batch.append(item)
        return batch

    def has(self, size: int) -> bool:
        """Whether a whole batch is there, or all that is left of one. Items whose shard has failed count as well."""
        with self._lock:
            nothing_coming = self._on_the_way == 0
        ready = self._ready.qsize() + (self._held is not None)
        return ready >= size or (nothing_coming and ready > 0)

    def close(self) -> None:
        """Let `next` return with what there is."""
        self._closed.set()

    def _take(self, wait: bool) -> Item | None:
        """The next item; None when closed or, unless `wait`, when no item is on its way."""
        while not self._closed.is_set():
            with self._lock:
                nothing_coming = self._on_the_way == 0
            try:
                with self.meter.time("idle" if self.is_idle() else "wait_for_reader"):
                    return self._ready.get(timeout=POLL_SECONDS)
            except Empty:
                if nothing_coming and not wait:
                    return None
        return None
