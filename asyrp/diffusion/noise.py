"""Counter-based Gaussian noise: a pixel's noise is a function of what it is for, and of nothing else.

Philox4x32-10 (Salmon et al. 2011) in torch integer arithmetic, so the same bits come out on every device, and
no batch, shard, actor or retry changes them. Box-Muller turns the bits into normals.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor | int, Tensor | int]
) -> tuple[Tensor, ...]:
    """Four 32-bit words, as int64 tensors, for each 128-bit counter given as four such words, under each key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The products wrap around in int64; the mask after the shift drops the copied sign.
        left, right = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((right >> 32) & MASK) ^ c1 ^ k0,
            right & MASK,
            ((left >> 32) & MASK) ^ c3 ^ k1,
            left & MASK,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return c0, c1, c2, c3


def noise_key(seed: int, image_key: str, edit: str) -> tuple[int, int]:
    """The Philox key of one image under one edit in one run."""
    digest = hashlib.blake2b(f"{seed}\0{image_key}\0{edit}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def boosting_noise(keys: Sequence[tuple[int, int]], t: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal noise for timestep `t`: float32 [B, *shape], an item for each key."""
    count = math.prod(shape)
    index = torch.arange((count + 3) // 4, device=device)
    zero = torch.zeros_like(index)
    k0, k1 = torch.tensor(keys, device=device).T[:, :, None]
    words = philox((index, zero + t, zero, zero), (k0, k1))
    uniform = [(word.double() + 0.5) / 2**32 for word in words]
    radius = [torch.sqrt(-2 * torch.log(u)) for u in uniform[::2]]
    angle = [2 * math.pi * u for u in uniform[1::2]]
    normals = [f(a) * r for r, a in zip(radius, angle, strict=True) for f in (torch.cos, torch.sin)]
    return torch.stack(normals, dim=-1).flatten(1)[:, :count].float().reshape(len(keys), *shape)
