"""Adds shards to an existing run: images to try again (`asyrp retry`) and new images (`asyrp extend`)."""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice

from pydantic import ValidationError

from asyrp.errors import UserError
from jobs.runs.draws import Augmenter
from jobs.runs.record import output_names, recorded_sizes, recorded_stages
from jobs.runs.resolve import ResolvedRun
from jobs.runs.run_file import read_run
from jobs.spec.run import EngineSpec, RunSpec
from pipeline.datasets.known_images import KnownImages, version_text
from pipeline.images.source import SourceImage, version_of
from pipeline.images.statuses import OK, STATUSES
from pipeline.run.additions import Addition, CurrentRows, add, read_everything, read_images
from pipeline.run.name_check import NameCheck
from pipeline.run.plan import RUN, source_image
from pipeline.run.stage import FINAL, SAMPLE_STAGE
from pipeline.sources.listing import list_images
from pipeline.storage.store import Store, open_filesystem

EXAMPLES = 5


@dataclass(frozen=True)
class Extension:
    """The result of an extension: the addition, None if nothing is new; the numbers of images that have changed or are
    gone since the run was planned; some of their keys."""

    addition: Addition | None
    changed: int
    deleted: int
    examples: dict[str, list[str]]


def spec_of(root: str, engine: EngineSpec) -> RunSpec:
    """The spec of the run at a root, with other speed knobs.

    Raises:
        UserError: if there is no run of edits at the root.
    """
    record = read_run(Store(root))
    if FINAL not in recorded_sizes(record):
        raise UserError(f"what is at {root} is no run of edits")
    try:
        spec = RunSpec.model_validate(record["spec"] | {"output": root})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"the spec in {RUN} at {root} cannot be used again, its '{where}': {first['msg']}") from error
    return spec.model_copy(update={"engine": engine})


def retry(root: str, statuses: frozenset[str]) -> Addition | None:
    """Plans again the images whose final rows have one of `statuses`; None if there are none.

    An image that has changed since is taken as it is now. Images that already wait to be tried again are left out.

    Raises:
        UserError: if a status does not exist, or needs no retry.
    """
    if unknown := statuses - (STATUSES - {OK}):
        raise UserError(f"--status {min(unknown)}: give {', '.join(sorted(STATUSES - {OK}))}")
    store, record = Store(root), read_run(Store(root))
    stages = [stage.name for stage in recorded_stages(record) if stage.name != SAMPLE_STAGE]
    current = CurrentRows(store)
    keys = {row["key"] for row in current.of_stage(FINAL) if row["status"] in statuses} - current.waiting(FINAL)
    if not keys:
        return None
    rows = {row.key: row for row in read_everything(store) if row.key in keys}
    replaces = {
        stage: dict(Counter(row["status"] for row in current.of_stage(stage) if row["key"] in keys)) for stage in stages
    }
    images = (_as_it_is_now(source_image(row)) for row in rows.values())
    plan = record["plan"]
    return add(store, "retry", images, planned=plan["shards"], shard_size=plan["shard_size"], replaces=replaces)


def _as_it_is_now(image: SourceImage) -> SourceImage:
    if image.member is not None:
        return image
    try:
        fs, path = open_filesystem(image.uri)
        entry = fs.info(path)
    except (OSError, UserError):
        return image  # the run will record it in the image's row
    return replace(image, size=entry.get("size"), etag=version_of(entry))


def extend(root: str, resolved: ResolvedRun) -> Extension:
    """Lists the source again and plans the images that are new in it. Images that have changed or are gone are only
    counted; their outputs stay.

    It needs some bytes of memory per image.

    Raises:
        UserError: if a new image would get the output name of another.
    """
    store, record = Store(root), read_run(Store(root))
    known = KnownImages((row.key, version_text(row.size, row.etag)) for row in read_everything(store))
    names = NameCheck(store if resolved.image_format.sink == "files" else None)
    for row in read_images(store):
        names.add(row.key, output_names(resolved, row.key))
    new, changed, examples = [], 0, []
    for image in list_images(resolved.spec.source, resolved.spec.selection()):
        standing = known.compare(image)
        if standing == "new":
            new.append(image)
        elif standing == "changed":
            changed += 1
            if changed <= EXAMPLES:
                examples.append(image.key)
    if resolved.spec.augmentation:
        augmenter = Augmenter(resolved.spec, resolved.spec.augmentation)
        new = list(augmenter.augmented(new, augmenter.recorded_drawing(record["plan"]["census"])))
    for image in new:
        names.add(image.key, output_names(resolved, image.key))
    everything = (row.key for rows in (read_images(store), new) for row in rows)
    names.check(lambda: everything, lambda key: output_names(resolved, key))
    plan = record["plan"]
    size = plan["shard_size"]
    addition = add(store, "extend", new, planned=plan["shards"], shard_size=size, replaces={}) if new else None
    gone = (row.key for row in read_everything(store) if known.is_gone(row.key)) if known.gone else iter(())
    return Extension(addition, changed, known.gone, {"changed": examples, "deleted": list(islice(gone, EXAMPLES))})
