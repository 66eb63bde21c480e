"""Measures FID and KID between two sources, or between each edit of a run and the images it was made from."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from asyrp.measures.clip import Clip, default_clip
from asyrp.measures.image_sets import FeatureSums, SetDistance, set_distance
from asyrp.models.folder import ModelFolder
from jobs.learn.collect import Collection, collect
from jobs.runs.growth import spec_of
from jobs.runs.record import recorded_stages
from jobs.runs.run_file import read_run
from jobs.spec.run import EngineSpec
from pipeline.engine.cluster import ray_session
from pipeline.images.selection import Condition, Selection
from pipeline.images.source import SourceImage
from pipeline.run.additions import read_images
from pipeline.run.names import edit_title
from pipeline.run.plan import source_image
from pipeline.run.stage import FINAL, Variant
from pipeline.sources.listing import list_images
from pipeline.sources.runs import images_of_run
from pipeline.stages.models import fetch_model
from pipeline.stages.readings import ClipEmbeddings
from pipeline.stages.reducers import FEATURE_SUMS
from pipeline.storage.store import Store

SHARD_SIZE = 1024
"""The images of a shard. Their sums are one file: 2 MB for 512 features, whatever the number of images."""


@dataclass(frozen=True)
class ImageSet:
    """Images whose features are measured. `source` and `name` identify the set."""

    source: str
    name: str
    images: Callable[[], Iterable[SourceImage]]


@dataclass(frozen=True)
class SetMeasurer:
    """Measures sets of images. `folder` and `image_size` are those of the model that the images belong to."""

    folder: ModelFolder
    image_size: int
    clip: str
    work: str | None
    engine: EngineSpec

    def sums(self, images: ImageSet) -> FeatureSums:
        """The features of a set, added up over the cluster."""
        collection = Collection(
            source=images.source,
            folder=self.folder,
            reading=ClipEmbeddings(self.clip),
            make_reducer=FEATURE_SUMS,
            identity={"set": images.name},
            shard_size=SHARD_SIZE,
            work=f"{self.work.rstrip('/')}/{images.name}" if self.work else None,
            engine=self.engine,
            images=images.images,
            image_size=self.image_size,
        )
        return collect(collection, FEATURE_SUMS.merge)[0]


@dataclass(frozen=True)
class SetDistances:
    """The distances of sets from the sets they were compared with, by name, and the name of the features used."""

    features: str
    distances: dict[str, SetDistance]


def compare_sources(
    first: str, second: str, model: str, clip: str | None, work: str | None, engine: EngineSpec
) -> SetDistances:
    """The distance between two sources, read at the model's size.

    Raises:
        UserError: if there is no such source or CLIP, or a source has fewer than two images.
    """
    folder = fetch_model(model)
    measurer = _measurer(folder, folder.image_size, clip, work, engine)
    with ray_session(engine.address):
        sets = [ImageSet(url, name, lambda url=url: list_images(url)) for name, url in (("a", first), ("b", second))]  # type: ignore[misc]
        a, b = map(measurer.sums, sets)
    return SetDistances(_features(measurer), {f"{first} and {second}": set_distance(a, b)})


def compare_edits(root: str, clip: str | None, work: str | None, engine: EngineSpec) -> SetDistances:
    """The distance of each edit of a run from the images it was made from.

    Raises:
        UserError: if there is no run of edits at the root, or it has no images yet; else as `compare_sources`.
    """
    spec, record = spec_of(root, engine), read_run(Store(root))
    measurer = _measurer(fetch_model(spec.model), record["identity"]["image_size"], clip, work, engine)
    [final] = [stage for stage in recorded_stages(record) if stage.name == FINAL]
    distances = {}
    with ray_session(engine.address):
        sources = measurer.sums(ImageSet(root, "sources", lambda: map(source_image, read_images(Store(root)))))
        for variant in final.variants:
            title = edit_title(variant.edit, variant.strength)
            edited = ImageSet(root, title, lambda variant=variant: _edited(root, variant))  # type: ignore[misc]
            distances[title] = set_distance(measurer.sums(edited), sources)
    return SetDistances(_features(measurer), distances)


def _measurer(
    folder: ModelFolder, image_size: int, clip: str | None, work: str | None, engine: EngineSpec
) -> SetMeasurer:
    name = clip or default_clip(folder.name)
    Clip(name)  # so that a wrong name fails here, not in the first actor
    return SetMeasurer(folder, image_size, name, work, engine)


def _features(measurer: SetMeasurer) -> str:
    return f"clip:{measurer.clip}"


def _edited(root: str, variant: Variant) -> Iterator[SourceImage]:
    """The images that a run has made with an edit."""
    conditions = [Condition("edit", "=", str(variant.edit))]
    if variant.strength is not None:
        conditions.append(Condition("strength", "=", str(variant.strength)))
    selection = Selection(where=tuple(conditions))
    return selection.chosen(images_of_run(root, selection))
