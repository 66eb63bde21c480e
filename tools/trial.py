"""Edits rendered faces and scores them with the judge."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asyrp.diffusion.process import edit, symmetric_step
from asyrp.diffusion.schedule import generation_pairs
from asyrp.diffusion.solvers import DDIM, Solver
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
    """Rendered faces with their inversions. All edits of a face start from the same one.

    The solver is DDIM in `n_steps` steps, unless another one is given.
    """

    def __init__(
        self,
        model: Model,
        judge: nn.Module,
        faces: dict,
        n_steps: int = 40,
        refine: int = 2,
        solver: Solver | None = None,
    ) -> None:
        self.model, self.judge = model, judge
        self.truth = label_matrix(faces).bool()
        self.pairs = generation_pairs(n_steps)
        self.solver = solver or DDIM(model.unet, model.schedule, n_steps, n_steps, refine)
        self.x_0 = to_batch(faces["images"])
        with torch.inference_mode():
            self.inversion = torch.cat([self.solver.invert(x) for x in self.x_0.split(BATCH)])

    @property
    def x_T(self) -> Tensor:
        """The inverted latents of DDIM."""
        return self.inversion[:, 0]

    @torch.inference_mode()
    def edited(self, chosen: Tensor, shift: EditShift) -> Tensor:
        """The faces of `chosen` (indices) after an edit without boosting."""
        return torch.cat([self.solver.edit(part, shift, 0) for part in self.inversion[chosen].split(BATCH)])

    @torch.inference_mode()
    def edited_in_both_halves(self, chosen: Tensor, shift: EditShift) -> Tensor:
        """The same by DDIM with the shift in both halves of each step."""
        unet, schedule = self.model.unet, self.model.schedule
        parts = [edit(unet, schedule, x, self.pairs, shift, symmetric_step) for x in self.x_T[chosen].split(BATCH)]
        return torch.cat(parts)

    def score(
        self, name: str, shift: EditShift, add: bool = True, most: int = 10**6, both_halves: bool = False
    ) -> Score:
        """The score of adding (or removing) attribute `name` on up to `most` faces that lack (or have) it."""
        index = LABELS.index(name)
        chosen = torch.nonzero(self.truth[:, index] != add)[:most, 0]
        edited = self.edited_in_both_halves if both_halves else self.edited
        seen = judged(self.judge, edited(chosen, shift))
        others = [i for i in range(len(LABELS)) if i != index]
        kept = seen[:, others] == self.truth[chosen][:, others]
        return Score((seen[:, index] == add).float().mean().item(), kept.float().mean().item())

    @torch.inference_mode()
    def reconstruction(self, most: int = 64) -> float:
        """The share of labels that inverting and generating up to `most` faces without an edit keeps."""
        chosen = torch.arange(len(self.x_T))[:most]
        seen = judged(self.judge, torch.cat([self.solver.reconstruct(x) for x in self.inversion[chosen].split(BATCH)]))
        return (seen == self.truth[chosen]).float().mean().item()
