"""Evaluations: they measure the final images of a run against their sources, as a stage of the same root.

The manifests of an evaluation have the rows of the final stage, in the same order, with metrics and without outputs.
Its settings identify it: a call with the same settings goes on with the evaluation, and other settings begin a new one.
`evaluations/<id>.json` holds the settings and the time of the last call.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from asyrp.digests import json_digest
from pipeline.run.stage import FINAL, BatchFunction, Measured, Stage
from pipeline.stages.settings import MethodSettings
from pipeline.storage.records import read_checked
from pipeline.storage.store import Store

if TYPE_CHECKING:  # a driver that has nothing to compute does without torch
    from torch import Tensor

FOLDER = "evaluations"
FUNCTION = "evaluate"


@dataclass(frozen=True)
class Evaluation:
    """An evaluation. `settings` say what is measured and by which nets; `asked_at` is the time of the last call."""

    id: str
    settings: Mapping[str, Any]
    asked_at: str

    @property
    def stage(self) -> str:
        """The name of its stage."""
        return f"evaluate-{self.id}"

    @property
    def title(self) -> str:
        """Its name beside its numbers, in reports."""
        clip = f", CLIP {self.settings['judged_by']['clip']}" if self.settings["judged_by"]["clip"] else ""
        return f"evaluation {self.id} of {self.asked_at[:16].replace('T', ' ')}{clip}"


@dataclass(frozen=True)
class _JudgedBy:
    clip: str | None


@dataclass(frozen=True)
class _Settings:
    judged_by: _JudgedBy


@dataclass(frozen=True)
class _Record:
    """The fields of the record of an evaluation that are read here."""

    settings: _Settings
    asked_at: str


def record_evaluation(store: Store, settings: Mapping[str, Any]) -> Evaluation:
    """Note that an evaluation is asked for now."""
    digest = json_digest(settings)
    evaluation = Evaluation(digest[:12], settings, datetime.now(UTC).isoformat())
    record = {"settings": settings, "asked_at": evaluation.asked_at}
    store.write(f"{FOLDER}/{evaluation.id}.json", json.dumps(record, indent=1).encode())
    return evaluation


def is_record(name: str) -> bool:
    """Whether a file of the folder has the name of the record of an evaluation."""
    return re.fullmatch(r"[0-9a-f]{12}\.json", name) is not None


def read_evaluations(store: Store) -> list[Evaluation]:
    """All evaluations of a run, the one last asked for at the end."""
    found = []
    for name in filter(is_record, store.names(FOLDER)):
        record = read_checked(store, f"{FOLDER}/{name}", _Record)
        found.append(Evaluation(name.removesuffix(".json"), record["settings"], record["asked_at"]))
    return sorted(found, key=lambda evaluation: evaluation.asked_at)


def evaluation_stage(evaluation: Evaluation, final: Stage) -> Stage:
    """The stage that measures what `final` made."""
    variants = tuple(replace(variant, columns={}) for variant in final.variants)
    return Stage(
        name=evaluation.stage, function=FUNCTION, reads=FINAL, writes="metrics", variants=variants, with_source=True
    )


@dataclass(frozen=True)
class EvaluationSettings:
    """What the metrics of finished images depend on. Picklable: it travels to the actors, which load the nets."""

    method: MethodSettings
    device: str = "cpu"


def evaluation_functions(settings: EvaluationSettings) -> Mapping[str, BatchFunction]:
    """The function of the stage: final images, with their sources last, to their metrics."""
    from pipeline.stages.inspection import Measurer

    assert settings.method.inspection is not None
    measurer = Measurer(settings.method.inspection, settings.method.edits, settings.device)

    def evaluate(batch: "Tensor", keys: Sequence[str]) -> Measured:
        on_device = batch.to(settings.device)
        return measurer.measured(on_device[:, -1], on_device[:, :-1], keys)

    return {FUNCTION: evaluate}
