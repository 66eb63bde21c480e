"""Perceptual distances of two images: LPIPS, or a distance of the same form between features of CLIP."""

import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pickle import UnpicklingError

import lpips
import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from asyrp.errors import UserError
from asyrp.measures.clip import Clip
from asyrp.measures.intervals import LPIPS

CLIP_PREFIX = "clip:"

SMALLEST = 64
"""Pixels a side that LPIPS was made with, which is about the least that AlexNet takes. Smaller images are enlarged."""

Measure = Callable[[Tensor, Tensor], Tensor]
"""Maps images [B, 3, H, W] in [-1, 1] and as many others to their distances [B]. It is 0 for the same image."""


def load_measure(name: str, device: str) -> Measure:
    """Load the measure `lpips` (Zhang et al. 2018, with AlexNet, as in the papers) or `clip:NAME`.

    `Clip` says what NAME can be.

    Raises:
        UserError: if its weights cannot be fetched or read.
    """
    if name == LPIPS:
        return _lpips(device)
    return clip_measure(Clip(name.removeprefix(CLIP_PREFIX), device))


def _lpips(device: str) -> Measure:
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):  # torch.hub prints to stdout what it fetches
            warnings.simplefilter("ignore", UserWarning)  # lpips calls torchvision with deprecated arguments
            net = lpips.LPIPS(net="alex", verbose=False).to(device)
    except (OSError, RuntimeError, UnpicklingError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"LPIPS needs the AlexNet weights of torchvision, which cannot be fetched or read ({reason}): put "
            f"alexnet-owt-7be5be79.pth of download.pytorch.org/models into {torch.hub.get_dir()}/checkpoints "
            "(TORCH_HOME says where that is), or measure with CLIP"
        ) from error

    def measure(x: Tensor, y: Tensor) -> Tensor:
        return net(_large_enough(x), _large_enough(y))[:, 0, 0, 0]

    return measure


def _large_enough(x: Tensor) -> Tensor:
    if x.shape[-1] >= SMALLEST:
        return x
    return interpolate(x, (SMALLEST, SMALLEST), mode="bicubic", align_corners=False)


def clip_measure(clip: Clip) -> Measure:
    """Returns a distance of the form of LPIPS, without its learned weights.

    The features of every block are unit vectors. Their squared differences are averaged over places and blocks.
    """

    def measure(x: Tensor, y: Tensor) -> Tensor:
        pairs = zip(clip.features(x), clip.features(y), strict=True)
        layers = [(normalize(f) - normalize(g)).square().sum(1).mean((1, 2)) for f, g in pairs]
        return torch.stack(layers).mean(0)

    return measure
