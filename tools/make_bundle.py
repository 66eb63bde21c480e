"""Makes the files that the package ships beside the trained weights: sample faces, and directions found by labels.

    python -m tools.make_bundle --unet tools/cache/model      # all of asyrp/bundled/avatars
    python -m tools.make_bundle --scan                        # intervals and strengths, for CALIBRATION below

The directions come from 240 identities, each drawn with 8 combinations of the four labels (a half-fraction
factorial design, 1,920 labelled faces). h is regressed on all four labels at once. All combinations of an identity
share hair colour, skin, clothes and noise. So chance differences in hair and skin, of which a mean over a few hundred
unrelated faces mostly consists, cancel exactly.
"""

import argparse
import csv
import itertools
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from asyrp.diffusion.schedule import timesteps
from asyrp.directions.forms import Direction, TimestepDirection, save_direction
from asyrp.directions.info import DirectionInfo
from asyrp.directions.shift import EditShift
from asyrp.learning.labels import LabelSums, noised_h
from asyrp.models.find import find_model
from asyrp.models.folder import BUNDLED, WEIGHTS, ModelFolder, WeightsRecord, weights_digest
from asyrp.models.load import load_model
from tools.judge import CACHE, load_or_train, to_batch
from tools.render_avatars import LABELS, LONG_HAIR, SHORT_HAIR, draw_labels, load_or_render, render_labels
from tools.trial import Trial

BUNDLE = BUNDLED / "avatars"
SAMPLES, SAMPLES_SEED = 64, 2
CALIBRATION_FACES, CALIBRATION_SEED = 256, 3
IDENTITIES, IDENTITY_SEED = 240, 11
COMBINATIONS = [c for c in itertools.product((0, 1), repeat=len(LABELS)) if sum(c) % 2 == 0]
N_STEPS, LOWEST_T_EDIT = 40, 100

CALIBRATION = {"smile": (204, 1.6), "glasses": (128, 1.4), "beard": (128, 1.1), "long_hair": (537, 0.85)}
"""t_edit, and the factor on the change of h per label at strength 1. Both from --scan."""

COMPENSATION = {"long_hair": {"beard": 0.6, "smile": 0.2}}
"""The share of other labels' changes that is added. Long hair hides the chin; alone it removes every second beard."""

START = {"smile": 450, "glasses": 450, "beard": 410}
"""Where a direction begins, if not at T. Above, its label cannot be seen and it moves the rest of the face."""

SCAN = {
    "smile": [(204, 1.4), (204, 1.6), (204, 1.8)],
    "glasses": [(204, 1.5), (128, 1.3), (128, 1.5)],
    "beard": [(128, 1.0), (128, 1.1), (128, 1.25)],
    "long_hair": [(435, 0.8), (512, 0.85), (537, 0.85)],
}


def copy_weights(source: Path) -> None:
    (BUNDLE / "unet").mkdir(parents=True, exist_ok=True)
    for name in ("config.json", WEIGHTS):
        shutil.copyfile(source / name, BUNDLE / "unet" / name)
    with (BUNDLE / "unet" / WEIGHTS).open("rb") as file:
        digest = weights_digest(file)
    WeightsRecord(digest, "tools/train_avatars.py").write(BUNDLE)


def write_samples() -> None:
    """Write held-out faces as PNG files, and labels.csv with the table that `directions learn labels` takes."""
    faces = load_or_render(CACHE / "samples.npz", SAMPLES, SAMPLES_SEED)
    folder = BUNDLE / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    with (BUNDLE / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["key", *LABELS])
        for index, image in enumerate(faces["images"]):
            key = f"face_{index:02d}.png"
            Image.fromarray(image).save(folder / key, optimize=True)
            table.writerow([key, *(int(faces[name][index]) for name in LABELS)])


def identity_faces(identity: int) -> np.ndarray:
    """One person with every combination of labels: uint8 [8, 32, 32, 3]."""
    rng = np.random.default_rng((IDENTITY_SEED, identity))
    labels = draw_labels(rng)
    hair = (len(LONG_HAIR) + int(rng.integers(len(SHORT_HAIR))), int(rng.integers(len(LONG_HAIR))))
    faces = []
    for combination in COMBINATIONS:
        own = labels | dict(zip(LABELS, combination, strict=True))
        own["hair"] = hair[own["long_hair"]]
        faces.append(render_labels(own, np.random.default_rng((IDENTITY_SEED, identity, 1))))
    return np.stack(faces)


def find_directions(folder: ModelFolder) -> tuple[torch.Tensor, list[int]]:
    """The change of h per label [4, T, C, h, w], and the grid of T timesteps."""
    model = load_model(folder)
    grid = [t for t in timesteps(N_STEPS) if t >= LOWEST_T_EDIT]
    labels = torch.tensor(COMBINATIONS)
    sums = LabelSums(len(LABELS))
    with ProcessPoolExecutor() as pool:
        for identity, faces in enumerate(pool.map(identity_faces, range(IDENTITIES), chunksize=8)):
            keys = [str(identity)] * len(faces)
            sums.add(labels, noised_h(model.unet, model.schedule, to_batch(faces), keys, grid))
    return sums.directions(), grid


def compensated(changes: torch.Tensor) -> torch.Tensor:
    """The changes of h [4, T, C, h, w] with COMPENSATION added."""
    result = changes.clone()
    for name, others in COMPENSATION.items():
        for other, weight in others.items():
            result[LABELS.index(name)] += weight * changes[LABELS.index(other)]
    return result


def make_direction(
    folder: ModelFolder, name: str, change: torch.Tensor, grid: list[int], t_edit: int, scale: float
) -> Direction:
    """A direction whose strength 1 is `scale` times the change of h, with the timesteps from t_edit up."""
    info = DirectionInfo(
        name=name,
        form="timestep",
        model_digest=folder.digest,
        n_steps=N_STEPS,
        t_edit=t_edit,
        t_boost=0,
        t_start=START.get(name),
        unit=f"{scale:g} times the change of h from faces without to faces with the label",
        found_by=f"h of noised faces regressed on {', '.join(LABELS)} at once",
        notes={f"plus {other}": f"{weight:g} of its change" for other, weight in COMPENSATION.get(name, {}).items()},
        found_on=f"{IDENTITIES * len(COMBINATIONS)} rendered faces",
    )
    kept = [index for index, t in enumerate(grid) if t >= t_edit]
    delta_h = (scale * change[kept]).half()
    return Direction(info, TimestepDirection(delta_h, torch.tensor([grid[index] for index in kept])))


def write_directions(folder: ModelFolder, changes: torch.Tensor, grid: list[int]) -> None:
    for name, change in zip(LABELS, changes, strict=True):
        direction = make_direction(folder, name, change, grid, *CALIBRATION[name])
        save_direction(direction, BUNDLE / "directions" / f"{name}.safetensors")


def scan(folder: ModelFolder, changes: torch.Tensor, grid: list[int]) -> None:
    """Print the judge's verdict on the candidates of SCAN, on faces that nothing else has seen."""
    faces = load_or_render(CACHE / "calibration.npz", CALIBRATION_FACES, CALIBRATION_SEED)
    trial = Trial(load_model(folder), load_or_train(), faces)
    for name, change in zip(LABELS, changes.half().float(), strict=True):
        for t_edit, scale in SCAN[name]:
            direction = make_direction(folder, name, change, grid, t_edit, scale)
            direction.form.float()
            score = trial.score(name, EditShift(((direction, 1.0, t_edit),), N_STEPS))
            print(
                f"{name:10s} t_edit {t_edit} scale {scale:.2f}: present {100 * score.target:.0f} %, "
                f"others kept {100 * score.others:.0f} %",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--unet", type=Path, help="a trained net to ship in place of the present one")
    parser.add_argument("--scan", action="store_true", help="only print the judge's verdict on the candidates")
    arguments = parser.parse_args()
    if arguments.unet:
        copy_weights(arguments.unet)
    folder = find_model("avatars")
    found, grid = find_directions(folder)
    changes = compensated(found)
    if arguments.scan:
        scan(folder, changes, grid)
        return
    write_samples()
    write_directions(folder, changes, grid)


if __name__ == "__main__":
    main()
