"""Does a data set that was balanced by edits make a better classifier? Worst-group accuracy on unbiased faces.

    python -m benchmarks.augmentation              # the tables of docs/augmentation.md, some 15 minutes on one core
    python -m benchmarks.augmentation --work DIR   # keep the run and the data set, and continue with them

The training faces are biased: 95 % of the faces with glasses have a beard, and 95 % of the faces without have none. An
augmentation of one draw, with `balance: [beard, glasses]`, puts glasses on and takes them off. Its export is read with
`datasets`. Classifiers of glasses and of beards, nets of two layers and of one, are trained for the same number of
steps on

- the biased faces as they are,
- the biased faces, with each of the four groups drawn equally often (oversampling),
- the biased faces with their edits,
- as many real faces of each group: the best that edits could reach.

All faces are renders that neither the diffusion model nor its directions have seen. Worst-group accuracy is the lowest
accuracy of a group (beard x glasses).
"""

import argparse
import itertools
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import load_dataset
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from jobs.cli.app import app
from jobs.runs.run import run
from jobs.spec.run import RunSpec
from tools.judge import CACHE, HELD_OUT_COUNT, HELD_OUT_SEED, to_batch
from tools.render_avatars import load_or_render

Faces = Mapping[str, np.ndarray]

TEST_COUNT, TEST_SEED = 640, 5
BIAS = 0.95
SEEDS = range(5)
PIXELS = (32, 16, 8, 4)
STEPS, BATCH, RATE = 400, 32, 2e-3


def groups(faces: Faces) -> np.ndarray:
    """The group [N] of each face: 0 for neither, 1 for a beard, 2 for glasses, 3 for both."""
    return 2 * faces["glasses"] + faces["beard"]


def chosen(faces: Faces, sizes: Mapping[int, int]) -> np.ndarray:
    """Indices of the first faces of each group, as many as `sizes` says."""
    return np.concatenate([np.nonzero(groups(faces) == group)[0][:size] for group, size in sizes.items()])


def biased_sizes(count: int) -> dict[int, int]:
    common = round(BIAS * count / 2)
    rare = count // 2 - common
    return {0: common, 1: rare, 2: rare, 3: common}


def augmented(faces: Faces, index: np.ndarray, work: Path, steps: int) -> dict[str, np.ndarray]:
    """The data set that an augmentation makes from the faces at `index`: images, labels, and `is_augmented`."""
    source, lines = work / "faces", ["key,glasses,beard"]
    source.mkdir(parents=True, exist_ok=True)
    for place in index:
        Image.fromarray(faces["images"][place]).save(source / f"{place:05d}.png")
        lines.append(f"{place:05d}.png,{faces['glasses'][place]},{faces['beard'][place]}")
    (work / "labels.csv").write_text("\n".join(lines) + "\n")
    asked = {
        "labels": str(work / "labels.csv"),
        "balance": ["beard", "glasses"],
        "edits": [{"edit": "glasses=1", "where": ["glasses=0"]}, {"edit": "glasses=-1", "where": ["glasses=1"]}],
    }
    made_with = {"n_inv": steps, "n_gen": steps, "refine": 1}
    run(
        RunSpec.model_validate({"source": str(source), "output": str(work / "run"), "augmentation": asked, **made_with})
    )
    done = CliRunner().invoke(app, ["export", str(work / "run"), "--to", "parquet", "-o", str(work / "set")])
    if done.exit_code:
        raise SystemExit(done.output)
    rows = load_dataset(str(work / "set"), split="train", cache_dir=str(work / "cache"))
    labels = {name: np.array([row[name] for row in rows["labels"]], dtype=int) for name in ("glasses", "beard")}
    images = np.stack([np.asarray(image) for image in rows["image"]])
    return {"images": images, **labels, "is_augmented": np.array(rows["is_augmented"])}


def small_net(pixels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * pixels**2, 64), nn.ReLU(), nn.Linear(64, 1))


def linear_net(pixels: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * pixels**2, 1))


NETS = {"two layers": small_net, "one layer": linear_net}


class Task(NamedTuple):
    """An attribute that a net learns from faces of `pixels` a side."""

    attribute: str
    pixels: int
    net: str


def seen(faces: Faces, pixels: int) -> Tensor:
    """Faces [N, 3, pixels, pixels] in [-1, 1]."""
    return nn.functional.interpolate(to_batch(faces["images"]), size=pixels, mode="area")


def trained(task: Task, faces: Faces, weights: np.ndarray) -> nn.Module:
    """A net, trained on STEPS batches of faces drawn by weight."""
    net = NETS[task.net](task.pixels)
    x, y, odds = seen(faces, task.pixels), torch.from_numpy(faces[task.attribute]).float(), torch.from_numpy(weights)
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.1)
    for _ in range(STEPS):
        index = torch.multinomial(odds, BATCH, replacement=True)
        loss = nn.functional.binary_cross_entropy_with_logits(net(x[index])[:, 0], y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def worst_group_accuracy(task: Task, net: nn.Module, faces: Faces) -> float:
    with torch.inference_mode():
        right = (net(seen(faces, task.pixels))[:, 0] > 0).numpy() == faces[task.attribute].astype(bool)
    return min(float(right[groups(faces) == group].mean()) for group in range(4))


def accuracies(task: Task, faces: Faces, test: Faces, oversampled: bool = False) -> np.ndarray:
    """Worst-group accuracy [len(SEEDS)], one for each seed."""
    group = groups(faces)
    weights = 1 / np.bincount(group, minlength=4)[group] if oversampled else np.ones(len(group))
    found = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        found.append(worst_group_accuracy(task, trained(task, faces, weights), test))
    return np.array(found)


def cell(values: np.ndarray) -> str:
    return f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=300)
    parser.add_argument("--steps", type=int, default=20, help="of inversion and of generation")
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    faces = load_or_render(CACHE / "judge_test.npz", HELD_OUT_COUNT, HELD_OUT_SEED)
    test = load_or_render(CACHE / "edit_success.npz", TEST_COUNT, TEST_SEED)
    biased = chosen(faces, biased_sizes(arguments.faces))
    real = chosen(faces, dict.fromkeys(range(4), biased_sizes(arguments.faces)[0]))
    with tempfile.TemporaryDirectory() as folder:
        edited = augmented(faces, biased, arguments.work or Path(folder), arguments.steps)
    plain = {name: column[biased] for name, column in faces.items()}
    unbiased = {name: column[real] for name, column in faces.items()}
    sizes = np.bincount(groups(edited), minlength=4)
    print(f"{len(biased)} biased faces, {edited['is_augmented'].sum()} edits; groups {sizes.tolist()} with them\n")
    print("| classifier of | seen at | net | biased | oversampled | with our edits | gain | real faces of all groups |")
    print("|---|---|---|---|---|---|---|---|")
    for task in itertools.starmap(Task, itertools.product(("beard", "glasses"), PIXELS, NETS)):
        before, after = accuracies(task, plain, test), accuracies(task, edited, test)
        over, best = accuracies(task, plain, test, oversampled=True), accuracies(task, unbiased, test)
        gain = f"{100 * (after - before).mean():+.1f} points"
        size = f"{task.pixels} px"
        print(
            "|", " | ".join((task.attribute, size, task.net, *map(cell, (before, over, after)), gain, cell(best))), "|"
        )


if __name__ == "__main__":
    main()
