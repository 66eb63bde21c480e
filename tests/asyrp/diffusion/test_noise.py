"""Counter-based noise."""

import pytest
import torch

from asyrp.diffusion.noise import MASK, boosting_noise, noise_key, philox

CPU = torch.device("cpu")


def words(counter, key):
    return [int(word) for word in philox(tuple(torch.tensor([value]) for value in counter), key)]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ((MASK,) * 4, (MASK, MASK), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    assert words(counter, key) == expected


def test_an_image_has_the_same_noise_in_every_batch():
    keys = [noise_key(0, name, "smile") for name in ("a", "b", "c")]
    together = boosting_noise(keys, 51, (3, 7, 5), CPU)
    alone = [boosting_noise([key], 51, (3, 7, 5), CPU)[0] for key in keys]
    assert torch.equal(together, torch.stack(alone))


def test_seed_key_edit_and_timestep_each_give_other_noise():
    variants = [(noise_key(0, "a", "x"), 5), (noise_key(1, "a", "x"), 5), (noise_key(0, "b", "x"), 5),
                (noise_key(0, "a", "y"), 5), (noise_key(0, "a", "x"), 6)]  # fmt: skip
    drawn = [boosting_noise([key], t, (3, 32, 32), CPU).flatten() for key, t in variants]
    correlations = torch.corrcoef(torch.stack(drawn)) - torch.eye(len(drawn))
    assert correlations.abs().max() < 0.1


def test_the_noise_is_standard_normal():
    noise = boosting_noise([noise_key(0, "a", "b")], 3, (3, 256, 256), CPU)
    assert noise.mean().abs() < 0.01 and (noise.std() - 1).abs() < 0.01
    assert ((noise.abs() < 1).float().mean() - 0.6827).abs() < 0.01
    assert torch.isfinite(noise).all()
