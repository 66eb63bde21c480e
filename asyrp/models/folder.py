"""Describes a diffusers folder on this machine: config, weights, digest, and the files that come with the model."""

import hashlib
import io
import json
import struct
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

from asyrp.errors import UserError
from asyrp.models.config import read_config

BUNDLED = Path(__file__).parents[1] / "bundled"
WEIGHTS = "diffusion_pytorch_model.safetensors"
PICKLED_WEIGHTS = "diffusion_pytorch_model.bin"  # in older repositories; read as tensors only, code in it never runs
RECORD = "asyrp.json"
MOST_LAYERS, LARGEST = 100, 100_000
"""No net has more blocks, or layers in a block, and none has more channels or pixels a side."""


FAMILY_NAMES = {"ho": "DDPM++ (Ho)", "adm": "iDDPM/ADM"}
"""The families of nets as messages name them."""


@dataclass(frozen=True)
class WeightsRecord:
    """The record that asyrp keeps beside weights it wrote: their digest, and where they came from."""

    weights_digest: str
    source: str
    notes: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        (folder / RECORD).write_text(json.dumps(asdict(self), indent=1) + "\n")


@dataclass(frozen=True)
class ModelFolder:
    """A diffusers folder. `unet` holds the net's config and weights, `scheduler` (if any) the schedule's config."""

    name: str
    root: Path
    unet: Path
    scheduler: Path | None

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_config(self.unet / "config.json")

    @cached_property
    def image_size(self) -> int:
        """The side, in pixels, of the square images that the net was trained on.

        Raises:
            UserError: if the config names no size, or one that is not square.
        """
        size: Any = self.config.get("sample_size")
        sides = size if isinstance(size, list) else [size, size]
        if len(sides) != 2 or sides[0] != sides[1] or not _is_count(sides[0]):
            raise UserError(
                f"model {self.name}: sample_size in its config.json is {json.dumps(size)}, and must be the side of its "
                "square images in pixels, such as 256"
            )
        return int(sides[0])

    @cached_property
    def h_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of h."""
        channels = self.config["block_out_channels"]
        side = self.image_size // 2 ** (len(channels) - 1)
        return channels[-1], side, side

    @property
    def emb_channels(self) -> int:
        """Channels of the time embedding."""
        return self.config.get("time_embedding_dim") or 4 * self.config["block_out_channels"][0]

    @property
    def family(self) -> str:
        """'ho' or 'adm' (which includes iDDPM). The time embedding decides it, and it decides which directions fit."""
        ho = not self.config.get("flip_sin_to_cos", True) and self.config.get("freq_shift", 0) == 1
        return "ho" if ho else "adm"

    @cached_property
    def digest(self) -> str:
        """SHA-256 over names, types, shapes and bytes of the weights. Runs and directions are bound to it.

        Raises:
            UserError: if the weights cannot be read, or differ from those that the folder's record names.
        """
        if (self.unet / WEIGHTS).is_file():
            _refuse_damaged_weights(self.unet / WEIGHTS)
            with (self.unet / WEIGHTS).open("rb") as file:
                digest = weights_digest(file)
        else:
            digest = pickled_weights_digest(self.unet / PICKLED_WEIGHTS)
        if self.record and self.record.weights_digest != digest:
            raise UserError(
                f"model {self.name}: its weights were changed or damaged since they were written ({digest[:12]}, where "
                f"{self.root / RECORD} says {self.record.weights_digest[:12]}); write the model again, or delete that "
                "file if the change is meant"
            )
        return digest

    @cached_property
    def record(self) -> WeightsRecord | None:
        """The record of the weights, if asyrp wrote them."""
        file = self.root / RECORD
        if not file.is_file():
            return None
        fields = read_config(file)
        try:
            return WeightsRecord(fields["weights_digest"], str(fields["source"]), tuple(fields.get("notes", ())))
        except (KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged: write the model again, or delete that file") from error

    @property
    def samples(self) -> Path | None:
        """The folder of images of the model's own domain, if the model comes with one."""
        return folder if (folder := self.root / "samples").is_dir() else None

    @property
    def segmenter(self) -> Path | None:
        """The net that segments the model's images into parts, if the model comes with one."""
        return file if (file := self.root / "segmenter.pt").is_file() else None

    @property
    def texts(self) -> dict[str, tuple[str, str]]:
        """Source and target text, by name, of those directions of the model that have texts."""
        file = self.root / "texts.json"
        return {name: tuple(pair) for name, pair in read_config(file).items()} if file.is_file() else {}

    def direction_files(self) -> dict[str, Path]:
        """The direction files that come with the model, by name."""
        return {path.stem: path for path in sorted((self.root / "directions").glob("*.safetensors"))}


def bundled_names() -> list[str]:
    """The names of the models that the package ships."""
    return sorted(path.name for path in BUNDLED.iterdir() if (path / "unet").is_dir())


def open_folder(root: Path, name: str) -> ModelFolder:
    """The diffusers folder `root`. Its net is at the top or in `unet/`; messages call it `name`.

    Raises:
        UserError: if it is not a diffusers folder, or the net in it is conditional.
    """
    unet = root / "unet" if (root / "unet").is_dir() else root
    for files in (("config.json",), (WEIGHTS, PICKLED_WEIGHTS)):
        if not any((unet / file).is_file() for file in files):
            raise UserError(f"model {name}: there is no {files[0]} in {unet}; is it a diffusers UNet2DModel folder?")
    scheduler = next((path for path in (root / "scheduler", root) if (path / "scheduler_config.json").is_file()), None)
    folder = ModelFolder(name, root, unet, scheduler)
    _refuse_conditional(folder)
    channels = folder.config.get("block_out_channels", [])
    if not isinstance(channels, list) or not 0 < len(channels) <= MOST_LAYERS or not all(map(_is_count, channels)):
        raise UserError(f"model {name}: block_out_channels in its config.json must list the channels of its blocks")
    layers = folder.config.get("layers_per_block", 2)
    if not _is_count(layers) or layers > MOST_LAYERS:
        raise UserError(f"model {name}: layers_per_block in its config.json must be a number up to {MOST_LAYERS}")
    return folder


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST


def _refuse_conditional(folder: ModelFolder) -> None:
    config = folder.config
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel" or config.get("class_embed_type") or config.get("num_class_embeds"):
        conditional = "class-conditional" if kind == "UNet2DModel" else f"a {kind}"
        text = " (text-conditional)" if "Condition" in kind else ""
        raise UserError(
            f"model {folder.name} is {conditional}{text}; supported are unconditional pixel-space UNet2DModel nets"
        )
    if config.get("in_channels", 3) != 3:
        raise UserError(f"model {folder.name} takes {config['in_channels']} channels; supported are RGB models")


def _refuse_damaged_weights(path: Path) -> None:
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no safetensors file, or cut short: fetch or write it again ({error})") from error


def pickled_weights_digest(path: Path) -> str:
    """The digest that the same tensors have in a safetensors file.

    Raises:
        UserError: if the file holds anything but tensors.
    """
    from safetensors.torch import save

    from asyrp.models.checkpoint import read_tensors

    return weights_digest(io.BytesIO(save(read_tensors(path))))


def weights_digest(file: BinaryIO) -> str:
    """SHA-256 over the tensors of a safetensors file in the order of their names. Other metadata does not count."""
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
