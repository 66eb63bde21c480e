"""Reads the layout of Ho's DDPM U-Net (SDEdit calls it "DDPM++"), and gives its tensors their diffusers names."""

import re

from torch import Tensor

from asyrp.models.folder import FAMILY_NAMES
from asyrp.models.layout import Attention, Layout, count_numbered, first_level_is_base

NAME = FAMILY_NAMES["ho"]

RENAMED = (
    (r"^temb\.dense\.0", "time_embedding.linear_1"),
    (r"^temb\.dense\.1", "time_embedding.linear_2"),
    (r"^norm_out", "conv_norm_out"),
    (r"^mid\.block_1", "mid_block.resnets.0"),
    (r"^mid\.block_2", "mid_block.resnets.1"),
    (r"^mid\.attn_1", "mid_block.attentions.0"),
    (r"^(down|up)\.(\d+)\.block\.", r"\1_blocks.\2.resnets."),
    (r"^(down|up)\.(\d+)\.attn\.", r"\1_blocks.\2.attentions."),
    (r"^(down|up)\.(\d+)\.(down|up)sample\.conv", r"\1_blocks.\2.\3samplers.0.conv"),
    (r"\.temb_proj\.", ".time_emb_proj."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


def read_layout(state: dict[str, Tensor]) -> Layout:
    """The architecture of the net.

    Raises:
        KeyError: if a tensor is missing that every such net has.
        UserError: if UNet2DModel cannot express the net.
    """
    levels = count_numbered(state, r"down\.(\d+)\.")
    channels = tuple(len(state[f"down.{i}.block.0.conv1.weight"]) for i in range(levels))
    blocks = count_numbered(state, r"down\.0\.block\.(\d+)\.")
    attention = tuple(i for i in range(levels) if f"down.{i}.attn.0.q.weight" in state)
    conv_in = state["conv_in.weight"]
    first_level_is_base(len(conv_in), state["temb.dense.0.weight"].shape[1], channels[0])
    down = ["AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(levels)]
    up = ["AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(range(levels))]
    config = {
        "in_channels": conv_in.shape[1],
        "out_channels": len(state["conv_out.weight"]),
        "layers_per_block": blocks,
        "block_out_channels": channels,
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "time_embedding_dim": len(state["temb.dense.0.weight"]),
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "attention_head_dim": None,
    }
    widths = frozenset(channels[i] for i in attention) | {channels[-1]}
    return Layout(("ho", channels, blocks, attention), config, widths)


def rename(state: dict[str, Tensor], layout: Layout, attention: Attention) -> dict[str, Tensor]:  # noqa: ARG001
    """The tensors by their diffusers names. The 1x1 convolutions of attention layers become matrices."""
    levels = len(layout.channels)
    return {_diffusers_key(key, levels): _as_matrix(key, value) for key, value in state.items()}


def _diffusers_key(key: str, levels: int) -> str:
    for pattern, replacement in RENAMED:
        key = re.sub(pattern, replacement, key)
    # The official list of up levels begins with the shallowest, that of diffusers with the deepest.
    return re.sub(r"^up_blocks\.(\d+)", lambda m: f"up_blocks.{levels - 1 - int(m[1])}", key)


def _as_matrix(key: str, value: Tensor) -> Tensor:
    is_attention = re.search(r"attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight$", key)
    return value.flatten(1) if is_attention else value
