"""Raw checkpoints of the papers' U-Nets to `diffusers.UNet2DModel`, strictly.

Each family module reads a net's layout off its state dict and names its tensors as diffusers does. The layout also
says how many tensors of which shapes there must be, and here it is held against all of them: nothing is left over,
nothing is missing.
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
class Known:
    """A net of the papers: what its state dict does not say. `head_channels` None: one head."""

    name: str
    image_size: int
    head_channels: int | None = None


HO_256 = Known("DDPM++ (CelebA-HQ, LSUN church and bedroom)", 256)
CIFAR = Known("DDPM (CIFAR-10)", 32)
ADM_LIGHT = Known("iDDPM (AFHQ, FFHQ) or ADM-P2 (METFACES, CelebA-HQ)", 256, 64)
ADM_IMAGENET = Known("ADM (ImageNet)", 256, 64)

KNOWN: dict[tuple[Any, ...], Known] = {
    ("ho", (128, 128, 256, 256, 512, 512), 2, (4,)): HO_256,
    ("ho", (128, 256, 256, 256), 2, (1,)): CIFAR,
    ("adm", (128, 128, 256, 256, 512, 512), 1, (4,)): ADM_LIGHT,
    ("adm", (256, 256, 512, 512, 1024, 1024), 2, (3, 4, 5)): ADM_IMAGENET,
}


@dataclass(frozen=True)
class Converted:
    """A converted net and what is worth saying of the conversion."""

    unet: Any  # a UNet2DModel
    notes: tuple[str, ...]


def convert(
    checkpoint: Checkpoint,
    image_size: int | None = None,
    head_channels: int | None = None,
    heads: int | None = None,
    new_attention_order: bool = False,
) -> Converted:
    """The net of a checkpoint as a diffusers net, float32.

    A state dict does not say the image size (pixels) and, for iDDPM and ADM, the heads of the attention layers, by
    their width or by their number. For the papers' nets they are known; for others they must be given.

    Raises:
        UserError: if something must be given, a tensor is missing, left over or of another shape than the layout
            demands, or `UNet2DModel` cannot express the net.
    """
    try:
        return _convert(checkpoint, image_size, Attention(head_channels, heads, new_attention_order))
    except UserError as error:
        raise UserError(f"{checkpoint.name}: {error}") from error


def _convert(checkpoint: Checkpoint, image_size: int | None, attention: Attention) -> Converted:
    family = ho if "conv_in.weight" in checkpoint.state else adm
    try:
        layout = family.read_layout(checkpoint.state)
    except KeyError as error:
        raise UserError(f"this is no complete {family.NAME} U-Net: it has no {error.args[0]}") from None
    known = KNOWN.get(layout.key)
    notes = [*checkpoint.notes, *layout.notes]
    if image_size is None:
        image_size = _of_known(known, "image size", "--image-size", notes).image_size
    if family is adm and attention.head_channels is None and attention.heads is None:
        how = "--num-head-channels or --num-heads"
        width = _of_known(known, "width of the attention heads", how, notes).head_channels
        attention = replace(attention, head_channels=width)
    _check_size(image_size, len(layout.channels))
    config = layout.config | {"sample_size": image_size}
    if family is adm:
        config["attention_head_dim"] = attention.width(layout.attention_channels)
    unet = _load_strictly(config, family.rename(checkpoint.state, layout, attention))
    return Converted(unet, tuple(notes))


def _of_known(known: Known | None, what: str, option: str, notes: list[str]) -> Known:
    if known is None:
        raise UserError(
            f"a state dict does not say the {what} of its net, and this is none of the papers' nets: "
            f"give {option} to 'asyrp models convert'"
        )
    notes.append(f"the {what} is that of {known.name}, a net of this layout")
    return known


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


def write_folder(converted: Converted, folder: Path, source: str) -> None:
    """Write a diffusers folder: net, linear schedule, and the record that the weights are held against later."""
    converted.unet.save_pretrained(folder)
    scheduler: Any = DDPMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False)
    scheduler.save_pretrained(folder)
    shutil.copymode(folder / "config.json", folder / WEIGHTS)  # safetensors writes files that nobody else may read
    with (folder / WEIGHTS).open("rb") as file:
        digest = weights_digest(file)
    WeightsRecord(digest, source, converted.notes).write(folder)
