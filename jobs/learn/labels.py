"""`asyrp directions learn labels`: directions from labels of many or few images, and how far they can be trusted.

Three passes read the images, each a run over the cluster:

1. `probes`: h of all images at one low timestep makes a probe of each label, which is judged on held-out images.
2. `curves`: h of up to CURVE_IMAGES images at CURVE_STEPS timesteps says where the label can be told.
3. `sums`: h of all images at the edited timesteps is regressed on the labels, given or read by the probes.
"""

import logging
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import nsmallest
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asyrp.diffusion.schedule import timesteps
from asyrp.directions.forms import Direction, save_direction
from asyrp.directions.info import CURVE, VERDICT
from asyrp.errors import UserError
from asyrp.learning.held_out import FOLDS, Auc, classes, held_out_auc, principal_coordinates, settling
from asyrp.learning.labels import LabelStatistics, LabelSums, label_step
from asyrp.learning.probe import Components, FittedProbe, LabelledImages
from asyrp.learning.verdict import SEE, Verdict
from asyrp.models.folder import ModelFolder
from asyrp.models.scheduler import read_scheduler
from jobs.learn.collect import Collection, MakeReducer, collect
from jobs.learn.request import LearnRequest, edited_timesteps
from pipeline.images.source import SourceImage
from pipeline.run.name_check import hash64
from pipeline.sources.labels import LabelTable, find_labels
from pipeline.sources.listing import list_images
from pipeline.stages.models import fetch_model
from pipeline.stages.readings import NoisedH
from pipeline.stages.reducers import (
    KEYS,
    PropagatedSums,
    decode_keys,
    half_rows,
    merged_sketch,
    propagated_sums,
    sketch_and_rows,
)

logger = logging.getLogger(__name__)

Estimator = Literal["auto", "difference", "propagated"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)

CURVE_IMAGES, CURVE_STEPS = 384, 16
PROBE_LEVEL = 0.1
"""The timestep that probes read, as a share of T. The image is nearly whole there, and h is rich in meaning."""

RANK = 256
"""The number of principal components that a probe chooses among."""

RIDGE_IMAGES = 1024
"""The most labelled images whose h is in memory."""

UNLABELLED = "unlabelled//"
"""The beginning of the keys of images of another source. No key of a source has two slashes."""

FEWEST = 10
"""The fewest images of each class that say anything of images that were not learned from."""


@dataclass(frozen=True)
class LabelQuestion:
    """The labels `names` to learn from the table `labels` (or `folders`).

    The labels `hold` are held fixed (None: all columns). `extremes` needs a single name. Only the images with the most
    and the least of that label count as labelled then, and `extremes` is the share of the images on each side.

    Up to `most_unlabelled` images without labels are used too: those of the source, then those of `unlabelled`, another
    source. With `force` a direction is written whose label cannot be told.
    """

    labels: str
    names: tuple[str, ...]
    hold: tuple[str, ...] | None = None
    extremes: float | None = None
    estimator: Estimator = "auto"
    unlabelled: str | None = None
    most_unlabelled: int = 4096
    force: bool = False

    def table(self, whole: LabelTable) -> LabelTable:
        """Returns the labels that take part, of all there are. Raises UserError if they do not fit the question."""
        table = whole if self.hold is None else whole.only(tuple(dict.fromkeys((*self.names, *self.hold))))
        if self.extremes is None:
            return table
        if len(self.names) != 1:
            raise UserError("--extremes divides the images by one label: give one --name")
        return table.extremes(self.names[0], self.extremes)


class Interval(NamedTuple):
    """The timesteps from `t_start` (None: T) down to `t_edit`."""

    t_start: int | None
    t_edit: int


class Found(NamedTuple):
    """A direction [T, C, h, w] on a grid of T timesteps, per unit of its label.

    `held` are the labels that it holds fixed, and `others` is the number of images whose labels were read by probes.
    """

    grid: tuple[int, ...]
    delta_h: Tensor
    statistics: LabelStatistics
    held: tuple[str, ...]
    others: int


def learn_labels(request: LearnRequest, asked: LabelQuestion) -> list[Path]:
    """Learn and save the directions of labels. Returns their paths.

    Each direction is found with the other labels held fixed. Strength 1 is `scale` steps. The step of a binary label
    goes from one value to the other. The step of any other label goes between the means of the halves of the images.

    Raises:
        UserError: if the table does not fit the images; if a label cannot be told from the others, or, unless `force`
            is given, from chance.
    """
    learning = LabelLearning(request, asked)
    if not asked.force:
        learning.check_told()
    several = len(asked.names) > 1
    paths = [request.output / f"{name}.safetensors" if several else request.output for name in asked.names]
    for name, path in zip(asked.names, paths, strict=True):
        save_direction(learning.direction(name), path)
    return paths


class LabelLearning:
    """The passes over the images, each made when its result is first asked for."""

    def __init__(self, request: LearnRequest, asked: LabelQuestion) -> None:
        self.request, self.asked = request, asked
        self.folder: ModelFolder = fetch_model(request.model)
        whole = find_labels(asked.labels, request.source, asked.names)
        self.table = asked.table(whole)
        self.labels = dict(zip(self.table.keys, self.table.rows.tolist(), strict=True))
        self.labelled = [image for image in list_images(request.source) if image.key in self.labels]
        self.others = self._some_unlabelled(frozenset(whole.keys))
        if asked.estimator == "propagated" and not self.others:
            raise UserError(f"there are no images without labels below {request.source}: give some with --unlabelled")
        self.last = read_scheduler(self.folder.scheduler).t_0

    def check_told(self) -> None:
        """Raise UserError if a label cannot be told from h, or has too few images of a class to know it."""
        for name in self.asked.names:
            self._check_classes(name, self._labelled_keys)
        for name in self.asked.names:
            if not (told := self.probes[name].held_out).beats_chance:
                raise UserError(
                    f"'{name}' cannot be told from h of {len(self.labelled):,} labelled images, so no direction is "
                    f"written: the held-out AUC is {told}, and 0.5 is chance; {SEE}. --force writes it all the same"
                )

    def direction(self, name: str) -> Direction:
        """Returns the direction of a label, with its verdict, which is said in the log too.

        Raises:
            UserError: if the direction is what the classes differ in by chance, unless `force` is given.
        """
        return self.made_of(name, self.found(name))

    def made_of(self, name: str, found: Found) -> Direction:
        """Returns the direction that an estimator has found, with its verdict. Raises UserError as `direction` does."""
        interval = self.interval(name)
        step = label_step(self.table.column(name).tolist())
        form = self.request.form(step * found.delta_h, found.grid, self.folder)
        held = f", with {', '.join(found.held)} held fixed" if found.held else ""
        info = self.request.info(
            self.folder,
            name,
            self.sums.labelled.images + found.others,
            f"the change of h from without to with '{name}'",
            f"h of noised images regressed on '{name}'{held}",
        )
        notes = _notes(found.statistics) | self._curve_notes(name)
        if self.is_testable(name) and name in self.probes:
            verdict = self.verdict(name, found)
            self._say(name, verdict)
            notes[VERDICT] = verdict.sentence()
        return Direction(replace(info, t_start=interval.t_start, t_edit=interval.t_edit, notes=notes), form)

    def interval(self, name: str) -> Interval:
        """Returns the editing interval of a label: as asked for, or where the label is settled."""
        if self.request.t_edit is not None or not self.is_testable(name):
            return Interval(self.request.t_start, self.request.last_edited)
        curve = np.array([told.value for told in self.curves.get(name, ())])
        settled = settling(np.array(self.curve_grid), curve) if len(curve) else None
        if settled is None:
            return Interval(self.request.t_start, self.request.last_edited)
        return Interval(settled[0] if self.request.t_start is None else self.request.t_start, settled[1])

    @cached_property
    def _labelled_keys(self) -> list[str]:
        return [image.key for image in self.labelled]

    def is_testable(self, name: str) -> bool:
        """Whether there are enough images of both classes to say how well a label can be told."""
        return min(_class_sizes(self._values(name, self._labelled_keys))) >= FEWEST

    @cached_property
    def curve_grid(self) -> tuple[int, ...]:
        """The timesteps of the curves, without t = 0."""
        return tuple(timesteps(CURVE_STEPS, self.last))[1:]

    @cached_property
    def curves(self) -> Mapping[str, list[Auc]]:
        """How well each of the asked labels is told from h at the timesteps of the curve."""
        chosen = {image.key: image for name in self.asked.names for image in self._some_of_both_classes(name)}
        images = [*chosen.values(), *_some(self.others, CURVE_IMAGES - len(chosen))]
        reading = NoisedH((self.probe_timestep, *self.curve_grid), self.request.seed)
        (keys, h), _ = collect(self._collection("curves", images, reading, half_rows, {}), _all_rows)
        values = {name: self._values_or_readings(name, keys, h[:, 0]) for name in self.asked.names}
        curves: dict[str, list[Auc]] = {
            name: [] for name in values if min(_class_sizes(values[name])) >= FEWEST and name in self.probes
        }
        for t in range(1, h.shape[1]):
            coordinates, _ = principal_coordinates(h[:, t].astype(np.float32))
            for name, curve in curves.items():
                curve.append(held_out_auc(coordinates, values[name], _folds(keys)))
        return curves

    def _some_of_both_classes(self, name: str) -> list[SourceImage]:
        """Returns labelled images for a curve: as many with the label as without, where there are enough."""
        has = classes(self._values(name, self._labelled_keys))
        sides = (
            [image for image, own in zip(self.labelled, has, strict=True) if own == side] for side in (True, False)
        )
        return [image for side in sides for image in _some(side, CURVE_IMAGES // 2)]

    def _values_or_readings(self, name: str, keys: Sequence[str], h: NDArray[np.float16]) -> NDArray[np.float64]:
        """Returns a label's values [N], read off h [N, D] where they are not given."""
        return np.array(
            [
                self._value(name, key) if key in self.labels else self.probes[name].probe.read(torch.from_numpy(first))
                for key, first in zip(keys, h, strict=True)
                if key in self.labels or name in self.probes
            ]
        )

    @cached_property
    def probes(self) -> Mapping[str, FittedProbe]:
        """The probes of the asked labels, and of those to be held fixed that can be told."""
        rows = sketch_and_rows(RANK, frozenset(self._labelled_keys))
        reading = NoisedH((self.probe_timestep,), self.request.seed)
        collection = self._collection("probes", [*self.labelled, *self.others], reading, rows, {"rank": RANK})
        (keys, images), _ = collect(collection, _labelled_images)
        for name in () if self.asked.force else self.asked.names:
            self._check_classes(name, keys)
        asked = self.table.columns if self.others else self.asked.names
        columns = [name for name in asked if min(_class_sizes(self._values(name, keys))) >= FEWEST]
        fitted = {name: images.probe(self._values(name, keys)) for name in columns}
        return {name: each for name, each in fitted.items() if name in self.asked.names or each.held_out.beats_chance}

    @cached_property
    def sums(self) -> PropagatedSums:
        """The regression sums over all images, at the timesteps at which any of the labels is edited."""
        probes = self.probes if self.others else {}
        labels = propagated_sums(len(self.table.columns), self.labels, [each.probe for each in probes.values()])
        reading = NoisedH((self.probe_timestep, *self.grid), self.request.seed)
        images = [*self.labelled, *(self.others if probes else ())]
        return collect(self._collection("sums", images, reading, labels, {"probes": list(probes)}), labels.merge)[0]

    @property
    def probe_timestep(self) -> int:
        return round(PROBE_LEVEL * self.last)

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """The timesteps at which any of the labels is edited."""
        return tuple(sorted({t for name in self.asked.names for t in self._grid_of(name)}))

    def _grid_of(self, name: str) -> tuple[int, ...]:
        interval = self.interval(name)
        grid = edited_timesteps(self.folder, self.request.n_steps, *interval)
        if not grid:
            raise UserError(
                f"no timestep of {self.request.n_steps} steps lies from {interval.t_start} to {interval.t_edit}, where "
                f"'{name}' is edited: give more --n-steps, or another --t-start and --t-edit"
            )
        return grid

    def found(self, name: str) -> Found:
        """Returns the direction of a label by the estimator that is asked for, or by the one of the larger cosine."""
        if not self.sums.others.images and self.asked.estimator == "propagated":
            raise UserError(f"there are no labels of probes to learn '{name}' from: no other image could be read")
        if not self.sums.others.images or name not in self.probes:
            return self.difference(name)
        propagated = self.propagated(name)
        if self.asked.estimator == "propagated":
            return propagated
        try:
            labelled = self.difference(name)
        except UserError:  # of too few images for the number of labels; the others make up for it
            return propagated
        alone, together = self._cosine(name, labelled), self._cosine(name, propagated)
        logger.info(
            "%s: expected cosine %.2f with the labels of probes on %s other images, %.2f without",
            name, together, f"{propagated.others:,}", alone,
        )  # fmt: skip
        return propagated if together > alone else labelled

    def difference(self, name: str) -> Found:
        """Returns the direction from the labelled images alone."""
        return self._solved(name, self.sums.labelled, self.table.columns, 0)

    def propagated(self, name: str) -> Found:
        """Returns the direction from the labelled images and those whose labels are read by probes."""
        columns = tuple(self.probes)
        both = self.sums.labelled.only([self.table.columns.index(column) for column in columns])
        both.merge(self.sums.others)
        return self._solved(name, both, columns, self.sums.others.images)

    def _solved(self, name: str, sums: LabelSums, columns: Sequence[str], others: int) -> Found:
        grid = self._grid_of(name)
        own = sums.at([self.grid.index(t) for t in grid])
        place = columns.index(name)
        try:
            delta_h, statistics = own.directions()[place], own.statistics()[place]
        except ValueError as error:
            raise UserError(f"{self.table.origin}: {error}") from error
        return Found(grid, delta_h, statistics, tuple(column for column in columns if column != name), others)

    def _cosine(self, name: str, found: Found) -> float:
        """Returns the expected cosine of a direction with the sought one. Labels that probes read wrong lower it."""
        right = 2 * self.probes[name].held_out.value - 1 if found.others else 1.0
        return found.statistics.cosine * right

    def verdict(self, name: str, found: Found) -> Verdict:
        """Returns how far a direction can be trusted."""
        told, cosine = self.probes[name].held_out, self._cosine(name, found)
        return Verdict(told, *self.interval(name), cosine, self.sums.labelled.images, found.others)

    def _say(self, name: str, verdict: Verdict) -> None:
        if verdict.trust == "reliable":
            logger.info("%s: %s", name, verdict.sentence())
        elif verdict.trust == "weak" or self.asked.force:
            logger.warning("%s: %s; %s", name, verdict.sentence(), verdict.advice())
        else:
            raise UserError(
                f"the direction '{name}' would be noise, so it is not written: {verdict.sentence()}; "
                f"{verdict.advice()}. --force writes it all the same"
            )

    def _curve_notes(self, name: str) -> dict[str, str]:
        if "curves" not in vars(self) or name not in self.curves:
            return {}
        points = zip(self.curve_grid, self.curves[name], strict=True)
        return {CURVE: ", ".join(f"{t}: {told.value:.2f}" for t, told in points)}

    def _some_unlabelled(self, known: Container[str]) -> list[SourceImage]:
        """Returns the images that take part without a label, in the order of their sources. `known` have one."""
        if self.asked.estimator == "difference" or self.asked.most_unlabelled == 0:
            return []
        own = (image for image in list_images(self.request.source) if image.key not in known)
        numbered = enumerate(chain(own, self._added()))
        chosen = nsmallest(self.asked.most_unlabelled, numbered, key=lambda each: hash64(each[1].key))
        return [image for _, image in sorted(chosen, key=lambda each: each[0])]

    def _added(self) -> Iterator[SourceImage]:
        """Yields the images of the other source that are not in the source too, under keys that no source has."""
        if self.asked.unlabelled:
            own = {_location(image) for image in list_images(self.request.source)}
            for image in list_images(self.asked.unlabelled):
                if _location(image) not in own:
                    yield replace(image, key=f"{UNLABELLED}{image.key}")

    def _values(self, name: str, keys: Sequence[str]) -> NDArray[np.float64]:
        return np.array([self._value(name, key) for key in keys])

    def _value(self, name: str, key: str) -> float:
        return self.labels[key][self.table.columns.index(name)]

    def _check_classes(self, name: str, keys: Sequence[str]) -> None:
        n_with, n_without = _class_sizes(self._values(name, keys))
        if min(n_with, n_without) < FEWEST:
            raise UserError(
                f"{self.table.origin}: {n_with} images with '{name}' and {n_without} without: {FEWEST} of each say "
                "whether it can be told at all, and some hundred make a good direction; label more images"
            )

    def _collection(
        self,
        name: str,
        images: Sequence[SourceImage],
        reading: NoisedH,
        make_reducer: MakeReducer,
        identity: dict[str, Any],
    ) -> Collection:
        """Returns the collection of a pass. The sums of each pass are kept at a root of its own."""
        asked = {
            "pass": name,
            "columns": list(self.table.columns),
            "labels": self.table.digest(),
            "unlabelled": [self.asked.unlabelled, len(self.others)],
        }
        collection = self.request.collection(self.folder, reading, make_reducer, asked | identity)
        work = f"{collection.work}/{name}" if collection.work else None
        return replace(collection, images=lambda: images, work=work)


def _class_sizes(values: NDArray[np.float64]) -> tuple[int, int]:
    """Returns the number of images with and without a label of these values [N]."""
    has = classes(values)
    return int(has.sum()), int((~has).sum())


def _location(image: SourceImage) -> int:
    """Returns a hash of where the bytes of an image are."""
    return hash64(f"{image.uri}\0{image.member}\0{image.offset}")


def _some(images: Sequence[SourceImage], most: int) -> list[SourceImage]:
    """Returns up to `most` of the images. Which ones depends on their keys alone."""
    return nsmallest(most, images, key=lambda image: hash64(image.key))


def _all_rows(shards: Iterable[dict[str, Tensor]]) -> tuple[list[str], NDArray[np.float16]]:
    """Returns the keys [N] and h [N, T, D] of all images, in half precision."""
    keys, rows = [], []
    for shard in shards:
        if KEYS in shard:
            keys += decode_keys(shard[KEYS].numpy())
            rows.append(shard["rows"].flatten(2).numpy())
    return keys, np.concatenate(rows)


def _labelled_images(shards: Iterable[dict[str, Tensor]]) -> tuple[list[str], LabelledImages]:
    """Returns the keys [N] of the labelled images, and what probes learn from."""
    sketch = merged_sketch(RANK, shards)
    try:
        axes = sketch.leading()
    except ValueError as error:
        raise UserError(f"no label can be told: {error}") from error
    assert sketch.mean is not None
    components = Components(sketch.mean[0], axes[:, 0])
    keys: list[str] = []
    scores, rows = [], []
    for shard in shards:
        if KEYS in shard:
            keys += decode_keys(shard[KEYS].numpy())
            scores.append(components.scores(shard["rows"]).double().numpy())
            if len(keys) <= RIDGE_IMAGES:
                rows.append(shard["rows"].float().numpy())
    if not keys:
        raise UserError("none of the labelled images could be read")
    h = np.concatenate(rows) if len(keys) <= RIDGE_IMAGES else None
    return keys, LabelledImages(components, np.concatenate(scores), h, _folds(keys))


def _folds(keys: Sequence[str]) -> NDArray[np.int64]:
    """Returns the fold of each image, which depends on its key alone."""
    return np.array([hash64(key) % FOLDS for key in keys], dtype=np.int64)


def _notes(statistics: LabelStatistics) -> dict[str, str]:
    """Returns the range of each statistic over the grid, in words."""
    return {
        "effect": f"{statistics.effect.min():.3f} to {statistics.effect.max():.3f} standard deviations of h",
        "t_value": f"{statistics.t_value.min():.2f} to {statistics.t_value.max():.2f} (1 is chance)",
    }
