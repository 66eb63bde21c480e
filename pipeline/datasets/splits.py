"""Splits of a data set. An image and all its edits are in one split, whatever the order and number of images."""

import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate

from asyrp.errors import UserError

TOLERANCE = 1e-6


def parse_shares(text: str) -> dict[str, float]:
    """The shares of splits from `name=share` terms joined by commas: "train=0.9,test=0.1".

    Raises:
        UserError: if the text does not follow this grammar, or the shares do not add up to 1.
    """
    shares: dict[str, float] = {}
    for term in text.split(","):
        name, _, value = (part.strip() for part in term.partition("="))
        try:
            share = float(value)
        except ValueError:
            share = 0.0
        if not name.isidentifier() or name in shares or not 0 < share <= 1:
            raise UserError(
                f"--split {text}: '{term.strip()}' is not a new name and its share, as in train=0.9,test=0.1"
            )
        shares[name] = share
    if abs(sum(shares.values()) - 1) > TOLERANCE:
        raise UserError(f"--split {text}: the shares add up to {sum(shares.values()):g}, not to 1")
    return shares


def split_of(key: str, shares: Mapping[str, float], seed: int) -> str:
    """The split of an image, chosen by its key and the seed alone. A split's share is its probability."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    bounds = list(accumulate(shares.values()))[:-1]
    return list(shares)[bisect_right(bounds, int.from_bytes(digest) / 2**64)]
