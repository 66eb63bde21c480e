"""Measures the four properties of h-space (Kwon et al. 2023, section 5.3) on the bundled model; draws pictures.

    python -m benchmarks.hspace            # about 20 minutes on one core; writes docs/images/hspace-*.png

A direction of glasses is trained from texts (or given with --direction), and applied to held-out rendered faces
without glasses. Homogeneity, linearity, robustness and consistency over timesteps are then measured as docs/hspace.md
says.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from asyrp.diffusion.process import asyrp_step, ddim_step, edit, predict
from asyrp.diffusion.unet import Encoded
from asyrp.directions.forms import Direction, load_direction
from asyrp.directions.shift import EditShift
from asyrp.models.find import find_model
from benchmarks.ways import PRESET, Bench, shift_of, text_request, trial, write_faces
from jobs.learn.text import learn_text
from pipeline.images.codec import to_uint8
from tools.judge import judged
from tools.render_avatars import LABELS
from tools.trial import Trial

IMAGES = Path("docs/images")
GLASSES = LABELS.index("glasses")
SHOWN, TILE = 8, 96
STRENGTHS = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
DeltaH = Callable[[Encoded, int], Tensor | None]


@dataclass(frozen=True)
class Recorded:
    """delta_h and eps_edit - eps [N, ...] of N faces at each edited timestep of an edit."""

    h: Mapping[int, Tensor]
    eps: Mapping[int, Tensor]


@torch.inference_mode()
def record(faces: Trial, shift: EditShift) -> Recorded:
    """Edit all faces with a direction, and record delta_h and the change of eps."""
    unet, schedule, x = faces.model.unet, faces.model.schedule, faces.x_T
    h, eps_change = {}, {}
    for t, t_next in faces.pairs:
        a, a_next = schedule.level(t), schedule.level(t_next)
        encoded = unet.encode(x, t)
        eps, delta_h = unet.decode(encoded, encoded.h), shift(encoded, t)
        if delta_h is None:
            x = ddim_step(x, eps, a, a_next)
            continue
        eps_edit = unet.decode(encoded, encoded.h + delta_h)
        h[t], eps_change[t] = delta_h, eps_edit - eps
        x = asyrp_step(x, eps, eps_edit, a, a_next)
    return Recorded(h, eps_change)


@torch.inference_mode()
def edited_in_h(faces: Trial, delta_h: DeltaH) -> Tensor:
    return edit(faces.model.unet, faces.model.schedule, faces.x_T, faces.pairs, delta_h)


@torch.inference_mode()
def edited_in_eps(faces: Trial, delta_eps: Mapping[int, Tensor]) -> Tensor:
    """All faces, edited with the same asymmetric step but with given changes of eps in place of a shift of h."""
    unet, schedule, x = faces.model.unet, faces.model.schedule, faces.x_T
    for t, t_next in faces.pairs:
        a, a_next = schedule.level(t), schedule.level(t_next)
        eps = predict(unet, x, t)
        change = delta_eps.get(t)
        x = ddim_step(x, eps, a, a_next) if change is None else asyrp_step(x, eps, eps + change, a, a_next)
    return x


def given(tensors: Mapping[int, Tensor]) -> DeltaH:
    return lambda encoded, t: tensors.get(t)  # noqa: ARG005


class Report:
    """Prints the tables of shares, and collects the pictures of a property."""

    def __init__(self, faces: Trial) -> None:
        self.faces = faces
        self.plain = edited_in_h(faces, given({}))
        self.rows: list[Tensor] = []

    def row(self, name: str, images: Tensor) -> None:
        """Print a row of the table: glasses present, other labels kept, change in pixels, roughness."""
        seen = judged(self.faces.judge, images)
        others = [i for i in range(len(LABELS)) if i != GLASSES]
        present = 100 * seen[:, GLASSES].float().mean()
        kept = 100 * (seen[:, others] == self.faces.truth[:, others]).float().mean()
        change = (images.clamp(-1, 1) - self.plain.clamp(-1, 1)).square().mean().sqrt()
        print(f"| {name} | {present:.0f} % | {kept:.0f} % | {change:.2f} | {self.roughness(images):.2f} |", flush=True)
        self.rows.append(images[:SHOWN])

    def roughness(self, images: Tensor) -> float:
        """What a small blur removes, relative to the faces without an edit. 1 is as natural, more is noise."""

        def fine(x: Tensor) -> float:
            blurred = torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
            return (x - blurred).square().mean().sqrt().item()

        return fine(images.clamp(-1, 1)) / fine(self.plain.clamp(-1, 1))

    def begin(self, title: str) -> None:
        print(f"\n### {title}\n\n| edit | glasses | other labels kept | change (rms of [-1, 1]) | roughness |")
        print("|---|---|---|---|---|")
        self.rows = [self.plain[:SHOWN]]

    def picture(self, name: str) -> None:
        """Save the rows so far as one picture, below the faces without an edit."""
        side = self.plain.shape[-1]
        sheet = make_grid(torch.cat(self.rows), nrow=len(self.plain[:SHOWN]), padding=0)
        image = Image.fromarray(to_uint8(sheet.clamp(-1, 1).numpy()))
        IMAGES.mkdir(exist_ok=True)
        scale = TILE // side
        image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(
            IMAGES / f"hspace-{name}.png", optimize=True
        )


def homogeneity(report: Report, done: Recorded) -> None:
    """Apply one face's delta_h to all faces, and one face's change of eps to all faces."""
    report.begin("Homogeneity")
    report.row("each face's own delta_h", edited_in_h(report.faces, given(done.h)))
    for donor in range(3):
        report.row(
            f"delta_h of face {donor + 1}",
            edited_in_h(report.faces, given({t: h[donor : donor + 1] for t, h in done.h.items()})),
        )
    for donor in range(3):
        report.row(
            f"change of eps of face {donor + 1}",
            edited_in_eps(report.faces, {t: eps[donor : donor + 1] for t, eps in done.eps.items()}),
        )
    report.picture("homogeneity")


def linearity(report: Report, direction: Direction) -> None:
    """Apply strengths from -2 to 2, and the sum with another direction."""
    report.begin("Linearity")
    images = {s: edited_in_h(report.faces, shift_of(direction, s)) for s in STRENGTHS}
    for strength in STRENGTHS:
        report.row(f"strength {strength:g}", images[strength])
    changes = {s: (x - report.plain).flatten() for s, x in images.items()}
    one = changes[1.0]
    along = {s: (change @ one / (one @ one)).item() for s, change in changes.items()}
    slope = sum(s * a for s, a in along.items()) / sum(s * s for s in along)
    spread = sum(a * a for a in along.values())
    r2 = 1 - sum((a - slope * s) ** 2 for s, a in along.items()) / spread
    report.picture("linearity")
    print("\nalong the change of strength 1:", ", ".join(f"{s:g}: {a:.2f}" for s, a in along.items()), f"; R2 {r2:.3f}")
    smile = load_direction(find_model("avatars").direction_files()["smile"])
    both = EditShift(tuple((d, 1.0, d.info.t_edit or 0) for d in (direction, smile)), len(report.faces.pairs))
    together = edited_in_h(report.faces, both)
    smiling = edited_in_h(report.faces, shift_of(smile, 1.0))
    summed = (smiling - report.plain).flatten() + one
    cosine = torch.nn.functional.cosine_similarity((together - report.plain).flatten(), summed, dim=0)
    seen = judged(report.faces.judge, together)
    index = LABELS.index("smile")
    print(f"glasses + smile: the change has cosine {cosine:.3f} with the sum of the two changes; glasses "
          f"{100 * seen[:, GLASSES].float().mean():.0f} %, smile {100 * seen[:, index].float().mean():.0f} % "
          f"(it was {100 * report.faces.truth[:, index].float().mean():.0f} %)")  # fmt: skip


def robustness(report: Report, done: Recorded) -> None:
    """Apply random shifts of one, two and three times the length of the direction's own, in h and in eps."""
    report.begin("Robustness")
    generator = torch.Generator().manual_seed(0)

    def random_like(tensors: Mapping[int, Tensor], factor: float) -> dict[int, Tensor]:
        noise = {t: torch.randn(x[:1].shape, generator=generator) for t, x in tensors.items()}
        lengths = {t: x.flatten(1).norm(dim=1).mean() for t, x in tensors.items()}
        return {t: factor * lengths[t] * n / n.norm() for t, n in noise.items()}

    for factor in (1.0, 2.0, 3.0):
        report.row(f"random delta_h, {factor:g} x", edited_in_h(report.faces, given(random_like(done.h, factor))))
    for factor in (1.0, 2.0, 3.0):
        report.row(f"random change of eps, {factor:g} x", edited_in_eps(report.faces, random_like(done.eps, factor)))
    report.picture("robustness")


def consistency(report: Report, done: Recorded) -> None:
    """Apply the mean of delta_h over faces at each timestep, and one tensor for all timesteps."""
    report.begin("Consistency over timesteps")
    mean = {t: h.mean(0, keepdim=True) for t, h in done.h.items()}
    everything = torch.stack(list(mean.values())).mean(0)
    report.row("f_t", edited_in_h(report.faces, given(done.h)))
    report.row("mean over faces at each timestep", edited_in_h(report.faces, given(mean)))
    report.row("one tensor for all timesteps", edited_in_h(report.faces, given(dict.fromkeys(mean, everything))))
    report.picture("consistency")
    between_faces = [mean_cosine(h.flatten(1)) for h in done.h.values()]
    between_timesteps = mean_cosine(torch.cat(list(mean.values())).flatten(1))
    print(f"\ncosine of delta_h between two faces at one timestep: {np.mean(between_faces):.2f}; "
          f"between two timesteps, mean over faces: {between_timesteps:.2f}")  # fmt: skip


def mean_cosine(rows: Tensor) -> float:
    """The mean cosine over all pairs of different rows."""
    units = torch.nn.functional.normalize(rows, dim=1)
    n = len(units)
    return ((units @ units.T).sum().item() - n) / (n * (n - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--direction", type=Path, help="an implicit direction of glasses; default: train one")
    parser.add_argument("--strength", type=float, default=1.25, help="of the direction, in rows that name no strength")
    parser.add_argument("--faces", type=int, default=32)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.direction
        if path is None:
            bench = Bench(Path(folder), 4 * PRESET.images, arguments.faces, ("glasses",))
            write_faces(bench.folder, bench.images)
            path = learn_text(text_request(bench, "glasses"))
        direction = load_direction(path)
    faces = trial("glasses", arguments.faces)
    report, done = Report(faces), record(faces, shift_of(direction, arguments.strength))
    homogeneity(report, done)
    linearity(report, direction)
    robustness(report, done)
    consistency(report, done)


if __name__ == "__main__":
    main()
