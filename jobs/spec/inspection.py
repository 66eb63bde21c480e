"""The `inspection` of a spec: the metrics of edits, the gates that edits must pass, and the search for strengths."""

from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Field, field_validator, model_validator

from asyrp.directions.search import Bisection, Ladder, Search
from asyrp.errors import UserError
from asyrp.measures.names import METRICS, OF_CLIP, SCORE, SOURCE_SCORE
from asyrp.numbers import number
from jobs.spec.mistakes import CHECKED, alternative
from jobs.spec.paths import Net
from pipeline.images.selection import Condition

Strength = Annotated[float, Field(gt=0)]


class BisectionSpec(BaseModel):
    """A search that halves the range of strengths from `low` to `high` for a number of `steps`."""

    model_config = CHECKED

    low: float = Field(0, ge=0)
    high: Strength
    steps: int = Field(4, ge=1, le=12)

    @model_validator(mode="after")
    def _ascends(self) -> "BisectionSpec":
        if self.high <= self.low:
            raise ValueError(f"high must be more than low, and {self.high:g} is not more than {self.low:g}")
        return self


class RetrySpec(BaseModel):
    """How an image is inverted again if a gate refuses its reconstruction."""

    model_config = CHECKED

    refine: int = Field(3, ge=0, le=20, description="Fixed-point iterations per inversion step.")
    n_inv: int | None = Field(None, ge=2, le=1000, description="Inversion steps. [default: as the first time]")


class ClassifierSpec(BaseModel):
    """A net that scores images: a .pt or .onnx file, or MODULE:NAME. An image has a label if its
    score is at least `threshold`."""

    model_config = CHECKED

    file: Net
    labels: list[str] = Field(min_length=1)
    threshold: float = Field(0.5, description="The score from which on a label is there: 0 for logits.")


def _kind(value: Any) -> str:
    return "(halving)" if isinstance(value, dict | BisectionSpec) else "(strengths)"


Rungs = Annotated[list[Strength], Field(min_length=1), alternative("strengths")]
Halving = Annotated[BisectionSpec, alternative("halving")]


class InspectionSpec(BaseModel):
    """What is measured: the `metrics`, and those that gates compare. All fields are part of a run's identity."""

    model_config = CHECKED

    metrics: list[str] = Field(
        default_factory=list, description=f"Metrics to measure of every edit. Known: {', '.join(METRICS)}."
    )
    gates: list[str] = Field(
        default_factory=list,
        description="Conditions on metrics, such as 'recon_psnr > 25'. An edit that fails one is dropped.",
    )
    search: Annotated[Rungs | Halving, Discriminator(_kind)] | None = Field(
        None, description="Strengths to try, times each edit's own. Each image gets the smallest that passes the gates."
    )
    retry: RetrySpec | None = None
    sample: float = Field(1.0, gt=0, le=1, description="Only this share of the images is measured, chosen by key.")
    clip: str | None = Field(None, description="A CLIP. [default: the one that belongs to the model]")
    texts: dict[str, tuple[str, str]] = Field(default_factory=dict, description="Source and target text of each edit.")
    identity: Net | None = Field(None, description="A face model that gives embeddings.")
    segmenter: Net | None = Field(None, description="A net that gives classes of pixels. [default: the model's]")
    classifier: ClassifierSpec | None = None

    @field_validator("metrics")
    @classmethod
    def _metrics_are_known(cls, names: list[str]) -> list[str]:
        for name in names:
            if name not in METRICS:
                raise ValueError(f"there is no metric '{name}': known are {', '.join(METRICS)}")
        return names

    @field_validator("gates")
    @classmethod
    def _gates_parse(cls, texts: list[str]) -> list[str]:
        conditions = [part for text in texts for part in text.split(" and ")]
        try:
            parsed = list(map(Condition.parse, conditions))
        except UserError as error:
            raise ValueError(str(error)) from error
        for condition in parsed:
            if number(condition.value) is None:
                raise ValueError(f"'{condition}' compares with no number")
        return conditions

    @model_validator(mode="after")
    def _belongs_together(self) -> "InspectionSpec":
        labels = self.classifier.labels if self.classifier else []
        scores = [f"{prefix}{label}" for prefix in (SCORE, SOURCE_SCORE) for label in labels]
        for condition in self.conditions():
            if condition.column not in METRICS and condition.column not in scores:
                raise ValueError(
                    f"the gate '{condition}' is on nothing that is measured: metrics are {', '.join(METRICS)}, and "
                    f"with a classifier {SCORE}LABEL and {SOURCE_SCORE}LABEL (there are: {', '.join(labels) or 'none'})"
                )
        if "identity" in self.measured() and self.identity is None:
            raise ValueError("the metric identity needs a face model: give identity: FILE")
        if "kept" in self.measured() and self.classifier is None:
            raise ValueError("the metric kept needs a classifier: give classifier: with file: and labels:")
        if self.search is not None and not self.gates:
            raise ValueError("a search needs gates that an edit can pass")
        if self.gates and self.sample < 1:
            raise ValueError("gates need every image measured, so sample must be 1")
        if self.retry and not any(
            c.column in METRICS and METRICS[c.column].of == "reconstruction" for c in self.conditions()
        ):
            raise ValueError(
                "retry is for images that a gate on recon_psnr, recon_lpips or recon_clip refuses: give one"
            )
        return self

    def conditions(self) -> tuple[Condition, ...]:
        return tuple(map(Condition.parse, self.gates))

    def measured(self) -> tuple[str, ...]:
        """All metrics that are asked for, by name or by a gate."""
        of_gates = [condition.column for condition in self.conditions() if condition.column in METRICS]
        return tuple(dict.fromkeys([*self.metrics, *of_gates]))

    def needs_clip(self) -> bool:
        return bool(OF_CLIP & set(self.measured()))

    def searching(self) -> Search | None:
        if self.search is None:
            return None
        if isinstance(self.search, BisectionSpec):
            return Bisection(self.search.low, self.search.high, self.search.steps)
        return Ladder(tuple(sorted(set(self.search))))
