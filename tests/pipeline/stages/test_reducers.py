"""The reducers of statistics stages: what a shard stores, and how shards merge."""

import pickle

import numpy as np
import pytest
from safetensors.numpy import save
from safetensors.torch import load

from pipeline.stages.reducers import (
    CURVE_SUMS,
    FEATURE_SUMS,
    JACOBIAN_SUMS,
    Aggregation,
    label_sums,
    mean_sums,
    pca_sketches,
)

IMAGES = 11
KEYS = [f"{number:02d}.png" for number in range(IMAGES)]
H = (3, 4, 2, 2)
AGGREGATIONS = {
    "labels": (label_sums(2, {key: [n % 2, n % 3] for n, key in enumerate(KEYS)}), H),
    "mean": (mean_sums(), H),
    "pca": (pca_sketches(16, joint=False), H),
    "joint pca": (pca_sketches(64, joint=True), H),
    "jacobians": (JACOBIAN_SUMS, (2, 3, 4, 2, 2)),
    "distances": (CURVE_SUMS, (2, 5)),
    "features": (FEATURE_SUMS, (8,)),
}
STORED = {
    "labels": {"gram", "products", "squares"},
    "mean": {"gram", "products", "squares"},
    "pca": {"count", "mean", "rows", "total"},
    "joint pca": {"count", "mean", "rows", "total"},
    "jacobians": {"count", "mean", "rows", "total", "jacobian_rows"},
    "distances": {"images", "sums"},
    "features": {"count", "total", "outer", "ranks", "reservoir"},
}


def stored(aggregation: Aggregation, outputs: np.ndarray, images: range):
    reducer = aggregation()
    for number in images:
        reducer.add(KEYS[number], outputs[number])
    return load(save({name: np.ascontiguousarray(array) for name, array in reducer.arrays().items()}))


@pytest.mark.parametrize("kind", AGGREGATIONS)
def test_stored_shards_merge_to_the_sums_of_all_images_and_an_empty_shard_adds_nothing(kind):
    aggregation, shape = AGGREGATIONS[kind]
    aggregation = pickle.loads(pickle.dumps(aggregation))
    outputs = np.random.default_rng(0).standard_normal((IMAGES, *shape)).astype(np.float32)
    cuts = [range(0), range(4), range(4, 4), range(4, IMAGES)]
    merged = aggregation.merge([stored(aggregation, outputs, images) for images in cuts]).tensors()
    whole = stored(aggregation, outputs, range(IMAGES))
    assert merged.keys() == whole.keys() == STORED[kind]
    for name, tensor in whole.items():
        found = merged[name]
        if "rows" in name:  # principal rows are known up to their sign, and those without variance not at all
            tensor, found = (rows.transpose(-1, -2) @ rows for rows in (tensor, found))
        np.testing.assert_allclose(found, tensor, rtol=1e-4, atol=1e-4)
