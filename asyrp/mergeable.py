"""Sums over images that are added up in parts and then merged."""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, Self, TypeVar

from torch import Tensor


class Mergeable(Protocol):
    """Sums over images. Sums of parts merge to the sums of the whole; memory does not grow with the images."""

    def merge(self, other: Self) -> None:
        """Add the sums of other images."""

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, to be stored."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace these sums by stored ones."""


Sums = TypeVar("Sums", bound=Mergeable)


def merge_stored(empty: Callable[[], Sums], stored: Iterable[Mapping[str, Tensor]]) -> Sums:
    """The sums over all parts, merged in the given order. `empty` makes sums over no images."""
    merged = empty()
    for tensors in stored:
        part = empty()
        part.load(tensors)
        merged.merge(part)
    return merged
