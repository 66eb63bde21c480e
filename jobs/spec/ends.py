"""Where edits end: the `t_edit` of a spec, in each of its forms."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, RootModel

from jobs.spec.mistakes import CHECKED, alternative

Timestep = Annotated[int, Field(ge=0, le=999)]
Auto = Literal["auto"]
AUTO: Auto = "auto"
"""Stands for the timestep that learned intervals give."""

PerImage = Literal["per-image"]
PER_IMAGE: PerImage = "per-image"
"""Stands for a timestep for each image: where its own distances reach the thresholds of learned intervals."""


class DistancesSpec(BaseModel):
    """What 'per-image' is settled to: for each direction the distance at which it ends, and a t_edit (`otherwise`) for
    images that are never that far from their P_t."""

    model_config = CHECKED

    measure: str
    distances: dict[str, float]
    otherwise: dict[str, Timestep]


def _one_kind(value: Any) -> str:
    return "(auto)" if value == AUTO else "(timestep)"


def _kind(value: Any) -> str:
    if value == PER_IMAGE:
        return "(per image)"
    if isinstance(value, DistancesSpec) or (isinstance(value, dict) and "distances" in value):
        return "(distances)"
    return "(by direction)" if isinstance(value, dict) else _one_kind(value)


One = Annotated[Timestep, alternative("timestep")] | Annotated[Auto, alternative("auto")]
Each = Annotated[dict[str, Timestep], alternative("by direction")]
OfEach = Annotated[PerImage, alternative("per image")] | Annotated[DistancesSpec, alternative("distances")]
OneEnd = Annotated[One, Discriminator(_one_kind)]
"""A timestep, or 'auto'."""


class Ends(RootModel[Annotated[One | Each | OfEach, Discriminator(_kind)] | None]):
    """The timesteps at which edits end: one for all, one for each direction, or as learned intervals say. Null: those
    that the files of directions suggest."""

    model_config = ConfigDict(frozen=True)

    @property
    def learned(self) -> bool:
        """Whether learned intervals must settle them first."""
        return self.root in (AUTO, PER_IMAGE)

    @property
    def directions(self) -> Collection[str]:
        """The directions that have a timestep of their own."""
        return self.root if isinstance(self.root, dict) else ()

    @property
    def per_image(self) -> DistancesSpec | None:
        """The distances at which the edits of each image end; None if all images end at the same timestep."""
        return self.root if isinstance(self.root, DistancesSpec) else None

    def settled(self, timesteps: Mapping[str, int], measure: str, distances: Mapping[str, float]) -> "Ends":
        """Learned ends as numbers: the timestep of each direction, or the distance if every image has its own end."""
        if self.root == PER_IMAGE:
            return Ends(DistancesSpec(measure=measure, distances=dict(distances), otherwise=dict(timesteps)))
        return Ends(dict(timesteps))

    def of(self, direction: str) -> int | None:
        """The timestep at which a direction ends; None if its file says it. Learned ends must be settled before."""
        ends = self.root.otherwise if isinstance(self.root, DistancesSpec) else self.root
        assert not isinstance(ends, str), "learned ends are not settled"
        return ends.get(direction) if isinstance(ends, dict) else ends
