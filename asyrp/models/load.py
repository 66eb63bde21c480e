"""Loads a frozen model onto a device: the split U-Net and its noise schedule."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DModel

from asyrp.diffusion.schedule import NoiseSchedule
from asyrp.diffusion.unet import HSpaceUNet
from asyrp.errors import UserError
from asyrp.models.folder import ModelFolder
from asyrp.models.scheduler import read_scheduler


@dataclass(frozen=True)
class Model:
    """The two things that the diffusion process needs of a model: a net that gives the noise, and its schedule."""

    unet: HSpaceUNet
    schedule: NoiseSchedule


def load_model(folder: ModelFolder, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """Load a model's frozen U-Net to `device` with its weights in `dtype`.

    Raises:
        UserError: if the weights cannot be read or do not fit the config exactly, the net has no h-space, or asyrp
            does not know the schedule.
    """
    scheduler = read_scheduler(folder.scheduler)
    _refuse_unknown_fields(folder)
    _refuse_what_cannot_run(folder)
    try:
        unet, loading = UNet2DModel.from_pretrained(
            folder.unet, torch_dtype=dtype, low_cpu_mem_usage=False, output_loading_info=True
        )
    except MemoryError:
        raise
    except Exception as error:  # diffusers builds what the config says, and a config can say anything
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"model {folder.name} cannot be loaded: {reason}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := [str(name) for name in loading[kind]]:
            raise UserError(
                f"model {folder.name}: its weights do not fit its config.json, {len(names)} {kind.replace('_', ' ')} "
                f"such as {names[0]}"
            )
    if other := next((weight.dtype for weight in unet.parameters() if weight.dtype != dtype), None):
        raise UserError(f"model {folder.name}: its weights hold {other}, which cannot be read as {dtype}")
    schedule = scheduler.schedule()
    return Model(HSpaceUNet(unet.to(device), scheduler.prediction_type, schedule), schedule)


def _refuse_what_cannot_run(folder: ModelFolder) -> None:
    """Refuse a config that describes no net, or one that fails when it computes. Without weights that takes no time."""
    try:
        with torch.device("meta"):
            net: Any = UNet2DModel.from_config(folder.config)
            net(torch.empty(1, 3, folder.image_size, folder.image_size), 0)
    except (MemoryError, UserError):
        raise
    except Exception as error:  # diffusers builds what the config says, and a config can say anything
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"model {folder.name}: its config.json describes no net that works: {reason}") from error


def _refuse_unknown_fields(folder: ModelFolder) -> None:
    """Refuse fields of the net's config that diffusers does not know: it would ignore them with a warning."""
    known = inspect.signature(UNet2DModel.__init__).parameters
    if unknown := [name for name in folder.config if not name.startswith("_") and name not in known]:
        raise UserError(
            f"model {folder.name}: its config.json has the field {unknown[0]}, which diffusers' UNet2DModel does not "
            "know: update diffusers, or remove the field if the net does without"
        )
