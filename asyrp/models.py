"""A frozen model ready to run: the split U-Net and its noise schedule on a device."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DModel

from asyrp.errors import UserError
from asyrp.registry import ModelFolder
from asyrp.schedule import NoiseSchedule
from asyrp.unet import HSpaceUNet


@dataclass(frozen=True)
class Model:
    """What the process needs: `unet` to predict with, `schedule` to step along."""

    unet: HSpaceUNet
    schedule: NoiseSchedule


def load(folder: ModelFolder, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """Load a model's frozen U-Net to `device`, its weights in `dtype`.

    Raises:
        UserError: for a net without h-space, or a schedule other than linear epsilon prediction.
    """
    unet = UNet2DModel.from_pretrained(folder.unet, torch_dtype=dtype, low_cpu_mem_usage=False).to(device)
    return Model(HSpaceUNet(unet), read_schedule(folder.scheduler))


def read_schedule(scheduler: Path | None) -> NoiseSchedule:
    """The schedule that scheduler_config.json describes; DDPM's linear one where there is none."""
    if scheduler is None:
        return NoiseSchedule.linear()
    config = json.loads((scheduler / "scheduler_config.json").read_text())
    kind, prediction = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    if kind != "linear" or prediction != "epsilon":
        raise UserError(
            f"{scheduler}: asyrp runs epsilon models on the linear schedule, this one is a {prediction} model on "
            f"the {kind} schedule"
        )
    return NoiseSchedule.linear(config["beta_start"], config["beta_end"], config["num_train_timesteps"])
