"""Trains the segmenter that comes with the bundled faces. It says to which part of a face each pixel belongs.

    python -m tools.train_segmenter     # about 5 minutes on one core; writes asyrp/bundled/avatars/segmenter.pt

The truth comes from drawing a face again with another colour of one part: the pixels that change belong to that part.
Pixels that change with no colour (eyes, mouth, glasses) are the features.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tools.judge import CACHE, fit, to_batch
from tools.render_avatars import BACKGROUNDS, CLOTHING_COLORS, HAIR_COLORS, SKINS, draw_labels, render_labels

PARTS = {
    "background": BACKGROUNDS,
    "skin": SKINS,
    "hair_color": HAIR_COLORS,
    "clothing_color": CLOTHING_COLORS,
}
"""The colours of the part of each class, in the order of classes. The last class, the features, has none."""
CLASSES = len(PARTS) + 1
TRAIN_SEED, HELD_OUT_SEED, HELD_OUT_COUNT = 11, 12, 300
LEAST_CHANGE = 12
SEGMENTER = Path("asyrp/bundled/avatars/segmenter.pt")


def draw_parts(index: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A face, uint8 [32, 32, 3], and the class of each of its pixels, int [32, 32]."""
    labels = draw_labels(np.random.default_rng((seed, index)))
    drawn = partial(np.random.default_rng, (seed, index, 1))  # the same crop and glasses every time
    face = render_labels(labels, drawn())
    changes = [
        np.abs(render_labels({**labels, name: (labels[name] + shift) % len(colors)}, drawn()).astype(int) - face).max(2)
        for name, colors in PARTS.items()
        for shift in (1, 2)
    ]
    by_part = np.stack(changes).reshape(len(PARTS), 2, *face.shape[:2]).max(1)
    return face, np.where(by_part.max(0) < LEAST_CHANGE, CLASSES - 1, by_part.argmax(0))


def draw_set(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [N, 3, 32, 32] in [-1, 1] and classes [N, 32, 32]."""
    with ProcessPoolExecutor(1) as pool:
        pairs = list(pool.map(partial(draw_parts, seed=seed), range(count), chunksize=64))
    return to_batch(np.stack([face for face, _ in pairs])), torch.from_numpy(np.stack([parts for _, parts in pairs]))


class Segmenter(nn.Module):
    """From images [B, 3, 32, 32] in [-1, 1] to scores [B, CLASSES, 32, 32], through half and quarter size."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.fine = _convs(3, width)
        self.coarse = _convs(width, 2 * width)
        self.coarser = _convs(2 * width, 2 * width)
        self.out = nn.Sequential(_convs(5 * width, width), nn.Conv2d(width, CLASSES, 1))

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        coarse = self.coarse(nn.functional.max_pool2d(fine, 2))
        coarser = self.coarser(nn.functional.max_pool2d(coarse, 2))
        return self.out(torch.cat([fine, _enlarged(coarse, 2), _enlarged(coarser, 4)], 1))


def _enlarged(x: Tensor, times: int) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=float(times), mode="bilinear")


def _convs(before: int, after: int) -> nn.Sequential:
    layers = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def train(x: Tensor, parts: Tensor, steps: int = 700, batch_size: int = 64) -> Segmenter:
    torch.manual_seed(0)
    net = Segmenter()
    fit(net, nn.functional.cross_entropy, x, parts, steps, batch_size, 3e-3)
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="faces to train on")
    arguments = parser.parse_args()
    cache = CACHE / f"parts-{arguments.count}.pt"
    if not cache.exists():
        torch.save([*draw_set(arguments.count, TRAIN_SEED), *draw_set(HELD_OUT_COUNT, HELD_OUT_SEED)], cache)
    x, parts, held_out, truth = torch.load(cache)
    net = train(x, parts)
    with torch.inference_mode():
        found = net(held_out).argmax(1)
    print(f"{100 * (found == truth).float().mean():.1f} % of the pixels of {HELD_OUT_COUNT} held-out faces are right")
    torch.jit.trace(net, x[:2]).save(SEGMENTER)


if __name__ == "__main__":
    main()
