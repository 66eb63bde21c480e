"""Compares the processes on one machine: what they cost, and what the edited faces are worth.

    python -m benchmarks.process                 # all tables, about an hour on 2 cores
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
from asyrp.diffusion.unet import Encoded, HSpaceUNet, SplitUNet
from asyrp.directions.edits import parse_edit
from asyrp.directions.forms import Direction, GlobalDirection, load_direction
from asyrp.directions.info import DirectionInfo
from asyrp.directions.shift import EditShift, shift_for
from asyrp.models.find import find_model
from asyrp.models.load import Model, load_model
from benchmarks.full_nets import ho_unet

SEED, RENDERED, BATCH = 31, 1_024, 32
FACES = Path("tools/cache/process.npz")
OFFICIAL_CALLS = 148.1
"""The passes of an image by the released code, as `official` makes them."""

DECODE = 0.73
"""The share of a pass that the decoder of the papers' nets takes."""


class Counted(HSpaceUNet):
    """A net that counts its evaluations, in U-Net equivalents."""

    def __init__(self, unet: HSpaceUNet) -> None:
        super().__init__(unet.unet, unet.prediction, unet.schedule)
        self.calls = 0.0

    def encode(self, x: Tensor, t: int) -> Encoded:
        self.calls += 1 - DECODE
        return super().encode(x, t)

    def decode(self, encoded: Encoded, h: Tensor) -> Tensor:
        self.calls += DECODE
        return super().decode(encoded, h)


class ReusedEncoder:
    """A net that encodes at every second step only. The step between takes the features of the one before, with its own
    time embedding (Li et al. 2023, Faster Diffusion)."""

    def __init__(self, unet: HSpaceUNet) -> None:
        self.unet = unet
        self._last: Encoded | None = None

    def encode(self, x: Tensor, t: int) -> Encoded:
        last, net = self._last, self.unet.unet
        self._last = None
        if last is not None and len(last.x) == len(x) and last.t != t:
            time_steps = net.time_proj(torch.full((len(x),), t))
            return replace(last, emb=net.time_embedding(time_steps), x=x, t=t)
        self._last = self.unet.encode(x, t)
        return self._last

    def decode(self, encoded: Encoded, h: Tensor) -> Tensor:
        return self.unet.decode(encoded, h)


class LeftOutDecodes:
    """A net that computes the change of an edit at every second step only, and takes it again at the step between."""

    def __init__(self, unet: HSpaceUNet) -> None:
        self.unet = unet
        self._plain: Tensor | None = None
        self._change: Tensor | None = None

    def encode(self, x: Tensor, t: int) -> Encoded:
        return self.unet.encode(x, t)

    def decode(self, encoded: Encoded, h: Tensor) -> Tensor:
        if h is encoded.h:
            self._plain = self.unet.decode(encoded, h)
            return self._plain
        assert self._plain is not None
        if self._change is not None and self._change.shape == self._plain.shape:
            change, self._change = self._change, None
            return self._plain + change
        edited = self.unet.decode(encoded, h)
        self._change = edited - self._plain
        return edited


@dataclass(frozen=True)
class Way:
    """A process: `n` steps up and down; DDIM with `refine`, or DPM-Solver++ that inverts no higher than needed. `lever`
    makes its net from the model's."""

    name: str
    n: int
    refine: int | None = None  # None: DPM-Solver++
    lever: Callable[[HSpaceUNet], SplitUNet] = lambda unet: unet

    def solver(self, model: Model, t_top: int | None) -> Solver:
        unet = self.lever(model.unet)
        if self.refine is not None:
            return DDIM(unet, model.schedule, self.n, self.n, self.refine)
        return DPMSolver(unet, model.schedule, self.n, t_top)

    def shift(self, model: Model, direction: Direction) -> EditShift:
        return shift_for(self.solver(model, None), parse_edit("edit=1"), {"edit": direction})


OURS = (Way("dpmpp_2m 20 + 20 (default)", 20), Way("dpmpp_2m 14 + 14 (fast)", 14))
WAYS = (Way("ddim 40 + 40, refine 2", 40, 2), *OURS, Way("ddim 40 + 40 (the papers')", 40, 0))
LEVERS = (
    OURS[0],
    Way("encoder at every second step", 20, lever=ReusedEncoder),
    Way("second decode at every second step", 20, lever=LeftOutDecodes),
)
PARTS = {"quality": WAYS, "levers": LEVERS}


@torch.inference_mode()
def calls(way: Way, model: Model, direction: Direction, size: int) -> float:
    """The evaluations of the net that an image with one edit takes."""
    counted = replace(model, unet=Counted(model.unet))
    ours(way, counted, direction, torch.zeros(1, 3, size, size))
    return counted.unet.calls


def in_batches(compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([compute(batch) for batch in images.split(BATCH)])


@torch.inference_mode()
def quality(count: int, ways: Sequence[Way]) -> None:
    from tools.judge import judged, label_matrix, load_or_train, to_batch
    from tools.render_avatars import LABELS, load_or_render

    folder = find_model("avatars")
    model, judge = load_model(folder), load_or_train()
    faces = {name: column[:count] for name, column in load_or_render(FACES, RENDERED, SEED).items()}
    truth, images = label_matrix(faces).bool(), to_batch(faces["images"])
    directions = {name: load_direction(folder.direction_files()[name]) for name in LABELS}
    print(f"\n{count} faces, each edited where it lacks the attribute\n")
    print(f"| process | PSNR, mean / worst | {' | '.join(f'{name}: calls, wanted / kept' for name in LABELS)} |")
    print(f"|---|---|{'---|' * len(LABELS)}")
    for way in ways:
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
            cost = calls(way, model, direction, folder.image_size)
            cells.append(f"{cost:.1f}: {100 * wanted:.0f} / {100 * kept:.0f}")
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
    evaluations = {"the official calls, batch 1": OFFICIAL_CALLS}
    for way in WAYS[1:]:
        runs[way.name] = partial(ours, way, full, direction)
        evaluations[way.name] = calls(way, full, direction, size)
    for way in OURS:
        name = f"{way.name}, an edit from 450 to 204"
        runs[name] = partial(ours, way, full, late)
        evaluations[name] = calls(way, full, late, size)
    if torch.cpu._is_avx512_bf16_supported():  # elsewhere it is emulated, and of no use
        half = Model(HSpaceUNet(ho_unet(size, base).to(torch.bfloat16)), schedule)
        for way in OURS:
            runs[f"{way.name}, bfloat16"] = partial(ours, way, half, direction)
            evaluations[f"{way.name}, bfloat16"] = evaluations[way.name]
    best = timed(runs, torch.randn(count, 3, size, size), repeats)
    slowest = best["the official calls, batch 1"]
    print(f"\n{size} px, base {base}, {count} images, {torch.get_num_threads()} threads\n")
    print("| process | calls per image | s per image | times as fast | images per hour |\n|---|---|---|---|---|")
    for name, found in best.items():
        print(f"| {name} | {evaluations[name]:.1f} | {found:.3f} | {slowest / found:.1f} | {3600 / found:,.0f} |")


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
    parser.add_argument("--part", choices=("quality", "levers", "seconds", "all"), default="all")
    parser.add_argument("--images", type=int, default=8, help="images that are timed")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each process")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--base", type=int, default=64)
    given = parser.parse_args(arguments)
    if given.part in ("seconds", "all"):
        seconds(given.images, given.repeats, given.size, given.base)
    for part, ways in PARTS.items():
        if given.part in (part, "all"):
            quality(given.faces, ways)


if __name__ == "__main__":
    main()
