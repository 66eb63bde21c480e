"""Gets a net ready for batches: finds how many images suit its device, and compiles it for that number."""

import logging
import os
import time
from pathlib import Path

import torch
from torch import Tensor

from asyrp.diffusion.unet import HSpaceUNet
from asyrp.digests import json_digest
from asyrp.errors import UserError
from asyrp.files import cache_root, made_once
from pipeline.run.stage import USUAL_BATCH
from pipeline.stages.settings import MethodSettings

log = logging.getLogger(__name__)

LARGEST = 64
"""Half of what a worker has in flight, by default, so that a batch can be launched while another is computed."""

USABLE = 0.95
"""The share of a card's memory that torch may use. The rest is for what the driver and the libraries load later."""

WORTHWHILE = 1.03
"""A batch of twice as many images must be faster by this factor."""


@torch.inference_mode()
def prepare(unet: HSpaceUNet, settings: MethodSettings, asked: int | None, share: float) -> int:
    """Get a net ready for batches of the number of images that it returns.

    Args:
        asked: so many, or less if the device's memory is too small; None: as many as suit the device.
        share: of the device's memory, which other processes may use as well.

    Raises:
        UserError: if the net is to be compiled and cannot be.
    """
    on_gpu = unet.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_per_process_memory_fraction(USABLE * share, unet.device)
        torch.cuda.empty_cache()
    count = asked or (_remembered(unet, settings, share) if on_gpu else USUAL_BATCH["cpu"])
    if settings.execution == "eager" or (settings.execution == "auto" and not on_gpu):
        return count
    while True:
        try:
            _compile(unet, settings, count)
            return count
        except torch.OutOfMemoryError:
            if count == 1:
                raise
        count //= 2
        log.warning("out of device memory, going on with batches of %d", count)
        torch.cuda.empty_cache()


def _compile(unet: HSpaceUNet, settings: MethodSettings, count: int) -> None:
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_root() / "inductor"))
    log.warning("compiling the net for batches of %d, which takes a minute once per machine", count)
    start = time.perf_counter()
    try:
        unet.compile(noise(unet, count, settings.image_size))
    except (TorchDynamoException, FailOnRecompileLimitHit) as error:
        reason = " ".join(str(error).split("\n")[:2])
        if settings.execution == "compiled":
            raise UserError(f"the net cannot be compiled here: {reason}: take engine.execution: eager") from error
        log.warning("the net runs without being compiled: %s", reason)
    else:
        log.warning("compiled in %.0f s", time.perf_counter() - start)


def _remembered(unet: HSpaceUNet, settings: MethodSettings, share: float) -> int:
    """The number of images that suits a GPU, as it was measured first on this machine: all its actors take the same."""
    card = torch.cuda.get_device_properties(unet.device)
    case = [settings.model_digest, settings.image_size, settings.dtype, card.name, card.total_memory, share]

    def measure(path: Path) -> None:
        path.write_text(str(fastest_batch(unet, settings.image_size)))

    return int(made_once(f"batch-sizes/{json_digest(case)[:16]}", measure).read_text())


def fastest_batch(unet: HSpaceUNet, size: int) -> int:
    """The largest batch, a power of two, that fits the device's memory and is faster per image than half of it."""
    best, best_seconds, count = 1, float("inf"), 1
    while count <= LARGEST:
        try:
            encode, decode = time_halves(unet, size, count)
        except torch.OutOfMemoryError:
            break
        seconds = encode + 2 * decode  # as a step takes that is edited
        if seconds * WORTHWHILE > best_seconds:
            break
        best, best_seconds, count = count, seconds, 2 * count
    torch.cuda.empty_cache()
    return best


@torch.inference_mode()
def time_halves(unet: HSpaceUNet, size: int, count: int, repeats: int = 3) -> tuple[float, float]:
    """Seconds per image of one encode and of one decode of a batch, the fastest of some repeats after the first."""
    x = noise(unet, count, size)
    encoded = unet.encode(x, 500)
    unet.decode(encoded, encoded.h)
    times: list[tuple[float, float]] = []
    for _ in range(repeats):
        start = _now(unet.device)
        encoded = unet.encode(x, 500)
        middle = _now(unet.device)
        unet.decode(encoded, encoded.h)
        times.append(((middle - start) / count, (_now(unet.device) - middle) / count))
    return min(t for t, _ in times), min(t for _, t in times)


def _now(device: torch.device) -> float:
    """The time when the device is done with all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def noise(unet: HSpaceUNet, count: int, size: int) -> Tensor:
    """A batch of noise [B, C, size, size] on the device of a net."""
    return torch.randn(count, unet.image_channels, size, size, device=unet.device)
