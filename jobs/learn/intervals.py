"""`asyrp intervals learn`: measures the distances of images to their P_t and x_t, over the cluster."""

import hashlib
import heapq
from dataclasses import dataclass

from asyrp.diffusion.schedule import timesteps
from asyrp.errors import UserError
from asyrp.measures.clip import default_clip
from asyrp.measures.intervals import LPIPS, Intervals, thresholds
from asyrp.measures.perceptual import CLIP_PREFIX, load_measure
from asyrp.models.scheduler import read_scheduler
from jobs.display import console
from jobs.learn.collect import Collection, collect
from jobs.spec.run import EngineSpec
from pipeline.sources.listing import list_images
from pipeline.stages.models import fetch_model
from pipeline.stages.readings import InversionDistances
from pipeline.stages.reducers import CURVE_SUMS


@dataclass(frozen=True)
class IntervalsRequest:
    """The images to measure, and how. `images` images of the source are measured, or all if it has fewer.

    `measure` is auto, lpips, clip or clip:NAME. `work` is a root that keeps the sums, to continue after a stop.
    """

    source: str
    model: str
    engine: EngineSpec
    images: int = 100
    n_inv: int = 40
    measure: str = "auto"
    work: str | None = None
    shard_size: int = 16


def learn_intervals(request: IntervalsRequest) -> Intervals:
    """Measure the distances over the cluster and find the thresholds (Asyrp, section 3.4).

    Raises:
        UserError: if the measure cannot be loaded, the source has no readable image, or the number of steps does
            not fit the model's schedule.
    """
    folder = fetch_model(request.model)
    grid = _grid(request.n_inv, read_scheduler(folder.scheduler).t_0)
    measure = available_measure(request.measure, request.model)
    collection = Collection(
        source=request.source,
        folder=folder,
        reading=InversionDistances(grid, measure),
        make_reducer=CURVE_SUMS,
        identity={"images": request.images},
        shard_size=request.shard_size,
        work=request.work,
        engine=request.engine,
        keys=sampled_keys(request.source, request.images),
    )
    sums, images = collect(collection, CURVE_SUMS.merge)
    curves = sums.curves()
    return Intervals(
        model=request.model,
        model_digest=folder.digest,
        measure=measure,
        images=images,
        timesteps=grid,
        thresholds=thresholds(measure, **curves),
        **curves,
    )


def available_measure(asked: str, model: str) -> str:
    """Returns the full name of a measure whose weights can be loaded. auto is LPIPS, or else the model's CLIP.

    Raises:
        UserError: if `asked` names no measure, or its weights cannot be loaded.
    """
    own_clip = CLIP_PREFIX + default_clip(model)
    if asked == "auto":
        try:
            load_measure(LPIPS, "cpu")
        except UserError as error:
            console.print(f"{error}; so the measure is {own_clip}", highlight=False, soft_wrap=True)
        else:
            return LPIPS
    elif asked != LPIPS and asked != "clip" and not asked.startswith(CLIP_PREFIX):
        raise UserError(f"--measure {asked}: give auto, lpips, clip or clip:NAME")
    name = own_clip if asked in ("auto", "clip") else asked
    load_measure(name, "cpu")  # reports a mistake here and not on the first actor
    return name


def sampled_keys(source: str, count: int) -> frozenset[str]:
    """Returns the keys of `count` images of a source, or of all if it has fewer.

    They are chosen by a hash of the key, so the order in which the images are listed does not matter.
    """
    keys = (image.key for image in list_images(source))
    return frozenset(heapq.nsmallest(count, keys, key=lambda key: hashlib.sha256(key.encode()).digest()))


def _grid(n_inv: int, t_0: int) -> tuple[int, ...]:
    try:
        return tuple(timesteps(n_inv, t_0))
    except ValueError as error:
        raise UserError(f"--n-inv {n_inv}: {error}") from error
