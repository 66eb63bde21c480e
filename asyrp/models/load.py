"""Loads a frozen model onto a device: the split U-Net and its noise schedule."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DModel
from safetensors import SafetensorError

from asyrp.diffusion.schedule import NoiseSchedule
from asyrp.diffusion.unet import HSpaceUNet
from asyrp.errors import UserError
from asyrp.models.folder import ModelFolder


@dataclass(frozen=True)
class Model:
    """The two things that the diffusion process needs of a model: a net that predicts noise, and its schedule."""

    unet: HSpaceUNet
    schedule: NoiseSchedule


def load_model(folder: ModelFolder, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Model:
    """Load a model's frozen U-Net to `device` with its weights in `dtype`.

    Raises:
        UserError: if the weights cannot be read or do not fit the config exactly, the net has no h-space, or asyrp
            does not know the schedule.
    """
    try:
        unet, loading = UNet2DModel.from_pretrained(
            folder.unet, torch_dtype=dtype, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model {folder.name} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := [str(name) for name in loading[kind]]:
            raise UserError(
                f"model {folder.name}: its weights do not fit its config.json, {len(names)} {kind.replace('_', ' ')} "
                f"such as {names[0]}"
            )
    return Model(HSpaceUNet(unet.to(device)), read_schedule(folder.scheduler))


def schedule_name(scheduler: Path | None) -> str:
    """The schedule that the scheduler's config names, in words."""
    if scheduler is None:
        return "linear (no scheduler_config.json: DDPM's)"
    config = json.loads((scheduler / "scheduler_config.json").read_text())
    return f"{config.get('beta_schedule', 'linear')}, {config.get('num_train_timesteps', 1000)} steps"


def read_schedule(scheduler: Path | None) -> NoiseSchedule:
    """The schedule that scheduler_config.json describes, or DDPM's linear one if there is no such file.

    Raises:
        UserError: if asyrp does not know the schedule, or the model does not predict noise (epsilon).
    """
    if scheduler is None:
        return NoiseSchedule.linear()
    config = json.loads((scheduler / "scheduler_config.json").read_text())
    kind, prediction = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    steps = config.get("num_train_timesteps", 1000)
    if prediction != "epsilon":
        raise UserError(
            f"{scheduler}: this is a model of prediction type {prediction}; asyrp edits with epsilon models"
        )
    if kind == "linear":
        return NoiseSchedule.linear(config.get("beta_start", 1e-4), config.get("beta_end", 0.02), steps)
    if kind == "squaredcos_cap_v2":
        return NoiseSchedule.cosine(steps)
    raise UserError(f"{scheduler}: asyrp knows the linear schedule and squaredcos_cap_v2 (cosine), not {kind}")
