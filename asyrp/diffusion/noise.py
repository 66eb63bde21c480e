"""Makes counter-based Gaussian noise: a pixel's noise depends only on the seed, the image key, the edit and t.

The generator is Philox4x32-10 (Salmon et al. 2011) in torch integer arithmetic. It gives the same bits on every device,
and no batch, shard, actor or retry changes them. The Box-Muller transform turns the bits into normals.
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
    """Random words for each counter under each key.

    A counter is 128 bits, given as four 32-bit words; a key is two. The result is four 32-bit words. Words are int64
    tensors, which broadcast.
    """
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
    """The Philox key of one image under one edit in a run with this seed."""
    digest = hashlib.blake2b(f"{seed}\0{image_key}\0{edit}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def boosting_noise(keys: Sequence[tuple[int, int]], t: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal noise for timestep `t`: float32 [B, *shape], one item per key."""
    count = math.prod(shape)
    index = torch.arange((count + 3) // 4, device=device)
    zero = torch.zeros_like(index)
    k0, k1 = torch.tensor(keys).to(device, non_blocking=True).T[:, :, None]
    words = philox((index, zero + t, zero, zero), (k0, k1))
    uniform = [(word.double() + 0.5) / 2**32 for word in words]
    radius = [torch.sqrt(-2 * torch.log(u)) for u in uniform[::2]]
    angle = [2 * math.pi * u for u in uniform[1::2]]
    normals = [f(a) * r for r, a in zip(radius, angle, strict=True) for f in (torch.cos, torch.sin)]
    return torch.stack(normals, dim=-1).flatten(1)[:, :count].float().reshape(len(keys), *shape)
