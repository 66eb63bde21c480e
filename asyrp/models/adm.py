"""Reads the layout of the iDDPM and ADM (guided diffusion, P2) U-Net, and gives its tensors their diffusers names.

The official net has two flat lists. `input_blocks` holds the stem and then, level by level, the res blocks and a down
block; the last level has no down block. `output_blocks` holds, level by level from the deepest, one res block more than
on the way down. The last of them ends with an up block; the last level has no up block.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from asyrp.errors import UserError
from asyrp.models.folder import FAMILY_NAMES
from asyrp.models.layout import Attention, Layout, count_numbered, first_level_is_base

NAME = FAMILY_NAMES["adm"]

SIMPLE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
IN_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "norm": "group_norm",
    "proj_out": "to_out.0",
    "op": "conv",
    "conv": "conv",
}
LABELS = frozenset({"label_emb.weight"})


def read_layout(state: dict[str, Tensor]) -> Layout:
    """The architecture of the net.

    Raises:
        KeyError: if a tensor is missing that every such net has.
        UserError: if UNet2DModel cannot express the net.
    """
    outputs = count_numbered(state, r"output_blocks\.(\d+)\.")
    levels = 1 + sum(_up_block(state, k) is not None for k in range(outputs))
    blocks = outputs // levels - 1
    inputs = count_numbered(state, r"input_blocks\.(\d+)\.")
    if not outputs == inputs == levels * (blocks + 1):
        raise UserError(
            "the res blocks of the checkpoint do not fall into levels of equal depth joined by learnt down and up "
            "blocks, which is all that UNet2DModel can express"
        )
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    channels = tuple(len(state[f"input_blocks.{k}.0.out_layers.3.weight"]) for k in firsts)
    attention = tuple(i for i, k in enumerate(firsts) if f"input_blocks.{k}.1.qkv.weight" in state)
    stem = state["input_blocks.0.0.weight"]
    first_level_is_base(len(stem), state["time_embed.0.weight"].shape[1], channels[0])
    resnets = levels > 1 and f"input_blocks.{blocks + 1}.0.op.weight" not in state
    plain_down, plain_up = (
        ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if resnets else ("DownBlock2D", "UpBlock2D")
    )
    emb_layer, width = state[f"input_blocks.{firsts[0]}.0.emb_layers.1.weight"], channels[0]
    config = {
        "in_channels": stem.shape[1],
        "out_channels": len(state["out.2.weight"]),
        "layers_per_block": blocks,
        "block_out_channels": channels,
        "down_block_types": tuple("AttnDownBlock2D" if i in attention else plain_down for i in range(levels)),
        "up_block_types": tuple("AttnUpBlock2D" if i in attention else plain_up for i in reversed(range(levels))),
        "time_embedding_dim": len(state["time_embed.0.weight"]),
        "downsample_type": "resnet" if resnets else "conv",
        "upsample_type": "resnet" if resnets else "conv",
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_eps": 1e-5,
        "resnet_time_scale_shift": "scale_shift" if len(emb_layer) == 2 * width else "default",
        "attn_norm_num_groups": 32,  # without it diffusers leaves out the norm of the mid attention with scale_shift
    }
    dropped = LABELS & state.keys()
    notes = ("dropped the label embedding: predictions are those without a class",) if dropped else ()
    widths = frozenset(channels[i] for i in attention) | {channels[-1]}
    return Layout(("adm", channels, blocks, attention), config, widths, notes, dropped)


def rename(state: dict[str, Tensor], layout: Layout, attention: Attention) -> dict[str, Tensor]:
    """The tensors by their diffusers names, with fused qkv weights split into q, k and v."""
    modules = _diffusers_modules(state, layout)
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        if key in layout.dropped:
            continue
        official = next((module for module in modules if key.startswith(f"{module}.")), None)
        if official is None:
            raise UserError(f"the checkpoint holds a tensor that no {NAME} U-Net has: {key}")
        inner, _, kind = key.removeprefix(f"{official}.").rpartition(".")
        module = modules[official]
        if inner == "qkv":
            width = attention.width(layout.attention_channels)
            for name, part in zip("qkv", split_qkv(value, width, attention.new_order), strict=True):
                renamed[f"{module}.to_{name}.{kind}"] = part
        else:
            tensor = value.flatten(1) if inner == "proj_out" and kind == "weight" else value
            renamed[".".join(filter(None, (module, IN_BLOCK.get(inner, inner), kind)))] = tensor
    return renamed


def _diffusers_modules(state: dict[str, Tensor], layout: Layout) -> dict[str, str]:
    """The name of each module in diffusers, by its name in the official net."""
    _, channels, blocks, _ = layout.key
    levels = len(channels)
    modules = dict(SIMPLE)
    for level in range(levels):
        first = 1 + level * (blocks + 1)
        for j in range(blocks):
            modules[f"input_blocks.{first + j}.0"] = f"down_blocks.{level}.resnets.{j}"
            modules[f"input_blocks.{first + j}.1"] = f"down_blocks.{level}.attentions.{j}"
        modules[f"input_blocks.{first + blocks}.0"] = f"down_blocks.{level}.downsamplers.0"
        for j in range(blocks + 1):
            k = level * (blocks + 1) + j
            modules[f"output_blocks.{k}.0"] = f"up_blocks.{level}.resnets.{j}"
            modules[f"output_blocks.{k}.1"] = f"up_blocks.{level}.attentions.{j}"
            up = _up_block(state, k)
            if up is not None:
                modules[up] = f"up_blocks.{level}.upsamplers.0"
    return modules


def _up_block(state: dict[str, Tensor], k: int) -> str | None:
    """The official name of the module in output block k that doubles the resolution, if it has one."""
    for part in (f"output_blocks.{k}.1", f"output_blocks.{k}.2"):
        if f"{part}.in_layers.0.weight" in state or f"{part}.conv.weight" in state:
            return part
    return None


def split_qkv(value: Tensor, width: int, new_order: bool) -> list[Tensor]:
    """q, k and v, each [C, C] or [C], from a fused weight [3C, C, 1] or bias [3C] whose heads have `width` channels."""
    fused = value.flatten(1) if value.ndim > 1 else value
    heads = len(fused) // (3 * width)
    if new_order:
        parts = fused.unflatten(0, (3, heads * width)).unbind(0)
    else:
        parts = (part.flatten(0, 1) for part in fused.unflatten(0, (heads, 3, width)).unbind(1))
    return [part.contiguous() for part in parts]


def fuse_qkv(parts: Sequence[Tensor], width: int, new_order: bool) -> Tensor:
    """The fused weight [3C, C] or bias [3C] of q, k and v: the inverse of `split_qkv`."""
    if new_order:
        return torch.cat(tuple(parts))
    return torch.stack([part.unflatten(0, (-1, width)) for part in parts], dim=1).flatten(0, 2)
