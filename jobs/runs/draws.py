"""Finds, counts and balances the labels of a source, and draws the edits of its images, as an augmentation asks."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from asyrp.directions.edits import Edit
from asyrp.errors import UserError
from jobs.spec.augmentation import AugmentationSpec, OptionSpec, UniformSpec
from jobs.spec.run import RunSpec
from pipeline.augmentation.balance import balanced, group_sizes
from pipeline.augmentation.draws import Augmentation, Census, Drawing, Labels, OneOf, Option, Uniform
from pipeline.images.selection import typed
from pipeline.images.source import SourceImage
from pipeline.sources.labels import read_labels
from pipeline.sources.listing import list_images

log = logging.getLogger(__name__)

AS_LARGE = 0.99
"""A group counts as equal to the largest one if it has at least this share of its size."""


class LabelSource(Protocol):
    """A source of labels. `origin` names it in messages, `names` are those of all labels."""

    origin: str
    names: tuple[str, ...]

    def labels_of(self, image: SourceImage) -> Labels:
        """The labels of an image. Raises UserError if it lacks one."""


class TableLabels:
    """Labels from the numeric columns of a table that has a column of keys."""

    def __init__(self, url: str) -> None:
        table = read_labels(url)
        self.origin, self.names, self.rows = url, table.columns, table.rows
        self.indices = {key: index for index, key in enumerate(table.keys)}

    def labels_of(self, image: SourceImage) -> Labels:
        index = self.indices.get(image.key)
        if index is None:
            raise UserError(
                f"{self.origin} has no row for '{image.key}': an augmentation needs the labels of every image"
            )
        return dict(zip(self.names, self.rows[index].tolist(), strict=True))


class ColumnLabels:
    """Labels from columns of the source itself."""

    def __init__(self, source: str, names: Iterable[str]) -> None:
        self.origin, self.names = f"the source {source}", tuple(names)

    def labels_of(self, image: SourceImage) -> Labels:
        return {name: self._number(image, name) for name in self.names}

    def _number(self, image: SourceImage, name: str) -> float:
        value = image.columns[name]
        if isinstance(value, str):
            value = typed(value)
        if not isinstance(value, int | float):
            raise UserError(
                f"{self.origin}: the label '{name}' of '{image.key}' is {value!r}: labels are numbers, such as 0 and 1"
            )
        return float(value)


class Augmenter:
    """Draws the edits of the images of a source, as an augmentation asks.

    Raises:
        UserError: if the spec names a label that does not exist.
    """

    def __init__(self, spec: RunSpec, asked: AugmentationSpec) -> None:
        self.spec = spec
        self.labels: LabelSource = (
            TableLabels(asked.labels) if isinstance(asked.labels, str) else ColumnLabels(spec.source, asked.labels)
        )
        for name in asked.mentioned():
            if name not in self.labels.names:
                raise UserError(f"{self.labels.origin} has no label '{name}': it has {', '.join(self.labels.names)}")
        options = tuple(_option(option, self.labels.names) for option in asked.edits)
        self.augmentation = Augmentation(options, asked.draws, tuple(asked.balance), asked.seed)
        self.implied = {
            name for option in asked.edits if not option.sets for name in _implied(option, self.labels.names)
        }

    def new_drawing(self) -> Drawing:
        """A drawing with the label counts of the source as it is now."""
        names, sets = self.labels.names, tuple(option.sets for option in self.augmentation.options)
        if not self.augmentation.balance:
            return Drawing(self.augmentation, Census(names, sets))
        everyone = (self.labels.labels_of(image) for image in list_images(self.spec.source, self.spec.selection()))
        cells = balanced(self.augmentation, self.augmentation.cells(everyone))
        _warn_of_smaller_groups(group_sizes(self.augmentation, cells))
        return Drawing(self.augmentation, Census(names, sets, tuple(cells)))

    def recorded_drawing(self, census: Mapping[str, Any]) -> Drawing:
        """A drawing with the label counts that run.json records."""
        return Drawing(self.augmentation, Census.from_json(census))

    def augmented(self, images: Iterable[SourceImage], drawing: Drawing) -> Iterator[SourceImage]:
        """The images with their labels and the edits that they draw."""
        for image in images:
            labels = self.labels.labels_of(image)
            if other := [name for name in self.implied if labels[name] not in (0, 1)]:
                raise UserError(
                    f"{self.labels.origin}: the label '{other[0]}' of '{image.key}' is {labels[other[0]]:g}, neither 0 "
                    "nor 1: say with 'sets:' what each edit makes of it"
                )
            yield replace(image, labels=labels, draws=drawing.draws_of(image.key, labels))


def _option(asked: OptionSpec, names: tuple[str, ...]) -> Option:
    strength = asked.strength
    if isinstance(strength, UniformSpec):
        strengths: Uniform | OneOf = Uniform(*strength.uniform)
    else:
        strengths = OneOf(tuple(dict.fromkeys(strength)) if isinstance(strength, list) else (strength,))
    return Option(asked.parsed(), strengths, asked.weight, asked.conditions(), asked.sets or _implied(asked, names))


def _implied(asked: OptionSpec, names: tuple[str, ...]) -> dict[str, float]:
    """The labels that have the name of a direction. A positive edit sets such a label to 1, a negative one to 0."""
    edit: Edit = asked.parsed()
    return {name: float(edit.strength * weight > 0) for name, weight in edit.weights if name in names}


def _warn_of_smaller_groups(sizes: Mapping[str, tuple[int, float]]) -> None:
    largest = max(size for size, _ in sizes.values())
    for group, (size, after) in sizes.items():
        if after < AS_LARGE * largest:
            log.warning(
                "of the group %s there will be %.0f images (%d now), and of the largest %d: more draws, or edits that "
                "lead there, would make them equal",
                group,
                after,
                size,
                largest,
            )
