"""Reads run.json, and checks its shape: the types of the fields that commands read."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from asyrp.diffusion.moves import SolverName
from asyrp.errors import UserError
from pipeline.augmentation.draws import Census
from pipeline.images.codec import Codec, Fit
from pipeline.run.plan import RUN, PlanSummary
from pipeline.run.stage import FINAL, Stage
from pipeline.storage.records import Count, Record, StageName
from pipeline.storage.store import Store, explained

FORMAT = 2
STAGES_DERIVED = 1
"""The format before stages were recorded. Its `stages` has only their sizes; the rest is derived from the spec."""

Steps = Annotated[int, Field(ge=2, le=1000)]


@dataclass(frozen=True)
class RunFile:
    """What every run has. The format before stages were recorded has only their sizes."""

    format: int
    spec: dict[str, Any]
    identity: dict[str, Any]
    identity_hash: str
    plan: PlanSummary
    stages: list[Stage] | dict[StageName, tuple[Count, Count]]
    created_at: str = ""
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Declared:
    stages: Annotated[list[Stage], Field(min_length=1)]


@dataclass(frozen=True)
class _Sizes:
    stages: Annotated[dict[StageName, tuple[Count, Count]], Field(min_length=1)]


@dataclass(frozen=True)
class _SizesOfStatistics:
    stages: Annotated[dict[StageName, tuple[Count, Count]], Field(min_length=1, max_length=1)]


@dataclass(frozen=True)
class _Source:
    source: str


@dataclass(frozen=True)
class AnyRun:
    """What every spec has."""

    spec: _Source


@dataclass(frozen=True)
class _EditSpec:
    model: str
    edits: list[str]
    name: str
    codec: Codec
    stages: Literal["fused", "staged"]
    preview: Count
    inversions: str | None
    n_inv: Steps
    n_gen: Steps
    solver: SolverName | None = None
    refine: Count = 0
    augmentation: dict[str, Any] | None = None
    inspection: dict[str, Any] | None = None


@dataclass(frozen=True)
class _EditIdentity:
    image_size: Count
    fit: Fit
    model_digest: str
    directions: dict[str, str]
    intervals: dict[str, tuple[Any, int]]


@dataclass(frozen=True)
class EditingRun:
    """What a run of edits has besides."""

    spec: _EditSpec
    identity: _EditIdentity


@dataclass(frozen=True)
class _Uniform:
    uniform: tuple[float, float]


@dataclass(frozen=True)
class _Option:
    edit: str
    strength: _Uniform | list[float] | float
    weight: float
    where: list[str]


@dataclass(frozen=True)
class _Augmentation:
    edits: list[_Option]
    draws: Count
    balance: list[str]
    seed: int


@dataclass(frozen=True)
class _AugmentationSpec:
    augmentation: _Augmentation


@dataclass(frozen=True)
class _AugmentationPlan:
    census: Census


@dataclass(frozen=True)
class AugmentingRun:
    """What a run that draws its edits has besides."""

    spec: _AugmentationSpec
    plan: _AugmentationPlan


def shapes(record: Mapping[str, Any]) -> Iterator[type[Any]]:
    """The shapes that a run.json must have besides that of RunFile, by the kind of its run."""
    yield AnyRun
    stages, edits = record["stages"], "edits" in record["spec"]
    if record["format"] == STAGES_DERIVED:
        yield _Sizes if edits else _SizesOfStatistics
        names = list(stages)
    else:
        yield _Declared
        names = [stage["name"] for stage in stages]
    if edits or FINAL in names:
        yield EditingRun
        if record["spec"].get("augmentation"):
            yield AugmentingRun


def read_run(store: Store) -> dict[str, Any]:
    """The contents of run.json.

    Raises:
        UserError: if there is no run at this root, or run.json is damaged, of a later version, or out of reach.
    """
    record = open_record(store, RUN, f"there is no run at {store.url}: it has no {RUN}")
    record.of(RunFile, formats=(STAGES_DERIVED, FORMAT))
    contents = record.json()
    for shape in shapes(contents):
        record.of(shape)
    return contents


def open_record(store: Store, name: str, absent: str) -> Record:
    """The record that marks the kind of a root, such as run.json.

    Raises:
        UserError: if the record is not there, with the message `absent`; if it is too large, or out of reach.
    """
    with explained(f"cannot reach {store.url}"):
        try:
            return Record(store, name)
        except FileNotFoundError:
            raise UserError(absent) from None
