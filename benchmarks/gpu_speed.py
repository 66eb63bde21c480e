"""How fast a device computes the papers' net, each lever added to those before it, and where the time goes.

The unit is an edited step: one encode and two decodes. Images per second follow from the evaluations that an edit of
new runs takes (one edit from T to 514). `MFU` is the share of the measured ceiling of matrix products. The official
code's row is its 148 calls per image at batch 1 on the same net in the same run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from asyrp.diffusion.schedule import NoiseSchedule
from asyrp.diffusion.solvers import DPMSolver
from asyrp.diffusion.unet import Encoded, HSpaceUNet, SplitUNet
from asyrp.models.precision import Precision, set_up
from benchmarks.full_nets import ho_unet
from benchmarks.gpu_parity import GraphedUNet
from benchmarks.process import DECODE, OFFICIAL_CALLS

if TYPE_CHECKING:
    from benchmarks.on_gpu import Proof, Table

T_EDIT = 514
T = 500


@dataclass(frozen=True)
class Lever:
    """A way to execute an edited step."""

    name: str
    precision: Precision
    channels_last: bool = True
    compiled: bool = False
    graphed: bool = False
    one_batch: bool = False  # both decodes


LEVERS = (
    Lever("float32", "float32", channels_last=False),
    Lever("+ TF32", "tf32", channels_last=False),
    Lever("+ bfloat16", "bfloat16", channels_last=False),
    Lever("+ channels last", "bfloat16"),
    Lever("+ CUDA graphs", "bfloat16", graphed=True),
    Lever("+ compiled, without graphs", "bfloat16", compiled=True),
    Lever("+ both decodes as one batch", "bfloat16", compiled=True, one_batch=True),
)


ON_CPU = (
    Lever("float32", "float32", channels_last=False),
    Lever("+ compiled", "float32", channels_last=False, compiled=True),
    Lever("+ both decodes as one batch", "float32", channels_last=False, compiled=True, one_batch=True),
)
"""Those that a CPU can show: it has no TF32 and no graphs, and most emulate bfloat16."""


def net(proof: "Proof", lever: Lever, batch: int) -> SplitUNet:
    scale = proof.scale
    dtype = set_up(lever.precision, proof.device)
    unet = HSpaceUNet(nn.Module.to(ho_unet(scale.size, scale.base), proof.device, dtype))
    if not lever.channels_last:
        unet.layout = torch.contiguous_format
        unet.unet.to(memory_format=torch.contiguous_format)
    x = noise(proof, batch)
    if lever.compiled:
        unet.compile(x, proof.scale.backend)
        if lever.one_batch:  # whose decode has twice the shape
            unet = TwoShapes(unet, x, proof.scale.backend)
    return GraphedUNet(unet, x) if lever.graphed else unet


class TwoShapes(HSpaceUNet):
    """A compiled net whose decode is compiled for twice its batch as well."""

    def __init__(self, unet: HSpaceUNet, x: Tensor, backend: str) -> None:
        super().__init__(unet.unet)
        encoded = unet.encode(x, 0)
        self._single = unet
        self._double = torch.compile(self.halves.decode, fullgraph=True, dynamic=False, backend=backend)
        self._double(*doubled(encoded, encoded.h)[:3])

    def encode(self, x: Tensor, t: int) -> Encoded:
        return self._single.encode(x, t)

    def decode_both(self, encoded: Encoded, h: Tensor) -> tuple[Tensor, Tensor]:
        eps, shifted = self._double(*doubled(encoded, h)).chunk(2)
        return eps, shifted


def doubled(encoded: Encoded, h: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """What one decode takes for the plain and the shifted half of a batch."""
    skips = tuple(torch.cat([skip, skip]) for skip in encoded.skips)
    both = torch.cat([encoded.h, h.to(encoded.h.dtype)])
    return both, skips, torch.cat([encoded.emb, encoded.emb])


def noise(proof: "Proof", batch: int) -> Tensor:
    size = proof.scale.size
    return torch.randn(batch, 3, size, size, device=proof.device)


def edited_step(unet: SplitUNet, x: Tensor, shift: Tensor) -> Callable[[], None]:
    def step() -> None:
        encoded = unet.encode(x, T)
        h = encoded.h + shift.to(encoded.h.dtype)
        if isinstance(unet, TwoShapes):
            unet.decode_both(encoded, h)
        else:
            unet.decode(encoded, encoded.h)
            unet.decode(encoded, h)

    return step


def operations(proof: "Proof") -> tuple[float, float]:
    """The floating-point operations of one encode and of one decode of one image."""
    unet, x = net(proof, LEVERS[0], 1), noise(proof, 1)
    with FlopCounterMode(display=False) as encoding:
        encoded = unet.encode(x, T)
    with FlopCounterMode(display=False) as decoding:
        unet.decode(encoded, encoded.h)
    return encoding.get_total_flops(), decoding.get_total_flops()


@torch.inference_mode()
def levers(proof: "Proof") -> "list[Table]":
    """Each lever added to those before it, and the official code's calls."""
    from benchmarks.on_gpu import Table

    encode_ops, decode_ops = operations(proof)
    batch, ceiling = proof.scale.batch, proof.facts.get("ceiling_tflops", float("nan"))
    shift = 0.1 * torch.randn(1, 4 * proof.scale.base, proof.scale.size // 32, proof.scale.size // 32)
    shift = shift.to(proof.device)
    steps = steps_of_an_edit(proof.scale.steps)
    official = official_seconds(proof)
    rows: list[tuple[object, ...]] = [("the official calls, float32, batch 1", "", "", f"{1 / official:.2f}", 1, "")]
    found: dict[str, dict[str, float]] = {"official": {"images_per_s": 1 / official}}

    def measured(lever: Lever) -> tuple[object, ...]:
        unet = net(proof, lever, batch)
        seconds = proof.seconds(edited_step(unet, noise(proof, batch), shift)) / batch
        rate = (encode_ops + 2 * decode_ops) / seconds / 1e12
        peak = torch.cuda.max_memory_allocated() / 2**30 if proof.on_gpu else float("nan")
        images = 1 / (seconds * steps)
        found[lever.name] = {"step_ms": 1000 * seconds, "tflops": rate, "images_per_s": images, "peak_gib": peak}
        return (
            f"{1000 * seconds:.2f}",
            f"{rate:.1f} ({100 * rate / ceiling:.0f} %)",
            f"{images:.2f}",
            f"{images * official:.1f}",
            f"{peak:.1f}",
        )

    for lever in LEVERS if proof.on_gpu else ON_CPU:
        rows.append(proof.attempt(lever.name, partial(measured, lever)))
    proof.facts["levers"] = found | {"batch": batch, "gmac_per_call": (encode_ops + decode_ops) / 2e9}
    heads = ("execution", "ms per edited step", "TFLOP/s (MFU)", "images/s", "times as fast", "peak GiB")
    title = f"The Ho net at {proof.scale.size} px, batch {batch}, {(encode_ops + decode_ops) / 2e9:.1f} GMAC a call"
    n = proof.scale.steps
    note = f"An edit from T to {T_EDIT} by {n} + {n} steps counts as {steps:.1f} of these."
    return [Table(title, heads, rows, note)]


def steps_of_an_edit(n: int) -> float:
    """The edited steps whose time an edit from T to T_EDIT takes: a plain step has one decode less."""
    solver = DPMSolver(None, NoiseSchedule.linear(), n)  # type: ignore[arg-type]
    evaluations = solver.edit_evaluations(lambda t, _: t >= T_EDIT, 0)
    plain = solver.inversion_calls + evaluations.encodes - evaluations.second_decodes
    return evaluations.second_decodes + plain / (1 + DECODE)


def official_seconds(proof: "Proof") -> float:
    """The seconds of an image by the official code: its calls one by one, as torch runs them by default."""
    unet, x = net(proof, LEVERS[0], 1), noise(proof, 1)
    torch.backends.cudnn.allow_tf32 = True  # of convolutions alone

    def call() -> None:
        encoded = unet.encode(x, T)
        unet.decode(encoded, encoded.h)

    return OFFICIAL_CALLS * proof.seconds(call)


@torch.inference_mode()
def kernels(proof: "Proof") -> "list[Table]":
    """Where the time of the usual execution goes."""
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.on_gpu import Table

    lever = Lever("usual", "bfloat16" if proof.on_gpu else "float32", compiled=proof.on_gpu)
    unet, x = net(proof, lever, proof.scale.batch), noise(proof, proof.scale.batch)
    step = edited_step(unet, x, torch.zeros(1, 1, 1, 1, device=proof.device))
    step()
    activity = ProfilerActivity.CUDA if proof.on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiled:
        step()
        proof.wait()
    total: dict[str, tuple[float, int]] = {}
    for event in profiled.key_averages():
        spent = event.self_device_time_total if proof.on_gpu else event.self_cpu_time_total
        total[event.key[:70]] = spent, event.count
    everything = sum(spent for spent, _ in total.values()) or 1
    largest = sorted(total.items(), key=lambda item: -item[1][0])[:12]
    rows: list[tuple[object, ...]] = [
        (f"`{name}`", count, f"{spent / 1000:.2f}", f"{100 * spent / everything:.0f} %")
        for name, (spent, count) in largest
    ]
    proof.facts["kernels"] = {name: {"ms": spent / 1000, "calls": count} for name, (spent, count) in largest}
    return [Table("Where the time of one edited step goes", ("kernel", "calls", "ms", "share"), rows)]
