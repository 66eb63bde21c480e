"""Edits rendered faces and scores them with the judge."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asyrp.diffusion.process import Shift, Step, asyrp_step, edit, invert
from asyrp.diffusion.schedule import generation_pairs, inversion_pairs
from asyrp.directions.shift import EditShift
from asyrp.models.load import Model
from tools.judge import judged, label_matrix, to_batch
from tools.render_avatars import LABELS

BATCH = 64


@dataclass(frozen=True)
class Score:
    """Shares in 0..1: `target`, of faces whose target attribute is as wanted; `others`, of other labels kept."""

    target: float
    others: float


class Trial:
    """Rendered faces with their x_T. All edits of a face start from the same inversion."""

    def __init__(self, model: Model, judge: nn.Module, faces: dict, n_steps: int = 40, refine: int = 2) -> None:
        self.model, self.judge = model, judge
        self.truth = label_matrix(faces).bool()
        self.pairs = generation_pairs(n_steps)
        self.x_0 = to_batch(faces["images"])
        with torch.inference_mode():
            unet, schedule = model.unet, model.schedule
            inverted = [invert(unet, schedule, x, inversion_pairs(n_steps), refine) for x in self.x_0.split(BATCH)]
        self.x_T = torch.cat(inverted)

    @torch.inference_mode()
    def edited(self, chosen: Tensor, shift: Shift, step: Step = asyrp_step) -> Tensor:
        """The faces of `chosen` (indices) after an edit without boosting."""
        unet, schedule = self.model.unet, self.model.schedule
        parts = [edit(unet, schedule, x, self.pairs, shift, step) for x in self.x_T[chosen].split(BATCH)]
        return torch.cat(parts)

    def score(self, name: str, shift: Shift, add: bool = True, step: Step = asyrp_step, most: int = 10**6) -> Score:
        """The score of adding (or removing) attribute `name` on up to `most` faces that lack (or have) it."""
        index = LABELS.index(name)
        chosen = torch.nonzero(self.truth[:, index] != add)[:most, 0]
        seen = judged(self.judge, self.edited(chosen, shift, step))
        others = [i for i in range(len(LABELS)) if i != index]
        kept = seen[:, others] == self.truth[chosen][:, others]
        return Score((seen[:, index] == add).float().mean().item(), kept.float().mean().item())

    def reconstruction(self, most: int = 64) -> float:
        """The share of labels that inverting and generating up to `most` faces without an edit keeps."""
        chosen = torch.arange(len(self.x_T))[:most]
        seen = judged(self.judge, self.edited(chosen, EditShift((), len(self.pairs))))
        return (seen == self.truth[chosen]).float().mean().item()
