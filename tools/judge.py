"""The judge of edits: a small convolutional net that says which attributes a rendered face has.

    python -m tools.judge            # train it and print its accuracy on held-out renders

It is trained on rendered faces only, never on edited ones.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tools.render_avatars import LABELS, load_or_render

Loss = Callable[[Tensor, Tensor], Tensor]
CACHE = Path("tools/cache")
HELD_OUT_SEED, HELD_OUT_COUNT = 7, 2_000


def new_judge() -> nn.Sequential:
    """A new net from images [B, 3, 32, 32] in [-1, 1] to logits [B, 4], in the order of LABELS."""
    widths, layers = (3, 32, 64, 128), []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(128 * 4 * 4, len(LABELS)))


def to_batch(images: np.ndarray) -> Tensor:
    """Images uint8 [N, H, W, 3] as floats [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def label_matrix(faces: dict[str, np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack([faces[name] for name in LABELS], axis=1)).float()


def augmented(x: Tensor) -> Tensor:
    """Images with some noise and other brightness, so that artefacts of a diffusion model do not mislead a judge."""
    gain = 1 + 0.1 * torch.randn(len(x), 1, 1, 1)
    return x * gain + 0.05 * torch.rand(len(x), 1, 1, 1) * torch.randn_like(x)


def fit(net: nn.Module, loss: Loss, x: Tensor, y: Tensor, steps: int, batch_size: int, rate: float) -> None:
    """Train a net on batches of augmented images."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(x), (batch_size,))
        value = loss(net(augmented(x[chosen])), y[chosen])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()


def train(epochs: int = 4, batch_size: int = 128) -> nn.Sequential:
    faces = load_or_render(CACHE / "train.npz", 24_000, 0)
    x, y = to_batch(faces["images"]), label_matrix(faces)
    torch.manual_seed(0)
    judge, steps = new_judge(), epochs * (len(x) // batch_size)
    fit(judge, nn.functional.binary_cross_entropy_with_logits, x, y, steps, batch_size, 2e-3)
    return judge.eval()


@torch.inference_mode()
def judged(judge: nn.Module, x: Tensor) -> Tensor:
    """The attributes that the judge sees, in the order of LABELS: bool [B, 4]."""
    return judge(x.clamp(-1, 1)) > 0


def accuracy(judge: nn.Module) -> dict[str, float]:
    """The share of held-out renders on which the judge is right, by label."""
    faces = load_or_render(CACHE / "judge_test.npz", HELD_OUT_COUNT, HELD_OUT_SEED)
    right = judged(judge, to_batch(faces["images"])) == label_matrix(faces).bool()
    return dict(zip(LABELS, right.float().mean(0).tolist(), strict=True))


def load_or_train(path: Path = CACHE / "judge.pt") -> nn.Sequential:
    if path.exists():
        judge = new_judge()
        judge.load_state_dict(torch.load(path, weights_only=True))
        return judge.eval()
    judge = train()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(judge.state_dict(), path)
    return judge


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for name, value in accuracy(load_or_train()).items():
        print(f"{name:10s} {100 * value:.2f} %")


if __name__ == "__main__":
    main()
