"""Inverts and edits images: the frozen net with the directions of a run, on one device."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from asyrp.diffusion.noise import boosting_noise, noise_key
from asyrp.diffusion.process import Watch
from asyrp.diffusion.solvers import DDIM, DPMSolver, Shift, Solver
from asyrp.directions.forms import Direction, check_shape, load_direction
from asyrp.directions.info import file_digest
from asyrp.directions.shift import EditShift, MixedShift, shift_for
from asyrp.errors import UserError
from asyrp.models import selfcheck
from asyrp.models.folder import ModelFolder
from asyrp.models.load import Model, load_model
from asyrp.models.precision import Precision, set_up
from pipeline.stages.models import check_images, direction_path, fetch_model
from pipeline.stages.settings import BoundEdit, DirectionSource, MethodSettings, SecondInversion


def self_check(model: Model, folder: ModelFolder, images: str | None = None) -> selfcheck.SelfCheckReport:
    """Check a model on `images` of its own domain, else on its samples, else on stand-ins."""
    pixels, own_domain = check_images(folder, images)
    return selfcheck.check(model, torch.from_numpy(pixels), own_domain)


def load_recorded_model(
    name: str, digest: str, *, device: str, precision: Precision = "float32", check: bool
) -> tuple[ModelFolder, Model]:
    """The model that the run began with, and its folder; with `check`, a model that does not work is refused.

    Raises:
        UserError: if the model has other weights here, cannot be loaded or fails its check, or if the device does not
            compute in the precision.
    """
    folder = fetch_model(name)
    if folder.digest != digest:
        raise UserError(f"model {name} has other weights here ({folder.unet}) than where the run began")
    model = load_model(folder, device, set_up(precision, device))
    if check:
        self_check(model, folder).refuse_a_failure(name)
    return folder, model


def load_recorded_direction(folder: ModelFolder, name: str, source: DirectionSource) -> Direction:
    """The direction that the run began with. Raises UserError if its file has changed since, or does not fit."""
    path = direction_path(folder, name, source.url)
    if file_digest(path) != source.digest:
        raise UserError(f"direction '{name}' is another here ({path}) than where the run began")
    direction = load_direction(path)
    check_shape(direction, folder.h_shape, folder.emb_channels)
    return direction


def make_solver(settings: MethodSettings, model: Model) -> Solver:
    """The solver that a run has chosen, on its net."""
    if settings.solver == "ddim":
        return DDIM(model.unet, model.schedule, settings.n_inv, settings.n_gen, settings.refine)
    return DPMSolver(model.unet, model.schedule, settings.n_inv, settings.t_top)


def load_shifts(settings: MethodSettings, folder: ModelFolder, solver: Solver) -> dict[BoundEdit, EditShift]:
    """The shifts of a run's edits, on its device.

    Raises:
        UserError: as `load_recorded_direction` does; if an edit would act in no step of the process.
    """
    loaded = {name: load_recorded_direction(folder, name, source) for name, source in settings.directions.items()}
    for direction in loaded.values():
        direction.form.to(torch.device(settings.device))
    shifts = {bound: shift_for(solver, bound.edit, loaded, bound.t_edits) for bound in settings.edits}
    for bound, shift in shifts.items():
        if bound.edit.weights and not solver.edit_evaluations(shift.acts, bound.t_boost).second_decodes:
            raise UserError(
                f"the edit '{bound.edit.name}' would change nothing: no step begins in its interval, which ends at "
                f"t_edit {min(bound.t_edits)}; give a smaller t_edit, or more steps"
            )
    return shifts


class Editor:
    """A frozen net and the shifts of a run's edits.

    Its methods take and give images or latents [B, C, H, W], and inversions [B, K, C, H, W], as its solver makes them.
    """

    def __init__(self, settings: MethodSettings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        folder, model = load_recorded_model(
            settings.model,
            settings.model_digest,
            device=settings.device,
            precision=settings.dtype,
            check=settings.check,
        )
        self.unet, self.schedule = model.unet, model.schedule
        self.solver = make_solver(settings, model)
        self.shifts = load_shifts(settings, folder, self.solver)

    def inverted(self, x_0: Tensor, watch: Watch | None = None) -> Tensor:
        """The inversions of images."""
        return self.solver.invert(x_0, watch)

    def inverted_again(self, x_0: Tensor, second: SecondInversion) -> Tensor:
        """The inversions of images with other numbers of steps and refinements than the run's."""
        return DDIM(self.unet, self.schedule, second.n_inv, self.settings.n_gen, second.refine).invert(x_0)

    def reconstructed(self, inversion: Tensor) -> Tensor:
        """The images without an edit, by the plain process."""
        return self.solver.reconstruct(self.plain(inversion))

    def edited(
        self,
        inversion: Tensor,
        edits: Sequence[BoundEdit],
        keys: Sequence[str],
        factors: Tensor | None = None,
        ends: Mapping[BoundEdit, tuple[Tensor, ...]] | None = None,
    ) -> Tensor:
        """The images after one edit of each.

        Args:
            edits: the edit of each image [B], all with the same t_boost.
            keys: the keys of the images [B], which seed the boosting noise.
            factors: what multiplies each edit's own strength [B].
            ends: for each edit the t_edit of each of its directions on each image [B].
        """
        different = list(dict.fromkeys(edits))
        shifts = [self.shifts[bound].for_images(factors, ends[bound] if ends else None) for bound in different]
        of_image = torch.tensor([different.index(bound) for bound in edits])
        shift = shifts[0] if len(shifts) == 1 else MixedShift(tuple(shifts), of_image)
        return self.below_boost(self.down_to_boost(inversion, edits[0].t_boost, shift), edits, shift, keys)

    def down_to_boost(self, inversion: Tensor, t_boost: int, shift: Shift) -> Tensor:
        """x at t_boost."""
        return self.solver.edit(self.plain(inversion), shift, t_boost)

    def below_boost(self, x: Tensor, edits: Sequence[BoundEdit], shift: Shift, keys: Sequence[str]) -> Tensor:
        """The images from x at t_boost, with fresh noise for each key and edit."""
        noise_keys = [
            noise_key(self.settings.seed, key, bound.edit.name) for key, bound in zip(keys, edits, strict=True)
        ]

        def noise(t: int) -> Tensor:
            return boosting_noise(noise_keys, t, tuple(x.shape[1:]), x.device)

        return self.solver.boost(self.plain(x), shift, edits[0].t_boost, noise)

    def plain(self, x: Tensor) -> Tensor:
        """x on the device in the plain memory layout.

        A stored latent and one that stayed on the device then take the same kernels, so that fused and staged runs give
        the same bytes.
        """
        return x.to(self.device).clone(memory_format=torch.contiguous_format)
