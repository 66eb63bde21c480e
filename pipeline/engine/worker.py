"""The worker: reader threads -> device loop -> writer threads, around one frozen net.

Why threads: fetching, decoding, encoding and writing release the GIL, and each takes longer per image than the
device should ever wait. Who owns what:

- `run(stage, shard)` is called from one thread per shard in flight. It reads the shard's plan rows, hands every
  image to the readers, and waits until the shard is committed.
- reader threads fetch, decode and resize one image each, and put it on the bounded queue `ready`.
- the device thread, alone, touches the net. It takes a batch from `ready`, whichever shards its images belong to,
  and hands the results to the writers. It runs a batch that is not full only when no image is on its way.
- writer threads encode and write; the one that finishes the last image of a shard commits the shard.

Backpressure: `ready` is bounded, and so is the number of images at the writers, so memory does not grow with the
number or size of shards. The time the device thread spends on either bound is recorded: that is what "reader-bound"
and "writer-bound" mean.
"""

import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, Queue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.engine.shard_attempt import Columns, Failure, Item, ShardAttempt, ShardReport
from pipeline.engine.shard_input import ShardInput
from pipeline.images.codec import ImageRefused, decode
from pipeline.images.fetch import Changed, fetch
from pipeline.run.sinks import DamagedOutput
from pipeline.run.stage import BatchFunction, ImageFormat, MakeFunctions, Measured, Stage
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

SHARDS_IN_FLIGHT = 2
HEARTBEAT_SECONDS = 2.0
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class WorkerOptions:
    """Speed knobs; none of them changes a pixel."""

    batch_size: int
    readers: int = 4
    writers: int = 4
    threads: int | None = None  # of torch, on a CPU


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


def unobserved(state: Mapping[str, Any]) -> None:
    """Tell nobody of a heartbeat."""


class Worker:
    """One frozen net on one device and the threads that keep it busy. Ray only wraps it. `observe` is shown the state
    with every heartbeat."""

    def __init__(
        self,
        root: str,
        name: str,
        make_functions: MakeFunctions,
        image_format: ImageFormat,
        options: WorkerOptions,
        observe: Callable[[Mapping[str, Any]], None] = unobserved,
    ) -> None:
        if options.threads:
            torch.set_num_threads(options.threads)
        self.store, self.name, self.image_format = Store(root), name, image_format
        self.observe = observe
        self.batch_size = options.batch_size
        self.functions = make_functions()
        self.meter, self.started = Meter(), time.time()
        self.attempts: list[ShardAttempt] = []
        self.images_done = 0
        self.statuses: Counter[str] = Counter()
        self._ready: Queue[Item] = Queue(4 * options.batch_size)
        self._held: Item | None = None
        self._on_the_way = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._writing = threading.BoundedSemaphore(4 * options.batch_size)
        self._readers = ThreadPoolExecutor(options.readers, "reader")
        self._writers = ThreadPoolExecutor(options.writers, "writer")
        self._device = threading.Thread(target=self._device_loop, name="device", daemon=True)
        self._heartbeat = threading.Thread(target=self._heartbeat_loop, name="heartbeat", daemon=True)
        self._device.start()
        self._heartbeat.start()

    def run(self, stage: Stage, shard: int) -> ShardReport:
        """Compute one shard of one stage and commit it. Raises what the stage, the store or the plan raised."""
        reducer = self.functions[stage.new_reducer]() if stage.new_reducer else None
        attempt = ShardAttempt(self.store, stage, shard, self.image_format, self.name, reducer)
        with self._lock:
            self.attempts.append(attempt)
            self._on_the_way += len(attempt.plan)
        for row in attempt.plan:
            self._readers.submit(self._read, Item(attempt, row))
        try:
            report = attempt.future.result()
        finally:
            with self._lock:
                self.attempts.remove(attempt)
        with self._lock:
            self.images_done += report.images
            self.statuses.update(report.statuses)
        return report

    def close(self) -> dict[str, Any]:
        """Stop the threads, write the last heartbeat and return it."""
        self._closed.set()
        self._device.join()
        self._readers.shutdown()
        self._writers.shutdown()
        self._heartbeat.join()
        return self.state()

    def state(self) -> dict[str, Any]:
        """What this worker has done so far: the content of its heartbeat."""
        with self._lock:
            in_flight = [{"stage": j.stage.name, "shard": j.shard, "done": j.done} for j in self.attempts]
            done, statuses = self.images_done, dict(self.statuses)
        return {
            "actor": self.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": self.started,
            "updated": time.time(),
            "closed": self._closed.is_set(),
            "batch_size": self.batch_size,
            "images": done,
            "statuses": statuses,
            "in_flight": in_flight,
            "seconds": dict(self.meter.seconds),
        }

    # Reader threads

    def _read(self, item: Item) -> None:
        try:
            if item.attempt.future.done():
                return
            if item.attempt.input is None:
                self._read_image(item)
            elif self._has_input(item):
                self._read_input(item, item.attempt.input)
        except Exception as error:  # whatever it is, the shard's caller must hear of it
            item.attempt.fail(error)
        finally:
            if not item.attempt.future.done():
                self._pass_on(item)
            with self._lock:
                self._on_the_way -= 1

    def _pass_on(self, item: Item) -> None:
        """To the device; an image that cannot be edited, or has drawn no edit, goes straight to the writers."""
        stage = item.attempt.stage
        if item.pixels is not None and stage.has_draws and not item.plan.draws:
            item.outputs, item.pixels = item.pixels, None
        if item.pixels is None:
            self._write_later(item)
        else:
            self._ready.put(item)

    def _read_image(self, item: Item) -> None:
        start = time.perf_counter()
        try:
            with self.meter.time("fetch"):
                data = fetch(item.plan)
        except (OSError, EOFError) as error:
            item.failure = Failure.of("fetch_error", error)
            return
        edited_from, item.sha256 = item.sha256, hashlib.sha256(data).hexdigest()
        if edited_from not in (None, item.sha256):
            item.failure = Failure.of("fetch_error", Changed("the source has other bytes than when it was edited"))
            return
        fetched = time.perf_counter()
        item.fetch_ms = 1000 * (fetched - start)
        try:
            with self.meter.time("decode"):
                decoded = decode(data, self.image_format.size, self.image_format.fit)
        except ImageRefused as refusal:
            cause = refusal.__cause__ or refusal
            item.failure = Failure(refusal.status, type(cause).__name__, str(refusal)[:500])
            return
        finally:
            item.decode_ms = 1000 * (time.perf_counter() - fetched)
        item.width, item.height = decoded.width, decoded.height
        item.pixels = decoded.pixels[None]

    def _read_input(self, item: Item, shard: ShardInput) -> None:
        """What an earlier stage made of the image, and, where the stage wants it, the source that it was made from."""
        if item.attempt.stage.with_source:
            self._read_image(item)
            if item.failure is not None:
                return
        try:
            with self.meter.time("fetch"):
                read = shard.item(item.plan.row)
        except (OSError, DamagedOutput) as error:
            item.pixels, item.failure = None, Failure.of("fetch_error", error)
            return
        item.pixels = read if item.pixels is None else np.concatenate([read, item.pixels])

    @staticmethod
    def _has_input(item: Item) -> bool:
        assert item.attempt.input is not None
        rows = item.attempt.input.rows[item.plan.row]
        item.width, item.height = rows[0]["source_width"], rows[0]["source_height"]
        item.sha256 = rows[0]["source_sha256"]
        return any(row["output_uri"] is not None for row in rows)

    # The device thread

    def _device_loop(self) -> None:
        while batch := self._next_batch():
            try:
                with self.meter.time("device"):
                    start = time.perf_counter()
                    outputs = self._compute(batch)
                    device_ms = 1000 * (time.perf_counter() - start) / len(batch)
            except Exception as error:  # the callers of these shards get it, the worker lives on
                for attempt in {id(item.attempt): item.attempt for item in batch}.values():
                    attempt.fail(error)
                continue
            for item, (output, columns) in zip(batch, outputs, strict=True):
                item.outputs, item.columns, item.device_ms, item.pixels = output, columns, device_ms, None
                with self.meter.time("wait_for_writer"):
                    self._write_later(item)

    def _next_batch(self) -> list[Item]:
        """Items of one stage, as many as a batch holds or are to be had; empty when the worker closes."""
        batch: list[Item] = []
        while len(batch) < self.batch_size:
            item, self._held = self._held or self._take(wait=not batch), None
            if item is None:
                break
            if batch and item.attempt.stage != batch[0].attempt.stage:
                self._held = item
                break
            if not item.attempt.future.done():
                batch.append(item)
        return batch

    def _take(self, wait: bool) -> Item | None:
        """The next item; None when the worker closes or, unless `wait`, when no image is on its way."""
        while not self._closed.is_set():
            with self._lock:
                idle, nothing_coming = not self.attempts, self._on_the_way == 0
            try:
                with self.meter.time("idle" if idle else "wait_for_reader"):
                    return self._ready.get(timeout=POLL_SECONDS)
            except Empty:
                if nothing_coming and not wait:
                    return None
        return None

    def _compute(self, batch: list[Item]) -> list[tuple[NDArray[np.float32], Columns]]:
        """For each item of a batch its outputs [V_out, C, H, W], and the manifest columns that came with them.

        A short batch is padded: kernels are chosen by shape, and round accordingly, so that with one shape alone a
        pixel does not depend on how many images happened to come with its own.
        """
        padded = batch + [batch[-1]] * (self.batch_size - len(batch))
        pixels = torch.from_numpy(np.stack([item.pixels for item in padded if item.pixels is not None]))
        stage = batch[0].attempt.stage
        of_items: list[list[Any]] = [[item.plan.key for item in padded]]
        if stage.has_draws:
            of_items.append([item.plan.draws for item in padded])
        with torch.inference_mode():
            measured = self._halving(self.functions[stage.function], pixels, of_items)
        outputs = measured.outputs[: len(batch)].float().cpu().numpy()
        return list(zip(outputs, measured.columns[: len(batch)], strict=True))

    def _halving(self, function: BatchFunction, pixels: torch.Tensor, of_items: list[list[Any]]) -> Measured:
        """The function of a batch and the lists of what belongs to its items, or of its halves where the device's
        memory is too small for it."""
        count = len(pixels)
        try:
            found = function(pixels, *of_items)
            return found if isinstance(found, Measured) else Measured(found, [()] * count)
        except torch.OutOfMemoryError:
            if count == 1:
                raise
        torch.cuda.empty_cache()
        half = count // 2
        self.batch_size = min(self.batch_size, half)
        log.warning("%s: out of device memory with %d images, going on with %d", self.name, count, half)
        halves = [
            self._halving(function, pixels[part], [items[part] for items in of_items])
            for part in (slice(half), slice(half, count))
        ]
        outputs = torch.cat([part.outputs.float().cpu() for part in halves])
        return Measured(outputs, [columns for part in halves for columns in part.columns])

    # Writer threads

    def _write_later(self, item: Item) -> None:
        self._writing.acquire()
        self._writers.submit(self._write, item)

    def _write(self, item: Item) -> None:
        try:
            with self.meter.time("write"):
                item.attempt.finish(item)
        except Exception as error:  # a full disk, say: the shard's caller must hear of it
            item.attempt.fail(error)
        finally:
            self._writing.release()

    # The heartbeat thread

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
