"""Exports metrics of a run for Prometheus, through Ray's own metrics.

Prometheus can scrape them on a cluster whose nodes export metrics. Elsewhere they have no effect. Actors update them
with every heartbeat and every finished shard, the driver when a shard is finished or fails; no update is made for each
image. So a scrape is a few seconds behind, and the last seconds of an actor may be missing. Storage has everything.
"""

from collections import Counter as Count
from collections.abc import Iterable, Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from pipeline.engine.shard_attempt import ShardReport
from pipeline.run.progress import DEVICE_TIME
from pipeline.storage.credentials import redacted

SHARD_SECONDS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0]
"""The boundaries of the histogram of shard times, in seconds."""


class ActorMetrics:
    """The metrics of one actor that works on the run at `root`."""

    def __init__(self, root: str) -> None:
        self.root = {"root": redacted(root)}
        self.images = Counter("asyrp_images", "Images through a stage, of finished shards.", ("root", "stage"))
        self.rows = Counter("asyrp_rows", "Manifest rows by status, of finished shards.", ("root", "stage", "status"))
        self.shard_seconds = Histogram(
            "asyrp_shard_seconds", "Seconds from the start of a shard to its commit.", SHARD_SECONDS, ("root", "stage")
        )
        self.device_seconds = Counter(
            "asyrp_device_thread_seconds",
            "Seconds of the device thread: device (busy), reader, writer (waiting for them).",
            ("root", "activity"),
        )
        self.batch_size = Gauge("asyrp_batch_size", "Images per network call.", ("root",))
        self.in_flight = Gauge("asyrp_images_in_flight", "Images through, of shards not finished yet.", ("root",))
        self._reported: Count[str] = Count()

    def shard_done(self, report: ShardReport, seconds: float) -> None:
        """Count a finished shard, which took `seconds`."""
        of_stage = {**self.root, "stage": report.stage}
        self.images.inc(report.images, of_stage)
        self.shard_seconds.observe(seconds, of_stage)
        for status, rows in report.statuses.items():
            self.rows.inc(rows, {**of_stage, "status": status})

    def heartbeat(self, state: Mapping[str, Any]) -> None:
        """Update the metrics with what has changed since the last heartbeat. `state` is the worker's state."""
        self.batch_size.set(state["batch_size"], self.root)
        self.in_flight.set(sum(flight["done"] for flight in state["in_flight"]), self.root)
        for activity, name in DEVICE_TIME.items():
            spent = state["seconds"].get(name, 0.0)
            if spent > self._reported[activity]:
                self.device_seconds.inc(spent - self._reported[activity], {**self.root, "activity": activity})
                self._reported[activity] = spent


class DriverMetrics:
    """The metrics of the driver of the run at `root`."""

    def __init__(self, root: str, stages: Iterable[str]) -> None:
        """`stages` names the stage of every shard that is left to do."""
        self.root = {"root": redacted(root)}
        self.left = Gauge("asyrp_shards_left", "Shards that are not committed yet.", ("root", "stage"))
        self.actors = Gauge("asyrp_actors", "Actors, those that wait for a node too.", ("root",))
        self.failures = Counter("asyrp_shard_failures", "Attempts at shards that failed.", ("root", "stage"))
        self._left = Count(stages)
        for stage in self._left:
            self._update_left(stage)

    def shard_done(self, stage: str) -> None:
        self._left[stage] -= 1
        self._update_left(stage)

    def shard_failed(self, stage: str) -> None:
        self.failures.inc(1, {**self.root, "stage": stage})

    def actors_alive(self, count: int) -> None:
        self.actors.set(count, self.root)

    def _update_left(self, stage: str) -> None:
        self.left.set(self._left[stage], {**self.root, "stage": stage})
