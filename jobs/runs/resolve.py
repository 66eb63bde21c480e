"""Turns a spec into a resolved run: finds and checks its model and directions, and declares its stages."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from asyrp.diffusion.moves import inside
from asyrp.directions.edits import Edit, official_sum
from asyrp.directions.info import DirectionInfo, check_model, file_digest, read_info
from asyrp.errors import UserError
from asyrp.measures import intervals
from asyrp.measures.intervals import Intervals
from asyrp.models.folder import ModelFolder
from asyrp.models.scheduler import read_scheduler
from jobs.runs.inspection import judged_by, resolve_inspection
from jobs.runs.precision import choose_precision
from jobs.runs.run_file import read_run
from jobs.spec.ends import AUTO
from jobs.spec.process import Process, recorded_process
from jobs.spec.run import RunSpec
from pipeline.run.plan import RUN
from pipeline.run.stage import FINAL, ImageFormat, Stage, drawn_variants
from pipeline.stages.models import direction_path, fetch, fetch_model
from pipeline.stages.settings import (
    BoundEdit,
    DirectionSource,
    ImageDistances,
    MethodSettings,
    declare_stages,
    edit_columns,
    edit_variant,
)
from pipeline.storage.store import Store, explained

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResolvedRun:
    """A spec whose model, directions and nets are found. It is ready to be planned and run.

    No timestep in `spec` is 'auto' any more.
    """

    spec: RunSpec
    settings: MethodSettings
    stages: list[Stage]
    image_format: ImageFormat
    identity: dict[str, Any]
    verdicts: Mapping[str, str]
    """How far each direction can be trusted, where its file says so."""

    @property
    def final(self) -> Stage:
        """The stage whose images are the run's result, fused or staged."""
        return next(stage for stage in self.stages if stage.name == FINAL)


def resolve(spec: RunSpec, earlier: Store | None = None) -> ResolvedRun:
    """Find the model and the directions, and bind the edits to them.

    Where the spec leaves out the process or the precision, it is that of an `earlier` run: one that is given, that of
    the inversions, or that at the output.

    Raises:
        UserError: if one of them does not exist, or they do not fit each other.
    """
    recorded = _recorded_spec(earlier or Store(spec.inversions or spec.output))
    process = spec.process(recorded_process(recorded))
    precision = choose_precision(spec, recorded)
    spec = spec.model_copy(update=asdict(process) | {"dtype": precision})
    folder = fetch_model(spec.model)
    infos, sources = _directions(spec, folder)
    spec = _with_learned_intervals(spec, infos, folder)
    _refuse_too_many_steps(process, folder)
    edits = _bind_all(spec, infos)
    size = _image_size(spec, folder, infos)
    staged = spec.stages == "staged" or spec.inversions is not None
    inspection = resolve_inspection(spec, process, folder, infos, [bound.edit for bound in edits], staged)
    ends = spec.t_edit.per_image
    settings = MethodSettings(
        model=spec.model,
        model_digest=folder.digest,
        directions=sources,
        edits=edits,
        solver=process.solver,
        n_inv=process.n_inv,
        refine=process.refine,
        n_gen=process.n_gen,
        t_top=None if ends else _t_top(edits),  # an image may end where no edit has begun
        seed=spec.seed,
        dtype=precision,
        image_size=size,
        device="cpu",
        check=spec.engine.check,
        execution=spec.engine.execution,
        inspection=inspection,
        per_image=ImageDistances(ends.measure, ends.distances) if ends else None,
        most_draws=spec.augmentation.draws if spec.augmentation else 0,
    )
    image_format = ImageFormat(
        size=size,
        fit=spec.fit,
        codec=spec.codec,
        quality=spec.quality,
        name=spec.name,
        latent_dtype=spec.latent_dtype,
        sink=spec.sink,
        max_image_bytes=spec.max_image_bytes,
    )
    return ResolvedRun(
        spec=spec,
        settings=settings,
        stages=_stages(spec, settings, staged),
        image_format=image_format,
        identity=_identity(spec, folder, settings),
        verdicts={name: info.verdict for name, info in infos.items() if info.verdict},
    )


def _stages(spec: RunSpec, settings: MethodSettings, staged: bool) -> list[Stage]:
    """The stages of the run, with the manifest columns of its edits."""
    if spec.augmentation:
        variants = drawn_variants(spec.augmentation.draws)
    else:
        variants = tuple(
            edit_variant(bound.edit, spec.searches, edit_columns(bound, settings.directions))
            for bound in settings.edits
        )
    return declare_stages(
        variants,
        settings.columns(),
        staged=staged,
        inversions=spec.inversions,
        first_images=spec.preview,
        measured=settings.inspection is not None,
        solver=settings.solver,
    )


def _recorded_spec(store: Store) -> dict[str, Any]:
    """The spec of the run at `store`; empty if there is none."""
    with explained(f"cannot reach {store.url}"):
        if not store.exists(RUN):
            return {}
    spec: dict[str, Any] = read_run(store)["spec"]
    return spec


def _refuse_too_many_steps(process: Process, folder: ModelFolder) -> None:
    timesteps = read_scheduler(folder.scheduler).num_train_timesteps
    for name, steps in (("n_inv", process.n_inv), ("n_gen", process.n_gen)):
        if steps > timesteps:
            raise UserError(
                f"{name} {steps}: the model {folder.name} has {timesteps} timesteps, so give {timesteps} or less"
            )


def _t_top(edits: Sequence[BoundEdit]) -> int | None:
    """Where the first edit, or the noise of boosting, begins; None: at T."""
    starts = [t_start for bound in edits for t_start in bound.t_starts]
    known = [t_start for t_start in starts if t_start is not None]
    return max([*known, *(bound.t_boost for bound in edits)]) if len(known) == len(starts) else None


def _image_size(spec: RunSpec, folder: ModelFolder, infos: dict[str, DirectionInfo]) -> int:
    """The pixels per side of an image.

    Raises:
        UserError: for a size that the net or a direction does not take.
    """
    size = spec.image_size or folder.image_size
    step = 2 ** (len(folder.config["block_out_channels"]) - 1)
    if size % step:
        raise UserError(f"image_size {size}: the model {spec.model} takes sizes that are multiples of {step}")
    own = [name for name, info in infos.items() if info.form != "implicit"]
    if size != folder.image_size and own:
        raise UserError(
            f"image_size {size}: direction '{own[0]}' holds shifts of h at the model's own size, {folder.image_size}; "
            "only implicit directions, as learned from texts, act at others"
        )
    return size


def _identity(spec: RunSpec, folder: ModelFolder, settings: MethodSettings) -> dict[str, Any]:
    """All values that the outputs depend on, with digests instead of names and numbers instead of suggestions."""
    identity = spec.identity() | {
        "edits": [bound.edit.id for bound in settings.edits],
        "image_size": settings.image_size,
        "model_digest": settings.model_digest,
        "directions": {name: source.digest for name, source in settings.directions.items()},
        "intervals": {
            bound.edit.id: [edit_columns(bound, settings.directions)["t_edit"], bound.t_boost]
            for bound in settings.edits
        },
    }
    if schedule := read_scheduler(folder.scheduler).model_dump(exclude_defaults=True):
        identity |= {"schedule": schedule}
    if settings.solver != "ddim" and spec.stages == "staged":
        identity |= {"t_top": settings.t_top}
    if settings.inspection:
        identity |= {"judged_by": judged_by(settings.inspection)}
    return identity


def _directions(spec: RunSpec, folder: ModelFolder) -> tuple[dict[str, DirectionInfo], dict[str, DirectionSource]]:
    """The directions that the edits name: the spec's own first, then those that come with the model."""
    known = [*folder.direction_files(), *spec.directions]
    infos, sources = {}, {}
    for name in dict.fromkeys(name for edit in spec.parsed_edits() for name, _ in edit.weights):
        if name not in known:
            have = ", ".join(known) or "none"
            raise UserError(
                f"there is no direction '{name}' for the model {spec.model} (there are: {have}): "
                f"give its file with --direction {name}=FILE"
            )
        url = spec.directions.get(name)
        path = direction_path(folder, name, url)
        infos[name] = read_info(path)
        check_model(infos[name], folder.digest, spec.model)
        sources[name] = DirectionSource(url, file_digest(path))
    return infos, sources


def _with_learned_intervals(spec: RunSpec, infos: dict[str, DirectionInfo], folder: ModelFolder) -> RunSpec:
    """Replace 'auto' in the spec by timesteps from learned intervals, so that numbers identify the run."""
    if unknown := set(spec.t_edit.directions) - infos.keys():
        raise UserError(f"t_edit: no edit uses a direction '{min(unknown)}'")
    if not spec.t_edit.learned and spec.t_boost != AUTO:
        if spec.intervals:
            raise UserError("--intervals is of no use without --t-edit auto (or per-image) or --t-boost auto")
        return spec
    path = fetch(spec.intervals) if spec.intervals else None
    learned = intervals.load_for(path, folder.digest, spec.model)
    found: dict[str, Any] = {"intervals": None}
    if spec.t_edit.learned:
        timesteps = {name: _learned_t_edit(learned, name, info) for name, info in infos.items()}
        distances = {name: learned.thresholds.t_edit * _text_cosine(name, info) for name, info in infos.items()}
        found["t_edit"] = spec.t_edit.settled(timesteps, learned.measure, distances)
    if spec.t_boost == AUTO:
        found["t_boost"] = _reached(learned.t_boost(), "t_boost", learned.thresholds.t_boost)
        log.info("t_boost is %d, measured by %s", found["t_boost"], learned.measure)
    return spec.model_copy(update=found)


def _learned_t_edit(learned: Intervals, name: str, info: DirectionInfo) -> int:
    """The t_edit that learned intervals give for the cosine of a direction's texts.

    The cosine is in the direction's file. It is taken as 1 if the direction was not found by texts.
    """
    cosine = _text_cosine(name, info)
    t_edit = _reached(learned.t_edit(cosine), "t_edit", learned.thresholds.t_edit * cosine)
    noted = info.notes.get("text_cosine", "not known, and taken as 1")
    log.info("t_edit of %s is %d: the cosine of its texts is %s", name, t_edit, noted)
    return t_edit


def _text_cosine(name: str, info: DirectionInfo) -> float:
    cosine = float(info.notes.get("text_cosine", 1.0))
    if cosine <= 0:
        raise UserError(f"the texts of direction '{name}' are opposites (cosine {cosine:g}): give --t-edit as a number")
    return cosine


def _reached(t: int | None, name: str, threshold: float) -> int:
    if t is None:
        raise UserError(f"the distances of these intervals never reach {threshold:g}: give --{name.replace('_', '-')}")
    return t


def _bind_all(spec: RunSpec, infos: dict[str, DirectionInfo]) -> tuple[BoundEdit, ...]:
    """The edits with their intervals. Edits that images draw are computed together, so they share one t_boost."""
    edits = tuple(_bind(edit, spec, infos) for edit in spec.parsed_edits())
    if spec.augmentation is None:
        return edits
    t_boost = min(bound.t_boost for bound in edits)
    return tuple(replace(bound, t_boost=t_boost) for bound in edits)


def _bind(edit: Edit, spec: RunSpec, infos: dict[str, DirectionInfo]) -> BoundEdit:
    """Bind an edit to its intervals.

    t_boost is a property of the data. If the directions suggest several, the smallest is used, because it adds the
    least noise.
    """
    of_edit = [infos[name] for name, _ in edit.weights]
    t_edits = [_t_edit(name, spec, infos) for name, _ in edit.weights]
    t_boost = min((info.t_boost for info in of_edit if info.t_boost is not None), default=0)
    if spec.combine == "official" and len(of_edit) > 1:
        # Both bounds come from the direction whose texts are the most alike: it has the largest t_edit.
        closest = max(range(len(of_edit)), key=lambda i: (t_edits[i], of_edit[i].t_edit or 0))
        t_edits = [t_edits[closest]] * len(t_edits)
        t_boost = of_edit[closest].t_boost or 0
        edit = official_sum(edit)
    t_starts = tuple(info.t_start for info in of_edit)
    return BoundEdit(edit, t_starts, tuple(t_edits), t_boost if spec.t_boost is None else int(spec.t_boost))


def _t_edit(name: str, spec: RunSpec, infos: dict[str, DirectionInfo]) -> int:
    """The end of a direction's interval. The spec gives it, else the direction's file suggests it."""
    info = infos[name]
    given = spec.t_edit.of(name)
    t_edit = info.t_edit if given is None else given
    if t_edit is None:
        raise UserError(f"direction '{info.name}' suggests no t_edit: give --t-edit (400 to 700 is usual)")
    if not inside(t_edit, info.t_start, t_edit):
        raise UserError(
            f"direction '{info.name}' begins at {info.t_start}, so it cannot end at {t_edit}: give a smaller t_edit"
        )
    return t_edit
