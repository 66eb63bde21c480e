"""Where models live: short names, diffusers folders and hub ids, found and identified without torch."""

import hashlib
import io
import json
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from asyrp.errors import UserError

BUNDLED = Path(__file__).parent / "bundled"
SHORT_NAMES = {
    "celebahq-ddpm": "google/ddpm-ema-celebahq-256",
    "church-ddpm": "google/ddpm-ema-church-256",
    "bedroom-ddpm": "google/ddpm-ema-bedroom-256",
}
WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLED_WEIGHTS = "diffusion_pytorch_model.bin"  # of older repositories; only ever read as tensors


@dataclass(frozen=True)
class ModelFolder:
    """A diffusers folder: `unet` holds the net's config and weights, `scheduler` (if any) the schedule's config."""

    name: str
    unet: Path
    scheduler: Path | None
    directions: Path | None

    @cached_property
    def config(self) -> dict[str, Any]:
        return json.loads((self.unet / "config.json").read_text())

    @cached_property
    def image_size(self) -> int:
        """The side in pixels of the square images that the net was trained on."""
        size = self.config.get("sample_size")
        if not isinstance(size, int):
            raise UserError(f"model {self.name} does not say its image size: add sample_size to its config.json")
        return size

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, types, shapes and bytes of the weights: what runs and directions are bound to."""
        if not (self.unet / WEIGHTS).is_file():
            return pickled_weights_digest(self.unet / PICKLED_WEIGHTS)
        with (self.unet / WEIGHTS).open("rb") as file:
            return weights_digest(file)

    def direction_files(self) -> dict[str, Path]:
        """The directions that come with the model, by name."""
        return {path.stem: path for path in sorted(self.directions.glob("*.safetensors"))} if self.directions else {}


def bundled_names() -> list[str]:
    """The models that the package ships."""
    return sorted(path.name for path in BUNDLED.iterdir() if (path / "unet").is_dir())


def find(name: str) -> ModelFolder:
    """The folder of a model named by short name, local diffusers folder, or hub id.

    Raises:
        UserError: if there is no such model, or the hub cannot be reached.
    """
    if (BUNDLED / name / "unet").is_dir():
        return _folder(name, BUNDLED / name)
    if Path(name).is_dir():
        return _folder(name, Path(name))
    if name in SHORT_NAMES or (name.count("/") == 1 and not name.startswith((".", "/", "~"))):
        return _folder(name, _from_hub(SHORT_NAMES.get(name, name)))
    known = ", ".join([*bundled_names(), *SHORT_NAMES])
    raise UserError(f"there is no model '{name}': give a short name ({known}), a diffusers folder, or a hub id")


def _folder(name: str, root: Path) -> ModelFolder:
    unet = root / "unet" if (root / "unet").is_dir() else root
    for files in (("config.json",), (WEIGHTS, PICKLED_WEIGHTS)):
        if not any((unet / file).is_file() for file in files):
            raise UserError(f"model {name}: there is no {files[0]} in {unet}; is it a diffusers UNet2DModel folder?")
    scheduler = next((path for path in (root / "scheduler", root) if (path / "scheduler_config.json").is_file()), None)
    directions = root / "directions"
    return ModelFolder(name, unet, scheduler, directions if directions.is_dir() else None)


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=["*.json", f"*{WEIGHTS}", f"*{PICKLED_WEIGHTS}"]))
    except RepositoryNotFoundError:
        raise UserError(f"the hub has no model '{repo}', or it is private and HF_TOKEN is not set") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"model '{repo}' is not in the local cache and the hub cannot be reached: {error}") from error


def pickled_weights_digest(path: Path) -> str:
    """The digest that the same tensors have in a safetensors file. Raises UserError for a file of other things."""
    from pickle import UnpicklingError

    import torch
    from safetensors.torch import save

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors, and is not opened: convert it to safetensors") from error
    return weights_digest(io.BytesIO(save(state)))


def weights_digest(file: BinaryIO) -> str:
    """SHA-256 over the tensors of a safetensors file, in the order of their names, whatever its other metadata."""
    digest = hashlib.sha256()
    header_bytes = struct.unpack("<Q", file.read(8))[0]
    header = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items()):
        begin, end = entry["data_offsets"]
        file.seek(8 + header_bytes + begin)
        digest.update(f"{name}\0{entry['dtype']}\0{entry['shape']}\0".encode())
        digest.update(file.read(end - begin))
    return digest.hexdigest()
