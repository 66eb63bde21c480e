"""Statistics of h over the images of a source: a run like any other, whose shards hold sums in place of images."""

import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from asyrp.errors import UserError
from asyrp.registry import ModelFolder
from jobs.display import live
from jobs.record import RunRecord, open_root
from jobs.run import compute
from jobs.spec import EngineSpec
from pipeline.plan import PlanSummary, write_plan
from pipeline.progress import StateReader
from pipeline.recipe import DirectionSource
from pipeline.sources import list_images
from pipeline.stage import ImageFormat, Reducer
from pipeline.statistics import STAGE, CollectSettings, read_statistics, statistics_stage
from pipeline.storage import Store

MakeReducer = Callable[[], Reducer]
Merged = TypeVar("Merged")


@dataclass(frozen=True)
class Collection:
    """What to collect: h (or the delta_h of `direction`) at the timesteps `grid` of the images of `source`, or of
    those among them whose key is in `keys`.

    `work` is the root that the sums are kept at, so that a killed collection goes on; None: a temporary folder.
    `identity` says what the reducer depends on.
    """

    source: str
    folder: ModelFolder
    grid: tuple[int, ...]
    make_reducer: MakeReducer
    identity: dict[str, Any]
    seed: int
    shard_size: int
    work: str | None
    engine: EngineSpec
    keys: Container[str] | None = None
    direction: DirectionSource | None = None


def collect(collection: Collection, merge: Callable[[Iterator[dict[str, Tensor]]], Merged]) -> tuple[Merged, int]:
    """Collect, or go on where an earlier call was stopped: what `merge` makes of the sums, and the images in it.

    `merge` gets the sums one at a time, in the order of the shards: the result does not depend on actors, kills and
    resumes, and memory not on the number of images.

    Raises:
        UserError: for anything the user can mend; if no image could be used; if shards were quarantined or the run
            was stopped.
    """
    with _work_root(collection.work) as root:
        store = Store(root)
        images = _run(collection, store)
        return merge(read_statistics(store)), images


def _work_root(work: str | None) -> AbstractContextManager[str]:
    return nullcontext(work) if work else tempfile.TemporaryDirectory(prefix="asyrp-collect-")


def _run(collection: Collection, store: Store) -> int:
    settings = CollectSettings(
        model=collection.folder.name,
        model_digest=collection.folder.digest,
        grid=collection.grid,
        seed=collection.seed,
        check=collection.engine.check,
        make_reducer=collection.make_reducer,
        direction=collection.direction,
    )
    identity = {
        "source": collection.source,
        "model_digest": collection.folder.digest,
        "grid": list(collection.grid),
        "seed": collection.seed,
        "shard_size": collection.shard_size,
        **collection.identity,
    }
    spec = {"source": collection.source, "model": collection.folder.name}

    def sizes(plan: PlanSummary) -> dict[str, tuple[int, int]]:
        return {STAGE: (plan.shards, plan.images)}

    plan = open_root(store, RunRecord(spec, identity), sizes, lambda: _plan(collection, store))
    reader = StateReader(store, sizes(plan))
    if not reader.read().complete:
        stage, image_format = statistics_stage(settings), ImageFormat(collection.folder.image_size)
        outcome = compute(store, [stage], settings, image_format, collection.engine, plan.shards, live(reader))
        if not outcome.finished:
            raise UserError(f"not all shards are done: {outcome.tripped or outcome.quarantined or 'stopped'}")
    images = reader.read().stages[STAGE].rows["ok"]
    if images == 0:
        raise UserError(f"none of the {plan.images} images below {collection.source} could be read")
    return images


def _plan(collection: Collection, store: Store) -> PlanSummary:
    wanted = (
        image for image in list_images(collection.source) if collection.keys is None or image.key in collection.keys
    )
    return write_plan(store, wanted, collection.shard_size, lambda key: [key])
