"""Trains the bundled `avatars` diffusion model on rendered faces, on a CPU or a GPU.

    python -m tools.train_avatars --steps 6000 --output tools/cache/model            # from random weights
    python -m tools.train_avatars --steps 6000 --init asyrp/bundled/avatars ...      # continue from weights

The model predicts epsilon on the linear schedule of DDPM. The loss is weighted by min(SNR, 5) / SNR (Hang et al. 2023).
The optimiser is AdamW with a cosine decay, under bf16 autocast. The saved weights are an exponential moving average.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from diffusers import UNet2DModel

from asyrp.diffusion.schedule import NoiseSchedule
from tools.render_avatars import IMAGE_SIZE, load_or_render

SNR_CAP = 5.0
GRAD_CLIP = 1.0


def new_unet() -> UNet2DModel:
    """A net of three levels 32/16/8. One cell of h (8 x 8) is 1/8 of the face, the geometry of the papers' nets."""
    return UNet2DModel(
        sample_size=IMAGE_SIZE,
        block_out_channels=(32, 64, 160),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=32,
    )


def learning_rate(step: int, steps: int, peak: float, floor: float = 1e-5, warmup: int = 100) -> float:
    decay = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / warmup) * (floor + (peak - floor) * decay)


def diffusion_loss(unet: UNet2DModel, x_0: torch.Tensor, alpha_bar: torch.Tensor) -> torch.Tensor:
    """SNR-weighted eps error of a batch [B, 3, H, W] at random timesteps, one per stratum of the schedule."""
    batch = len(x_0)
    strata = (torch.arange(batch) + torch.rand(batch)) / batch
    t = (strata * len(alpha_bar)).long().to(x_0.device)
    a = alpha_bar[t].view(-1, 1, 1, 1)
    eps = torch.randn_like(x_0)
    predicted = unet(a.sqrt() * x_0 + (1 - a).sqrt() * eps, t).sample
    snr = a / (1 - a)
    weight = snr.clamp(max=SNR_CAP) / snr
    return (weight * (predicted.float() - eps) ** 2).mean()


@torch.no_grad()
def update_ema(ema: UNet2DModel, unet: UNet2DModel, decay: float) -> None:
    for kept, new in zip(ema.parameters(), unet.parameters(), strict=True):
        kept.lerp_(new, 1 - decay)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("tools/cache/train.npz"))
    parser.add_argument("--count", type=int, default=24_000)
    parser.add_argument("--init", type=Path, help="a diffusers folder to continue from")
    parser.add_argument("--output", type=Path, default=Path("tools/cache/model"))
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    device = torch.device(arguments.device)
    images = torch.from_numpy(load_or_render(arguments.data, arguments.count, arguments.seed)["images"])
    alpha_bar = NoiseSchedule.linear().alpha_bar.float().to(device)
    unet = (UNet2DModel.from_pretrained(arguments.init) if arguments.init else new_unet()).to(device).train()
    ema = copy.deepcopy(unet).requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=arguments.lr, weight_decay=0.01)

    start, mean_loss = time.perf_counter(), None
    for step in range(arguments.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.lr)
        chosen = torch.randint(len(images), (arguments.batch_size,))
        x_0 = images[chosen].permute(0, 3, 1, 2).to(device).float() / 127.5 - 1
        with torch.autocast(device.type, torch.bfloat16):
            loss = diffusion_loss(unet, x_0, alpha_bar)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), GRAD_CLIP)
        optimizer.step()
        update_ema(ema, unet, min(arguments.ema, (step + 1) / (step + 10)))
        mean_loss = loss.item() if mean_loss is None else 0.99 * mean_loss + 0.01 * loss.item()
        if (step + 1) % 100 == 0:
            rate = (step + 1) / (time.perf_counter() - start)
            print(f"step {step + 1}/{arguments.steps}  loss {mean_loss:.5f}  {rate:.2f} steps/s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == arguments.steps:
            ema.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
