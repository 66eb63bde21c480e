"""Whether a device computes what a CPU computes in float32: in every precision, compiled, and captured as CUDA graphs.

Reference is the bundled model in float32 on the CPU. `error` is the relative error of eps, the worst of five timesteps.
The faces that come with the model are edited by the process of new runs; their largest difference to the reference is
in grey levels, their PSNR in dB.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from asyrp.diffusion.process import predict
from asyrp.diffusion.schedule import NoiseSchedule
from asyrp.diffusion.solvers import DPMSolver
from asyrp.diffusion.unet import Encoded, HSpaceUNet, SplitUNet
from asyrp.directions.edits import parse_edit
from asyrp.directions.forms import load_direction
from asyrp.directions.shift import shift_for
from asyrp.models.find import find_model
from asyrp.models.folder import ModelFolder
from asyrp.models.load import load_model
from asyrp.models.precision import Precision, set_up
from pipeline.engine.device import as_bytes, as_floats

if TYPE_CHECKING:
    from benchmarks.on_gpu import Proof, Table

TIMESTEPS = (0, 250, 500, 750, 999)
EDIT = "glasses=1"


class GraphedUNet:
    """A net whose halves are captured as CUDA graphs, for inputs of one shape. An encode overwrites the last one."""

    def __init__(self, unet: HSpaceUNet, x: Tensor) -> None:
        self.unet, self.x, self.emb = unet, x.clone(), unet.embedding(0, len(x)).clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                h, skips = self._encoded()
                unet.halves.decode(unet.laid_out(h), skips, self.emb)
        torch.cuda.current_stream().wait_stream(side)
        self._encode, self._decode = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._encode):
            self.h, self.skips = self._encoded()
        self.shifted = unet.laid_out(self.h).clone()
        with torch.cuda.graph(self._decode):
            self.eps = unet.halves.decode(self.shifted, self.skips, self.emb)

    def _encoded(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        found: tuple[Tensor, tuple[Tensor, ...]] = self.unet.halves.encode(self.unet.laid_out(self.x), self.emb)
        return found

    def encode(self, x: Tensor, t: int) -> Encoded:
        self.x.copy_(x)
        self.emb.copy_(self.unet.embedding(t, len(x)))
        self._encode.replay()
        return Encoded(self.h, self.skips, self.emb, x, t)

    def decode(self, encoded: Encoded, h: Tensor) -> Tensor:  # noqa: ARG002
        self.shifted.copy_(h)
        self._decode.replay()
        return self.eps.clone()


def compiled(unet: HSpaceUNet, x: Tensor, backend: str) -> HSpaceUNet:
    unet.compile(x, backend)
    return unet


def variants(proof: "Proof") -> Iterator[tuple[str, Precision, Callable[[HSpaceUNet, Tensor], SplitUNet]]]:
    """Every way to execute a net on the device: its name, its precision, and what makes it of the plain one."""
    yield "float32", "float32", lambda unet, _: unet
    if proof.on_gpu:
        yield "TF32", "tf32", lambda unet, _: unet
    yield "bfloat16", "bfloat16", lambda unet, _: unet
    yield "float32, compiled", "float32", lambda unet, x: compiled(unet, x, proof.scale.backend)
    if proof.on_gpu:
        yield "bfloat16, compiled", "bfloat16", lambda unet, x: compiled(unet, x, proof.scale.backend)
        yield "bfloat16, CUDA graphs", "bfloat16", GraphedUNet


@torch.inference_mode()
def parity(proof: "Proof") -> "list[Table]":
    """Each way of executing the bundled model against the float32 of a CPU, in one step and after a whole edit."""
    from benchmarks.on_gpu import Table

    folder = find_model("avatars")
    images = sample_faces(folder, proof.scale.faces)
    x = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    reference = load_model(folder, "cpu", set_up("float32", "cpu"))
    expected = {t: predict(reference.unet, x, t) for t in TIMESTEPS}
    pictures = edited(reference.unet, reference.schedule, folder, images, proof.scale.steps)
    rows: list[tuple[object, ...]] = []
    found: dict[str, dict[str, float]] = {}

    def measured(
        name: str, precision: Precision, make: Callable[[HSpaceUNet, Tensor], SplitUNet]
    ) -> tuple[object, ...]:
        model = load_model(folder, proof.device, set_up(precision, proof.device))
        unet = make(model.unet, x.to(proof.device))
        error = max(relative(predict(unet, x.to(proof.device), t).cpu(), eps) for t, eps in expected.items())
        ours = edited(unet, model.schedule, folder, images.to(proof.device), proof.scale.steps)
        levels, psnr = difference(ours, pictures)
        found[name] = {"error": error, "grey_levels": levels, "psnr": psnr}
        return f"{error:.1e}", levels, f"{psnr:.1f}"

    for variant in variants(proof):
        rows.append(proof.attempt(variant[0], partial(measured, *variant)))
    proof.facts["parity"] = found
    title = f"Against float32 on a CPU: the bundled model, {len(images)} faces, {EDIT}, {proof.scale.steps} steps"
    return [Table(title, ("execution", "error of eps", "grey levels, at most", "PSNR of the edit, worst"), rows)]


def sample_faces(folder: ModelFolder, count: int) -> Tensor:
    """The first faces that come with a model, [B, 3, H, W] in [-1, 1]."""
    assert folder.samples is not None
    files = sorted(folder.samples.glob("*.png"))[:count]
    return as_floats(torch.from_numpy(np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])))


def edited(unet: SplitUNet, schedule: NoiseSchedule, folder: ModelFolder, images: Tensor, steps: int) -> Tensor:
    """The bytes of edited images, on the CPU."""
    solver = DPMSolver(unet, schedule, steps)
    name = EDIT.partition("=")[0]
    direction = load_direction(folder.direction_files()[name])
    direction.form.to(images.device)
    shift = shift_for(solver, parse_edit(EDIT), {name: direction})
    return as_bytes(solver.edit(solver.invert(images), shift, 0)).cpu()


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def difference(ours: Tensor, theirs: Tensor) -> tuple[int, float]:
    """The largest difference of two batches of bytes, and the PSNR of the image that differs most, in dB."""
    apart = ours.double() - theirs.double()
    worst = apart.square().flatten(1).mean(1).max().item()
    return int(apart.abs().max()), float("inf") if worst == 0 else 10 * float(np.log10(255**2 / worst))
