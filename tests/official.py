"""Golden tensors of the official code, and its Ho nets as diffusers nets."""

import json
import re
from pathlib import Path

import pytest
from diffusers import UNet2DModel
from safetensors.torch import load_file
from torch import Tensor

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = SHARED / "golden"

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden tensors of the official code are not here")

RENAMED = (
    (r"^temb\.dense\.(\d)", lambda m: f"time_embedding.linear_{int(m[1]) + 1}"),
    (r"^norm_out", "conv_norm_out"),
    (r"^mid\.block_(\d)", lambda m: f"mid_block.resnets.{int(m[1]) - 1}"),
    (r"^mid\.attn_1", "mid_block.attentions.0"),
    (r"^(down|up)\.(\d+)\.block\.", r"\1_blocks.\2.resnets."),
    (r"^(down|up)\.(\d+)\.attn\.", r"\1_blocks.\2.attentions."),
    (r"^(down|up)\.(\d+)\.(down|up)sample\.conv", r"\1_blocks.\2.\3samplers.0.conv"),
    (r"temb_proj", "time_emb_proj"),
    (r"nin_shortcut", "conv_shortcut"),
    (r"(attentions\.\d+)\.norm", r"\1.group_norm"),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out", r"\1.to_out.0"),
)


def read_config(family: str) -> dict:
    return json.loads((GOLDEN / family / "config.json").read_text())


def read_tensors(family: str, name: str = "tensors") -> dict[str, Tensor]:
    return load_file(GOLDEN / family / f"{name}.safetensors")


def ho_unet() -> UNet2DModel:
    """The golden Ho net as a diffusers net, loaded strictly."""
    config = read_config("ho")
    size, levels = config["image_size"], len(config["channel_mult"])
    attention = [size // 2**level in config["attention_resolutions"] for level in range(levels)]
    unet = UNet2DModel(
        sample_size=size,
        layers_per_block=config["num_res_blocks"],
        block_out_channels=tuple(config["base_channels"] * mult for mult in config["channel_mult"]),
        down_block_types=tuple("AttnDownBlock2D" if has else "DownBlock2D" for has in attention),
        up_block_types=tuple("AttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        attention_head_dim=None,
    )
    state = {_diffusers_key(key, levels): _squeezed(key, value) for key, value in read_tensors("ho", "unet").items()}
    unet.load_state_dict(state)
    return unet


def _diffusers_key(key: str, levels: int) -> str:
    for pattern, replacement in RENAMED:
        key = re.sub(pattern, replacement, key)
    return re.sub(r"^up_blocks\.(\d+)", lambda m: f"up_blocks.{levels - 1 - int(m[1])}", key)


def _squeezed(key: str, value: Tensor) -> Tensor:
    return value[:, :, 0, 0] if re.search(r"attn.*\.(q|k|v|proj_out)\.weight$", key) else value
