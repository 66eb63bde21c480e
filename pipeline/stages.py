"""The stages as functions over batches: the one module that knows both the engine and h-space."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from asyrp import directions, models, process, selfcheck
from asyrp.direction_info import file_digest
from asyrp.errors import UserError
from asyrp.noise import boosting_noise, noise_key
from asyrp.process import split_at_boost
from asyrp.registry import ModelFolder
from asyrp.schedule import generation_pairs, inversion_pairs
from asyrp.shift import EditShift, make_shift
from pipeline.model_source import check_images, direction_path, find_model
from pipeline.recipe import BoundEdit, DirectionSource, MethodSettings
from pipeline.stage import BatchFunction


def self_check(model: models.Model, folder: ModelFolder, images: str | None = None) -> selfcheck.Report:
    """Check a model on `images` of its own domain, on its samples, or on stand-ins, whichever there is."""
    pixels, own_domain = check_images(folder, images)
    return selfcheck.check(model, torch.from_numpy(pixels), own_domain)


def load_direction(folder: ModelFolder, name: str, source: DirectionSource) -> directions.Direction:
    """The direction that the run began with; raises UserError if its file is another by now."""
    path = direction_path(folder, name, source.url)
    if file_digest(path) != source.digest:
        raise UserError(f"direction '{name}' is another here ({path}) than where the run began")
    return directions.load(path)


class Method:
    """The frozen net and the directions on a device, and the stages as functions over batches."""

    def __init__(self, settings: MethodSettings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        dtype = getattr(torch, settings.dtype)
        folder = find_model(settings.model)
        if folder.digest != settings.model_digest:
            raise UserError(f"model {settings.model} has other weights here ({folder.unet}) than where the run began")
        model = models.load(folder, settings.device, dtype)
        if settings.check:
            self_check(model, folder).refuse_a_failure(settings.model)
        self.unet, self.schedule = model.unet, model.schedule
        loaded = {name: load_direction(folder, name, source) for name, source in settings.directions.items()}
        for direction in loaded.values():
            direction.form.to(self.device)
        self.shifts = {bound: make_shift(bound.edit, loaded, settings.n_gen, bound.t_edits) for bound in settings.edits}
        t_0 = len(self.schedule) - 1
        self.inversion = inversion_pairs(settings.n_inv, t_0)
        self.generation = generation_pairs(settings.n_gen, t_0)

    def functions(self) -> Mapping[str, BatchFunction]:
        """Every stage's function by the name that `pipeline.recipe` declares it with."""
        functions = (
            self.fused,
            self.invert,
            self.edit,
            self.boost,
            self.reconstruct,
            self.reconstruct_latents,
        )
        return {function.__name__: function for function in functions}

    def invert(self, batch: Tensor, keys: Sequence[str]) -> Tensor:  # noqa: ARG002
        x_0 = self._plain(batch[:, 0])
        return process.invert(self.unet, self.schedule, x_0, self.inversion, self.settings.refine)[:, None]

    def edit(self, batch: Tensor, keys: Sequence[str]) -> Tensor:  # noqa: ARG002
        x_T = self._plain(batch[:, 0])
        return torch.stack([self._down_to_boost(x_T, bound) for bound in self.settings.edits], dim=1)

    def boost(self, batch: Tensor, keys: Sequence[str]) -> Tensor:
        edits = enumerate(self.settings.edits)
        return torch.stack([self._below_boost(self._plain(batch[:, v]), bound, keys) for v, bound in edits], dim=1)

    def fused(self, batch: Tensor, keys: Sequence[str]) -> Tensor:
        return self.boost(self.edit(self.invert(batch, keys), keys), keys)

    def reconstruct(self, batch: Tensor, keys: Sequence[str]) -> Tensor:
        return self.reconstruct_latents(self.invert(batch, keys), keys)

    def reconstruct_latents(self, batch: Tensor, keys: Sequence[str]) -> Tensor:  # noqa: ARG002
        x_T = self._plain(batch[:, 0])
        nothing = EditShift((), self.settings.n_gen)
        return process.edit(self.unet, self.schedule, x_T, self.generation, nothing)[:, None]

    def _plain(self, x: Tensor) -> Tensor:
        """x on the device in the plain memory layout: a latent that was stored and one that was not then take the
        same kernels, and fused and staged runs give the same bytes."""
        return x.to(self.device).clone(memory_format=torch.contiguous_format)

    def _down_to_boost(self, x_T: Tensor, bound: BoundEdit) -> Tensor:
        pairs, _ = split_at_boost(self.generation, bound.t_boost)
        return process.edit(self.unet, self.schedule, x_T, pairs, self.shifts[bound])

    def _below_boost(self, x: Tensor, bound: BoundEdit, keys: Sequence[str]) -> Tensor:
        _, pairs = split_at_boost(self.generation, bound.t_boost)
        noise_keys = [noise_key(self.settings.seed, key, bound.edit.name) for key in keys]

        def noise(t: int) -> Tensor:
            return boosting_noise(noise_keys, t, tuple(x.shape[1:]), x.device)

        return process.boost(self.unet, self.schedule, x, pairs, self.shifts[bound], noise)
