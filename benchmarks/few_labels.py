"""Counts how well directions from few labelled images do, by both estimators of `directions learn labels`.

    python -m benchmarks.few_labels                                # about two hours on one core
    python -m benchmarks.few_labels --labelled 128 --draws 1       # a part

For each number of labelled images, that many rendered faces get their four labels, and the rest of `--images` faces
have none. Each estimator finds the direction of each attribute in the interval that the command finds by itself. It is
judged as in edit_success.py, on held-out faces that lack the attribute. The strength is the one of STRENGTHS with the
best worse share on other faces, those on which the bundled directions are calibrated. The last line is the rank
correlation of the verdicts' expected cosines with the worse shares.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from asyrp.diffusion.solvers import DPMSolver
from asyrp.directions.edits import parse_edit
from asyrp.directions.forms import Direction
from asyrp.directions.shift import shift_for
from asyrp.models.find import find_model
from asyrp.models.load import load_model
from benchmarks.ways import percent, row, write_faces
from jobs.learn.labels import LabelLearning, LabelQuestion
from jobs.learn.request import LearnRequest
from tools.judge import CACHE, load_or_train
from tools.make_bundle import CALIBRATION_FACES, CALIBRATION_SEED
from tools.render_avatars import LABELS, load_or_render
from tools.trial import Score, Trial

STRENGTHS = (1.0, 1.5, 2.0, 2.5)
STRENGTH_FACES = 32
STEPS = 20
ESTIMATORS = ("difference", "propagated")


@dataclass(frozen=True)
class Cell:
    """How a direction did: its expected cosine, the strength that was chosen, and its score on held-out faces."""

    verdict: str
    cosine: float
    strength: float
    score: Score


@cache
def trial(file: str, count: int, seed: int, attribute: str, most: int) -> Trial:
    faces = load_or_render(CACHE / file, count, seed)
    chosen = np.nonzero(faces[attribute] == 0)[0][:most]
    model = load_model(find_model("avatars"))
    solver = DPMSolver(model.unet, model.schedule, STEPS)
    return Trial(model, load_or_train(), {name: column[chosen] for name, column in faces.items()}, solver=solver)


def scored(faces: Trial, attribute: str, direction: Direction, strength: float) -> Score:
    return faces.score(attribute, shift_for(faces.solver, parse_edit(f"edit={strength}"), {"edit": direction}))


def judged(direction: Direction, attribute: str, most: int) -> tuple[float, Score]:
    chosen_on = trial("calibration.npz", CALIBRATION_FACES, CALIBRATION_SEED, attribute, STRENGTH_FACES)
    found = {strength: scored(chosen_on, attribute, direction, strength) for strength in STRENGTHS}
    strength = max(found, key=lambda s: min(found[s].target, found[s].others))
    return strength, scored(trial("edit_success.npz", 640, 5, attribute, most), attribute, direction, strength)


def write_labels(folder: Path, labelled: int, images: int, draw: int) -> Path:
    """Write the labels of a random choice of the faces, and return the file."""
    lines = (folder / "labels.csv").read_text().splitlines()
    chosen = np.random.default_rng(draw).choice(images, labelled, replace=False)
    path = folder / f"labels-{labelled}-{draw}.csv"
    path.write_text("\n".join([lines[0], *(lines[1 + index] for index in sorted(chosen))]))
    return path


def cells(folder: Path, labels: Path, faces: int) -> Iterator[tuple[str, str, Cell]]:
    """Yields attribute, estimator and how the direction did."""
    request = LearnRequest(str(folder / "faces"), "avatars", folder / "unused")
    learning = LabelLearning(request, LabelQuestion(str(labels), LABELS, force=True))
    for name in LABELS:
        for estimator in ESTIMATORS:
            found = learning.difference(name) if estimator == "difference" else learning.propagated(name)
            direction = learning.made_of(name, found)
            direction.form.float()
            cosine = learning.verdict(name, found).cosine
            strength, score = judged(direction, name, faces)
            yield name, estimator, Cell(learning.verdict(name, found).trust, cosine, strength, score)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labelled", type=int, nargs="+", default=[32, 64, 128, 256, 1024])
    parser.add_argument("--images", type=int, default=3072)
    parser.add_argument("--faces", type=int, default=128)
    parser.add_argument("--draws", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    cosines, shares = [], []
    row(
        "labelled", "draw", "attribute", "estimator", "verdict", "expected cosine", "strength", "present", "others kept"
    )
    row(*["---"] * 9)
    with tempfile.TemporaryDirectory() as folder:
        write_faces(Path(folder), arguments.images)
        for labelled in arguments.labelled:
            for draw in range(arguments.draws):
                labels = write_labels(Path(folder), labelled, arguments.images, draw)
                for name, estimator, cell in cells(Path(folder), labels, arguments.faces):
                    target, others = cell.score.target, cell.score.others
                    row(labelled, draw, name, estimator, cell.verdict, f"{cell.cosine:.2f}", f"{cell.strength:g}",
                        percent(target), percent(others))  # fmt: skip
                    cosines.append(cell.cosine)
                    shares.append(min(target, others))
    print(f"\nrank correlation of expected cosine and worse share: {spearmanr(cosines, shares).statistic:.2f}")


if __name__ == "__main__":
    main()
