"""From a spec to a finished run: resolve, plan or resume, compute, report. Safe to repeat."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyrp import registry
from asyrp.direction_info import DirectionInfo, check_model, file_digest, read_info
from asyrp.edits import Edit
from asyrp.errors import UserError
from jobs.spec import JobSpec
from pipeline.plan import PlanSummary, read_plan, write_plan
from pipeline.progress import StateReader
from pipeline.recipe import BoundEdit, MethodSettings, declare_stages
from pipeline.sheet import write_sheet
from pipeline.sources import SourceImage, list_images
from pipeline.stage import ImageFormat, Stage
from pipeline.storage import Store, open_filesystem

if TYPE_CHECKING:  # Ray and torch load only where there is something to compute
    from pipeline.engine import Outcome

log = logging.getLogger(__name__)

FORMAT = 1
RUN = "run.json"


@dataclass(frozen=True)
class Job:
    """A spec with all that it names found: ready to be planned and run."""

    spec: JobSpec
    settings: MethodSettings
    stages: list[Stage]
    image_format: ImageFormat
    identity: dict[str, Any]

    def stage_sizes(self, plan: PlanSummary) -> dict[str, tuple[int, int]]:
        """Shards and images of each stage."""
        return {stage.name: stage_size(stage, plan) for stage in self.stages}


def stage_size(stage: Stage, plan: PlanSummary) -> tuple[int, int]:
    if stage.sample is None:
        return plan.shards, plan.images
    return 1, min(stage.sample, plan.images, plan.shard_size)


@dataclass(frozen=True)
class RunResult:
    """How a call of `run` ended. `outcome` is None where there was nothing left to do."""

    plan: PlanSummary
    outcome: "Outcome | None"
    sheet: str | None


def resolve(spec: JobSpec) -> Job:
    """Find the model and the directions, and bind the edits to them.

    Raises:
        UserError: if one is not there, or they do not belong together.
    """
    folder = registry.find(spec.model)
    infos, files = _directions(spec, folder)
    edits = tuple(_bind(edit, spec, infos) for edit in spec.parsed_edits())
    size = spec.image_size or folder.image_size
    step = 2 ** (len(folder.config["block_out_channels"]) - 1)
    if size % step:
        raise UserError(f"image_size {size}: the model {spec.model} takes sizes that are multiples of {step}")
    settings = MethodSettings(
        model=spec.model,
        model_digest=folder.digest,
        direction_files=files,
        edits=edits,
        n_inv=spec.n_inv,
        n_gen=spec.n_gen,
        seed=spec.seed,
        dtype=spec.dtype,
        image_size=size,
        device="cpu",
    )
    digests = {name: file_digest(path) for name, path in files.items()}
    columns = {bound: _columns(bound, infos, digests) for bound in edits}
    staged = spec.stages == "staged" or spec.inversions is not None
    stages = declare_stages(settings, columns, staged, spec.inversions, spec.preview)
    image_format = ImageFormat(size, spec.fit, spec.codec, spec.quality, spec.name, spec.latent_dtype)
    identity = spec.identity() | {
        "edits": [bound.edit.id for bound in edits],
        "image_size": size,
        "model_digest": folder.digest,
        "directions": digests,
        "intervals": {bound.edit.id: [columns[bound]["t_edit"], bound.t_boost] for bound in edits},
    }
    return Job(spec, settings, stages, image_format, identity)


def _directions(spec: JobSpec, folder: registry.ModelFolder) -> tuple[dict[str, DirectionInfo], dict[str, Path]]:
    """The direction files that the edits name: the spec's own first, then those that come with the model."""
    known = folder.direction_files() | {name: Path(path) for name, path in spec.directions.items()}
    used = dict.fromkeys(name for edit in spec.parsed_edits() for name, _ in edit.weights)
    for name in used:
        if name not in known:
            have = ", ".join(known) or "none"
            raise UserError(
                f"there is no direction '{name}' for the model {spec.model} (there are: {have}): "
                f"give its file with --direction {name}=FILE"
            )
    files = {name: known[name] for name in used}
    infos = {name: read_info(path) for name, path in files.items()}
    for info in infos.values():
        check_model(info, folder.digest, spec.model)
    return infos, files


def _bind(edit: Edit, spec: JobSpec, infos: dict[str, DirectionInfo]) -> BoundEdit:
    """t_boost belongs to the data: of several suggestions the smallest, which adds the least noise, holds."""
    suggested = [info.t_boost for name, _ in edit.weights if (info := infos[name]).t_boost is not None]
    t_boost = spec.t_boost if spec.t_boost is not None else min(suggested, default=0)
    for name, _ in edit.weights:
        if spec.t_edit is None and infos[name].t_edit is None:
            raise UserError(f"direction '{name}' suggests no t_edit: give --t-edit (400 to 700 is usual)")
    return BoundEdit(edit, spec.t_edit, t_boost)


def _columns(bound: BoundEdit, infos: dict[str, DirectionInfo], digests: dict[str, str]) -> dict[str, Any]:
    names = [name for name, _ in bound.edit.weights]
    own = [t for name in names if (t := infos[name].t_edit) is not None]
    return {
        "direction_digest": ",".join(digests[name] for name in names) or None,
        "t_edit": bound.t_edit if bound.t_edit is not None else min(own, default=None),
        "t_boost": bound.t_boost,
        "eta": 1.0 if bound.t_boost else 0.0,
    }


Display = Callable[[StateReader], AbstractContextManager[None]]


def no_display(reader: StateReader) -> AbstractContextManager[None]:  # noqa: ARG001
    return nullcontext()


def run(spec: JobSpec, display: Display = no_display) -> RunResult:
    """Do whatever of a run is not done yet. On a finished run: nothing, and no GPU or cluster is asked for.

    Raises:
        UserError: for anything the user can mend, before any image is touched.
    """
    job = resolve(spec)
    store = Store(spec.output)
    plan = open_run(store, job)
    reader = StateReader(store, job.stage_sizes(plan))
    if not reader.read().complete:
        outcome = _compute(job, store, plan, display, reader)
        sheet = write_sheet(store, job.stages, job.image_format, spec.preview or 8)
        return RunResult(plan, outcome, sheet)
    return RunResult(plan, None, next((f"report/{name}" for name in store.names("report")), None))


def _compute(job: Job, store: Store, plan: PlanSummary, display: Display, reader: StateReader) -> "Outcome":
    from pipeline.engine import Engine, EngineOptions, has_gpu, pending_units, ray_session

    if store.url.startswith("memory://"):
        raise UserError("memory:// lives in one process, and actors are others: give an output they can all reach")
    knobs = job.spec.engine
    with ray_session(knobs.address):
        device = ("cuda" if has_gpu() else "cpu") if knobs.device == "auto" else knobs.device
        batch_size = knobs.batch_size or (16 if device == "cuda" else 8)
        options = EngineOptions(device, knobs.actors, batch_size, knobs.readers, knobs.writers, knobs.max_failed)
        engine = Engine(store, job.stages, replace(job.settings, device=device), job.image_format, options)
        with display(reader):
            return engine.run(pending_units(store, job.stages, plan.shards))


# run.json


def open_run(store: Store, job: Job) -> PlanSummary:
    """The plan of the run at `store`: the one that is there, or a new one.

    Raises:
        UserError: if the run there has another identity, with the differences.
    """
    if store.exists(RUN):
        return _resume(store, job)
    plan = _new_plan(store, job)
    record = {
        "format": FORMAT,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "spec": job.spec.model_dump(mode="json"),
        "identity": job.identity,
        "identity_hash": _hash(job.identity),
        "plan": asdict(plan),
        "stages": job.stage_sizes(plan),
        "versions": {name: version(name) for name in ("asyrp", "torch", "diffusers", "ray")},
    }
    if not store.create(RUN, json.dumps(record, indent=1).encode()):
        return _resume(store, job)
    return plan


def read_run(store: Store) -> dict[str, Any]:
    """What run.json says.

    Raises:
        UserError: if there is no run at this root, or a later version wrote it.
    """
    try:
        record = json.loads(store.read(RUN))
    except FileNotFoundError:
        raise UserError(f"there is no run at {store.url}: it has no {RUN}") from None
    if record["format"] != FORMAT:
        raise UserError(f"the run at {store.url} has format {record['format']}, this version knows {FORMAT}")
    return record


def _resume(store: Store, job: Job) -> PlanSummary:
    record = read_run(store)
    if record["identity_hash"] != _hash(job.identity):
        lines = "\n  ".join(_differences(record["identity"], job.identity))
        raise UserError(
            f"the run at {store.url} is another one: give another --output, or the values it was made with\n  {lines}"
        )
    return PlanSummary(**record["plan"])


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name in sorted(there.keys() | here.keys()):
        a, b = there.get(name), here.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            yield f"{prefix}{name}: {a} there, {b} here"


def _hash(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _new_plan(store: Store, job: Job) -> PlanSummary:
    if job.spec.inversions:
        return _plan_of_inversions(store, job)
    _refuse_output_inside_source(job.spec)
    return write_plan(store, list_images(job.spec.source), job.spec.shard_size, lambda key: output_names(job, key))


def output_names(job: Job, key: str) -> list[str]:
    """The names of the edited images of one source image."""
    final = next(stage for stage in job.stages if stage.name == "boost")
    return [job.image_format.output_name(key, variant) for variant in final.variants]


def _refuse_output_inside_source(spec: JobSpec) -> None:
    (source_fs, source), (output_fs, output) = open_filesystem(spec.source), open_filesystem(spec.output)
    if type(source_fs) is type(output_fs) and f"{output}/".startswith(f"{source.rstrip('/')}/"):
        raise UserError(f"the output {spec.output} lies inside the source, so edits would be edited: move it out")


SAME_INVERSION = ("source", "model_digest", "n_inv", "image_size", "fit", "dtype", "shard_size")


def _plan_of_inversions(store: Store, job: Job) -> PlanSummary:
    """The plan of the staged run whose inversions are used, copied row by row."""
    assert job.spec.inversions
    theirs = Store(job.spec.inversions)
    record = read_run(theirs)
    made, wanted = ({name: i.get(name) for name in SAME_INVERSION} for i in (record["identity"], job.identity))
    if lines := "\n  ".join(_differences(made, wanted)):
        raise UserError(f"the inversions at {theirs.url} cannot be used here, they differ in:\n  {lines}")
    if "invert" not in record["stages"]:
        raise UserError(f"the run at {theirs.url} kept no inversions: only runs with --stages staged do")
    state = StateReader(theirs, {"invert": tuple(record["stages"]["invert"])}).read()
    if not state.complete:
        raise UserError(f"the inversions at {theirs.url} are not complete: finish that run first")
    rows = (SourceImage(row.key, row.uri, row.size, row.etag) for row in read_plan(theirs))
    return write_plan(store, rows, record["plan"]["shard_size"], lambda key: output_names(job, key))


EXIT_QUARANTINE, EXIT_BREAKER, EXIT_DRAINED = 3, 4, 130


def exit_code(result: RunResult) -> int:
    """The exit code of a run: 0 all committed, 3 quarantine, 4 breaker, 130 drained."""
    outcome = result.outcome
    if outcome is None or outcome.finished:
        return 0
    if outcome.tripped:
        return EXIT_BREAKER
    return EXIT_DRAINED if outcome.drained else EXIT_QUARANTINE
