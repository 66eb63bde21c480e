"""Says how far a direction from labels can be trusted."""

from dataclasses import dataclass
from typing import Literal

from asyrp.learning.held_out import Auc

Trust = Literal["reliable", "weak", "chance"]

RELIABLE_AUC, RELIABLE_COSINE = 0.9, 0.7
LEAST_COSINE = 0.25
"""A direction with a smaller expected cosine is mostly what the images of both classes differ in by chance."""

SEE = "label more images, choose a label that can be seen, or let CLIP label them (`asyrp directions score`)"

ADD = (
    "add some thousand images without labels, to the source or with --unlabelled: "
    "`asyrp sample -n 2000 -o more/` draws them from the model"
)


@dataclass(frozen=True)
class Verdict:
    """How far a direction can be trusted.

    `told` is how well the label was told from h of images that were not learned from. `cosine` is the cosine that is
    expected with the direction that any number of images would give. `labelled` images had the label, and `others` got
    it from a probe. The direction is edited from `t_start` (None: T) to `t_edit`.
    """

    told: Auc
    t_start: int | None
    t_edit: int
    cosine: float
    labelled: int
    others: int

    @property
    def trust(self) -> Trust:
        if not self.told.beats_chance or self.cosine < LEAST_COSINE:
            return "chance"
        return "reliable" if self.told.value >= RELIABLE_AUC and self.cosine >= RELIABLE_COSINE else "weak"

    def sentence(self) -> str:
        """The verdict in one line."""
        others = f" and {self.others:,} others" if self.others else ""
        return (
            f"held-out AUC {self.told}, edited from {'T' if self.t_start is None else self.t_start} to {self.t_edit}, "
            f"{self.labelled:,} labelled images{others}, expected cosine {self.cosine:.2f}: {self.trust}"
        )

    def advice(self) -> str:
        """What would make the direction better."""
        if not self.told.beats_chance:
            return SEE
        better = ["label more images"] if self.told.value < RELIABLE_AUC else []
        if self.cosine < RELIABLE_COSINE:
            better.append(ADD)
        return ", and ".join(better)
