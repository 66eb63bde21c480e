"""Every way to find a direction, side by side: does it do what it says, and nothing else?

    python benchmarks/ways.py                       # about an hour on 2 cores; --ways labels pca for a part of it

Directions are found on rendered faces of the training set with the commands' own functions, and judged on held-out
faces (tools/judge.py) as in edit_success.py: the share that has the attribute after the edit, and the share of the
other three labels that is kept. A way's strength is that of STRENGTHS which does best by the worse of the two.
Principal components have no attribute: each is named, in both senses, by the label that it changes on most faces.
"""

import argparse
import sys
import tempfile
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import numpy as np
import torch
from judge import CACHE, judged, load_or_train
from PIL import Image
from render_avatars import LABELS, load_or_render
from trial import Score, Trial

from asyrp import directions, models, registry
from asyrp.directions import Direction
from asyrp.shift import EditShift
from asyrp.text_training import TextRecipe
from jobs.learn import LabelQuestion, LearnRequest, learn_labels
from jobs.learn_text import TextRequest, learn_text
from jobs.learn_unsupervised import learn_pca

STRENGTHS = (0.5, 0.75, 1.0, 1.5)
T_EDIT, N_STEPS, COMPONENTS, PCA_SCALE = 250, 40, 8, 2.0
TEXTS = {
    "smile": "smiling person",
    "glasses": "person with glasses",
    "beard": "person with a beard",
    "long_hair": "person with long hair",
}
TEXT_L1 = 12.0  # to the bundled CLIP source and target are much less alike than to the large ones


def write_faces(folder: Path, count: int) -> Path:
    """The first rendered training faces as PNG files, and labels.csv beside them."""
    faces = load_or_render(CACHE / "train.npz", 24_000, 0)
    (folder / "faces").mkdir()
    rows = ["key," + ",".join(LABELS)]
    for index in range(count):
        key = f"{index:05d}.png"
        Image.fromarray(faces["images"][index]).save(folder / "faces" / key)
        rows.append(",".join([key, *(str(int(faces[name][index])) for name in LABELS)]))
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder / "faces"


@cache
def trial(attribute: str | None, count: int) -> Trial:
    """Held-out faces that lack the attribute; of all kinds for None."""
    faces = load_or_render(CACHE / "edit_success.npz", 640, 5)
    chosen = np.nonzero(faces[attribute] == 0)[0][:count] if attribute else np.arange(count)
    model = models.load(registry.find("avatars"))
    return Trial(model, load_or_train(), {name: column[chosen] for name, column in faces.items()}, N_STEPS)


def shift_of(direction: Direction, strength: float) -> EditShift:
    return EditShift(((direction, strength, direction.info.t_edit or 0),), N_STEPS)


def best(direction: Direction, attribute: str, count: int) -> tuple[float, Score]:
    """The strength at which the worse of the two shares is best, and the shares."""
    scores = {s: trial(attribute, count).score(attribute, shift_of(direction, s)) for s in STRENGTHS}
    strength = max(scores, key=lambda s: min(scores[s].target, scores[s].others))
    return strength, scores[strength]


def print_best(way: str, name: str, path: Path, faces: int) -> None:
    strength, score = best(directions.load(path), name, faces)
    print(f"| {way} | {name} | {strength:g} | {100 * score.target:.0f} % | {100 * score.others:.0f} % |", flush=True)


def judge_labels(source: Path, folder: Path, arguments: argparse.Namespace) -> None:
    request = LearnRequest(str(source), "avatars", folder / "labels", N_STEPS, T_EDIT)
    paths = learn_labels(request, LabelQuestion(str(source.parent / "labels.csv"), LABELS))
    for name, path in zip(LABELS, paths, strict=True):
        print_best("labels", name, path, arguments.faces)


def judge_text(source: Path, folder: Path, arguments: argparse.Namespace) -> None:
    for name in arguments.texts:
        recipe = TextRecipe("person", TEXTS[name], T_EDIT, N_STEPS, l1_weight=TEXT_L1)
        path = folder / f"{name}.safetensors"
        request = TextRequest(str(source), "avatars", "avatars", path, recipe, arguments.text_images, 1, 8)
        print_best("text", name, learn_text(request), arguments.faces)


def judge_pca(source: Path, folder: Path, arguments: argparse.Namespace) -> None:
    """Of every component in both senses: the label that changes most often."""
    request = LearnRequest(str(source), "avatars", folder / "pca", N_STEPS, T_EDIT, scale=PCA_SCALE)
    faces = trial(None, arguments.faces)
    everyone = torch.arange(len(faces.x_T))
    for path in learn_pca(request, COMPONENTS, False, 64, 10):
        direction = directions.load(path)
        for sense in (1.0, -1.0):
            seen = judged(faces.judge, faces.edited(everyone, shift_of(direction, sense)))
            changed = (seen != faces.truth).float().mean(0)
            top = int(changed.argmax())
            how = "gains" if seen[:, top].sum() > faces.truth[:, top].sum() else "loses"
            others = 1 - (changed.sum() - changed[top]).item() / (len(LABELS) - 1)
            # of the faces that can change so: those without it, or with it
            able = faces.truth[:, top] != (how == "gains")
            share = (seen[able, top] != faces.truth[able, top]).float().mean().item()
            name = f"{how} {LABELS[top]}"
            print(f"| {path.stem} | {name} | {sense:g} | {100 * share:.0f} % | {100 * others:.0f} % |", flush=True)


WAYS = {"labels": judge_labels, "text": judge_text, "pca": judge_pca}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--texts", nargs="+", choices=list(TEXTS), default=list(TEXTS))
    parser.add_argument("--images", type=int, default=1024, help="faces for statistics")
    parser.add_argument("--text-images", type=int, default=128, help="faces for training by text")
    parser.add_argument("--faces", type=int, default=64, help="held-out faces per cell")
    arguments = parser.parse_args()
    print("| way | attribute | strength | present | others kept |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        source = write_faces(Path(name), arguments.images)
        for way in arguments.ways:
            WAYS[way](source, Path(name), arguments)


if __name__ == "__main__":
    main()
