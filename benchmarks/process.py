"""Compares the processes on one machine: what they cost, and what the edited faces are worth.

    python -m benchmarks.process                 # both tables, about 40 minutes on 2 cores
    python -m benchmarks.process --faces 16      # a quick look
    python -m benchmarks.process --part seconds  # one of the tables

Quality is measured on the bundled model, with rendered faces that were used for no choice. "wanted" and "kept" are the
judge's "as wanted" and "others kept" (see `edit_success`), of every bundled direction at strength 1, without boosting.
PSNR is that of the plain process without an edit, also where edits are anchored. Seconds are measured on a net of the
papers' architecture with random weights, for one edit from T to 514; the processes take turns, and each time is the
fastest of its turns.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from asyrp.diffusion.process import asyrp_step, ddim_step, predict
from asyrp.diffusion.schedule import NoiseSchedule, generation_pairs, inversion_pairs
from asyrp.diffusion.solvers import DDIM, DPMSolver, Solver
from asyrp.diffusion.unet import HSpaceUNet
from asyrp.directions.edits import parse_edit
from asyrp.directions.forms import Direction, GlobalDirection, load_direction
from asyrp.directions.info import DirectionInfo
from asyrp.directions.shift import EditShift, shift_for
from asyrp.models.find import find_model
from asyrp.models.load import Model, load_model
from benchmarks.full_size import ho_unet
from tools.judge import judged, label_matrix, load_or_train, to_batch
from tools.render_avatars import LABELS, load_or_render

SEED, RENDERED, BATCH = 31, 1_024, 32
FACES = Path("tools/cache/process.npz")
SECOND_DECODE = 0.73
"""The share of a pass that the decoder of the papers' nets takes."""


@dataclass(frozen=True)
class Way:
    """A process: `n` steps up and down; DDIM with `refine`, or DPM-Solver++ that inverts no higher than needed."""

    name: str
    n: int
    refine: int | None = None  # None: DPM-Solver++

    def solver(self, model: Model, t_top: int | None) -> Solver:
        if self.refine is not None:
            return DDIM(model.unet, model.schedule, self.n, self.n, self.refine)
        return DPMSolver(model.unet, model.schedule, self.n, t_top)

    def shift(self, model: Model, direction: Direction) -> EditShift:
        return shift_for(self.solver(model, None), parse_edit("edit=1"), {"edit": direction})


WAYS = (
    Way("ddim 40 + 40, refine 2", 40, 2),
    Way("dpmpp_2m 20 + 20 (default)", 20),
    Way("dpmpp_2m 14 + 14 (fast)", 14),
    Way("ddim 40 + 40 (the papers')", 40, 0),
)

OURS = WAYS[1:3]


def evaluations(solver: Solver, shift: EditShift) -> float:
    """The evaluations of the net that an image with one edit takes."""
    found = solver.edit_evaluations(shift.acts, t_boost=0)
    return solver.inversion_calls + found.encodes + SECOND_DECODE * found.second_decodes


def in_batches(compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([compute(batch) for batch in images.split(BATCH)])


@torch.inference_mode()
def quality(count: int) -> None:
    folder = find_model("avatars")
    model, judge = load_model(folder), load_or_train()
    faces = {name: column[:count] for name, column in load_or_render(FACES, RENDERED, SEED).items()}
    truth, images = label_matrix(faces).bool(), to_batch(faces["images"])
    directions = {name: load_direction(folder.direction_files()[name]) for name in LABELS}
    print(f"\n{count} faces, each edited where it lacks the attribute\n")
    print(f"| process | PSNR, mean / worst | {' | '.join(f'{name}: calls, wanted / kept' for name in LABELS)} |")
    print(f"|---|---|{'---|' * len(LABELS)}")
    for way in WAYS:
        solver = way.solver(model, None)
        inversion = in_batches(solver.invert, images)
        again = in_batches(solver.reconstruct, inversion)
        psnr = -10 * torch.log10(((again - images) / 2).square().mean(dim=(1, 2, 3)))
        cells = [f"{psnr.mean():.1f} / {psnr.min():.1f}"]
        for name, direction in directions.items():
            part, shift = way.solver(model, direction.info.t_start), way.shift(model, direction)
            index = LABELS.index(name)
            lacking = torch.nonzero(~truth[:, index])[:, 0]
            edited = in_batches(lambda kept, s=part, h=shift: s.edit(kept, h, 0), inversion[lacking])
            seen = judged(judge, edited)
            others = [i for i in range(len(LABELS)) if i != index]
            kept = (seen[:, others] == truth[lacking][:, others]).float().mean()
            wanted = seen[:, index].float().mean()
            cells.append(f"{evaluations(part, shift):.1f}: {100 * wanted:.0f} / {100 * kept:.0f}")
        print(f"| {way.name} | {' | '.join(cells)} |", flush=True)


@torch.inference_mode()
def official(model: Model, direction: Direction, images: Tensor) -> Tensor:
    """The calls of the released code: image by image, a reconstruction that nobody asked for, and a second decode in
    every step of the edit."""
    up, down, schedule, results = inversion_pairs(40), generation_pairs(40), model.schedule, []
    for image in images.split(1):
        x = image
        for t, t_next in up:
            x = ddim_step(x, predict(model.unet, x, t), schedule.level(t), schedule.level(t_next))
        x_T, again = x, x
        for t, t_next in down:
            again = ddim_step(again, predict(model.unet, again, t), schedule.level(t), schedule.level(t_next))
        x = x_T
        for t, t_next in down:
            encoded = model.unet.encode(x, t)
            delta_h = direction.delta_h(encoded, t, 40) if t >= 514 else 0
            eps, eps_edit = model.unet.decode(encoded, encoded.h), model.unet.decode(encoded, encoded.h + delta_h)
            x = asyrp_step(x, eps, eps_edit, schedule.level(t), schedule.level(t_next))
        results.append(x)
    return torch.cat(results)


@torch.inference_mode()
def ours(way: Way, model: Model, direction: Direction, images: Tensor) -> Tensor:
    solver = way.solver(model, direction.info.t_start)
    return solver.edit(solver.invert(images), way.shift(model, direction), 0)


def seconds(count: int, repeats: int, size: int, base: int) -> None:
    net, schedule = ho_unet(size, base), NoiseSchedule.linear()
    side = size // 32
    info = DirectionInfo("random", "global", "", n_steps=40, t_edit=514)
    direction = Direction(info, GlobalDirection(0.1 * torch.randn(4 * base, side, side)))
    late = replace(direction, info=replace(info, t_start=450, t_edit=204))
    full = Model(HSpaceUNet(net), schedule)
    runs: dict[str, Callable[[Tensor], Tensor]] = {"the official calls, batch 1": partial(official, full, direction)}
    calls = {"the official calls, batch 1": 148.1}
    for way in WAYS:
        runs[way.name] = partial(ours, way, full, direction)
        calls[way.name] = evaluations(way.solver(full, None), way.shift(full, direction))
    for way in OURS:
        name = f"{way.name}, an edit from 450 to 204"
        runs[name] = partial(ours, way, full, late)
        calls[name] = evaluations(way.solver(full, 450), way.shift(full, late))
    best = timed(runs, torch.randn(count, 3, size, size), repeats)
    half = Model(HSpaceUNet(ho_unet(size, base).to(torch.bfloat16)), schedule)
    in_half = {f"{way.name}, bfloat16": partial(ours, way, half, direction) for way in OURS}
    calls |= {f"{way.name}, bfloat16": calls[way.name] for way in OURS}
    best |= timed(in_half, torch.randn(count, 3, size, size), repeats)
    slowest = best["the official calls, batch 1"]
    print(f"\n{size} px, base {base}, {count} images, {torch.get_num_threads()} threads\n")
    print("| process | calls per image | s per image | times as fast | images per hour |\n|---|---|---|---|---|")
    for name, found in best.items():
        print(f"| {name} | {calls[name]:.1f} | {found:.3f} | {slowest / found:.1f} | {3600 / found:,.0f} |", flush=True)


def timed(runs: dict[str, Callable[[Tensor], Tensor]], images: Tensor, repeats: int) -> dict[str, float]:
    """The seconds per image of each run, the fastest of its turns."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, compute in runs.items():
            start = time.perf_counter()
            compute(images)
            best[name] = min(best[name], (time.perf_counter() - start) / len(images))
    return best


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=256, help="faces, half of which lack an attribute")
    parser.add_argument("--part", choices=("quality", "seconds", "both"), default="both")
    parser.add_argument("--images", type=int, default=8, help="images that are timed")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each process")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--base", type=int, default=64)
    given = parser.parse_args(arguments)
    if given.part != "quality":
        seconds(given.images, given.repeats, given.size, given.base)
    if given.part != "seconds":
        quality(given.faces)


if __name__ == "__main__":
    main()
