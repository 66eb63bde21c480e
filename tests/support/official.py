"""Gives the tensors that the official code computed, its random nets, and the files of its release."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.reference_nets import draw_parameter

DATA = Path(__file__).parents[1] / "data"
GOLDEN, OFFICIAL, PHOTOGRAPHS = (DATA / name for name in ("golden", "official", "photographs"))
OFFICIAL_IMAGES = Path(__file__).resolve().parents[3] / "shared" / "official" / "images"

FOLDERS_OF_PHOTOGRAPHS = [
    pytest.param(PHOTOGRAPHS, id="free"),
    pytest.param(
        OFFICIAL_IMAGES,
        id="official",
        marks=pytest.mark.skipif(not OFFICIAL_IMAGES.is_dir(), reason="the official images may not be copied here"),
    ),
]


def read_config(family: str) -> dict:
    return json.loads((GOLDEN / family / "config.json").read_text())


def read_tensors(family: str, name: str = "tensors") -> dict[str, Tensor]:
    return load_file(GOLDEN / family / f"{name}.safetensors")


def read_parameters(family: str) -> dict[str, dict]:
    """The shape and the last value of every parameter of the official net, by its official name and in its order."""
    return json.loads((GOLDEN / family / "parameters.json").read_text())


def draw_unet(family: str) -> dict[str, Tensor]:
    """The state dict of the official net. Its weights were drawn from a seed, so they are drawn again, not stored."""
    generator = torch.Generator().manual_seed(read_config(family)["seed"])
    return {
        name: draw_parameter(name, parameter["shape"], generator, of_scale=0.1, of_bias=0.05)
        for name, parameter in read_parameters(family).items()
    }


def write_unet(family: str, folder: Path) -> Path:
    """The official net as a checkpoint file with its official key names."""
    save_file(draw_unet(family), folder / "unet.safetensors")
    return folder / "unet.safetensors"


def write_released_block(name: str, folder: Path) -> Path:
    """A released file of a delta block as it was released: its tensors are stored as float16 and were float32."""
    content = torch.load(OFFICIAL / "delta_blocks" / name, weights_only=True)
    content["0"] = {key: value.float() for key, value in content["0"].items()}
    torch.save(content, folder / name)
    return folder / name
