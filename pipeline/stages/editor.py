"""Inverts and edits images: the frozen net with the directions of a run, on one device."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from asyrp.diffusion.noise import boosting_noise, noise_key
from asyrp.diffusion.process import Shift, Watch, boost, edit, invert, split_at_boost
from asyrp.diffusion.schedule import generation_pairs, inversion_pairs
from asyrp.directions.forms import Direction, check_shape, load_direction
from asyrp.directions.info import file_digest
from asyrp.directions.shift import EditShift, MixedShift, make_shift
from asyrp.errors import UserError
from asyrp.models import selfcheck
from asyrp.models.folder import ModelFolder
from asyrp.models.load import Model, load_model
from pipeline.stages.models import check_images, direction_path, fetch_model
from pipeline.stages.settings import BoundEdit, DirectionSource, MethodSettings


def self_check(model: Model, folder: ModelFolder, images: str | None = None) -> selfcheck.SelfCheckReport:
    """Check a model on `images` of its own domain, else on its samples, else on stand-ins."""
    pixels, own_domain = check_images(folder, images)
    return selfcheck.check(model, torch.from_numpy(pixels), own_domain)


def load_recorded_model(
    name: str, digest: str, *, device: str, dtype: torch.dtype = torch.float32, check: bool
) -> tuple[ModelFolder, Model]:
    """The model that the run began with, and its folder; with `check`, a model that does not work is refused.

    Raises:
        UserError: if the model has other weights here, cannot be loaded or fails its check.
    """
    folder = fetch_model(name)
    if folder.digest != digest:
        raise UserError(f"model {name} has other weights here ({folder.unet}) than where the run began")
    model = load_model(folder, device, dtype)
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


class Editor:
    """A frozen net and the shifts of a run's edits. Its methods take and give images or latents [B, C, H, W]."""

    def __init__(self, settings: MethodSettings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        folder, model = load_recorded_model(
            settings.model,
            settings.model_digest,
            device=settings.device,
            dtype=getattr(torch, settings.dtype),
            check=settings.check,
        )
        self.unet, self.schedule = model.unet, model.schedule
        loaded = {name: load_recorded_direction(folder, name, source) for name, source in settings.directions.items()}
        for direction in loaded.values():
            direction.form.to(self.device)
        self.shifts = {bound: make_shift(bound.edit, loaded, settings.n_gen, bound.t_edits) for bound in settings.edits}
        self.t_0 = len(self.schedule) - 1
        self.generation = generation_pairs(settings.n_gen, self.t_0)

    def inverted(
        self, x_0: Tensor, n_inv: int | None = None, refine: int | None = None, watch: Watch | None = None
    ) -> Tensor:
        """x_T of images, with the settings' numbers of steps and refinements or with others."""
        pairs = inversion_pairs(n_inv or self.settings.n_inv, self.t_0)
        refine = self.settings.refine if refine is None else refine
        return invert(self.unet, self.schedule, x_0, pairs, refine=refine, watch=watch)

    def reconstructed(self, x_T: Tensor) -> Tensor:
        """The images without an edit."""
        nothing = EditShift((), self.settings.n_gen)
        return edit(self.unet, self.schedule, self.plain(x_T), self.generation, nothing)

    def edited(
        self,
        x_T: Tensor,
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
        of_image = torch.tensor([different.index(bound) for bound in edits], device=self.device)
        shift = shifts[0] if len(shifts) == 1 else MixedShift(tuple(shifts), of_image)
        return self.below_boost(self.down_to_boost(x_T, edits[0].t_boost, shift), edits, shift, keys)

    def down_to_boost(self, x_T: Tensor, t_boost: int, shift: Shift) -> Tensor:
        """x at t_boost."""
        pairs, _ = split_at_boost(self.generation, t_boost)
        return edit(self.unet, self.schedule, self.plain(x_T), pairs, shift)

    def below_boost(self, x: Tensor, edits: Sequence[BoundEdit], shift: Shift, keys: Sequence[str]) -> Tensor:
        """The images from x at t_boost, with fresh noise for each key and edit."""
        _, pairs = split_at_boost(self.generation, edits[0].t_boost)
        noise_keys = [
            noise_key(self.settings.seed, key, bound.edit.name) for key, bound in zip(keys, edits, strict=True)
        ]

        def noise(t: int) -> Tensor:
            return boosting_noise(noise_keys, t, tuple(x.shape[1:]), x.device)

        return boost(self.unet, self.schedule, self.plain(x), pairs, shift=shift, noise=noise)

    def plain(self, x: Tensor) -> Tensor:
        """x on the device in the plain memory layout.

        A stored latent and one that stayed on the device then take the same kernels, so that fused and staged runs give
        the same bytes.
        """
        return x.to(self.device).clone(memory_format=torch.contiguous_format)
