"""Measures the effect of t_edit and t_boost on an edit, and the values that the rules of Asyrp (section 3.4) pick.

    python -m benchmarks.intervals                # about 5 minutes on one core; docs/images/intervals.png
    python -m benchmarks.intervals --strength 2

Intervals are learned on the bundled model's samples. Then the bundled direction puts glasses on held-out rendered
faces: down to several t_edit without fresh noise, and with fresh noise from several t_boost. The faces are judged as in
edit_success.py (32 faces: cells are good to about 10 points). 40 + 40 steps, `refine: 2`.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from asyrp.diffusion import process
from asyrp.diffusion.noise import boosting_noise, noise_key
from asyrp.directions.algebra import begin_at
from asyrp.directions.forms import Direction, load_direction
from asyrp.directions.shift import EditShift
from asyrp.measures.clip import Clip
from asyrp.models.find import find_model
from benchmarks.ways import N_STEPS, percent, row, trial
from jobs.cli.intervals import chart
from jobs.learn.intervals import IntervalsRequest, learn_intervals
from jobs.spec.run import EngineSpec
from tools.judge import judged
from tools.render_avatars import LABELS
from tools.trial import Trial

GLASSES = LABELS.index("glasses")
TEXTS = "person", "person with glasses"
T_EDITS, T_BOOSTS = (128, 204, 333, 409, 614), (0, 102, 204)
PLOT = Path("docs/images/intervals.png")


def bundled() -> Direction:
    """The bundled direction of glasses, made to begin at T."""
    return begin_at(load_direction(find_model("avatars").direction_files()["glasses"]), 999)


@torch.inference_mode()
def edited(faces: Trial, strength: float, t_edit: int, t_boost: int) -> Tensor:
    """All faces, edited with glasses down to t_edit, with fresh noise below t_boost."""
    unet, schedule = faces.model.unet, faces.model.schedule
    shift = EditShift(((bundled(), strength, t_edit),), N_STEPS)
    above, below = process.split_at_boost(faces.pairs, t_boost)
    x = process.edit(unet, schedule, faces.x_T, above, shift)
    keys = [noise_key(0, str(index), "glasses") for index in range(len(x))]
    return process.boost(
        unet, schedule, x, below, shift, lambda t: boosting_noise(keys, t, tuple(x.shape[1:]), x.device)
    )


def print_row(faces: Trial, strength: float, t_edit: int, t_boost: int, picked: str) -> None:
    seen = judged(faces.judge, edited(faces, strength, t_edit, t_boost))
    others = [index for index in range(len(LABELS)) if index != GLASSES]
    kept = (seen[:, others] == faces.truth[:, others]).float().mean().item()
    row(t_edit, t_boost, percent(seen[:, GLASSES].float().mean().item()), percent(kept), picked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--faces", type=int, default=32)
    parser.add_argument("--images", type=int, default=32, help="of the model's samples, for the intervals")
    arguments = parser.parse_args()
    samples = str(find_model("avatars").samples)
    learned = learn_intervals(IntervalsRequest(samples, "avatars", EngineSpec(), arguments.images, measure="clip"))
    cosine = Clip("avatars").cosine(*TEXTS)
    chart(learned, cosine).save(PLOT)
    picked = {t: f"the rule's t_edit, cosine {c:.2f}" for c in (1.0, cosine) if (t := learned.t_edit(c)) is not None}
    t_boost = learned.t_boost()
    faces = trial("glasses", arguments.faces)
    row("t_edit", "t_boost", "present", "others kept", "")
    row(*["---"] * 5)
    own = bundled().info.t_edit
    assert own is not None
    for t in sorted({*T_EDITS, own, *picked}):
        print_row(faces, arguments.strength, t, 0, picked.get(t, ""))
    for t in T_BOOSTS:
        print_row(faces, arguments.strength, own, t, "the bundled t_edit")
    if t_boost is not None:
        print_row(faces, arguments.strength, own, t_boost, "the rule's t_boost")


if __name__ == "__main__":
    main()
