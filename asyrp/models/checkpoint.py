"""Finds the state dict of a U-Net in a raw checkpoint file. Files are read as tensors only: code in them never runs."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from asyrp.errors import UserError

PREFIXES = ("module.", "model.", "denoise_fn.")
"""Prefixes that wrappers (DataParallel, trainers) put before every key."""

STEMS = ("conv_in.weight", "input_blocks.0.0.weight")
"""The keys by which a U-Net is recognised: every Ho net has the first, every iDDPM or ADM net the second."""


@dataclass(frozen=True)
class Checkpoint:
    """The state dict of one net without wrappers' prefixes. `notes` say which net was taken and which were left."""

    name: str
    state: dict[str, Tensor]
    notes: tuple[str, ...]


def read_tensors(path: Path) -> Any:
    """The content of a checkpoint file: tensors, in dictionaries and lists. Code in a pickle is never run.

    Raises:
        UserError: if there is no such file, it is cut short, or it holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"there is no checkpoint {path}") from None
    except UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise UserError(f"{path} is no checkpoint: it is neither a pickle of tensors nor safetensors") from error
        raise UserError(
            f"{path} is not opened: it holds more than tensors ({code[1]}) and could run code; save its tensors alone"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can make the unpickler raise anything
        raise UserError(f"{path} cannot be read, it is cut short or no checkpoint: {_first_line(error)}") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """The U-Net in a checkpoint file. If there are several, the last one with averaged (EMA) weights is taken.

    The file may hold a plain state dict, or dictionaries and lists of them, as trainers keep an optimiser beside the
    net. If no net has averaged weights, the last net is taken.

    Raises:
        UserError: if the file cannot be read, or holds no U-Net of a family that `asyrp.models.convert` knows.
    """
    found = list(_state_dicts(read_tensors(path), ()))
    nets = [(where, state) for where, raw in found if (state := _net_in(raw))]
    if not nets:
        _refuse(path, [key for _, raw in found for key in raw])
    where, state = next((net for net in reversed(nets) if "ema" in ".".join(net[0]).lower()), nets[-1])
    notes = []
    if len(nets) > 1:
        left = ", ".join(f"'{'.'.join(other)}'" for other, _ in nets if other != where)
        notes.append(f"took the net '{'.'.join(where)}' and left {left}")
    return Checkpoint(str(path), state, tuple(notes))


def _state_dicts(value: Any, where: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """Every mapping of names to tensors inside `value`, each after the path to it."""
    if isinstance(value, Mapping):
        tensors = {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, Tensor)}
        if tensors:
            yield where, tensors
        children = [(str(key), item) for key, item in value.items() if not isinstance(item, Tensor)]
    else:
        children = [(str(i), item) for i, item in enumerate(value)] if isinstance(value, list | tuple) else []
    for name, item in children:
        yield from _state_dicts(item, (*where, name))


def _net_in(state: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The state dict of the known net inside `state`, without the prefix of its keys; None if there is no such net."""
    prefixes = {key.removesuffix(stem) for key in state for stem in STEMS if key.endswith(stem)}
    known = [prefix for prefix in prefixes if _is_wrapper(prefix)]
    if not known:
        return None
    prefix = min(known, key=lambda p: ("ema" not in p, len(p)))
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _is_wrapper(prefix: str) -> bool:
    while prefix:
        wrapper = next((p for p in (*PREFIXES, "ema.", "ema_model.", "model_ema.") if prefix.startswith(p)), None)
        if wrapper is None:
            return False
        prefix = prefix.removeprefix(wrapper)
    return True


def _refuse(path: Path, keys: list[str]) -> None:
    if any("cond_stage_model" in key or "transformer_blocks" in key or ".attn2." in key for key in keys):
        raise UserError(
            f"{path} is a text-conditional or latent diffusion model; supported are unconditional pixel-space "
            "U-Nets of the Ho (DDPM++), iDDPM and ADM families"
        )
    raise UserError(
        f"{path} holds no U-Net of a known family (Ho/DDPM++, iDDPM, ADM); its keys begin with "
        f"{', '.join(sorted(keys)[:3]) or 'nothing'}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
