"""The `augmentation` of a spec: the edits that the images of a data set draw."""

from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Field, field_validator, model_validator

from asyrp.directions.edits import Edit, parse_edit
from asyrp.errors import UserError
from jobs.spec.mistakes import CHECKED, alternative
from jobs.spec.paths import Url
from pipeline.images.selection import Condition
from pipeline.stages.settings import unit_edit

Strength = Annotated[float, Field(gt=0)]


class UniformSpec(BaseModel):
    """Any strength between two."""

    model_config = CHECKED

    uniform: tuple[Strength, Strength]

    @field_validator("uniform")
    @classmethod
    def _ascends(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if ends[0] >= ends[1]:
            raise ValueError("give the smaller strength first, and a larger one")
        return ends


def _strength_kind(value: Any) -> str:
    if isinstance(value, dict | UniformSpec):
        return "(between)"
    return "(any of)" if isinstance(value, list) else "(one)"


def _labels_kind(value: Any) -> str:
    return "(source columns)" if isinstance(value, list) else "(label table)"


Strengths = (
    Annotated[UniformSpec, alternative("between")]
    | Annotated[list[Strength], Field(min_length=1), alternative("any of")]
    | Annotated[Strength, alternative("one")]
)


class OptionSpec(BaseModel):
    """An edit that images may draw: its strengths, its weight beside others, which images, and the resulting labels."""

    model_config = CHECKED

    edit: str
    strength: Annotated[Strengths, Discriminator(_strength_kind)] = Field(
        1.0, description="Strengths, times the edit's own."
    )
    weight: Strength = 1.0
    where: list[str] = Field(default_factory=list, description="Conditions on labels: all must hold.")
    sets: dict[str, float] = Field(
        default_factory=dict,
        description="Labels of the result. [default: 1 or 0 for labels that are called like a direction]",
    )

    @field_validator("edit")
    @classmethod
    def _edit_parses(cls, text: str) -> str:
        try:
            edit = parse_edit(text)
        except UserError as error:
            raise ValueError(str(error)) from error
        if not edit.strength or not any(weight for _, weight in edit.weights):
            raise ValueError("an edit that does nothing cannot be drawn")
        return text

    @field_validator("where")
    @classmethod
    def _conditions_parse(cls, texts: list[str]) -> list[str]:
        parts = [part for text in texts for part in text.split(" and ")]
        try:
            for part in parts:
                Condition.parse(part)
        except UserError as error:
            raise ValueError(str(error)) from error
        return parts

    def parsed(self) -> Edit:
        return parse_edit(self.edit)

    def conditions(self) -> tuple[Condition, ...]:
        return tuple(map(Condition.parse, self.where))


class AugmentationSpec(BaseModel):
    """Each image draws up to `draws` edits; the image itself stays in the data set. All fields are part of a run's
    identity."""

    model_config = CHECKED

    edits: list[OptionSpec] = Field(min_length=1)
    draws: int = Field(1, ge=1, le=100, description="The most edits that one image draws.")
    labels: Annotated[
        Annotated[list[str], alternative("source columns")] | Annotated[Url, alternative("label table")],
        Discriminator(_labels_kind),
    ] = Field(default_factory=list, description="Labels of the images: a table by key, or columns of the source.")
    balance: list[str] = Field(
        default_factory=list,
        description="Labels whose groups are to be equally large: images draw as many edits as that takes.",
    )
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _belongs_together(self) -> "AugmentationSpec":
        if self.labels == [] and (wanted := self.mentioned()):
            raise ValueError(f"'{wanted[0]}' is to be a label, so give labels: a table, or columns of the source")
        return self

    def mentioned(self) -> list[str]:
        """The labels that balance, conditions and results name."""
        of_edits = [name for option in self.edits for name in (*(c.column for c in option.conditions()), *option.sets)]
        return list(dict.fromkeys([*self.balance, *of_edits]))

    def label_columns(self) -> list[str]:
        """The columns of the source that are labels."""
        return self.labels if isinstance(self.labels, list) else []

    def unit_edits(self) -> list[Edit]:
        """The edits that can be drawn, each once, at strength 1 or -1."""
        return list(dict.fromkeys(unit_edit(option.parsed()) for option in self.edits))

    def changed(self, edit: Edit) -> set[str]:
        """The labels that an edit is said to change."""
        return {name for option in self.edits if unit_edit(option.parsed()) == edit for name in option.sets}
