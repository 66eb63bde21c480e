"""Measures how much an inversion loses, and how much a better one costs.

    python -m benchmarks.reconstruction           # the table of docs/inspection.md, about 10 minutes on one core

Held-out rendered faces are inverted and generated again without an edit, in 40 generation steps. Prints the PSNR of
the image against the source, and the calls of the net per image for the inversion.
"""

import argparse

import torch

from asyrp.diffusion.process import edit, inversion_calls, invert
from asyrp.diffusion.schedule import generation_pairs, inversion_pairs
from asyrp.directions.shift import EditShift
from asyrp.measures.metrics import psnr
from benchmarks.ways import percent, row, trial

N_GEN = 40
WAYS = ((20, 0), (40, 0), (80, 0), (160, 0), (20, 1), (40, 1), (40, 2), (40, 3), (40, 5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faces", type=int, default=16)
    arguments = parser.parse_args()
    faces = trial(None, arguments.faces)
    unet, schedule, x_0 = faces.model.unet, faces.model.schedule, faces.x_0
    row("n_inv", "refine", "calls", "mean PSNR, dB", "worst", "below 30 dB")
    row(*["---"] * 6)
    for n_inv, refine in WAYS:
        with torch.inference_mode():
            x_T = invert(unet, schedule, x_0, inversion_pairs(n_inv), refine)
            again = edit(unet, schedule, x_T, generation_pairs(N_GEN), EditShift((), N_GEN))
        found = psnr(x_0, again.clamp(-1, 1))
        worst, bad = f"{found.min():.1f}", percent((found < 30).float().mean().item())
        row(n_inv, refine, inversion_calls(n_inv, refine), f"{found.mean():.1f}", worst, bad)


if __name__ == "__main__":
    main()
