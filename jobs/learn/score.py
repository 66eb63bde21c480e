"""`asyrp directions score`: labels of images from CLIP or a classifier, as a table that `learn labels` takes."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from asyrp.errors import UserError
from asyrp.measures.scorers import ScorerSource, load_scorer
from jobs.learn.collect import Collection, collect
from jobs.spec.run import EngineSpec
from pipeline.sources.labels import LabelTable
from pipeline.stages.models import fetch_model
from pipeline.stages.readings import Scores
from pipeline.stages.reducers import KEYS, decode_keys, score_rows


def score(
    source: str,
    model: str,
    scorers: tuple[ScorerSource, ...],
    work: str | None,
    engine: EngineSpec,
    shard_size: int = 256,
) -> LabelTable:
    """Returns the scores of all readable images of a source, at the model's size. They are computed over the cluster.

    Raises:
        UserError: if a scorer cannot be loaded or gives the wrong number of scores, or two scores have one name.
    """
    names = tuple(name for scorer in scorers for name in scorer.names)
    if len(set(names)) < len(names):
        raise UserError(f"two scores have one name: {', '.join(names)}")
    folder = fetch_model(model)
    blank = torch.zeros(1, 3, folder.image_size, folder.image_size)
    for scorer in scorers:  # reports a mistake here and not on the first actor
        load_scorer(scorer, "cpu")(blank)
    collection = Collection(
        source=source,
        folder=folder,
        reading=Scores(scorers),
        make_reducer=score_rows,
        identity={},
        shard_size=shard_size,
        work=work,
        engine=engine,
    )
    (keys, rows), _ = collect(collection, _all_rows)
    return LabelTable(f"the scores of {source}", names, keys, rows)


def _all_rows(shards: Iterable[dict[str, Tensor]]) -> tuple[tuple[str, ...], np.ndarray]:
    parts = [tensors for tensors in shards if KEYS in tensors]
    keys = tuple(key for tensors in parts for key in decode_keys(tensors[KEYS].numpy()))
    return keys, np.concatenate([tensors["rows"].double().numpy() for tensors in parts]) if parts else np.zeros((0, 0))
