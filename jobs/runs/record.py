"""Reads and writes run.json, the record of a run.

It is written once, as the last file of planning. A run with another identity is refused at the same root.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from typing import Any

from pydantic import TypeAdapter

from asyrp.digests import json_digest
from asyrp.directions.edits import parse_edit
from asyrp.errors import UserError
from jobs.runs.draws import Augmenter
from jobs.runs.resolve import ResolvedRun
from jobs.runs.run_file import FORMAT, STAGES_DERIVED, read_run
from jobs.spec.run import RunSpec
from pipeline.images.skipped import Skipped
from pipeline.images.source import SourceImage
from pipeline.run.plan import (
    RUN,
    PlanSummary,
    current_plan,
    read_plan,
    refuse_gone,
    source_image,
    stage_sizes,
    write_plan,
)
from pipeline.run.progress import StateReader
from pipeline.run.stage import INVERT, Stage, Variant, drawn_variants
from pipeline.sources.files import split_glob
from pipeline.sources.listing import list_images
from pipeline.stages.settings import declare_stages, edit_variant
from pipeline.storage.store import Store, explained, lies_inside, open_filesystem

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """The parts of run.json that are known before the plan.

    `spec` is for readers. A resume must have the same `identity`.
    """

    spec: dict[str, Any]
    identity: dict[str, Any]
    stages: Sequence[Stage]


def open_run(
    store: Store,
    resolved: ResolvedRun,
    images: Iterable[SourceImage] | None = None,
    skipped: Skipped | None = None,
) -> PlanSummary:
    """The plan of the run at `store`. If there is none, a new one is made of `images`, or of all images of the source.
    `skipped` counts what the listing of `images` passes over.

    Raises:
        UserError: if the run there has another identity. The message lists the differences.
    """
    return open_root(store, _record_of(resolved), lambda: _new_plan(store, resolved, images, skipped or Skipped()))


def refuse_unopenable(store: Store, resolved: ResolvedRun) -> None:
    """Raise UserError if `open_run` would refuse the run for what is at its output, source or inversions. Writes
    nothing."""
    with explained(f"cannot reach {store.url}"):
        there = store.exists(RUN)
    if there:
        _resume(store, _record_of(resolved))
    elif resolved.spec.inversions:
        _usable_inversions(resolved, resolved.spec.inversions)
    else:
        refuse_output_inside_source(resolved.spec)


def _record_of(resolved: ResolvedRun) -> RunRecord:
    return RunRecord(resolved.spec.model_dump(mode="json"), resolved.identity, resolved.stages)


def open_root(store: Store, run: RunRecord, make_plan: Callable[[], PlanSummary]) -> PlanSummary:
    """The plan of any run at `store`. If there is none, `make_plan` makes it, and it is recorded.

    Raises:
        UserError: as `open_run` does.
    """
    with explained(f"cannot reach {store.url}"):
        there = store.exists(RUN)
    if there:
        return _resume(store, run)
    check_creates(store)
    plan = make_plan()
    record = {
        "format": FORMAT,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "spec": run.spec,
        "identity": run.identity,
        "identity_hash": json_digest(run.identity),
        "plan": asdict(plan),
        "stages": [stage.as_json() for stage in run.stages],
        "versions": {name: version(name) for name in ("asyrp", "torch", "diffusers", "ray")},
    }
    refuse_gone(store, plan.parts)
    with explained(f"cannot write {RUN} to {store.url}"):
        store.create(RUN, json.dumps(record, indent=1).encode())
    if current_plan(store).folder != plan.folder:  # another driver was first
        store.delete(plan.folder)
    return _resume(store, run)


@cache
def check_creates(store: Store) -> None:
    """Warn, once for each store, if two drivers at one root could overwrite each other's records.

    Raises:
        UserError: if nothing can be written to the store.
    """
    if not store.refuses_second_create():
        log.warning(
            "%s does not refuse to create a file that is there: of two runs at work on this root at once the last to "
            "commit a shard counts, which is safe but wasteful, so start only one",
            store.url,
        )


def recorded_plan(record: dict[str, Any]) -> PlanSummary:
    """The plan of a run, as run.json has it."""
    return TypeAdapter(PlanSummary).validate_python(record["plan"])


def recorded_stages(record: dict[str, Any]) -> list[Stage]:
    """The stages of a run, as run.json declares them."""
    if record["format"] == STAGES_DERIVED:
        return _derived_stages(record)
    return TypeAdapter(list[Stage]).validate_python(record["stages"])


def recorded_sizes(record: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The planned numbers of shards and images of each stage of a run."""
    return stage_sizes(recorded_stages(record), recorded_plan(record))


def _derived_stages(record: dict[str, Any]) -> list[Stage]:
    """The stages that the spec of a run implies, without manifest columns."""
    spec = record["spec"]
    if "edits" not in spec:  # a run that collects statistics
        [name] = record["stages"]
        return [Stage(name=name, function=name, writes="statistics", variants=(Variant(),))]
    if augmentation := spec.get("augmentation"):
        variants = drawn_variants(augmentation["draws"])
    else:
        searched = bool((spec.get("inspection") or {}).get("search"))
        variants = tuple(edit_variant(parse_edit(text), searched, {}) for text in spec["edits"])
    staged = spec["stages"] == "staged" or spec["inversions"] is not None
    return declare_stages(variants, {}, staged=staged, inversions=spec["inversions"], first_images=spec["preview"])


def _resume(store: Store, run: RunRecord) -> PlanSummary:
    record = read_run(store)
    if record["identity_hash"] != json_digest(run.identity):
        lines = "\n  ".join(_differences(record["identity"], run.identity))
        raise UserError(
            f"the run at {store.url} is another one: give another --output, or the values it was made with\n  {lines}"
        )
    return recorded_plan(record)


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name in sorted(there.keys() | here.keys()):
        a, b = there.get(name), here.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            yield f"{prefix}{name}: {a} there, {b} here"


def _new_plan(
    store: Store, resolved: ResolvedRun, images: Iterable[SourceImage] | None, skipped: Skipped
) -> PlanSummary:
    if resolved.spec.inversions:
        theirs = _usable_inversions(resolved, resolved.spec.inversions)
        return _write_plan(store, (source_image(row) for row in read_plan(theirs)), resolved)
    refuse_output_inside_source(resolved.spec)
    if images is None:
        images = list_images(resolved.spec.source, resolved.spec.selection(), skipped)
    if resolved.spec.augmentation is None:
        return _write_plan(store, images, resolved, skipped)
    augmenter = Augmenter(resolved.spec, resolved.spec.augmentation)
    drawing = augmenter.new_drawing()
    images = augmenter.augmented(images, drawing)
    plan = _write_plan(store, images, resolved, skipped)
    return replace(plan, census=drawing.census.as_json())


def _write_plan(
    store: Store, images: Iterable[SourceImage], resolved: ResolvedRun, skipped: Skipped | None = None
) -> PlanSummary:
    names, as_files = partial(output_names, resolved), resolved.image_format.sink == "files"
    spec = resolved.spec
    selection = spec.selection()
    return write_plan(store, images, spec.shard_size, names, as_files=as_files, skipped=skipped, selection=selection)


def output_names(resolved: ResolvedRun, key: str) -> list[str]:
    """The names of the edited images of one source image."""
    return [resolved.image_format.output_name(key, variant) for variant in resolved.final.variants]


def refuse_output_inside_source(spec: RunSpec) -> None:
    """Raise UserError if the edits of a run would be listed as images of its source."""
    (source_fs, source), (output_fs, output) = open_filesystem(spec.source), open_filesystem(spec.output)
    if type(source_fs) is type(output_fs) and "/**" in source:
        source = split_glob(source_fs, source)[0]
    if lies_inside((output_fs, output), (source_fs, source)):
        raise UserError(f"the output {spec.output} lies inside the source, so edits would be edited: move it out")


SAME_INVERSION = (
    *("source", "model_digest", "schedule", "solver", "n_inv", "refine"),
    *("image_size", "fit", "dtype", "shard_size"),
)


def _usable_inversions(resolved: ResolvedRun, url: str) -> Store:
    """The store of a staged run whose inversions are used.

    Raises:
        UserError: if they are not there, not complete, or not what these edits need.
    """
    theirs = Store(url)
    record = read_run(theirs)
    made, wanted = ({name: i.get(name) for name in SAME_INVERSION} for i in (record["identity"], resolved.identity))
    if lines := "\n  ".join(_differences(made, wanted)):
        raise UserError(f"the inversions at {theirs.url} cannot be used here, they differ in:\n  {lines}")
    t_top, needed = record["identity"].get("t_top"), resolved.settings.t_top
    if t_top is not None and (needed is None or needed > t_top):
        raise UserError(
            f"the inversions at {theirs.url} go up to timestep {t_top}, where the edits of that run begin, and these "
            f"edits begin {'at T' if needed is None else f'at {needed}'}: invert again, with an edit that begins there"
        )
    sizes = recorded_sizes(record)
    if INVERT not in sizes:
        raise UserError(f"the run at {theirs.url} kept no inversions: only runs with --stages staged do")
    state = StateReader(theirs, {INVERT: sizes[INVERT]}).read()
    if not state.complete:
        raise UserError(f"the inversions at {theirs.url} are not complete: finish that run first")
    return theirs
