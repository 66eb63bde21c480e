"""Make `tests/data/golden`, `official` and `photographs` from the files of the official code, only smaller.

    python -m tools.make_test_data FOLDER PHOTOGRAPHS

FOLDER holds `golden` (nets, delta blocks and tensors that the official code computed, by family) and `official` (files
of its release). PHOTOGRAPHS is the folder `skimage/data` of scikit-image.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.official import GOLDEN, OFFICIAL, PHOTOGRAPHS, draw_unet, read_config
from tests.support.reference_nets import AdmNet, HoNet

FAMILIES = ("ho", "iddpm", "adm")
UNREAD = ("edit.P.", "boost.P.", "boost.x_next.")
"""How the names of the tensors begin that no test reads."""

HO_ORDER = ("temb", "conv_in", "down", "mid", "up", "norm_out", "conv_out")
"""The modules of a Ho net in the order in which the official code makes them, and draws their weights."""

AS_THEY_ARE, AS_JPEG = ("camera.png", "chelsea.png", "rocket.jpg"), ("astronaut.png", "coffee.png")


def reference_net(config: dict) -> nn.Module:
    widths, blocks = tuple(config["channel_mult"]), config["num_res_blocks"]
    sizes = [config["image_size"] // 2**level for level in range(len(widths))]
    attention = tuple(level for level, size in enumerate(sizes) if size in config["attention_resolutions"])
    if config["family"] == "ho":
        return HoNet(config["base_channels"], widths, blocks, attention)
    return AdmNet(config["base_channels"], widths, blocks, attention, config["num_head_channels"])


def parameter_names(config: dict) -> list[str]:
    """The names of the parameters in the order in which the official code drew them."""
    names = [name for name, _ in reference_net(config).named_parameters()]
    return sorted(names, key=lambda name: HO_ORDER.index(name.split(".")[0])) if config["family"] == "ho" else names


def write_golden(source: Path, family: str) -> None:
    target = GOLDEN / family
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "delta_blocks.safetensors"):
        shutil.copyfile(source / name, target / name)
    tensors = load_file(source / "tensors.safetensors")
    read = {name: tensor for name, tensor in tensors.items() if not name.startswith(UNREAD)}
    save_file(read, target / "tensors.safetensors")
    unet = load_file(source / "unet.safetensors")
    lines = [
        f'"{name}": {json.dumps({"shape": list(unet[name].shape), "last": unet[name].flatten()[-1].item()})}'
        for name in parameter_names(read_config(family))
    ]
    (target / "parameters.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    drawn = draw_unet(family)
    if drawn.keys() != unet.keys() or not all(torch.equal(drawn[name], unet[name]) for name in unet):
        raise SystemExit(f"the weights of {family} that the seed gives are not those of {source}")


def write_official(source: Path) -> None:
    for name in ("delta_blocks", "lpips"):
        (OFFICIAL / name).mkdir(parents=True, exist_ok=True)
    for path in (source / "delta_blocks").glob("*.pth"):
        content = torch.load(path, weights_only=True, map_location="cpu")
        content["0"] = type(content["0"])((key, value.half()) for key, value in content["0"].items())
        torch.save(content, OFFICIAL / "delta_blocks" / path.name)
    for path in (source / "LICENSE", source / "text_pairs.json", *(source / "lpips").glob("*.tsv")):
        shutil.copyfile(path, OFFICIAL / path.relative_to(source))


def write_photographs(source: Path) -> None:
    PHOTOGRAPHS.mkdir(exist_ok=True)
    for name in AS_THEY_ARE:
        shutil.copyfile(source / name, PHOTOGRAPHS / name)
    for name in AS_JPEG:
        Image.open(source / name).save((PHOTOGRAPHS / name).with_suffix(".jpg"), quality=90)


def main() -> None:
    originals, photographs = map(Path, sys.argv[1:])
    for family in FAMILIES:
        write_golden(originals / "golden" / family, family)
    write_official(originals / "official")
    write_photographs(photographs)


if __name__ == "__main__":
    main()
