"""Measures the edits of a finished run, as a stage beside those of the run, which stay as they are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyrp.errors import UserError
from asyrp.measures.names import METRICS
from jobs.runs.growth import spec_of
from jobs.runs.inspection import judged_by
from jobs.runs.record import recorded_stages
from jobs.runs.resolve import resolve
from jobs.runs.run import Display, compute, no_display
from jobs.runs.run_file import read_run
from jobs.runs.session import read_state
from jobs.spec.inspection import InspectionSpec
from jobs.spec.run import EngineSpec
from pipeline.images.statuses import FETCH_ERROR
from pipeline.results.rows import ResultReader, Results
from pipeline.results.summaries import summaries
from pipeline.run.commit import commit_name, committed, read_commit
from pipeline.run.progress import RunState, StateReader
from pipeline.run.stage import FINAL, ImageFormat, Stage
from pipeline.stages.evaluation import (
    Evaluation,
    EvaluationSettings,
    evaluation_functions,
    evaluation_stage,
    record_evaluation,
)
from pipeline.storage.store import Store

if TYPE_CHECKING:  # Ray loads only where there is something to compute
    from pipeline.engine.driver import Outcome


@dataclass(frozen=True, kw_only=True)
class PreparedEvaluation:
    """An evaluation that is ready to run. `shards` are those that the run has committed, `images` the number of their
    images."""

    evaluation: Evaluation
    stage: Stage
    settings: EvaluationSettings
    image_format: ImageFormat
    shards: Sequence[int]
    images: int


@dataclass(frozen=True)
class EvaluationResult:
    """How a call of `evaluate` ended, and the state and results of the evaluation now.

    `outcome` is None if nothing was left to do. `unread` counts the rows that could not be measured, by reason.
    """

    evaluation: Evaluation
    outcome: "Outcome | None"
    state: RunState
    results: Results
    unread: Mapping[str, int]


def evaluate(
    root: str, asked: InspectionSpec, engine: EngineSpec, again: bool = False, display: Display = no_display
) -> EvaluationResult:
    """Measures the committed shards of a run that this evaluation has not measured yet. With `again` it also measures
    the shards with images that could not be read.

    Raises:
        UserError: as `prepare` does.
    """
    store, prepared = Store(root), prepare(root, asked, engine)
    if again:
        _forget_unread(store, prepared.stage)
    reader = StateReader(store, {prepared.stage.name: (len(prepared.shards), prepared.images)})
    outcome = None
    if not reader.read().complete:
        outcome = compute(
            store,
            [prepared.stage],
            load=evaluation_functions,
            settings=prepared.settings,
            image_format=prepared.image_format,
            knobs=engine,
            shards=prepared.shards,
            display=display(reader),
        )
    results = ResultReader(store, [prepared.stage]).read()
    return EvaluationResult(
        evaluation=prepared.evaluation,
        outcome=outcome,
        state=reader.read(),
        results=results,
        unread=_unread(results),
    )


def prepare(root: str, asked: InspectionSpec, engine: EngineSpec) -> PreparedEvaluation:
    """Prepares an evaluation, and records it as the one that was asked for last.

    Raises:
        UserError: if there is no run of edits at the root, or it has no images yet; if finished images are not enough
            for what is asked.
    """
    _refuse_what_needs_a_run(asked)
    store, spec = Store(root), spec_of(root, engine)
    if spec.augmentation:
        raise UserError(
            f"the images at {root} have drawn edits of their own, which evaluate cannot measure: give inspection in "
            "the spec of the run, so that they are measured while they are made"
        )
    shards = sorted(committed(store, FINAL))
    if not shards:
        raise UserError(f"the run at {root} has no edited images yet: finish it first")
    resolved = resolve(spec.model_copy(update={"inspection": asked}))
    assert resolved.settings.inspection is not None
    identity = {"inspection": asked.model_dump(mode="json"), "judged_by": judged_by(resolved.settings.inspection)}
    evaluation = record_evaluation(store, identity)
    final = next(stage for stage in recorded_stages(read_run(store)) if stage.name == FINAL)
    stage, images = evaluation_stage(evaluation, final), read_state(store).stages[FINAL].images_done
    return PreparedEvaluation(
        evaluation=evaluation,
        stage=stage,
        settings=EvaluationSettings(resolved.settings),
        image_format=resolved.image_format,
        shards=shards,
        images=images,
    )


def _refuse_what_needs_a_run(asked: InspectionSpec) -> None:
    if not asked.metrics and asked.classifier is None:
        raise UserError("nothing to measure: give --metric, or a classifier")
    if lost := [name for name in asked.measured() if METRICS[name].of == "reconstruction"]:
        raise UserError(
            f"{', '.join(lost)} cannot be measured of finished images, only while they are made: give the run --metric"
        )
    if asked.gates or asked.search or asked.retry:
        raise UserError("an evaluation measures and changes nothing: gates, search and retry are for a run")


def _forget_unread(store: Store, stage: Stage) -> None:
    """Deletes the commits of shards in which an image could not be read, so that they are measured again."""
    for shard in sorted(committed(store, stage.name)):
        if read_commit(store, stage.name, shard).statuses.get(FETCH_ERROR):
            store.delete(commit_name(stage.name, shard))


def _unread(results: Results) -> dict[str, int]:
    """The number of rows whose images could not be read, by reason: images that the evaluation could not read, and
    images that the run itself could not read."""
    codes = results.errors.codes[results.statuses.equals(FETCH_ERROR)]
    return dict(Counter(results.errors.names[code] for code in codes.tolist() if code >= 0).most_common())


def as_json(found: EvaluationResult) -> dict[str, Any]:
    """An evaluation for machines."""
    by_edit = {
        edit: {name: vars(summary) for name, summary in by_metric.items()}
        for edit, by_metric in summaries(found.results).items()
    }
    return {
        "evaluation": found.evaluation.id,
        "complete": found.state.complete,
        "rows": dict(found.state.stages[found.evaluation.stage].rows),
        "metrics": by_edit,
        "unread": dict(found.unread),
        "session": found.outcome.as_json() if found.outcome else None,
    }
