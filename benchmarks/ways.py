"""Compares all ways to find a direction: how often a direction does what it says, and nothing else.

    python -m benchmarks.ways                       # about four hours on one core; --ways labels pca for a part

Directions are found on rendered faces of the training set with the commands' own functions, and judged on held-out
faces (tools/judge.py) as in edit_success.py: by the share of faces that have the attribute after the edit, and by the
share of the other three labels that is kept. A direction acts in the interval of the bundled direction of its name; a
direction from texts acts in the interval of its training. The strength is chosen from STRENGTHS on other faces, those
on which the bundled directions are calibrated: the one with the best value of the worse share.

Principal components and singular vectors have no attribute. Each is named, in both senses, after the label that it
changes on the largest share of the faces on which that label can change.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from asyrp.directions import algebra
from asyrp.directions.forms import Direction, load_direction
from asyrp.directions.shift import EditShift
from asyrp.learning.text import TextRecipe
from asyrp.measures.scorers import ScorerSource
from asyrp.models.find import find_model
from asyrp.models.load import load_model
from jobs.learn.average import average_over_images
from jobs.learn.classifier import ClassifierQuestion, learn_classifier
from jobs.learn.draw_images import sample
from jobs.learn.labels import LabelQuestion, learn_labels
from jobs.learn.request import LearnRequest
from jobs.learn.score import score
from jobs.learn.text import PRESETS, TextRequest, learn_text
from jobs.learn.unsupervised import JacobianQuestion, learn_jacobian, learn_pca
from jobs.spec.run import EngineSpec
from pipeline.sources.labels import write_labels
from tools.judge import CACHE, judged, load_or_train
from tools.make_bundle import CALIBRATION_FACES, CALIBRATION_SEED
from tools.render_avatars import LABELS, load_or_render
from tools.trial import Score, Trial

STRENGTHS = (0.75, 1.0, 1.25, 1.5, 1.75)
STRENGTH_FACES = 48
T_EDIT, N_STEPS, COMPONENTS = 204, 40, 12
TEXTS = {
    "smile": ("person not smiling", "person smiling"),
    "glasses": ("person without glasses", "person with glasses"),
    "beard": ("person without a beard", "person with a beard"),
    "long_hair": ("person with short hair", "person with long hair"),
}
TEXT_INTERVALS = {"glasses": {"t_start": 450}, "long_hair": {"t_start": 614, "t_edit": 307}}
"""The attributes whose training by text has another interval than the preset of the bundled model, and the interval."""

PRESET = PRESETS["avatars"]
EXTREMES = 0.2


@dataclass(frozen=True)
class Bench:
    """Rendered faces in a folder with labels.csv beside it, and the sizes of a benchmark on them."""

    folder: Path
    images: int
    faces: int
    attributes: tuple[str, ...]

    @property
    def source(self) -> str:
        return str(self.folder / "faces")

    @property
    def labels(self) -> str:
        return str(self.folder / "labels.csv")

    def request(self, name: str, source: str | None = None, n_steps: int = N_STEPS) -> LearnRequest:
        return LearnRequest(source or self.source, "avatars", self.folder / name, n_steps, T_EDIT)


def write_faces(folder: Path, count: int) -> None:
    """Write the first `count` rendered training faces as PNG files, and labels.csv beside them."""
    faces = load_or_render(CACHE / "train.npz", 24_000, 0)
    (folder / "faces").mkdir()
    rows = ["key," + ",".join(LABELS)]
    for index in range(count):
        key = f"{index:05d}.png"
        Image.fromarray(faces["images"][index]).save(folder / "faces" / key)
        rows.append(",".join([key, *(str(int(faces[name][index])) for name in LABELS)]))
    (folder / "labels.csv").write_text("\n".join(rows))


@cache
def trial(attribute: str | None, count: int) -> Trial:
    """Held-out faces that lack the attribute; faces of all kinds for None."""
    return trial_on(load_or_render(CACHE / "edit_success.npz", 640, 5), attribute, count)


@cache
def calibration_trial(attribute: str) -> Trial:
    """The faces on which strengths are chosen."""
    faces = load_or_render(CACHE / "calibration.npz", CALIBRATION_FACES, CALIBRATION_SEED)
    return trial_on(faces, attribute, STRENGTH_FACES)


def trial_on(faces: dict[str, np.ndarray], attribute: str | None, count: int) -> Trial:
    chosen = np.nonzero(faces[attribute] == 0)[0][:count] if attribute else np.arange(count)
    model = load_model(find_model("avatars"))
    return Trial(model, load_or_train(), {name: column[chosen] for name, column in faces.items()}, N_STEPS)


def shift_of(direction: Direction, strength: float) -> EditShift:
    return EditShift(((direction, strength, direction.info.t_edit or 0),), N_STEPS)


def in_interval(direction: Direction, attribute: str) -> Direction:
    """The direction, limited to the interval of the bundled direction of that attribute."""
    bundled = load_direction(find_model("avatars").direction_files()[attribute]).info
    ending = replace(direction, info=replace(direction.info, t_edit=bundled.t_edit))
    return ending if bundled.t_start is None else algebra.begin_at(ending, bundled.t_start)


def best(direction: Direction, attribute: str, count: int) -> tuple[float, Score]:
    """The strength with the best worse share on calibration faces, and its score on held-out faces."""
    chosen_on = calibration_trial(attribute)
    scores = {s: chosen_on.score(attribute, shift_of(direction, s)) for s in STRENGTHS}
    strength = max(scores, key=lambda s: min(scores[s].target, scores[s].others))
    return strength, trial(attribute, count).score(attribute, shift_of(direction, strength))


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def print_best(way: str, name: str, direction: Direction, faces: int) -> None:
    strength, found = best(direction, name, faces)
    row(way, name, f"{strength:g}", percent(found.target), percent(found.others))


def judge_labels(bench: Bench) -> None:
    paths = learn_labels(bench.request("labels"), LabelQuestion(bench.labels, LABELS))
    for path in paths:
        if path.stem in bench.attributes:
            print_best("labels", path.stem, in_interval(load_direction(path), path.stem), bench.faces)


def judge_classifier(bench: Bench) -> None:
    for kind in ("logistic", "svm"):
        for name in bench.attributes:
            others = tuple(other for other in LABELS if other != name)
            asked = ClassifierQuestion(bench.labels, name, kind, others)
            path = learn_classifier(bench.request(f"{kind}-{name}"), asked)
            print_best(f"classifier, {kind}", name, in_interval(load_direction(path), name), bench.faces)


def judge_scores(bench: Bench) -> None:
    """Let CLIP score the faces, then samples of the model. The images with extreme scores make a direction."""
    drawn = str(bench.folder / "samples")
    sample("avatars", drawn, bench.images // 2, 0, 0, N_STEPS, "cpu", 16, check=False)
    for way, source in {"CLIP scores": bench.source, "CLIP scores of samples": drawn}.items():
        scorers = tuple(ScorerSource((name,), TEXTS[name], "avatars") for name in bench.attributes)
        table = str(bench.folder / "scores.parquet")
        write_labels(score(source, "avatars", scorers, None, EngineSpec()), table)
        for name in bench.attributes:
            asked = LabelQuestion(table, (name,), None, EXTREMES)
            [path] = learn_labels(bench.request(f"scores-{name}.safetensors", source), asked)
            print_best(way, name, in_interval(load_direction(path), name), bench.faces)


def text_request(bench: Bench, name: str) -> TextRequest:
    """The request to train the direction of an attribute from its texts."""
    recipe = TextRecipe(*TEXTS[name], **PRESET.recipe | TEXT_INTERVALS.get(name, {}))
    path = bench.folder / f"text-{name}.safetensors"
    numbers = (PRESET.images, PRESET.epochs)
    return TextRequest(bench.source, "avatars", "avatars", path, recipe, *numbers, lacking=PRESET.lacking)


def judge_text(bench: Bench) -> None:
    """Judge f_t, its average over images, and its average over images and time."""
    for name in bench.attributes:
        path = learn_text(text_request(bench, name))
        print_best("text", name, load_direction(path), bench.faces)
        mean = average_over_images(bench.request("mean"), path)
        print_best("text, mean over images", name, mean, bench.faces)
        print_best("text, mean over images and time", name, algebra.average_over_time(mean), bench.faces)


def judge_pca(bench: Bench) -> None:
    for path in learn_pca(bench.request("pca"), COMPONENTS, False, 64, 10):
        print_named(f"pca, {path.stem}", load_direction(path), bench.faces)


def judge_jacobian(bench: Bench) -> None:
    few = bench.folder / "few"
    few.mkdir()
    for path in sorted(Path(bench.source).iterdir())[:8]:
        (few / path.name).write_bytes(path.read_bytes())
    for path in learn_jacobian(bench.request("jacobian", str(few), 10), JacobianQuestion(4, 2)):
        print_named(f"jacobian, {path.stem}", load_direction(path), bench.faces)


def print_named(way: str, direction: Direction, count: int) -> None:
    """Print the label that a direction changes most in each sense, at strengths 1 and 2."""
    faces = trial(None, count)
    everyone = torch.arange(len(faces.x_T))
    for strength in (1.0, -1.0, 2.0, -2.0):
        seen = judged(faces.judge, faces.edited(everyone, shift_of(direction, strength)))
        changes = []
        for index, name in enumerate(LABELS):
            kept = 1 - (seen != faces.truth).float().mean(0)
            others = (kept.sum() - kept[index]).item() / (len(LABELS) - 1)
            for comes in (True, False):
                able = faces.truth[:, index] != comes
                share = (seen[able, index] == comes).float().mean().item()
                changes.append((share, f"{name} {'comes' if comes else 'goes'}", others))
        share, what, others = max(changes)
        row(way, what, f"{strength:g}", percent(share), percent(others))


def judge_projection(bench: Bench) -> None:
    """Learn a direction of glasses that leaks into beards, and project the beard out of it.

    It leaks because on its faces beards mostly come with glasses.
    """
    faces = load_or_render(CACHE / "train.npz", 24_000, 0)
    alike = faces["glasses"][: bench.images] == faces["beard"][: bench.images]
    kept = alike | (np.arange(bench.images) % 8 == 0)
    confounded = bench.folder / "confounded.csv"
    lines = Path(bench.labels).read_text().splitlines()
    confounded.write_text("\n".join([lines[0], *(line for line, keep in zip(lines[1:], kept, strict=True) if keep)]))
    [raw] = learn_labels(bench.request("raw.safetensors"), LabelQuestion(str(confounded), ("glasses",), ()))
    [beard] = learn_labels(bench.request("beard.safetensors"), LabelQuestion(bench.labels, ("beard",)))
    leaking = load_direction(raw)
    projected = algebra.project(leaking, [load_direction(beard)])
    lacking = trial("glasses", bench.faces)
    chosen = torch.nonzero(~lacking.truth[:, LABELS.index("beard")])[:, 0]
    for way, direction in {"glasses, confounded": leaking, "beard projected out": projected}.items():
        for strength in (1.0, 1.5):
            seen = judged(lacking.judge, lacking.edited(chosen, shift_of(direction, strength)))
            present, leak = (seen[:, LABELS.index(name)].float().mean().item() for name in ("glasses", "beard"))
            row(way, f"beards on {len(chosen)} faces without: {percent(leak)}", f"{strength:g}", percent(present), "")


WAYS: dict[str, Callable[[Bench], None]] = {
    "labels": judge_labels,
    "classifier": judge_classifier,
    "scores": judge_scores,
    "text": judge_text,
    "pca": judge_pca,
    "jacobian": judge_jacobian,
    "projection": judge_projection,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--attributes", nargs="+", choices=LABELS, default=LABELS)
    parser.add_argument("--images", type=int, default=1024, help="faces for statistics")
    parser.add_argument("--faces", type=int, default=64, help="held-out faces per cell")
    arguments = parser.parse_args()
    row("way", "attribute", "strength", "present", "others kept")
    row(*["---"] * 5)
    with tempfile.TemporaryDirectory() as name:
        write_faces(Path(name), arguments.images)
        bench = Bench(Path(name), arguments.images, arguments.faces, tuple(arguments.attributes))
        for way in arguments.ways:
            WAYS[way](bench)


if __name__ == "__main__":
    main()
