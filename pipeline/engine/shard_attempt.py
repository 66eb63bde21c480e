"""Carries one shard through a worker: collects the result of each image, then writes the manifest and the commit."""

import errno
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.engine.shard_input import ShardInput, read_input
from pipeline.images.codec import ImageRefused, encode, refusing
from pipeline.images.statuses import NONFINITE, OK, WRITE_ERROR
from pipeline.run import arrays, manifest
from pipeline.run.additions import read_shard
from pipeline.run.commit import Attempt
from pipeline.run.plan import PlanRow
from pipeline.run.sinks import open_sink
from pipeline.run.stage import ImageFormat, Planned, Reducer, Stage
from pipeline.storage.credentials import redacted
from pipeline.storage.store import Store

Columns = Sequence[Mapping[str, Any]]
"""Manifest columns that were computed along with an image, one mapping per variant; empty if there are none."""

NAME_ERRORS = frozenset(
    (
        errno.ENAMETOOLONG,
        errno.EINVAL,
        errno.EILSEQ,
        errno.ELOOP,
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
    )
)
"""The errors of a store that are about the name of a file. All others are about the store."""


@dataclass(frozen=True)
class Failure:
    """The reason why an image has no output: a manifest status, the type of the error and its text."""

    status: str
    error_type: str
    error: str

    @classmethod
    def of(cls, refusal: ImageRefused) -> "Failure":
        """The failure that a refusal means. Its text is redacted, cut at 500 characters, and fit for a manifest."""
        text = redacted(str(refusal)).encode(errors="replace").decode()
        return cls(refusal.status, refusal.error_type, text[:500])

    def columns(self) -> manifest.Row:
        """The columns of a manifest row that say it."""
        return {"status": self.status, "error_type": self.error_type, "error": self.error}


@dataclass
class Item:
    """One image on its way through one stage, with its results and the time that each step took."""

    attempt: "ShardAttempt"
    plan: PlanRow
    # A source image as uint8 [1, H, W, 3], all else as float32 [V_in, C, H, W]; None when there is nothing to compute.
    pixels: NDArray[Any] | None = None
    outputs: NDArray[Any] | None = None  # images as uint8 [V_out, H, W, 3], all else as float32 [V_out, ...]
    finite: NDArray[np.bool_] = field(default_factory=lambda: np.array(True))  # which of V_out are; one for all: []
    columns: Columns = ()
    failure: Failure | None = None
    sha256: str | None = None  # of the source image's bytes
    width: int | None = None  # of the source image, in pixels
    height: int | None = None
    fetch_ms: float = 0.0
    decode_ms: float = 0.0
    device_ms: float = 0.0


@dataclass(frozen=True)
class ShardReport:
    """The worker's report to the driver on a finished shard. `won` is False if another attempt committed first."""

    stage: str
    shard: int
    images: int
    statuses: dict[str, int]
    won: bool


class ShardAttempt:
    """One attempt at a shard of a stage. `future` resolves to its report, or raises its error."""

    def __init__(
        self,
        store: Store,
        stage: Stage,
        shard: int,
        image_format: ImageFormat,
        actor: str,
        reducer: Reducer | None = None,
    ) -> None:
        self.stage, self.shard, self.image_format, self.actor = stage, shard, image_format, actor
        self.attempt = Attempt(store, stage.name, shard)
        self.input: ShardInput | None = read_input(store, stage, shard, image_format)
        self.plan: list[PlanRow] = read_shard(store, shard)[: stage.first_images]
        self.future: Future[ShardReport] = Future()
        planned = [len(stage.planned(row.draws)) for row in self.plan]
        self._sink = open_sink(image_format.sink, self.attempt, sum(planned))
        self._first = [0, *accumulate(planned)]  # by plan row: the number of its first manifest row
        self._rows: dict[int, list[manifest.Row]] = {}
        self._latents: arrays.Latents = {}
        self._reducer = reducer
        self._order = deque(row.row for row in self.plan)
        self._reducible: dict[int, Item] = {}
        self._lock = Lock()

    @property
    def done(self) -> int:
        """The number of finished images."""
        return len(self._rows)

    def finish(self, item: Item) -> None:
        """Write the outputs of an item, and commit the shard after its last item. Writer threads call this."""
        if self.future.done():
            return
        planned = self.stage.planned(item.plan.draws)
        rows = [
            self._finish_row(item, planned_row, number)
            for number, planned_row in enumerate(planned, self._first[item.plan.row])
        ]
        with self._lock:
            if self._reducer is not None:
                self._reduce(item)
            self._rows[item.plan.row] = rows
            complete = len(self._rows) == len(self.plan)
        if complete:
            self._commit()

    def fail(self, error: Exception) -> None:
        """Give the attempt up; `future` raises `error`."""
        with self._lock:
            if self.future.done():
                return
            self.future.set_exception(error)
        self._sink.close()
        self.attempt.discard()

    def _finish_row(self, item: Item, planned: Planned, number: int) -> manifest.Row:
        """Write the output of one manifest row and return the row. `number` counts the rows of the manifest."""
        row, index = self._row(item, planned), planned.variant
        failure = self._inherited(item, index) or item.failure
        if failure is None and item.outputs is not None and not self._is_finite(item, index):
            failure = Failure(NONFINITE, "FloatingPointError", "the output holds NaN or infinity")
        if failure is not None:
            return row | failure.columns()
        if row["status"] != OK:
            return row
        assert item.outputs is not None
        if self.stage.writes in ("statistics", "metrics"):
            return row
        if self.stage.writes == "latents":
            return row | self._keep_latent(item.plan.row, index, item.outputs[index])
        try:
            return row | self._put_image(item, index, number)
        except ImageRefused as refusal:
            return row | Failure.of(refusal).columns()

    def _is_finite(self, item: Item, index: int) -> bool:
        """Whether the output that a manifest row stands for is finite: a variant's, or all those of statistics."""
        return bool(item.finite.all() if self.stage.writes == "statistics" else item.finite[index])

    def _reduce(self, item: Item) -> None:
        """Add outputs to the statistics in the order of the plan. Items that come early wait."""
        assert self._reducer is not None
        self._reducible[item.plan.row] = item
        while self._order and self._order[0] in self._reducible:
            following = self._reducible.pop(self._order.popleft())
            if following.outputs is not None and following.finite.all():
                self._reducer.add(following.plan.key, following.outputs)

    def _row(self, item: Item, planned: Planned) -> manifest.Row:
        """The manifest row, as if its output were written; `_finish_row` adds the output or the failure."""
        variant, plan = self.stage.variants[planned.variant], item.plan
        strength = planned.strength
        if strength is None and self.input is not None:  # each image has its own strength
            strength = self._input_row(item, planned.variant)["strength"]
        return {
            **self.stage.columns,
            **variant.columns,
            "key": plan.key,
            "shard": plan.shard,
            "row": plan.row,
            "source_uri": plan.uri,
            "source_member": plan.member,
            "source_offset": plan.offset,
            "source_size": plan.size,
            "source_etag": plan.etag,
            "source_sha256": item.sha256,
            "source_columns": plan.columns,
            "source_width": item.width,
            "source_height": item.height,
            "stage": self.stage.name,
            "edit": planned.edit,
            "strength": strength,
            "draw": variant.draw,
            "labels": _labels(plan, planned),
            "status": OK,
            "attempt": self.attempt.id,
            "fetch_ms": item.fetch_ms,
            "decode_ms": item.decode_ms,
            "device_ms": item.device_ms,
            "actor": self.actor,
            **(item.columns[planned.variant] if item.columns else {}),
        }

    def _inherited(self, item: Item, index: int) -> Failure | None:
        """The failure of this variant in the input stage, if it failed there."""
        if self.input is None:
            return None
        row = self._input_row(item, index)
        return None if row["status"] == OK else Failure(row["status"], row["error_type"], row["error"])

    def _input_row(self, item: Item, index: int) -> manifest.Row:
        """The manifest row of the input stage from which this variant is made."""
        assert self.input is not None
        rows = self.input.rows[item.plan.row]
        return rows[index if len(rows) > 1 else 0]

    def _keep_latent(self, row: int, index: int, output: NDArray[np.float32]) -> manifest.Row:
        name = arrays.latent_name(row, index)
        with self._lock:
            self._latents[name] = output.astype("float16" if self.stage.half else self.image_format.latent_dtype)
        return {"output_member": name}

    def _put_image(self, item: Item, index: int, number: int) -> manifest.Row:
        """Write an image. Raises ImageRefused if it cannot be encoded, or its name cannot be that of a file."""
        assert item.outputs is not None
        output, start = item.outputs[index], perf_counter()
        with refusing(WRITE_ERROR):
            data = encode(output, self.image_format.codec, self.image_format.quality)
            encode_ms = 1000 * (perf_counter() - start)
            name = self.image_format.output_name(item.plan.key, self.stage.variants[index])
            name.encode()  # the manifest holds UTF-8
        with _refusing_name():
            written = self._sink.put(number, name, data)
        return {**written, "width": output.shape[1], "height": output.shape[0], "encode_ms": encode_ms}

    def _commit(self) -> None:
        rows = [row for index in sorted(self._rows) for row in self._rows[index]]
        self._sink.finish(rows)
        self._sink.close()
        if self._latents:
            file = self.attempt.write(arrays.LATENTS, arrays.to_bytes(self._latents))
            for row in rows:
                if row["status"] == OK:
                    row["output_uri"] = file.path
        if self._reducer is not None:
            self.attempt.write(arrays.STATISTICS, arrays.to_bytes(self._reducer.arrays()))
        now = datetime.now(UTC)
        for row in rows:
            row["committed_at"] = now
        input_digest = self.input.digest if self.input else None
        won = self.attempt.commit(rows, len(self.plan), input_digest)
        statuses = dict(Counter(row["status"] for row in rows))
        self.future.set_result(ShardReport(self.stage.name, self.shard, len(self.plan), statuses, won))


@contextmanager
def _refusing_name() -> Iterator[None]:
    """Raise ImageRefused if a store does not take the name of an image. Its other errors are raised as they are."""
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NAME_ERRORS:
            raise
        raise ImageRefused(WRITE_ERROR, str(error), type(error).__name__) from error


def _labels(plan: PlanRow, planned: Planned) -> dict[str, float] | None:
    """The labels of an output: those of its image, with the values that its edit sets."""
    if plan.labels is None:
        return None
    return {**plan.labels, **(planned.draw.sets if planned.draw else {})}
