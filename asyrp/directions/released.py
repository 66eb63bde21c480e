"""Imports directions of the official release: its delta blocks and its tensors per timestep.

The released files hold weights only. The number of steps is in the file name, the texts are in the release's
dictionary, and the intervals come from its LPIPS curves.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from asyrp.directions import presets
from asyrp.directions.forms import (
    DeltaBlock,
    Direction,
    GlobalDirection,
    TimestepDirection,
    delta_block,
    delta_block_family,
)
from asyrp.directions.info import DirectionInfo
from asyrp.errors import UserError
from asyrp.models.checkpoint import read_tensors
from asyrp.models.folder import FAMILY_NAMES, ModelFolder

FILE_NAME = re.compile(r"(?P<attribute>.+?)_LC_(?P<category>.+?)_t(?P<t_0>\d+)_ninv(?P<n_inv>\d+)_ngen(?P<n_gen>\d+)")
DATA_SETS = {"celeba": "celeba", "church": "church", "bedroom": "bedroom", "dog": "afhq", "afhq": "afhq",
             "metface": "metface"}  # fmt: skip
TEXT_PREFIXES = {"church": "church_", "bedroom": "bedroom_", "afhq": "dog_", "metface": "metface_"}


@dataclass(frozen=True, kw_only=True)
class ReleaseDetails:
    """Details of a released direction that its weights do not hold. None means not stated: it is looked up or unset."""

    n_steps: int | None = None
    data_set: str | None = None
    texts: tuple[str, str] | None = None
    text_cosine: float | None = None
    t_edit: int | None = None
    t_boost: int | None = None


def details_from_name(file_name: str) -> ReleaseDetails:
    """The details in a file name of the release's scheme, {attribute}_LC_{category}_t999_ninv40_ngen40_{iteration}.pth.

    Other names give no details.
    """
    match = FILE_NAME.match(file_name)
    if match is None:
        return ReleaseDetails()
    data_set = next((name for start, name in DATA_SETS.items() if match["category"].lower().startswith(start)), None)
    texts = _texts(match["attribute"], data_set)
    return ReleaseDetails(n_steps=int(match["n_gen"]), data_set=data_set, texts=texts)


def _texts(attribute: str, data_set: str | None) -> tuple[str, str] | None:
    plain = attribute.removeprefix("random_noise_").removesuffix("_new")
    prefixed = TEXT_PREFIXES.get(data_set or "", "") + plain
    return presets.texts(prefixed) or presets.texts(plain)


def import_direction(
    path: Path, folder: ModelFolder, name: str, stated: ReleaseDetails, block: str | None = None
) -> Direction:
    """A released file as a direction of the model in `folder`. `stated` details override those of the file name.

    `block` chooses one of several delta blocks in the file by its official number.

    Raises:
        UserError: if the file holds no direction, or several blocks and none is chosen, if the direction has another
            family or width than the model, or if its number of generation steps or the intervals of its data set are
            not known.
    """
    named = details_from_name(path.name)
    details = replace(named, **{key: value for key, value in vars(stated).items() if value is not None})
    data_set = details.data_set
    if details.n_steps is None:
        raise UserError(f"the name of {path.name} does not say at how many steps it was trained: give --n-steps")
    if data_set is not None and data_set not in presets.data_sets():
        raise UserError(f"no intervals are known for '{data_set}': known are {', '.join(presets.data_sets())}")
    content, first_of_grid = read_tensors(path), None
    if blocks := _blocks(content):
        form_name = "implicit"
        form: nn.Module = _fitting_block(path, _chosen(path, blocks, block), folder)
    else:
        grid, tensors = _tensors(path, content, folder)
        form_name = "timestep" if grid else "global"
        form = TimestepDirection(tensors, torch.tensor(grid)) if grid else GlobalDirection(tensors[0])
        first_of_grid = min(grid, default=None)
    info = DirectionInfo(
        name=name,
        form=form_name,
        model_digest=folder.digest,
        n_steps=details.n_steps,
        t_edit=_t_edit(details, first_of_grid),
        t_boost=details.t_boost if details.t_boost is not None or not data_set else presets.t_boost(data_set),
        unit=f"the coefficient 1 of the official code at {details.n_steps} generation steps",
        found_by="the official training with CLIP (Kwon et al. 2023)",
        found_on=data_set or "",
        notes=_notes(path, details),
    )
    return Direction(info, form)


def _t_edit(details: ReleaseDetails, first_of_grid: int | None) -> int | None:
    if details.t_edit is not None or first_of_grid is not None:
        return details.t_edit if details.t_edit is not None else first_of_grid
    return presets.t_edit(details.data_set, details.text_cosine) if details.data_set else None


def _notes(path: Path, details: ReleaseDetails) -> dict[str, str]:
    notes = {"file": path.name}
    if details.texts:
        notes |= {"source_text": details.texts[0], "target_text": details.texts[1]}
    if details.text_cosine is not None:
        notes["text_cosine"] = f"{details.text_cosine:g}"
    if details.data_set:
        notes["intervals"] = presets.source()
    return notes


def _blocks(content: Any) -> dict[str, dict[str, Tensor]]:
    """The delta blocks in a file, by their official number. A file that is one block's state dict gives block 0."""
    if not isinstance(content, dict):
        return {}
    if delta_block_family(content):
        return {"0": content}
    flat = {str(key).split(".")[0] for key in content if re.match(r"\d+\.\D", str(key))}
    if flat:
        return {
            n: {key[len(n) + 1 :]: value for key, value in content.items() if key.startswith(f"{n}.")} for n in flat
        }
    return {str(key): value for key, value in content.items() if isinstance(value, dict) and delta_block_family(value)}


def _chosen(path: Path, blocks: dict[str, dict[str, Tensor]], block: str | None) -> dict[str, Tensor]:
    if block is None and len(blocks) == 1:
        return next(iter(blocks.values()))
    if block not in blocks:
        raise UserError(f"{path} holds the blocks {', '.join(sorted(blocks))}: choose one with --block")
    return blocks[block]


def _fitting_block(path: Path, state: dict[str, Tensor], folder: ModelFolder) -> DeltaBlock:
    family = delta_block_family(state)
    if family != folder.family:
        raise UserError(
            f"{path} is a block for {FAMILY_NAMES[family or '']} nets, and {folder.name} is a net of the "
            f"{FAMILY_NAMES[folder.family]} kind: name the model that it was trained on"
        )
    try:
        form = delta_block(state)
    except ValueError as error:
        raise UserError(f"{path} is no delta block: {str(error).splitlines()[0]}") from error
    if form.widths != (folder.h_shape[0], folder.emb_channels):
        (h, emb), (own_h, own_emb) = form.widths, (folder.h_shape[0], folder.emb_channels)
        raise UserError(
            f"{path} is for an h of {h} channels and a time embedding of {emb}; {folder.name} has {own_h} and "
            f"{own_emb}: name the model that it was trained on"
        )
    return form


def _tensors(path: Path, content: Any, folder: ModelFolder) -> tuple[list[int], Tensor]:
    """The timesteps, ascending, and a tensor for each: delta_h trained directly, or the mean of a block's delta_h.

    If the file holds one tensor for all timesteps, the list of timesteps is empty.
    """
    entries = content.items() if isinstance(content, dict) else ()
    tensors = {key: value.detach().float() for key, value in entries if isinstance(value, Tensor) and value.ndim >= 3}
    if not tensors or not all(str(key).isdigit() for key in tensors):
        raise UserError(f"{path} holds no direction of the official code: neither delta blocks nor tensors by timestep")
    for tensor in tensors.values():
        if tuple(tensor.squeeze(0).shape) != folder.h_shape:
            raise UserError(
                f"{path} is for an h of {tuple(tensor.squeeze(0).shape)}; that of {folder.name} is {folder.h_shape}: "
                "name the model that it was trained on"
            )
    stacked = {key: tensor.reshape(folder.h_shape) for key, tensor in tensors.items()}
    if len(stacked) == 1:
        return [], torch.stack(list(stacked.values()))
    if all(isinstance(key, int) for key in stacked):
        stacked.pop(0, None)  # in the release's files of means, key 0 holds the mean over time
    by_time = {int(key): tensor for key, tensor in stacked.items()}
    grid = sorted(by_time)
    return grid, torch.stack([by_time[t] for t in grid])
