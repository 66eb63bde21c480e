"""Computes batches with the functions of the stages, in batches that fit the device's memory.

Images travel as bytes: they become floats on the device, and bytes again before they leave it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.engine.shard_attempt import Columns, Item
from pipeline.engine.transfers import Arriving, transfers_to
from pipeline.run.stage import PREPARE, USUAL_BATCH, BatchFunction, Measured, Stage

log = logging.getLogger(__name__)


class Output(NamedTuple):
    """What the device made of one item.

    Attributes:
        values: images are uint8 [V, H, W, 3], all else is float32 [V, ...].
        finite: which of the V outputs hold neither NaN nor infinity.
        columns: the manifest columns that came with the outputs.
    """

    values: NDArray[Any]
    finite: NDArray[np.bool_]
    columns: Columns


class Computed(NamedTuple):
    """What the device has made, or will have made, of a batch, with `values` and `finite` as in Output."""

    values: Tensor
    finite: Tensor
    columns: Sequence[Columns]


@dataclass(frozen=True)
class Launched:
    """A batch whose outputs are on their way to the host."""

    items: Sequence[Item]
    launched: float  # when, by perf_counter
    values: Arriving
    finite: Arriving
    columns: Sequence[Columns]

    def outputs(self) -> list[Output]:
        """The outputs of the items. Waits for the device."""
        values, finite = self.values.arrived().numpy(), self.finite.arrived().numpy()
        return list(map(Output, values, finite, self.columns))[: len(self.items)]  # the batch was padded


class Device:
    """The functions of the stages by name, and how many images a call of them may have. Not thread-safe."""

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]],
        batch_size: int | None,
        name: str,
        device: str = "cpu",
        share: float = 1,
    ) -> None:
        self.functions, self.name, self.device, self.share = functions, name, device, share
        self.batch_size = self._prepared(batch_size)
        self._prepared_for = self.batch_size
        self.transfers = transfers_to(torch.device(device))
        self.ahead = int(device != "cpu")
        """How many batches can be launched beside the one that is computed. A CPU computes while it launches."""

    def launch(self, batch: Sequence[Item]) -> Launched:
        """Begin with a batch. A GPU is then still at work on it.

        A short batch is padded: kernels are chosen by shape and round accordingly. With one shape alone a pixel does
        not depend on how many images happened to come with its own.
        """
        launched = perf_counter()
        if self.batch_size != self._prepared_for:
            self._prepared_for = self.batch_size = self._prepared(self.batch_size)
        padded = [*batch, *[batch[-1]] * (self.batch_size - len(batch))]
        stage = batch[0].attempt.stage
        of_items: list[list[Any]] = [[item.plan.key for item in padded]]
        if stage.has_draws:
            of_items.append([item.plan.draws for item in padded])
        stacked = np.stack([item.pixels for item in padded if item.pixels is not None])
        pixels = self.transfers.upload(torch.from_numpy(stacked))
        with torch.inference_mode():
            computed = self._halving(stage, pixels, of_items)
            values, finite = self.transfers.download(computed.values), self.transfers.download(computed.finite)
        return Launched(batch, launched, values, finite, computed.columns)

    def _prepared(self, batch_size: int | None) -> int:
        """The size of the batches for which the device is ready, if so many are asked for."""
        if PREPARE not in self.functions:
            return batch_size or USUAL_BATCH[self.device]
        prepared: int = self.functions[PREPARE](batch_size, self.share)
        return prepared

    def _halving(self, stage: Stage, pixels: Tensor, of_items: list[list[Any]]) -> Computed:
        """What a stage makes of a batch and the lists of what belongs to its items, or of its halves if the device's
        memory is too small for it."""
        count = len(pixels)
        try:
            return _computed(stage, self.functions[stage.function], pixels, of_items)
        except torch.OutOfMemoryError:
            if count == 1:
                raise
        torch.cuda.empty_cache()
        half = count // 2
        self.batch_size = min(self.batch_size, half)
        log.warning("%s: out of device memory with %d images, going on with %d", self.name, count, half)
        halves = [
            self._halving(stage, pixels[part], [items[part] for items in of_items])
            for part in (slice(half), slice(half, count))
        ]
        values, finite = (torch.cat(parts) for parts in zip(*((h.values, h.finite) for h in halves), strict=True))
        return Computed(values, finite, [columns for part in halves for columns in part.columns])


def _computed(stage: Stage, function: BatchFunction, pixels: Tensor, of_items: list[list[Any]]) -> Computed:
    with torch.inference_mode(False), torch.no_grad():  # some functions ask autograd about the images
        images = as_floats(pixels)
    found = function(images, *of_items)
    outputs, columns = found if isinstance(found, Measured) else (found, [()] * len(pixels))
    finite = outputs.isfinite()
    finite = finite.flatten(2).all(-1) if finite.ndim > 2 else finite
    return Computed(as_bytes(outputs) if stage.writes == "images" else outputs.float(), finite, columns)


def as_floats(pixels: Tensor) -> Tensor:
    """Images, uint8 [..., H, W, 3], as float32 [..., 3, H, W] in [-1, 1], as `codec.to_floats` does it; floats stay."""
    if pixels.dtype != torch.uint8:
        return pixels
    return (pixels.movedim(-1, -3).float() / 127.5 - 1).contiguous()


def as_bytes(images: Tensor) -> Tensor:
    """Images [..., 3, H, W] in [-1, 1] as uint8 [..., H, W, 3], rounded and clipped as `codec.to_uint8` does it."""
    return ((images.movedim(-3, -1).float() + 1) * 127.5 + 0.5).clamp(0, 255).to(torch.uint8).contiguous()
