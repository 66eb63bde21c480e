"""The stages as functions over batches: the one module that knows both the engine and h-space."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from asyrp.diffusion import process
from asyrp.diffusion.noise import boosting_noise, noise_key
from asyrp.diffusion.process import Shift, Watch, split_at_boost
from asyrp.diffusion.schedule import generation_pairs, inversion_pairs
from asyrp.directions.forms import Direction, load_direction
from asyrp.directions.info import file_digest
from asyrp.directions.shift import EditShift, MixedShift, make_shift
from asyrp.errors import UserError
from asyrp.measures.metrics import Metrics
from asyrp.measures.names import RECONSTRUCTION_PSNR, Judges
from asyrp.models import selfcheck
from asyrp.models.folder import ModelFolder
from asyrp.models.load import Model, load_model
from pipeline.images.source import Draw
from pipeline.run.stage import BatchFunction, Measured
from pipeline.stages.inspection import Inspector
from pipeline.stages.models import check_images, direction_path, fetch_model
from pipeline.stages.settings import BoundEdit, DirectionSource, MethodSettings


def self_check(model: Model, folder: ModelFolder, images: str | None = None) -> selfcheck.Report:
    """Check a model on `images` of its own domain, on its samples, or on stand-ins, whichever there is."""
    pixels, own_domain = check_images(folder, images)
    return selfcheck.check(model, torch.from_numpy(pixels), own_domain)


def load_recorded_direction(folder: ModelFolder, name: str, source: DirectionSource) -> Direction:
    """The direction that the run began with; raises UserError if its file is another by now."""
    path = direction_path(folder, name, source.url)
    if file_digest(path) != source.digest:
        raise UserError(f"direction '{name}' is another here ({path}) than where the run began")
    return load_direction(path)


class Method:
    """The frozen net and the directions on a device, and the stages as functions over batches."""

    def __init__(self, settings: MethodSettings) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        dtype = getattr(torch, settings.dtype)
        folder = fetch_model(settings.model)
        if folder.digest != settings.model_digest:
            raise UserError(f"model {settings.model} has other weights here ({folder.unet}) than where the run began")
        model = load_model(folder, settings.device, dtype)
        if settings.check:
            self_check(model, folder).refuse_a_failure(settings.model)
        self.unet, self.schedule = model.unet, model.schedule
        loaded = {name: load_recorded_direction(folder, name, source) for name, source in settings.directions.items()}
        for direction in loaded.values():
            direction.form.to(self.device)
        self.shifts = {bound: make_shift(bound.edit, loaded, settings.n_gen, bound.t_edits) for bound in settings.edits}
        self.generation = generation_pairs(settings.n_gen, self._t_0)
        self.inspector = Inspector(settings.inspection, settings) if settings.inspection else None
        without_nets = Metrics((RECONSTRUCTION_PSNR,), Judges(), settings.device, {}, {})
        self.sample_metrics = self.inspector.metrics if self.inspector else without_nets

    def functions(self) -> Mapping[str, BatchFunction]:
        """Every stage's function by the name that `pipeline.stages.settings` declares it with."""
        functions = (
            self.fused,
            self.augment,
            self.invert,
            self.edit,
            self.boost,
            self.reconstruct,
            self.reconstruct_latents,
        )
        return {function.__name__: function for function in functions}

    # The stages

    def invert(self, batch: Tensor, keys: Sequence[str]) -> Tensor:  # noqa: ARG002
        return self.inverted(self._plain(batch[:, 0]))[:, None]

    def edit(self, batch: Tensor, keys: Sequence[str]) -> Tensor:  # noqa: ARG002
        edits = self.settings.edits
        return torch.stack(
            [self._down_to_boost(batch[:, 0], bound.t_boost, self.shifts[bound]) for bound in edits], dim=1
        )

    def boost(self, batch: Tensor, keys: Sequence[str]) -> Tensor | Measured:
        edits = enumerate(self.settings.edits)
        edited = torch.stack(
            [self._below_boost(batch[:, v], [bound] * len(keys), self.shifts[bound], keys) for v, bound in edits], dim=1
        )
        return self.inspector.measured(batch[:, -1], edited, keys) if self.inspector else edited

    def fused(self, batch: Tensor, keys: Sequence[str]) -> Tensor | Measured:
        x_0 = self._plain(batch[:, 0])
        if self.inspector:
            return self.inspector.edited(self, x_0, keys)
        x_T = self.inverted(x_0)
        return torch.stack([self.edited(x_T, [bound] * len(keys), keys) for bound in self.settings.edits], dim=1)

    def augment(self, batch: Tensor, keys: Sequence[str], draws: Sequence[Sequence[Draw]]) -> Measured:
        assert self.inspector
        return self.inspector.augmented(self, self._plain(batch[:, 0]), keys, draws)

    def reconstruct(self, batch: Tensor, keys: Sequence[str]) -> Measured:  # noqa: ARG002
        x_0 = self._plain(batch[:, 0])
        return self._sample(x_0, self.reconstructed(self.inverted(x_0)))

    def reconstruct_latents(self, batch: Tensor, keys: Sequence[str]) -> Measured:  # noqa: ARG002
        return self._sample(batch[:, -1].to(self.device), self.reconstructed(batch[:, 0]))

    def _sample(self, x_0: Tensor, again: Tensor) -> Measured:
        return Measured(again[:, None], [[values] for values in self.sample_metrics.reconstruction(x_0, again)])

    # What they are made of

    def inverted(
        self, x_0: Tensor, n_inv: int | None = None, refine: int | None = None, watch: Watch | None = None
    ) -> Tensor:
        """x_T of images, as the settings say or otherwise."""
        pairs = inversion_pairs(n_inv or self.settings.n_inv, self._t_0)
        refine = self.settings.refine if refine is None else refine
        return process.invert(self.unet, self.schedule, x_0, pairs, refine, watch)

    def reconstructed(self, x_T: Tensor) -> Tensor:
        """The images without an edit."""
        nothing = EditShift((), self.settings.n_gen)
        return process.edit(self.unet, self.schedule, self._plain(x_T), self.generation, nothing)

    def edited(
        self,
        x_T: Tensor,
        edits: Sequence[BoundEdit],
        keys: Sequence[str],
        strengths: Tensor | None = None,
        ends: Mapping[BoundEdit, tuple[Tensor, ...]] | None = None,
    ) -> Tensor:
        """The images after an edit of each [B], all with the same t_boost; of each image, `strengths` [B] multiply the
        edit's own, and `ends` [B], by edit, are the t_edit of each of its directions."""
        different = list(dict.fromkeys(edits))
        shifts = [self.shifts[bound].of_images(strengths, ends[bound] if ends else None) for bound in different]
        of_image = torch.tensor([different.index(bound) for bound in edits], device=self.device)
        shift = shifts[0] if len(shifts) == 1 else MixedShift(tuple(shifts), of_image)
        return self._below_boost(self._down_to_boost(x_T, edits[0].t_boost, shift), edits, shift, keys)

    def _plain(self, x: Tensor) -> Tensor:
        """x on the device in the plain memory layout: a latent that was stored and one that was not then take the
        same kernels, and fused and staged runs give the same bytes."""
        return x.to(self.device).clone(memory_format=torch.contiguous_format)

    def _down_to_boost(self, x_T: Tensor, t_boost: int, shift: Shift) -> Tensor:
        pairs, _ = split_at_boost(self.generation, t_boost)
        return process.edit(self.unet, self.schedule, self._plain(x_T), pairs, shift)

    def _below_boost(self, x: Tensor, edits: Sequence[BoundEdit], shift: Shift, keys: Sequence[str]) -> Tensor:
        _, pairs = split_at_boost(self.generation, edits[0].t_boost)
        noise_keys = [
            noise_key(self.settings.seed, key, bound.edit.name) for key, bound in zip(keys, edits, strict=True)
        ]

        def noise(t: int) -> Tensor:
            return boosting_noise(noise_keys, t, tuple(x.shape[1:]), x.device)

        return process.boost(self.unet, self.schedule, self._plain(x), pairs, shift, noise)

    @property
    def _t_0(self) -> int:
        return len(self.schedule) - 1
