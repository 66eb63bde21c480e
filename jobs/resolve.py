"""From a spec to a job: the model, the directions and the stages that it names, found and checked."""

from dataclasses import dataclass
from typing import Any

from asyrp.direction_info import DirectionInfo, check_model, file_digest, read_info
from asyrp.edits import Edit, official_sum
from asyrp.errors import UserError
from asyrp.registry import ModelFolder
from jobs.spec import JobSpec
from pipeline.model_source import direction_path, find_model
from pipeline.plan import PlanSummary
from pipeline.recipe import FINAL, BoundEdit, DirectionSource, MethodSettings, declare_stages
from pipeline.stage import ImageFormat, Stage, Variant


@dataclass(frozen=True)
class Job:
    """A spec with all that it names found: ready to be planned and run."""

    spec: JobSpec
    settings: MethodSettings
    stages: list[Stage]
    image_format: ImageFormat
    identity: dict[str, Any]

    @property
    def final(self) -> Stage:
        """The stage whose images are the run's result, fused or staged."""
        return next(stage for stage in self.stages if stage.name == FINAL)

    def stage_sizes(self, plan: PlanSummary) -> dict[str, tuple[int, int]]:
        """Shards and images of each stage."""
        return {stage.name: stage_size(stage, plan) for stage in self.stages}


def stage_size(stage: Stage, plan: PlanSummary) -> tuple[int, int]:
    if stage.sample is None:
        return plan.shards, plan.images
    return 1, min(stage.sample, plan.images, plan.shard_size)


def resolve(spec: JobSpec) -> Job:
    """Find the model and the directions, and bind the edits to them.

    Raises:
        UserError: if one is not there, or they do not belong together.
    """
    folder = find_model(spec.model)
    infos, sources = _directions(spec, folder)
    edits = tuple(_bind(edit, spec, infos) for edit in spec.parsed_edits())
    size = spec.image_size or folder.image_size
    step = 2 ** (len(folder.config["block_out_channels"]) - 1)
    if size % step:
        raise UserError(f"image_size {size}: the model {spec.model} takes sizes that are multiples of {step}")
    settings = MethodSettings(
        model=spec.model,
        model_digest=folder.digest,
        directions=sources,
        edits=edits,
        n_inv=spec.n_inv,
        refine=spec.refine,
        n_gen=spec.n_gen,
        seed=spec.seed,
        dtype=spec.dtype,
        image_size=size,
        device="cpu",
        check=spec.engine.check,
    )
    digests = {name: source.digest for name, source in sources.items()}
    columns = {bound: _columns(bound, infos, digests) for bound in edits}
    variants = tuple(Variant(bound.edit.name, bound.edit.strength, columns[bound]) for bound in edits)
    staged = spec.stages == "staged" or spec.inversions is not None
    stages = declare_stages(variants, settings.columns(), staged, spec.inversions, spec.preview)
    image_format = ImageFormat(size, spec.fit, spec.codec, spec.quality, spec.name, spec.latent_dtype, spec.sink)
    identity = spec.identity() | {
        "edits": [bound.edit.id for bound in edits],
        "image_size": size,
        "model_digest": folder.digest,
        "directions": digests,
        "intervals": {bound.edit.id: [columns[bound]["t_edit"], bound.t_boost] for bound in edits},
    }
    return Job(spec, settings, stages, image_format, identity)


def _directions(spec: JobSpec, folder: ModelFolder) -> tuple[dict[str, DirectionInfo], dict[str, DirectionSource]]:
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


def _bind(edit: Edit, spec: JobSpec, infos: dict[str, DirectionInfo]) -> BoundEdit:
    """t_boost belongs to the data: of several suggestions the smallest, which adds the least noise, holds."""
    of_edit = [infos[name] for name, _ in edit.weights]
    for info in of_edit:
        if spec.t_edit is None and info.t_edit is None:
            raise UserError(f"direction '{info.name}' suggests no t_edit: give --t-edit (400 to 700 is usual)")
    t_edit, suggested = spec.t_edit, [info.t_boost for info in of_edit if info.t_boost is not None]
    t_boost = spec.t_boost if spec.t_boost is not None else min(suggested, default=0)
    if spec.combine == "official" and len(of_edit) > 1:
        # Both bounds are those of the direction whose texts are the most alike: the one with the largest t_edit.
        closest = max(of_edit, key=lambda info: info.t_edit or 0)
        t_edit = closest.t_edit if spec.t_edit is None else spec.t_edit
        t_boost = closest.t_boost or 0 if spec.t_boost is None else spec.t_boost
        edit = official_sum(edit)
    return BoundEdit(edit, t_edit, t_boost)


def _columns(bound: BoundEdit, infos: dict[str, DirectionInfo], digests: dict[str, str]) -> dict[str, Any]:
    names = [name for name, _ in bound.edit.weights]
    own = [t for name in names if (t := infos[name].t_edit) is not None]
    return {
        "direction_digest": ",".join(digests[name] for name in names) or None,
        "t_edit": bound.t_edit if bound.t_edit is not None else min(own, default=None),
        "t_boost": bound.t_boost,
        "eta": 1.0 if bound.t_boost else 0.0,
    }
