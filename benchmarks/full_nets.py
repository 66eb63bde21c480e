"""The papers' nets with random weights, because speed does not depend on the weights, and images to edit with them."""

from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from PIL import Image

from asyrp.directions.forms import Direction, GlobalDirection, save_direction
from asyrp.directions.info import DirectionInfo
from asyrp.models.checkpoint import Checkpoint
from asyrp.models.convert import convert
from asyrp.models.find import find_model
from tests.support.reference_nets import AdmNet, randomised


def ho_unet(size: int, base: int) -> UNet2DModel:
    """The DDPM net of Ho et al. for 256 px: 113.7 M parameters at base 128."""
    torch.manual_seed(0)
    plain_down, plain_up = "DownBlock2D", "UpBlock2D"
    return UNet2DModel(
        sample_size=size,
        layers_per_block=2,
        block_out_channels=tuple(base * mult for mult in (1, 1, 2, 2, 4, 4)),
        down_block_types=(plain_down,) * 4 + ("AttnDownBlock2D", plain_down),
        up_block_types=(plain_up, "AttnUpBlock2D") + (plain_up,) * 4,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        attention_head_dim=None,
    )


def adm_unet(size: int, base: int) -> UNet2DModel:
    """The net of iDDPM and of ADM-P2 for 256 px: 93.6 M parameters at base 128."""
    reference = randomised(AdmNet(base, (1, 1, 2, 2, 4, 4), 1, (4,), 64), 0)
    return convert(Checkpoint("net.pt", reference.state_dict(), ()), size, 64).unet


FAMILIES = {"Ho (DDPM++)": ho_unet, "iDDPM, ADM-P2": adm_unet}


def make_model(root: Path, size: int, base: int, family: str = "Ho (DDPM++)") -> tuple[Path, Path]:
    """A model folder and a random direction that belongs to it."""
    FAMILIES[family](size, base).save_pretrained(root / "model")
    digest = find_model(str(root / "model")).digest
    info = DirectionInfo("random", "global", digest, n_steps=40, t_edit=514)
    side = size // 32
    direction = Direction(info, GlobalDirection(0.1 * torch.randn(4 * base, side, side)))
    save_direction(direction, root / "random.safetensors")
    return root / "model", root / "random.safetensors"


def make_images(folder: Path, count: int, size: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        small.resize((2 * size, 2 * size)).save(folder / f"{index:04d}.jpg", quality=90)
