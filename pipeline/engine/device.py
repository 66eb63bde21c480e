"""Computes batches with the functions of the stages, in batches that fit the device's memory."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.engine.shard_attempt import Columns, Item
from pipeline.run.stage import BatchFunction, Measured

log = logging.getLogger(__name__)


class Device:
    """The functions of the stages by name, and how many images a call of them may have. Not thread-safe."""

    def __init__(self, functions: Mapping[str, Callable[..., Any]], batch_size: int, name: str) -> None:
        self.functions, self.batch_size, self.name = functions, batch_size, name

    def compute(self, batch: Sequence[Item]) -> list[tuple[NDArray[np.float32], Columns]]:
        """For each item of a batch its outputs [V_out, C, H, W], and the manifest columns that came with them.

        A short batch is padded: kernels are chosen by shape and round accordingly. With one shape alone a pixel does
        not depend on how many images happened to come with its own.
        """
        padded = [*batch, *[batch[-1]] * (self.batch_size - len(batch))]
        pixels = torch.from_numpy(np.stack([item.pixels for item in padded if item.pixels is not None]))
        stage = batch[0].attempt.stage
        of_items: list[list[Any]] = [[item.plan.key for item in padded]]
        if stage.has_draws:
            of_items.append([item.plan.draws for item in padded])
        with torch.inference_mode():
            measured = self._halving(self.functions[stage.function], pixels, of_items)
        outputs = measured.outputs[: len(batch)].float().cpu().numpy()
        return list(zip(outputs, measured.columns[: len(batch)], strict=True))

    def _halving(self, function: BatchFunction, pixels: torch.Tensor, of_items: list[list[Any]]) -> Measured:
        """The function of a batch and the lists of what belongs to its items, or of its halves if the device's memory
        is too small for it."""
        count = len(pixels)
        try:
            found = function(pixels, *of_items)
            return found if isinstance(found, Measured) else Measured(found, [()] * count)
        except torch.OutOfMemoryError:
            if count == 1:
                raise
        torch.cuda.empty_cache()
        half = count // 2
        self.batch_size = min(self.batch_size, half)
        log.warning("%s: out of device memory with %d images, going on with %d", self.name, count, half)
        halves = [
            self._halving(function, pixels[part], [items[part] for items in of_items])
            for part in (slice(half), slice(half, count))
        ]
        outputs = torch.cat([part.outputs.float().cpu() for part in halves])
        return Measured(outputs, [columns for part in halves for columns in part.columns])
