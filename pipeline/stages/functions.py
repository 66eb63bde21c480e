"""The stages of a run as pure functions over batches. `pipeline.stages.settings` declares stages by their names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from asyrp.measures.metrics import Metrics
from asyrp.measures.names import RECONSTRUCTION_PSNR, Judges
from pipeline.images.source import Draw
from pipeline.run.stage import Measured
from pipeline.stages.editor import Editor
from pipeline.stages.inspection import Inspector, Measurer
from pipeline.stages.preparation import prepare
from pipeline.stages.settings import MethodSettings


class Functions:
    """The batch functions of a run. Each takes a batch [B, V_in, C, H, W] of images or latents, and their keys [B]."""

    def __init__(self, settings: MethodSettings) -> None:
        self.edits = settings.edits
        self.editor = Editor(settings)
        self.measurer: Measurer | None = None
        self.inspector: Inspector | None = None
        self.sample_metrics = Metrics((RECONSTRUCTION_PSNR,), Judges(), settings.device, {}, {})
        if settings.inspection:
            self.measurer = Measurer(settings.inspection, settings.edits, settings.device)
            self.inspector = Inspector(self.editor, self.measurer, settings)
            self.sample_metrics = self.measurer.metrics

    def by_name(self) -> Mapping[str, Callable[..., Any]]:
        """Every function by its name."""
        functions: tuple[Callable[..., Any], ...] = (
            self.prepare,
            self.fused,
            self.augment,
            self.invert,
            self.edit,
            self.boost,
            self.reconstruct,
            self.reconstruct_latents,
        )
        return {function.__name__: function for function in functions}

    def prepare(self, asked: int | None, share: float) -> int:
        """Get the net ready for batches, as `preparation.prepare` does."""
        return prepare(self.editor.unet, self.editor.settings, asked, share)

    def invert(self, batch: Tensor, keys: Sequence[str]) -> Tensor:  # noqa: ARG002
        """Images to inversions, whose tensors lie one after the other in the channels: [B, 1, K C, H, W]."""
        return self.editor.inverted(self.editor.plain(batch[:, 0])).flatten(1, 2)[:, None]

    def edit(self, batch: Tensor, keys: Sequence[str]) -> Tensor:  # noqa: ARG002
        """Inversions to the latents of every edit at t_boost."""
        inversion = self._inversion(batch)
        latents = [
            self.editor.down_to_boost(inversion, bound.t_boost, self.editor.shifts[bound]) for bound in self.edits
        ]
        return torch.stack(latents, dim=1)

    def boost(self, batch: Tensor, keys: Sequence[str]) -> Tensor | Measured:
        """Latents at t_boost to images; with an inspection the source images come last in the batch."""
        images = [
            self.editor.below_boost(batch[:, v], [bound] * len(keys), self.editor.shifts[bound], keys)
            for v, bound in enumerate(self.edits)
        ]
        edited = torch.stack(images, dim=1)
        return self.measurer.measured(batch[:, -1], edited, keys) if self.measurer else edited

    def fused(self, batch: Tensor, keys: Sequence[str]) -> Tensor | Measured:
        """Images to edited images in one pass."""
        x_0 = self.editor.plain(batch[:, 0])
        if self.inspector:
            return self.inspector.edited(x_0, keys)
        inversion = self.editor.inverted(x_0)
        return torch.stack([self.editor.edited(inversion, [bound] * len(keys), keys) for bound in self.edits], dim=1)

    def augment(self, batch: Tensor, keys: Sequence[str], draws: Sequence[Sequence[Draw]]) -> Measured:
        """Images to themselves and to what they drew."""
        assert self.inspector
        return self.inspector.augmented(self.editor.plain(batch[:, 0]), keys, draws)

    def reconstruct(self, batch: Tensor, keys: Sequence[str]) -> Measured:  # noqa: ARG002
        """Images to themselves, inverted and denoised without an edit."""
        x_0 = self.editor.plain(batch[:, 0])
        return self._compared(x_0, self.editor.reconstructed(self.editor.inverted(x_0)))

    def reconstruct_latents(self, batch: Tensor, keys: Sequence[str]) -> Measured:  # noqa: ARG002
        """Inversions to images without an edit; where an inversion does not hold its source, it comes last in the
        batch."""
        inversion = self._inversion(batch)
        x_0 = batch[:, -1].to(self.editor.device) if self.editor.settings.solver == "ddim" else inversion[:, 0]
        return self._compared(x_0, self.editor.reconstructed(inversion))

    def _inversion(self, batch: Tensor) -> Tensor:
        """[B, K, C, H, W], as `invert` has flattened it."""
        return batch[:, 0].unflatten(1, (-1, self.editor.unet.image_channels))

    def _compared(self, x_0: Tensor, again: Tensor) -> Measured:
        return Measured(again[:, None], [[values] for values in self.sample_metrics.reconstruction(x_0, again)])
