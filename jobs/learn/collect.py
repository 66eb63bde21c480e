"""Collects statistics of the images of a source, in a run like any other. Its shards hold sums in place of images."""

import tempfile
from collections.abc import Callable, Container, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from asyrp.errors import UserError
from asyrp.models.folder import ModelFolder
from jobs.display import live
from jobs.runs.record import RunRecord, open_root
from jobs.runs.run import compute
from jobs.spec.run import EngineSpec
from pipeline.images.source import SourceImage
from pipeline.images.statuses import OK
from pipeline.run.plan import PlanSummary, stage_sizes, write_plan
from pipeline.run.progress import StateReader
from pipeline.run.stage import ImageFormat, Reducer
from pipeline.sources.listing import list_images
from pipeline.stages.readings import Reading
from pipeline.stages.statistics import STAGE, CollectSettings, Statistics, statistics_functions, statistics_stage
from pipeline.storage.store import Store

MakeReducer = Callable[[], Reducer]
Merged = TypeVar("Merged")


@dataclass(frozen=True)
class Collection:
    """The statistics to collect: `reading` is taken of images of `source`, and the reducers of shards add it up.

    If `keys` is given, only the images with these keys are read. If `images` is given, it lists the images in place of
    the source. `image_size` defaults to the size of the model. `work` is the root where the sums are kept, so that a
    killed collection can continue. If it is None, they are kept in a temporary folder. `identity` holds the values that
    the reducer depends on.
    """

    source: str
    folder: ModelFolder
    reading: Reading
    make_reducer: MakeReducer
    identity: dict[str, Any]
    shard_size: int
    work: str | None
    engine: EngineSpec
    keys: Container[str] | None = None
    images: Callable[[], Iterable[SourceImage]] | None = None
    image_size: int | None = None

    @property
    def size(self) -> int:
        """The size in pixels a side at which images are read."""
        return self.image_size or self.folder.image_size

    def listed(self) -> Iterable[SourceImage]:
        """Returns all images to choose from."""
        return self.images() if self.images else list_images(self.source)


def collect(collection: Collection, merge: Callable[[Iterable[dict[str, Tensor]]], Merged]) -> tuple[Merged, int]:
    """Collect, or continue where an earlier call was stopped. Returns the result of `merge` and the number of images.

    `merge` gets the sums one by one, in the order of the shards, and may iterate over them more than once. The result
    therefore does not depend on actors, kills and resumes, and memory does not depend on the number of images.

    Raises:
        UserError: for any mistake that the user can correct; if no image could be used; if shards were quarantined or
            the run was stopped.
    """
    with _work_root(collection.work) as root:
        store = Store(root)
        images = _run(collection, store)
        return merge(Statistics(store)), images


def _work_root(work: str | None) -> AbstractContextManager[str]:
    return nullcontext(work) if work else tempfile.TemporaryDirectory(prefix="asyrp-collect-")


def _run(collection: Collection, store: Store) -> int:
    settings = CollectSettings(
        model=collection.folder.name,
        model_digest=collection.folder.digest,
        reading=collection.reading,
        make_reducer=collection.make_reducer,
        check=collection.engine.check,
    )
    identity = {
        "source": collection.source,
        "model_digest": collection.folder.digest,
        "shard_size": collection.shard_size,
        **({"image_size": collection.image_size} if collection.image_size else {}),
        **collection.reading.identity(),
        **collection.identity,
    }
    spec = {"source": collection.source, "model": collection.folder.name}
    stages = [statistics_stage(settings)]
    plan = open_root(store, RunRecord(spec, identity, stages), lambda: _plan(collection, store))
    reader = StateReader(store, stage_sizes(stages, plan))
    if not reader.read().complete:
        outcome = compute(
            store,
            stages,
            load=statistics_functions,
            settings=settings,
            image_format=ImageFormat(collection.size),
            knobs=collection.engine,
            shards=range(plan.shards),
            display=live(reader),
        )
        if not outcome.finished:
            raise UserError(f"not all shards are done: {outcome.tripped or outcome.quarantined or 'stopped'}")
    images = reader.read().stages[STAGE].rows[OK]
    if images == 0:
        raise UserError(f"none of the {plan.images} images below {collection.source} could be read")
    return images


def _plan(collection: Collection, store: Store) -> PlanSummary:
    wanted = (image for image in collection.listed() if collection.keys is None or image.key in collection.keys)
    return write_plan(store, wanted, collection.shard_size, lambda key: [key])
