"""Measures the edits of a finished run, as a stage beside those of the run, which stay as they are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyrp.errors import UserError
from asyrp.measures.names import METRICS
from jobs.runs.growth import spec_of
from jobs.runs.inspection import judged_by
from jobs.runs.record import read_run, recorded_stages
from jobs.runs.resolve import resolve
from jobs.runs.run import Display, compute, no_display
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


@dataclass(frozen=True)
class PreparedEvaluation:
    """An evaluation that is ready to run over the shards that the run has committed, which hold so many images."""

    evaluation: Evaluation
    stage: Stage
    settings: EvaluationSettings
    image_format: ImageFormat
    shards: Sequence[int]
    images: int


@dataclass(frozen=True)
class Evaluated:
    """How a call of `evaluate` ended, and what there is of the evaluation now. `outcome` is None where nothing was left
    to do, `unread` says why images could not be measured, and of how many rows."""

    evaluation: Evaluation
    outcome: "Outcome | None"
    state: RunState
    results: Results
    unread: Mapping[str, int]


def evaluate(
    root: str, asked: InspectionSpec, engine: EngineSpec, again: bool = False, display: Display = no_display
) -> Evaluated:
    """Measure what a run has committed and this evaluation has not measured yet; with `again`, also the shards with
    images that could not be read.

    Raises:
        UserError: as `prepare` does.
    """
    store, work = Store(root), prepare(root, asked, engine)
    if again:
        _forget_unread(store, work.stage)
    reader = StateReader(store, {work.stage.name: (len(work.shards), work.images)})
    outcome = None
    if not reader.read().complete:
        outcome = compute(
            store,
            [work.stage],
            load=evaluation_functions,
            settings=work.settings,
            image_format=work.image_format,
            knobs=engine,
            shards=work.shards,
            display=display(reader),
        )
    results = ResultReader(store, [work.stage]).read()
    return Evaluated(work.evaluation, outcome, reader.read(), results, _unread(results))


def prepare(root: str, asked: InspectionSpec, engine: EngineSpec) -> PreparedEvaluation:
    """What there is to do for an evaluation, which is noted as the one last asked for.

    Raises:
        UserError: if there is no run of edits at the root, or it has no images yet; for what cannot be measured of
            finished images.
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
    """Let the shards be measured again in which something could not be read."""
    for shard in sorted(committed(store, stage.name)):
        if read_commit(store, stage.name, shard).statuses.get(FETCH_ERROR):
            store.delete(commit_name(stage.name, shard))


def _unread(results: Results) -> dict[str, int]:
    """Why rows have no numbers, other than that they have no image, and how many; of what the run itself could not read
    the evaluation says the same."""
    codes = results.errors.codes[results.statuses.equals(FETCH_ERROR)]
    return dict(Counter(results.errors.names[code] for code in codes.tolist() if code >= 0).most_common())


def as_json(found: Evaluated) -> dict[str, Any]:
    """An evaluation for machines."""
    by_edit = {
        edit: {name: vars(summary) for name, summary in of.items()} for edit, of in summaries(found.results).items()
    }
    return {
        "evaluation": found.evaluation.id,
        "complete": found.state.complete,
        "rows": dict(found.state.stages[found.evaluation.stage].rows),
        "metrics": by_edit,
        "unread": dict(found.unread),
        "session": found.outcome.as_json() if found.outcome else None,
    }
