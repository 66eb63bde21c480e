"""What a raw state dict says of its net's architecture."""

from dataclasses import dataclass
from typing import Any

from asyrp.errors import UserError


@dataclass(frozen=True)
class Attention:
    """The heads of the attention layers, by their width or by their number; neither: one head.

    In `new_order` the rows of the fused qkv weights are [3, heads, width], else [heads, 3, width].
    """

    head_channels: int | None = None
    heads: int | None = None
    new_order: bool = False

    def width(self, channels: frozenset[int]) -> int:
        """Channels per head in layers of these widths.

        Raises:
            UserError: if diffusers cannot express it: it knows one width for all layers.
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

    `key` is (family, channels per level, res blocks per level, levels with attention); `config` the arguments of
    UNet2DModel, less image size and heads; `dropped` are tensors that the unconditional net does not use.
    """

    key: tuple[str, tuple[int, ...], int, tuple[int, ...]]
    config: dict[str, Any]
    attention_channels: frozenset[int]
    notes: tuple[str, ...] = ()
    dropped: frozenset[str] = frozenset()

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of each level, shallow first."""
        return self.key[1]


def first_level_is_base(conv_in: int, base: int, first_level: int) -> None:
    """Refuse a net whose first level is wider than its stem: UNet2DModel knows only one width for both."""
    if not conv_in == base == first_level:
        raise UserError(
            f"the stem has {conv_in} channels, the time embedding {base} and the first level {first_level}: "
            "UNet2DModel expresses only nets where they are the same (first channel multiplier 1)"
        )
