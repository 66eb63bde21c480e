"""`asyrp directions learn classifier`: directions as normals of linear classifiers of h."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asyrp.directions.forms import Direction, save_direction
from asyrp.errors import UserError
from asyrp.learning.classifier import Classifiers, ClassMoments, Kind
from jobs.learn.collect import collect
from jobs.learn.request import LearnRequest
from pipeline.sources.labels import LabelTable, find_labels
from pipeline.stages.models import fetch_model
from pipeline.stages.readings import NoisedH
from pipeline.stages.reducers import KEYS, decode_keys, half_rows

EPOCHS = 20
HELD_OUT = 5
"""One image in HELD_OUT is not learned from. The accuracy of the classifiers is measured on these images."""


@dataclass(frozen=True)
class ClassifierQuestion:
    """The label `name` to learn from the table `labels` (or `folders`). Weights make classes alike in `balanced`."""

    labels: str
    name: str
    kind: Kind = "logistic"
    balanced: tuple[str, ...] = ()
    extremes: float | None = None
    n_timesteps: int = 10


class Batch(NamedTuple):
    """Images of a shard by h [N, T, D], whether they have the label [N], and their weights [N]."""

    h: NDArray[np.float32]
    has: NDArray[np.bool_]
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class LabelledRows:
    """The rows of h that shards hold, with the labels and weights of their images."""

    shards: Iterable[dict[str, Tensor]]
    has: dict[str, bool]
    weights: dict[str, float]

    def batches(self, held_out: bool) -> Iterator[Batch]:
        """Yields the images to learn from, or the held-out images. Each shard that has some gives one batch."""
        seen = 0
        for tensors in self.shards:
            if KEYS not in tensors:
                continue
            keys = np.array(decode_keys(tensors[KEYS].numpy()))
            chosen = ((seen + np.arange(len(keys))) % HELD_OUT == HELD_OUT - 1) == held_out
            seen += len(keys)
            if chosen.any():
                has = np.array([self.has[key] for key in keys[chosen]])
                weights = np.array([self.weights[key] for key in keys[chosen]])
                yield Batch(tensors["rows"].flatten(2).numpy()[chosen].astype(np.float32), has, weights)


def learn_classifier(request: LearnRequest, asked: ClassifierQuestion) -> Path:
    """Learn and save the direction of a label. Returns its path.

    h of every image is kept on storage in half precision while the classifiers learn. One shard is in memory at a time.

    Raises:
        UserError: if the table does not fit the images, or the label does not have two classes.
    """
    folder = fetch_model(request.model)
    names = (asked.name, *asked.balanced)
    table = find_labels(asked.labels, request.source, (asked.name,)).only(names)
    if asked.extremes is not None:
        table = table.extremes(asked.name, asked.extremes)
    has = dict(zip(table.keys, table.classes(asked.name).tolist(), strict=True))
    grid = request.some_of_grid(folder, asked.n_timesteps)
    weights = dict(zip(table.keys, table.weights(asked.name, asked.balanced).tolist(), strict=True))
    collection = request.collection(folder, NoisedH(grid, request.seed), half_rows, {"statistics": "rows"})
    (found, accuracy), images = collect(
        replace(collection, keys=has.keys()),
        lambda shards: _fit(LabelledRows(shards, has, weights), asked, request.seed),
    )
    info = replace(
        request.info(
            folder,
            asked.name,
            images,
            f"the step between the means of the images without and with '{asked.name}' along it",
            f"normal of a linear classifier of h ({asked.kind}) per timestep" + _balanced(table, asked),
        ),
        notes={"accuracy": f"{accuracy.min():.3f} to {accuracy.max():.3f} on one image in {HELD_OUT}, held out"},
    )
    form = request.form(torch.from_numpy(found), grid, folder)
    save_direction(Direction(info, form), request.output)
    return request.output


def _balanced(table: LabelTable, asked: ClassifierQuestion) -> str:
    return f", balanced over {', '.join(asked.balanced)} of {table.origin}" if asked.balanced else ""


def _fit(images: LabelledRows, asked: ClassifierQuestion, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the directions [T, D] and the accuracies [T] on the held-out images."""
    moments = ClassMoments()
    for batch in images.batches(held_out=False):
        moments.add(*batch)
    if not moments.weight.all():
        raise UserError(
            f"of the images that could be read, none is {'with' if moments.weight[0] else 'without'} '{asked.name}'"
        )
    classifiers = Classifiers(asked.kind, moments, seed)
    for _ in range(EPOCHS):
        for batch in images.batches(held_out=False):
            classifiers.learn(*batch)
    hits, count = np.zeros(len(moments.radius())), 0
    for batch in images.batches(held_out=True):
        hits += classifiers.hits(batch.h, batch.has)
        count += len(batch.h)
    return classifiers.directions(), hits / max(count, 1)
