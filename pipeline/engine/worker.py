"""Runs shards around one frozen net: reader threads -> device thread -> writer threads.

Why threads: fetching, decoding, encoding and writing release the GIL, and each takes longer per image than the
device should ever wait. Who owns what:

- `run(stage, shard)` is called from one thread per shard in flight. It reads the shard's plan rows, hands every
  image to the readers, and waits until the shard is committed.
- reader threads fetch, decode and resize one image each (`ItemReader`), and put it into `Batches`. They decode in child
  processes (`Decoders`), because a codec that crashes would take the worker along.
- the device thread, alone, touches the net (`Device`). It takes a batch, whichever shards its images belong to,
  and hands the results to the writers. It runs a batch that is not full only when no image is on its way. A GPU gets
  the next batch before it is done with the last.
- writer threads encode and write; the one that finishes the last image of a shard commits the shard.
- the heartbeat thread writes the worker's state to storage every few seconds.

Backpressure: `Batches` is bounded, and so is the number of images at the writers, so memory does not grow with the
number or size of shards. The meter counts the seconds that the device thread waits on either bound: these are what
"reader-bound" and "writer-bound" mean.
"""

import json
import logging
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from pipeline.engine.batches import Batches
from pipeline.engine.device import Device, Launched
from pipeline.engine.reading import ItemReader
from pipeline.engine.shard_attempt import Item, ShardAttempt, ShardReport
from pipeline.engine.threads import BoundedPool, Meter
from pipeline.run.stage import ImageFormat, Stage
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

SHARDS_IN_FLIGHT = 2
HEARTBEAT_SECONDS = 2.0
QUEUED_BATCHES = 4  # before the device, and as many after it


@dataclass(frozen=True)
class WorkerOptions:
    """Speed knobs; none of them changes a pixel."""

    batch_size: int | None = None  # None: as many as suit the device
    readers: int = 4
    writers: int = 4
    device: str = "cpu"
    share: float = 1  # of the device's memory


class Tally:
    """The shards that a worker has in hand, and what it has done. Shared by its threads."""

    def __init__(self) -> None:
        self.attempts: list[ShardAttempt] = []
        self.images = 0
        self.statuses: Counter[str] = Counter()
        self._lock = threading.Lock()

    def begin(self, attempt: ShardAttempt) -> None:
        with self._lock:
            self.attempts.append(attempt)

    def end(self, attempt: ShardAttempt) -> None:
        with self._lock:
            self.attempts.remove(attempt)

    def add(self, report: ShardReport) -> None:
        with self._lock:
            self.images += report.images
            self.statuses.update(report.statuses)

    def is_idle(self) -> bool:
        with self._lock:
            return not self.attempts

    def as_json(self) -> dict[str, Any]:
        with self._lock:
            in_flight = [{"stage": a.stage.name, "shard": a.shard, "done": a.done} for a in self.attempts]
            return {"images": self.images, "statuses": dict(self.statuses), "in_flight": in_flight}


def unobserved(state: Mapping[str, Any]) -> None:
    """Tell nobody of a heartbeat."""


class Worker:
    """The functions of the stages on one device, and the threads that keep it busy. Ray only wraps it.

    The threads run from `start` to `close`, or inside a `with` block. `observe` gets the state with every heartbeat.
    """

    def __init__(
        self,
        root: str,
        name: str,
        functions: Mapping[str, Callable[..., Any]],
        image_format: ImageFormat,
        options: WorkerOptions,
        observe: Callable[[Mapping[str, Any]], None] = unobserved,
    ) -> None:
        self.store, self.name, self.image_format, self.observe = Store(root), name, image_format, observe
        self.meter, self.tally, self.started = Meter(), Tally(), time.time()
        self.device = Device(functions, options.batch_size, name, options.device, options.share)
        self._idle_since = 0.0  # when the device was done with the last batch
        self.reader = ItemReader(image_format, self.meter)
        capacity = QUEUED_BATCHES * self.device.batch_size
        self._batches = Batches(capacity, self.meter, self.tally.is_idle)
        self._readers = ThreadPoolExecutor(options.readers, "reader")
        self._writers = BoundedPool(options.writers, capacity, "writer")
        self._closed = threading.Event()
        self._loops = [
            threading.Thread(target=self._device_loop, name="device", daemon=True),
            threading.Thread(target=self._heartbeat_loop, name="heartbeat", daemon=True),
        ]

    def start(self) -> None:
        """Start the device and heartbeat threads."""
        for loop in self._loops:
            loop.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def run(self, stage: Stage, shard: int) -> ShardReport:
        """Compute one shard of one stage and commit it. Raises what the stage, the store or the plan raised."""
        reducer = self.device.functions[stage.new_reducer]() if stage.new_reducer else None
        attempt = ShardAttempt(
            self.store,
            stage,
            shard,
            image_format=self.image_format,
            actor=self.name,
            reducer=reducer,
        )
        self._batches.expect(len(attempt.plan))
        self.tally.begin(attempt)
        for row in attempt.plan:
            self._readers.submit(self._read, Item(attempt, row))
        try:
            report = attempt.future.result()
        finally:
            self.tally.end(attempt)
        self.tally.add(report)
        return report

    def close(self) -> dict[str, Any]:
        """Stop the threads, write the last heartbeat and return it."""
        device, heartbeat = self._loops
        self._closed.set()
        self._batches.close()
        device.join()
        self._readers.shutdown()
        self.reader.close()
        self._writers.shutdown()
        heartbeat.join()
        return self.state()

    def state(self) -> dict[str, Any]:
        """What this worker has done so far: the content of its heartbeat."""
        tally = self.tally.as_json()
        return {
            "actor": self.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self.started,
            "updated": time.time(),
            "closed": self._closed.is_set(),
            "batch_size": self.device.batch_size,
            "images": tally["images"],
            "statuses": tally["statuses"],
            "in_flight": tally["in_flight"],
            "seconds": dict(self.meter.seconds),
        }

    def _read(self, item: Item) -> None:
        """Read an item and pass it on. Runs on reader threads."""
        attempt = item.attempt
        try:
            if not attempt.future.done():
                self.reader.read(item)
        except Exception as error:  # whatever it is, the shard's caller must hear of it
            attempt.fail(error)
        finally:
            if not attempt.future.done():
                self._pass_on(item)
            self._batches.arrived()

    def _pass_on(self, item: Item) -> None:
        """To the device; an image that cannot be edited, or has drawn no edit, goes straight to the writers."""
        if item.pixels is not None and item.attempt.stage.has_draws and not item.plan.draws:
            item.outputs, item.finite, item.pixels = item.pixels, np.ones(1, bool), None
        if item.pixels is None:
            self._writers.submit(self._write, item)
        else:
            self._batches.put(item)

    def _device_loop(self) -> None:
        """Launch batches. While the device is at work on one, the next is launched, if its images are there."""
        launched: deque[Launched] = deque()
        while True:
            size = self.device.batch_size
            batch = [] if launched and not self._batches.has(size) else self._batches.next(size, wait=not launched)
            if batch:
                with self._failing(batch), self.meter.time("device"):
                    launched.append(self.device.launch(batch))
            if launched and (not batch or len(launched) > self.device.ahead):
                self._hand_over(launched.popleft())
            elif not batch:
                return

    def _hand_over(self, batch: Launched) -> None:
        """Pass a batch on to the writers, when the device is done with it."""
        with self._failing(batch.items):
            with self.meter.time("device"):
                outputs = batch.outputs()
            self._idle_since, since = time.perf_counter(), max(batch.launched, self._idle_since)
            device_ms = 1000 * (self._idle_since - since) / len(batch.items)
            for item, output in zip(batch.items, outputs, strict=True):
                item.outputs, item.finite, item.columns = output
                item.device_ms, item.pixels = device_ms, None
                with self.meter.time("wait_for_writer"):
                    self._writers.submit(self._write, item)

    @contextmanager
    def _failing(self, items: Sequence[Item]) -> Iterator[None]:
        """An error is that of the shards to which the items belong. Their callers get it, the worker lives on."""
        try:
            yield
        except Exception as error:
            for attempt in {id(item.attempt): item.attempt for item in items}.values():
                attempt.fail(error)

    def _write(self, item: Item) -> None:
        """Finish an item. Runs on writer threads."""
        try:
            with self.meter.time("write"):
                item.attempt.finish(item)
        except Exception as error:  # a full disk, say: the shard's caller must hear of it
            item.attempt.fail(error)

    def _heartbeat_loop(self) -> None:
        """Write the state at once, every few seconds, and a last time when the worker closes."""
        closing = False
        while True:
            state = self.state()
            self.observe(state)
            try:
                self.store.write(f"progress/{self.name}.json", json.dumps(state).encode())
            except OSError as error:
                log.warning("%s: cannot write its heartbeat: %s", self.name, error)
            if closing:
                return
            closing = self._closed.wait(HEARTBEAT_SECONDS)
