"""Finds the diffusers folder of a named model, without loading torch unless a checkpoint must be converted."""

import difflib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from asyrp.errors import UserError
from asyrp.files import made_once
from asyrp.models.folder import BUNDLED, PICKLED_WEIGHTS, WEIGHTS, ModelFolder, bundled_names, open_folder

CHECKPOINT_SUFFIXES = (".ckpt", ".pth", ".pt", ".safetensors", ".bin")
CONVERTER = 1  # the converter's version: raise it when the same checkpoint converts to another folder
GRAMMAR = "a short name, a hub id, a diffusers folder, or a checkpoint file (local, or on any fsspec URL)"


@dataclass(frozen=True)
class HubModel:
    """A model of the hub with a short name. `data_set` names its intervals in `asyrp.directions.presets`."""

    repo: str
    data_set: str | None = None


HUB_MODELS = {
    "celebahq-ddpm": HubModel("google/ddpm-ema-celebahq-256", "celeba"),
    "church-ddpm": HubModel("google/ddpm-ema-church-256", "church"),
    "bedroom-ddpm": HubModel("google/ddpm-ema-bedroom-256", "bedroom"),
    "cat-ddpm": HubModel("google/ddpm-ema-cat-256"),
    "cifar10-ddpm": HubModel("google/ddpm-cifar10-32"),
}


def find_model(name: str) -> ModelFolder:
    """The folder of a model. `name` is a short name, a diffusers folder, a checkpoint file or a hub id.

    A checkpoint file is converted once per machine and content.

    Raises:
        UserError: if there is no such model, the hub cannot be reached, or the checkpoint cannot be converted.
    """
    if name in bundled_names():
        return open_folder(BUNDLED / name, name)
    if os.path.isdir(name):  # noqa: PTH112  # pathlib raises for a name that is too long
        return open_folder(Path(name), name)
    if os.path.isfile(name):  # noqa: PTH113
        return open_folder(_converted(Path(name)), name)
    if name in HUB_MODELS:
        return open_folder(_from_hub(HUB_MODELS[name].repo), name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and Path(name).suffix not in CHECKPOINT_SUFFIXES:
        return open_folder(_from_hub(name), name)
    names = [*bundled_names(), *HUB_MODELS]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"give {GRAMMAR}; short names are {', '.join(names)}"
    raise UserError(f"there is no model '{name}': {hint}")


def _converted(checkpoint: Path) -> Path:
    """The diffusers folder of a raw checkpoint, in the cache."""

    def make(folder: Path) -> None:
        from asyrp.models.checkpoint import read_checkpoint
        from asyrp.models.convert import convert, write_folder

        write_folder(convert(read_checkpoint(checkpoint)), folder, checkpoint.name)

    with checkpoint.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return made_once(f"converted/{content}-{CONVERTER}", make)


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(repo, allow_patterns=["*.json", f"*{WEIGHTS}", f"*{PICKLED_WEIGHTS}"]))
    except HFValidationError:
        raise UserError(f"there is no model '{repo}': give {GRAMMAR}") from None
    except RepositoryNotFoundError:
        raise UserError(f"the hub has no model '{repo}', or it is private and HF_TOKEN is not set") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model '{repo}' is not in the local cache and the hub cannot be reached: {reason}") from error
