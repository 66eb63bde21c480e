"""Splits a frozen diffusers U-Net at its bottleneck into encode and decode."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

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


class Halves(NamedTuple):
    """The two halves of a net as functions of tensors, which can be compiled."""

    encode: Any  # x [B, 3, H, W], emb [B, E] -> h, skips
    decode: Any  # h, skips, emb -> prediction [B, 3, H, W], float32


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
        self.layout = torch.contiguous_format
        if self.device.type == "cuda":  # its convolutions want the channels last
            self.layout = torch.channels_last
            self.unet.to(memory_format=self.layout)
        self._compiled: tuple[torch.Size, Halves] | None = None  # for x of one shape
        self._embeddings: dict[tuple[int, int], Tensor] = {}

    @property
    def halves(self) -> Halves:
        """The halves as they are, which are not compiled."""
        return Halves(self._encode, self._decode)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def encode(self, x: Tensor, t: int) -> Encoded:
        """Run x_t [B, 3, H, W] through the encoder and the middle block; the whole batch is at timestep `t`."""
        emb = self.embedding(t, len(x))
        h, skips = self._halves(x).encode(self.laid_out(x), emb)
        return Encoded(h, skips, emb, x, t)

    def decode(self, encoded: Encoded, h: Tensor) -> Tensor:
        """The noise prediction eps [B, 3, H, W], float32, from the bottleneck `h` and the skips of `encoded`.

        If the net also predicts a variance (learned sigma), that half of its output is dropped: DDIM does not use it.
        """
        predicted = self._halves(encoded.x).decode(self.laid_out(h), encoded.skips, encoded.emb)
        if self.prediction == "epsilon":
            return predicted
        assert self.schedule is not None
        return noise_from(self.prediction, predicted, encoded.x, self.schedule.level(encoded.t))

    def compile(self, x: Tensor, backend: str = "inductor") -> None:
        """Compile both halves for batches of the shape of `x`. Batches of other shapes run as before.

        The timestep enters as its embedding, so that one compilation serves all timesteps. Compiled code belongs to a
        mode of autograd: compile in the one (`torch.inference_mode`) in which the net will run.
        """
        halves = Halves(*(torch.compile(half, fullgraph=True, dynamic=False, backend=backend) for half in self.halves))
        emb = self.embedding(0, len(x))
        h, skips = halves.encode(self.laid_out(x), emb)
        halves.decode(self.laid_out(h), skips, emb)
        self._compiled = x.shape, halves

    def embedding(self, t: int, count: int) -> Tensor:
        """The embedding of a timestep for a batch [B, E], computed once."""
        if (t, count) not in self._embeddings:
            with torch.inference_mode(False), torch.no_grad():  # a tensor that autograd takes as well
                time = self.unet.time_proj(torch.full((count,), t, device=self.device))
                self._embeddings[t, count] = self.unet.time_embedding(time.to(self.dtype))
        return self._embeddings[t, count]

    def laid_out(self, tensor: Tensor) -> Tensor:
        """A tensor in the dtype and memory layout of the net."""
        return tensor.to(self.dtype).contiguous(memory_format=self.layout)

    def _halves(self, x: Tensor) -> Halves:
        return self._compiled[1] if self._compiled and self._compiled[0] == x.shape else self.halves

    def _encode(self, sample: Tensor, emb: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        unet = self.unet
        if unet.config.center_input_sample:
            sample = 2 * sample - 1
        sample = unet.conv_in(sample)
        skips = [sample]
        for block in unet.down_blocks:
            sample, outputs = block(hidden_states=sample, temb=emb)
            skips.extend(outputs)
        return unet.mid_block(sample, emb), tuple(skips)

    def _decode(self, sample: Tensor, skips: tuple[Tensor, ...], emb: Tensor) -> Tensor:
        unet = self.unet
        for block in unet.up_blocks:
            taken = len(block.resnets)
            skips, own = skips[:-taken], skips[-taken:]
            sample = block(sample, own, emb)
        sample = unet.conv_out(unet.conv_act(unet.conv_norm_out(sample)))
        return sample[:, : self.image_channels].float()
