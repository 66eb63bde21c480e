"""Converts raw checkpoints of the papers' U-Nets to `diffusers.UNet2DModel`, strictly.

Each family module reads the layout of a net from its state dict and gives the tensors their diffusers names. The layout
also determines which tensors of which shapes there must be. This module checks that every tensor of the net is in the
checkpoint with the right shape, and that the checkpoint holds no other.
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor

from asyrp.errors import UserError
from asyrp.models import adm, ho
from asyrp.models.checkpoint import Checkpoint
from asyrp.models.folder import WEIGHTS, WeightsRecord, weights_digest
from asyrp.models.layout import Attention


@dataclass(frozen=True)
class PublishedNet:
    """The facts about a net of the papers that its state dict lacks. With `head_channels` None it has one head."""

    name: str
    image_size: int
    head_channels: int | None = None


HO_256 = PublishedNet("DDPM++ (CelebA-HQ, LSUN church and bedroom)", 256)
CIFAR = PublishedNet("DDPM (CIFAR-10)", 32)
ADM_LIGHT = PublishedNet("iDDPM (AFHQ, FFHQ) or ADM-P2 (METFACES, CelebA-HQ)", 256, 64)
ADM_IMAGENET = PublishedNet("ADM (ImageNet)", 256, 64)

PUBLISHED_NETS: dict[tuple[Any, ...], PublishedNet] = {
    ("ho", (128, 128, 256, 256, 512, 512), 2, (4,)): HO_256,
    ("ho", (128, 256, 256, 256), 2, (1,)): CIFAR,
    ("adm", (128, 128, 256, 256, 512, 512), 1, (4,)): ADM_LIGHT,
    ("adm", (256, 256, 512, 512, 1024, 1024), 2, (3, 4, 5)): ADM_IMAGENET,
}


@dataclass(frozen=True)
class ConvertedNet:
    """A converted net, with notes on the choices that the conversion made."""

    unet: Any  # a UNet2DModel
    notes: tuple[str, ...]


def convert(
    checkpoint: Checkpoint,
    image_size: int | None = None,
    head_channels: int | None = None,
    heads: int | None = None,
    new_attention_order: bool = False,
) -> ConvertedNet:
    """The net of a checkpoint as a diffusers net, float32.

    A state dict does not hold the image size (pixels). For iDDPM and ADM it does not hold the heads of the attention
    layers either, which are given by their width or by their number. For the papers' nets both are known; for other
    nets the caller must give them.

    Raises:
        UserError: if one of these must be given and is not, a tensor is missing, left over or of another shape than the
            layout demands, or `UNet2DModel` cannot express the net.
    """
    try:
        return _convert(checkpoint, image_size, Attention(head_channels, heads, new_attention_order))
    except UserError as error:
        raise UserError(f"{checkpoint.name}: {error}") from error


def _convert(checkpoint: Checkpoint, image_size: int | None, attention: Attention) -> ConvertedNet:
    family = ho if "conv_in.weight" in checkpoint.state else adm
    try:
        layout = family.read_layout(checkpoint.state)
    except KeyError as error:
        raise UserError(f"this is no complete {family.NAME} U-Net: it has no {error.args[0]}") from None
    published = PUBLISHED_NETS.get(layout.key)
    notes = [*checkpoint.notes, *layout.notes]
    if image_size is None:
        image_size = _require_published(published, "image size", "--image-size", notes).image_size
    if family is adm and attention.head_channels is None and attention.heads is None:
        options = "--num-head-channels or --num-heads"
        net = _require_published(published, "width of the attention heads", options, notes)
        attention = replace(attention, head_channels=net.head_channels)
    _check_size(image_size, len(layout.channels))
    config = layout.config | {"sample_size": image_size}
    if family is adm:
        config["attention_head_dim"] = attention.width(layout.attention_channels)
    unet = _load_strictly(config, family.rename(checkpoint.state, layout, attention))
    return ConvertedNet(unet, tuple(notes))


def _require_published(net: PublishedNet | None, what: str, option: str, notes: list[str]) -> PublishedNet:
    """The published net, after noting that `what` is taken from it. Raises UserError, naming `option`, without one."""
    if net is None:
        raise UserError(
            f"a state dict does not say the {what} of its net, and this is none of the papers' nets: "
            f"give {option} to 'asyrp models convert'"
        )
    notes.append(f"the {what} is that of {net.name}, a net of this layout")
    return net


def _check_size(size: int, levels: int) -> None:
    if size < 1 or size % 2 ** (levels - 1):
        raise UserError(f"image size {size}: a net of {levels} levels takes multiples of {2 ** (levels - 1)}")


def _load_strictly(config: dict[str, Any], state: dict[str, Tensor]) -> Any:
    with torch.device("meta"):
        unet = UNet2DModel.from_config(config)
    wanted = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    _refuse_differences(wanted, {name: tuple(tensor.shape) for name, tensor in state.items()})
    unet.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return unet.eval().requires_grad_(False)


def _refuse_differences(wanted: dict[str, tuple[int, ...]], given: dict[str, tuple[int, ...]]) -> None:
    complaints = {
        "missing": sorted(wanted.keys() - given.keys()),
        "left over": sorted(given.keys() - wanted.keys()),
        "of another shape": sorted(name for name in wanted.keys() & given.keys() if wanted[name] != given[name]),
    }
    found = [f"{len(names)} {what} ({', '.join(names[:3])})" for what, names in complaints.items() if names]
    if found:
        raise UserError(f"the checkpoint does not fit the net that its keys describe: tensors are {'; '.join(found)}")


def write_folder(converted: ConvertedNet, folder: Path, source: str) -> None:
    """Write a diffusers folder: the net, the linear schedule, and the record that the weights are checked against."""
    converted.unet.save_pretrained(folder)
    scheduler: Any = DDPMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False)
    scheduler.save_pretrained(folder)
    shutil.copymode(folder / "config.json", folder / WEIGHTS)  # safetensors makes files that only their owner can read
    with (folder / WEIGHTS).open("rb") as file:
        digest = weights_digest(file)
    WeightsRecord(digest, source, converted.notes).write(folder)
