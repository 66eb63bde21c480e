"""What Prometheus is told of a run, through Ray's own metrics: on a cluster whose nodes export metrics it is there to
be scraped, elsewhere nobody listens.

Nothing is told for each image: actors tell with every heartbeat and every shard, the driver when a shard changes hands.
So a scrape is a few seconds behind, and what an actor did in its last seconds may be missing; storage has it all.
"""

from collections import Counter as Count
from collections.abc import Iterable, Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge, Histogram

from pipeline.engine.shard_attempt import ShardReport
from pipeline.run.progress import DEVICE_TIME
from pipeline.storage.credentials import redacted

SHARD_SECONDS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0]
"""Boundaries of the histogram."""


class ActorMetrics:
    """What one actor has done at a root."""

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
        self._told: Count[str] = Count()

    def shard_done(self, report: ShardReport, seconds: float) -> None:
        """Tell of a finished shard."""
        of_stage = {**self.root, "stage": report.stage}
        self.images.inc(report.images, of_stage)
        self.shard_seconds.observe(seconds, of_stage)
        for status, rows in report.statuses.items():
            self.rows.inc(rows, {**of_stage, "status": status})

    def heartbeat(self, state: Mapping[str, Any]) -> None:
        """Tell what has changed since the last heartbeat."""
        self.batch_size.set(state["batch_size"], self.root)
        self.in_flight.set(sum(flight["done"] for flight in state["in_flight"]), self.root)
        for activity, name in DEVICE_TIME.items():
            spent = state["seconds"].get(name, 0.0)
            if spent > self._told[activity]:
                self.device_seconds.inc(spent - self._told[activity], {**self.root, "activity": activity})
                self._told[activity] = spent


class DriverMetrics:
    """What is left to do at a root."""

    def __init__(self, root: str, stages: Iterable[str]) -> None:
        """`stages` names the stage of each shard that is left."""
        self.root = {"root": redacted(root)}
        self.left = Gauge("asyrp_shards_left", "Shards that are not committed yet.", ("root", "stage"))
        self.actors = Gauge("asyrp_actors", "Actors, those that wait for a node too.", ("root",))
        self.failures = Counter("asyrp_shard_failures", "Attempts at shards that failed.", ("root", "stage"))
        self._left = Count(stages)
        for stage in self._left:
            self._tell_left(stage)

    def shard_done(self, stage: str) -> None:
        self._left[stage] -= 1
        self._tell_left(stage)

    def shard_failed(self, stage: str) -> None:
        self.failures.inc(1, {**self.root, "stage": stage})

    def actors_alive(self, count: int) -> None:
        self.actors.set(count, self.root)

    def _tell_left(self, stage: str) -> None:
        self.left.set(self._left[stage], {**self.root, "stage": stage})
