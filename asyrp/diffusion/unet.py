"""Splits a frozen diffusers U-Net at its bottleneck into encode and decode."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from asyrp.diffusion.prediction import Prediction, noise_from
from asyrp.diffusion.schedule import NoiseSchedule
from asyrp.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """What the encoder computes from `x`, which is x_t [B, 3, H, W] at timestep `t`.

    `h` [B, C, h, w] is the output of the middle block, `emb` [B, E] the time embedding.
    """

    h: Tensor
    skips: tuple[Tensor, ...]
    emb: Tensor
    x: Tensor
    t: int

    def item(self, index: int) -> "Encoded":
        """One item of the batch, as a batch of one."""
        one = slice(index, index + 1)
        return Encoded(self.h[one], tuple(skip[one] for skip in self.skips), self.emb[one], self.x[one], self.t)


class SplitUNet(Protocol):
    """A net that is split at its bottleneck. `asyrp.diffusion.process` needs nothing else of a model."""

    def encode(self, x: Tensor, t: int) -> Encoded: ...

    def decode(self, encoded: Encoded, h: Tensor) -> Tensor: ...


class HSpaceUNet:
    """The encode -> h -> decode view of an unconditional `UNet2DModel`.

    h is the output of the middle block, as in the papers and in all three official code bases. The net is used in
    place: it is not copied, it gets no hooks, and its weights get no gradients.

    `prediction` says what the net predicts. If that is not the noise, `schedule` must be the one it was trained on.

    Raises:
        UserError: if the net is class-conditional, has no middle block or uses Fourier time embeddings.
    """

    def __init__(self, unet: Any, prediction: Prediction = "epsilon", schedule: NoiseSchedule | None = None) -> None:
        if unet.class_embedding is not None:
            raise UserError("this U-Net is class-conditional; asyrp edits with unconditional U-Nets only")
        if unet.mid_block is None or unet.config.time_embedding_type != "positional":
            raise UserError("this U-Net has no middle block or no positional time embedding, so it has no h-space")
        self.unet: Any = unet.eval().requires_grad_(False)
        self.image_channels: int = unet.config.in_channels
        self.prediction, self.schedule = prediction, schedule

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def encode(self, x: Tensor, t: int) -> Encoded:
        """Run x_t [B, 3, H, W] through the encoder and the middle block; the whole batch is at timestep `t`."""
        unet = self.unet
        sample = x.to(self.dtype)
        if unet.config.center_input_sample:
            sample = 2 * sample - 1
        time = torch.full((len(x),), t, device=x.device)
        emb = unet.time_embedding(unet.time_proj(time).to(self.dtype))
        sample = unet.conv_in(sample)
        skips = [sample]
        for block in unet.down_blocks:
            sample, outputs = block(hidden_states=sample, temb=emb)
            skips.extend(outputs)
        return Encoded(unet.mid_block(sample, emb), tuple(skips), emb, x, t)

    def decode(self, encoded: Encoded, h: Tensor) -> Tensor:
        """The noise prediction eps [B, 3, H, W], float32, from the bottleneck `h` and the skips of `encoded`.

        If the net also predicts a variance (learned sigma), that half of its output is dropped: DDIM does not use it.
        """
        unet = self.unet
        sample, skips = h.to(self.dtype), encoded.skips
        for block in unet.up_blocks:
            taken = len(block.resnets)
            skips, own = skips[:-taken], skips[-taken:]
            sample = block(sample, own, encoded.emb)
        sample = unet.conv_out(unet.conv_act(unet.conv_norm_out(sample)))
        predicted = sample[:, : self.image_channels].float()
        if self.prediction == "epsilon":
            return predicted
        assert self.schedule is not None
        return noise_from(self.prediction, predicted, encoded.x, self.schedule.level(encoded.t))
