"""Defines the three forms of a direction in h-space, and reads and writes direction files.

A direction yields delta_h [B, C, h, w] (or [1, C, h, w]) for a bottleneck at a timestep:

- `GlobalDirection`     one tensor for every timestep (delta_h^global of the paper)
- `TimestepDirection`   one tensor per timestep of a grid
- `HoDeltaBlock`, `AdmDeltaBlock`   a small net f_t(h, t), the paper's implicit function

A direction file is one safetensors file. Its metadata says which model the direction belongs to and how to use it.
"""

import json
from bisect import bisect_left
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from asyrp.diffusion.unet import Encoded
from asyrp.directions.info import FORMAT, DirectionInfo, read_info
from asyrp.errors import UserError
from asyrp.files import write_whole

GROUPS = 32


class GlobalDirection(nn.Module):
    """One tensor [C, h, w] for every timestep."""

    delta_h: Tensor

    def __init__(self, delta_h: Tensor) -> None:
        super().__init__()
        self.register_buffer("delta_h", delta_h)

    def forward(self, encoded: Encoded, t: int) -> Tensor:  # noqa: ARG002
        return self.delta_h[None]


class TimestepDirection(nn.Module):
    """Tensors [T, C, h, w] on an ascending grid of T timesteps. Other timesteps take the tensor of the nearest one."""

    delta_h: Tensor

    def __init__(self, delta_h: Tensor, grid: Tensor) -> None:
        super().__init__()
        self.register_buffer("delta_h", delta_h)
        self.register_buffer("grid", grid)
        self.steps: list[int] = grid.tolist()

    def nearest(self, t: int) -> int:
        """The index of the grid timestep nearest to `t`. If two are equally near, the higher timestep counts."""
        right = min(bisect_left(self.steps, t), len(self.steps) - 1)
        left = max(right - 1, 0)
        return left if t - self.steps[left] < abs(self.steps[right] - t) else right

    def forward(self, encoded: Encoded, t: int) -> Tensor:  # noqa: ARG002
        return self.delta_h[self.nearest(t)][None]


class HoDeltaBlock(nn.Module):
    """The paper's f_t for Ho nets: 1x1 conv, addition of the time embedding, GroupNorm, SiLU, 1x1 conv.

    The modules have the names that they have in the released blocks, whose state dicts therefore load unchanged.
    """

    def __init__(self, channels: int, emb_channels: int) -> None:
        super().__init__()
        self.widths = (channels, emb_channels)
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.temb_proj = nn.Linear(emb_channels, channels)
        self.norm2 = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.conv2 = nn.Conv2d(channels, channels, 1)

    @property
    def last_layer(self) -> nn.Module:
        return self.conv2

    def forward(self, encoded: Encoded, t: int) -> Tensor:  # noqa: ARG002
        dtype = self.conv1.weight.dtype
        time = self.temb_proj(nn.functional.silu(encoded.emb.to(dtype)))
        hidden = self.conv1(encoded.h.to(dtype)) + time[:, :, None, None]
        return self.conv2(nn.functional.silu(self.norm2(hidden)))


class AdmDeltaBlock(nn.Module):
    """The paper's f_t for iDDPM and ADM nets: that for Ho nets with a GroupNorm and SiLU before the first conv."""

    def __init__(self, channels: int, emb_channels: int) -> None:
        super().__init__()
        self.widths = (channels, emb_channels)
        norm, conv = partial(nn.GroupNorm, GROUPS, channels, eps=1e-5), partial(nn.Conv2d, channels, channels, 1)
        self.in_layers = nn.Sequential(norm(), nn.SiLU(), conv())
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, channels))
        self.out_layers = nn.Sequential(norm(), nn.SiLU(), nn.Identity(), conv())

    @property
    def last_layer(self) -> nn.Module:
        return self.out_layers[-1]

    def forward(self, encoded: Encoded, t: int) -> Tensor:  # noqa: ARG002
        dtype = next(self.parameters()).dtype
        time = self.emb_layers(encoded.emb.to(dtype))
        return self.out_layers(self.in_layers(encoded.h.to(dtype)) + time[:, :, None, None])


DeltaBlock = HoDeltaBlock | AdmDeltaBlock
DELTA_BLOCKS: dict[str, type[DeltaBlock]] = {"ho": HoDeltaBlock, "adm": AdmDeltaBlock}
EMB_LAYERS = {"ho": "temb_proj.weight", "adm": "emb_layers.1.weight"}


def delta_block_family(state: dict[str, Tensor]) -> str | None:
    """The family of nets ('ho' or 'adm') that a delta block belongs to; None if the state dict is no delta block."""
    return next((family for family, layer in EMB_LAYERS.items() if layer in state), None)


def delta_block(state: dict[str, Tensor]) -> DeltaBlock:
    """The frozen delta block with these weights.

    Raises:
        ValueError: if the state dict is not that of a delta block.
    """
    family = delta_block_family(state)
    if family is None:
        raise ValueError(f"no delta block has the tensors {', '.join(sorted(state)[:3])}")
    try:
        channels, emb_channels = state[EMB_LAYERS[family]].shape
        block: DeltaBlock = DELTA_BLOCKS[family](channels, emb_channels)
        block.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the tensors are not those of a delta block: {str(error).splitlines()[-1].strip()}"
        ) from error
    block.eval().requires_grad_(False)
    return block


@dataclass(frozen=True)
class Direction:
    """A direction: a module of one of the three forms, with its metadata."""

    info: DirectionInfo
    form: nn.Module

    def delta_h(self, encoded: Encoded, t: int, n_steps: int) -> Tensor:
        """delta_h [B or 1, C, h, w] at strength 1 for a process of `n_steps` generation steps, in the dtype of h."""
        return self.form(encoded, t).to(encoded.h.dtype) * (self.info.n_steps / n_steps)


def check_shape(direction: Direction, h_shape: tuple[int, int, int], emb_channels: int) -> None:
    """Refuse a direction whose tensors do not fit a model with such an h and time embedding.

    Raises:
        UserError: if they do not.
    """
    form = direction.form
    if isinstance(form, GlobalDirection | TimestepDirection):
        fits, shape = form.delta_h.shape[-3:] == h_shape, "x".join(map(str, form.delta_h.shape[-3:]))
    else:
        assert isinstance(form, HoDeltaBlock | AdmDeltaBlock)
        fits, shape = form.widths == (h_shape[0], emb_channels), f"{form.widths[0]} channels, {form.widths[1]} of time"
    if not fits:
        raise UserError(
            f"direction '{direction.info.name}' shifts an h of another shape ({shape}) than the model's "
            f"({'x'.join(map(str, h_shape))}, {emb_channels} of time): learn it on this model"
        )


def save_direction(direction: Direction, path: Path) -> None:
    """Write a direction file, complete or not at all. Metadata values are JSON, as safetensors only allows strings."""
    entries = {key: json.dumps(value) for key, value in asdict(direction.info).items()}
    tensors = {name: tensor.contiguous() for name, tensor in direction.form.state_dict().items()}
    # safetensors' own save_file makes a file that only its owner can read.
    write_whole(path, to_bytes(tensors, metadata={"format": FORMAT, **entries}))


def load_direction(path: Path) -> Direction:
    """Read a direction file.

    Raises:
        UserError: if there is no such file, it is not a direction file, or this version does not know its form.
    """
    info = read_info(path)
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        return Direction(info, _form(info.form, {name: _plain(name, tensor) for name, tensor in state.items()}))
    except ValueError as error:
        raise UserError(f"{path} cannot be used: {error}") from error


def _plain(name: str, tensor: Tensor) -> Tensor:
    """A tensor as float32 or int64. Raises ValueError if it is neither of floats nor of integers, or not finite."""
    if tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        tensor = tensor.float()
        if not tensor.isfinite().all():
            raise ValueError(f"its tensor {name} holds NaN or infinity")
        return tensor
    if tensor.dtype in (torch.int32, torch.int64):
        return tensor.long()
    raise ValueError(f"its tensor {name} holds {tensor.dtype}")


def _form(form: str, state: dict[str, Tensor]) -> nn.Module:
    """The module of a form with these tensors. Raises ValueError if the form is not known, or has other tensors."""
    if form == "implicit":
        return delta_block(state)
    if form == "global" and _kinds(state) == {"delta_h": (3, torch.float32)}:
        return GlobalDirection(state["delta_h"])
    if form == "timestep" and _kinds(state) == {"delta_h": (4, torch.float32), "grid": (1, torch.int64)}:
        grid = state["grid"]
        if len(grid) == 0 or len(grid) != len(state["delta_h"]) or grid[0] < 0 or (grid.diff() <= 0).any():
            raise ValueError("its grid must hold one timestep for each tensor, ascending")
        return TimestepDirection(state["delta_h"], grid)
    if form not in ("global", "timestep"):
        raise ValueError(f"its form is '{form}', and this version knows global, timestep and implicit")
    raise ValueError(f"its tensors {', '.join(sorted(state)[:3]) or '(none)'} are not those of a {form} direction")


def _kinds(state: dict[str, Tensor]) -> dict[str, tuple[int, torch.dtype]]:
    return {name: (tensor.ndim, tensor.dtype) for name, tensor in state.items()}
