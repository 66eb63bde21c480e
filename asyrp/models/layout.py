"""Describes the architecture that a raw state dict implies, in terms that all families share."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from asyrp.errors import UserError


@dataclass(frozen=True)
class Attention:
    """The heads of the attention layers, given by their width or by their number. Without either there is one head.

    With `new_order` the rows of the fused qkv weights are [3, heads, width], otherwise [heads, 3, width].
    """

    head_channels: int | None = None
    heads: int | None = None
    new_order: bool = False

    def width(self, channels: frozenset[int]) -> int:
        """Channels per head, for attention layers with these numbers of channels.

        Raises:
            UserError: if the heads of the layers have different widths, as diffusers knows one width for all layers,
                or a layer cannot be divided into heads of that width.
        """
        widths = {self.head_channels or c // (self.heads or 1) for c in channels}
        if len(widths) > 1:
            raise UserError(
                f"{self.heads or 1} heads in attention layers of {sorted(channels)} channels have different widths, "
                "which UNet2DModel cannot express"
            )
        [width] = widths
        if width < 1 or any(c % width for c in channels):
            raise UserError(f"heads of {width} channels do not divide attention layers of {sorted(channels)} channels")
        return width


@dataclass(frozen=True)
class Layout:
    """The architecture of a net, as its state dict shows it.

    `key` is (family, channels per level, res blocks per level, levels with attention). `config` holds the arguments of
    UNet2DModel without image size and heads. `dropped` names tensors that the unconditional net does not use.
    """

    key: tuple[str, tuple[int, ...], int, tuple[int, ...]]
    config: dict[str, Any]
    attention_channels: frozenset[int]
    notes: tuple[str, ...] = ()
    dropped: frozenset[str] = frozenset()

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of each level, shallowest first."""
        return self.key[1]


def first_level_is_base(conv_in: int, base: int, first_level: int) -> None:
    """Raise UserError if the stem, the time embedding and the first level differ in width.

    UNet2DModel knows one width for all three.
    """
    if not conv_in == base == first_level:
        raise UserError(
            f"the stem has {conv_in} channels, the time embedding {base} and the first level {first_level}: "
            "UNet2DModel expresses only nets where they are the same (first channel multiplier 1)"
        )


def count_numbered(keys: Iterable[str], pattern: str) -> int:
    """The length of a list of modules: 1 + the largest number that group 1 of `pattern` matches at a key's start."""
    return 1 + max((int(m[1]) for key in keys if (m := re.match(pattern, key))), default=-1)
