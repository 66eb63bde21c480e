"""Measures the worker on a full-size net: images/s, device-busy share and peak memory, by dtype and batch size.

    python -m benchmarks.full_size                         # the 256 px Ho net, on a GPU
    python -m benchmarks.full_size --size 64 --steps 3 --images 4 --batches 2 --channels 32 --device cpu   # a try

The net has the architecture of google/ddpm-ema-celebahq-256 and random weights, because speed does not depend on the
weights. Each image gets one edit, by the solver of new runs in 20 + 20 steps. The worker runs alone, without Ray, which
only wraps it. First the float32 and bfloat16 predictions of one batch are compared.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from PIL import Image

from asyrp.diffusion.process import predict
from asyrp.directions.forms import Direction, GlobalDirection, save_direction
from asyrp.directions.info import DirectionInfo
from asyrp.models.find import find_model
from asyrp.models.load import load_model
from jobs.runs.record import open_run
from jobs.runs.resolve import resolve
from jobs.spec.run import RunSpec
from pipeline.engine.worker import Worker, WorkerOptions
from pipeline.stages.loading import load_functions
from pipeline.storage.store import Store


def ho_unet(size: int, base: int) -> UNet2DModel:
    """The DDPM net of Ho et al. for 256 px: 113.7 M parameters at base 128."""
    torch.manual_seed(0)
    plain_down, plain_up = "DownBlock2D", "UpBlock2D"
    return UNet2DModel(
        sample_size=size,
        layers_per_block=2,
        block_out_channels=tuple(base * mult for mult in (1, 1, 2, 2, 4, 4)),
        down_block_types=(plain_down,) * 4 + ("AttnDownBlock2D", plain_down),
        up_block_types=(plain_up, "AttnUpBlock2D") + (plain_up,) * 4,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        attention_head_dim=None,
    )


def make_model(root: Path, size: int, base: int) -> tuple[Path, Path]:
    """A model folder and a random direction that belongs to it."""
    ho_unet(size, base).save_pretrained(root / "model")
    digest = find_model(str(root / "model")).digest
    info = DirectionInfo("random", "global", digest, n_steps=40, t_edit=514)
    side = size // 32
    direction = Direction(info, GlobalDirection(0.1 * torch.randn(4 * base, side, side)))
    save_direction(direction, root / "random.safetensors")
    return root / "model", root / "random.safetensors"


def make_images(folder: Path, count: int, size: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        small.resize((2 * size, 2 * size)).save(folder / f"{index:04d}.jpg", quality=90)


@torch.inference_mode()
def compare_dtypes(model: Path, size: int, device: str) -> None:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)
    folder = find_model(str(model))
    full, half = (predict(load_model(folder, device, d).unet, x, 500) for d in (torch.float32, torch.bfloat16))
    print(f"bfloat16 against float32: relative difference {((full - half).norm() / full.norm()).item():.2e}")


def measure(root: Path, spec: dict, batch_size: int, device: str) -> None:
    resolved = resolve(RunSpec.model_validate(spec))
    store = Store(resolved.spec.output)
    plan = open_run(store, resolved)
    settings = replace(resolved.settings, device=device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    functions, options = load_functions(settings), WorkerOptions(batch_size)
    with Worker(store.url, root.name, functions, resolved.image_format, options) as worker:
        start = time.perf_counter()
        for shard in range(plan.shards):
            worker.run(resolved.stages[0], shard)
        wall = time.perf_counter() - start
    seconds = worker.state()["seconds"]
    waits = seconds["wait_for_reader"] + seconds["wait_for_writer"]
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    print(
        f"| {spec['dtype']} | {batch_size} | {plan.images / wall:.3f} | "
        f"{100 * seconds['device'] / (seconds['device'] + waits):.1f} % | {peak:.1f} GiB |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model, direction = make_model(root, arguments.size, arguments.channels)
        make_images(root / "images", arguments.images, arguments.size)
        compare_dtypes(model, arguments.size, arguments.device)
        print("| dtype | batch | img/s | device busy | peak memory |\n|---|---|---|---|---|")
        for dtype in arguments.dtypes:
            for batch in arguments.batches:
                spec = {
                    "source": str(root / "images"),
                    "output": str(root / f"{dtype}-{batch}"),
                    "model": str(model),
                    "directions": {"random": str(direction)},
                    "edits": ["random=1"],
                    "n_inv": arguments.steps,
                    "n_gen": arguments.steps,
                    "t_boost": 167,
                    "dtype": dtype,
                    "preview": 0,
                    "shard_size": arguments.images,
                    "engine": {"check": False},  # random weights predict nothing
                }
                measure(root / f"{dtype}-{batch}", spec, batch, arguments.device)


if __name__ == "__main__":
    main()
