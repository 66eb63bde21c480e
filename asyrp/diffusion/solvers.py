"""The processes that a run can choose from: from images to inversions, and from inversions to edited images.

ddim        the papers' process: DDIM inversion to x_T, Asyrp steps down from it
dpmpp_2m    DPM-Solver++(2M) on a grid half in t and half in lambda, edits anchored to the inversion

`asyrp.diffusion.process` and `asyrp.diffusion.dpm_solver` have the steps and loops.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

from torch import Tensor

from asyrp.diffusion import dpm_solver, process
from asyrp.diffusion.process import Noise, Watch
from asyrp.diffusion.schedule import NoiseSchedule, blended_timesteps, generation_pairs, inversion_pairs
from asyrp.diffusion.unet import Encoded, SplitUNet

Acts = Callable[[int, int], bool]
"""Whether an edit acts in the move from t to t_next."""


class Shift(Protocol):
    """What both solvers need of an edit: `process.Shift` for DDIM, `dpm_solver.Pushes` for DPM-Solver++."""

    def __call__(self, encoded: Encoded, t: int) -> Tensor | None: ...

    def acts(self, t: int, t_next: int) -> bool: ...

    def push(self, encoded: Encoded, t: int, t_next: int) -> dpm_solver.Push: ...


class Evaluations(NamedTuple):
    """How often the encoder is evaluated, the decoder with it, and how often the decoder once more."""

    encodes: int
    second_decodes: int


class Solver(Protocol):
    """A process on one net. An inversion is [B, K, C, H, W]; images and latents are [B, C, H, W]."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise levels of the net."""

    def invert(self, x_0: Tensor, watch: Watch | None = None) -> Tensor:
        """The inversions of images."""

    def reconstruct(self, inversion: Tensor) -> Tensor:
        """The images that the plain process makes of the last latents of inversions."""

    def edit(self, inversion: Tensor, shift: Shift, t_boost: int) -> Tensor:
        """Edited latents at t_boost, which are images where t_boost is 0."""

    def boost(self, x: Tensor, shift: Shift, t_boost: int, noise: Noise) -> Tensor:
        """Images from latents at t_boost, with fresh noise in every step."""

    @property
    def kept(self) -> int:
        """K, the number of tensors in an inversion."""

    @property
    def inversion_calls(self) -> int:
        """How often `invert` evaluates the net."""

    @property
    def reconstruction_calls(self) -> int:
        """How often `reconstruct` evaluates the net."""

    def edit_evaluations(self, acts: Acts, t_boost: int) -> Evaluations:
        """How often `edit` and `boost` evaluate the net for an edit."""


@dataclass(frozen=True)
class DDIM:
    """The papers' process, `n_inv` steps up and `n_gen` steps down (see `process.invert` on `refine`).

    An inversion is x_T, [B, 1, C, H, W].
    """

    unet: SplitUNet
    schedule: NoiseSchedule
    n_inv: int
    n_gen: int
    refine: int = 0

    @property
    def _down(self) -> process.Pairs:
        return generation_pairs(self.n_gen, len(self.schedule) - 1)

    def invert(self, x_0: Tensor, watch: Watch | None = None) -> Tensor:
        pairs = inversion_pairs(self.n_inv, len(self.schedule) - 1)
        return process.invert(self.unet, self.schedule, x_0, pairs, self.refine, watch)[:, None]

    def reconstruct(self, inversion: Tensor) -> Tensor:
        return process.edit(self.unet, self.schedule, inversion[:, 0], self._down, lambda *_: None)

    def edit(self, inversion: Tensor, shift: Shift, t_boost: int) -> Tensor:
        pairs, _ = process.split_at_boost(self._down, t_boost)
        return process.edit(self.unet, self.schedule, inversion[:, 0], pairs, shift)

    def boost(self, x: Tensor, shift: Shift, t_boost: int, noise: Noise) -> Tensor:
        _, pairs = process.split_at_boost(self._down, t_boost)
        return process.boost(self.unet, self.schedule, x, pairs, shift, noise)

    @property
    def kept(self) -> int:
        return 1

    @property
    def inversion_calls(self) -> int:
        return process.inversion_calls(self.n_inv, self.refine)

    @property
    def reconstruction_calls(self) -> int:
        return self.n_gen

    def edit_evaluations(self, acts: Acts, t_boost: int) -> Evaluations:  # noqa: ARG002
        return Evaluations(self.n_gen, sum(acts(t, t - 1) for t, _ in self._down))


@dataclass(frozen=True)
class DPMSolver:
    """DPM-Solver++(2M) in `n` steps, anchored. Inversions go up to the first step at or above `t_top` (None: to T).

    An inversion is what `dpm_solver.invert` returns. Nothing is evaluated above the first move in which an edit acts.
    """

    unet: SplitUNet
    schedule: NoiseSchedule
    n: int
    t_top: int | None = None

    @cached_property
    def steps(self) -> list[int]:
        """The ascending timesteps that an inversion visits; at least two."""
        steps = blended_timesteps(self.n, self.schedule)
        return steps if self.t_top is None else steps[: max(2, sum(t < self.t_top for t in steps) + 1)]

    def invert(self, x_0: Tensor, watch: Watch | None = None) -> Tensor:
        return dpm_solver.invert(self.unet, self.schedule, x_0, self.steps, watch)

    def reconstruct(self, inversion: Tensor) -> Tensor:
        x = dpm_solver.latents(self.schedule, inversion, self.steps)[-1]
        return dpm_solver.generate(self.unet, self.schedule, x, self.steps)

    def edit(self, inversion: Tensor, shift: Shift, t_boost: int) -> Tensor:
        return dpm_solver.edit(self.unet, self.schedule, inversion, self.steps, shift, t_boost)

    def boost(self, x: Tensor, shift: Shift, t_boost: int, noise: Noise) -> Tensor:
        return dpm_solver.boost(self.unet, self.schedule, x, self.steps, shift, t_boost, noise)

    @property
    def kept(self) -> int:
        return len(self.steps)

    @property
    def inversion_calls(self) -> int:
        return len(self.steps) - 1

    @property
    def reconstruction_calls(self) -> int:
        return len(self.steps)

    def edit_evaluations(self, acts: Acts, t_boost: int) -> Evaluations:
        moves = dpm_solver.downwards(self.steps)
        acting = [acts(t, t_next) for t, t_next in moves]
        evaluated = [edited or t < t_boost for edited, (t, _) in zip(acting, moves, strict=True)]
        return Evaluations(len(moves) - evaluated.index(True) if any(evaluated) else 0, sum(acting))
