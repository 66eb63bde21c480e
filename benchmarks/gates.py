"""Measures whether gates keep the edits that worked: accepted share and success, with a search for the strength.

    python -m benchmarks.gates                 # the tables of docs/inspection.md, about 15 minutes on one core
    python -m benchmarks.gates --faces 16

Held-out rendered faces that lack an attribute are edited at every strength of a ladder, and measured as a run measures
them. For each gate, `asyrp.directions.search` then takes the smallest strength that passes on each face, as in a run.
The judge, which no gate uses, says on which share of the accepted faces the attribute is present ("success") and which
share of the other labels is as before ("others kept"). No boosting, 40 + 40 steps, `refine: 2`.
"""

import argparse
from dataclasses import dataclass

import torch

from asyrp.directions.forms import load_direction
from asyrp.directions.search import Ladder
from asyrp.directions.shift import EditShift
from asyrp.measures.metrics import Metrics, Values
from asyrp.measures.names import Judges
from asyrp.models.find import find_model
from benchmarks.ways import N_STEPS, percent, row, trial
from pipeline.images.selection import Condition
from pipeline.stages.inspection import refusal
from tools.judge import judged
from tools.render_avatars import LABELS

STRENGTHS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
GATES = (
    (),
    ("clip_margin > 0",),
    ("clip_margin > 0.3",),
    ("clip_margin > 0.5",),
    ("clip_margin > 0.5", "s_dir > 0.5"),
    ("clip_margin > 0.5", "s_dir > 0.7"),
    ("clip_margin > 0.5", "s_dir > 0.5", "segmentation > 0.85"),
    ("clip_margin > 0.5", "s_dir > 0.5", "segmentation > 0.9"),
)
METRICS = ("clip_margin", "s_dir", "segmentation", "edit_clip")


@dataclass(frozen=True)
class Edited:
    """One face at one strength: its metrics, and the judge's verdict."""

    values: Values
    present: bool
    kept: float


@torch.inference_mode()
def sweep(attribute: str, count: int) -> list[dict[float, Edited]]:
    """The edits of each face, by strength, at all STRENGTHS."""
    folder = find_model("avatars")
    faces = trial(attribute, count)
    edit = f"{attribute}_1"
    judges = Judges(clip="avatars", segmenter=str(folder.segmenter))
    metrics = Metrics(METRICS, judges, "cpu", {edit: folder.texts[attribute]}, {edit: {attribute}})
    direction = load_direction(folder.direction_files()[attribute])
    before, everyone, index = metrics.look(faces.x_0), torch.arange(len(faces.x_T)), LABELS.index(attribute)
    others = [other for other in range(len(LABELS)) if other != index]
    found: list[dict[float, Edited]] = [{} for _ in everyone]
    for strength in STRENGTHS:
        images = faces.edited(everyone, EditShift(((direction, strength, direction.info.t_edit or 0),), N_STEPS))
        seen = judged(faces.judge, images)
        kept = (seen[:, others] == faces.truth[:, others]).float().mean(1)
        for face, values in enumerate(metrics.edit(before, metrics.look(images), [edit] * len(images))):
            found[face][strength] = Edited(values, bool(seen[face, index]), float(kept[face]))
    return found


def print_gate(attribute: str, swept: list[dict[float, Edited]], texts: tuple[str, ...]) -> None:
    """Find a strength for each face, as a run does, and print the judge's verdict on the accepted faces."""
    gates = [Condition.parse(text) for text in texts]
    ladder = Ladder(STRENGTHS if gates else (1.0,))
    found = ladder.find(
        range(len(swept)),
        len(swept),
        lambda images, strengths: [swept[i][s] for i, s in zip(images, strengths, strict=True)],
        lambda edited: refusal(gates, edited.values) is None,
    )
    accepted = [(strength, edited) for strength, edited in found.values() if refusal(gates, edited.values) is None]
    share = len(accepted) / len(swept)
    success = sum(edited.present for _, edited in accepted) / max(len(accepted), 1)
    kept = sum(edited.kept for _, edited in accepted) / max(len(accepted), 1)
    mean = sum(strength for strength, _ in accepted) / max(len(accepted), 1)
    gate = " and ".join(texts) or "none, all at strength 1"
    row(attribute, gate, percent(share), percent(success), percent(kept), f"{mean:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attributes", nargs="+", choices=LABELS, default=("glasses", "beard"))
    parser.add_argument("--faces", type=int, default=64)
    arguments = parser.parse_args()
    row("attribute", "gate", "accepted", "success", "others kept", "mean strength")
    row(*["---"] * 6)
    for attribute in arguments.attributes:
        swept = sweep(attribute, arguments.faces)
        for texts in GATES:
            print_gate(attribute, swept, texts)


if __name__ == "__main__":
    main()
