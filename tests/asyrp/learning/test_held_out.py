"""How well a label can be told on images that were not learned from, and what it says of a direction."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from asyrp.learning.held_out import FOLDS, Auc, auc, classes, held_out_auc, principal_coordinates, settling
from asyrp.learning.labels import LabelSums
from asyrp.learning.pca import PcaSketch
from asyrp.learning.probe import Components, LabelledImages, lasso_weights
from asyrp.learning.verdict import Verdict


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=4, max_size=60))
def test_the_auc_is_that_of_scikit_learn_and_lies_in_its_interval(pairs):
    scores = np.array([float(score) for score, _ in pairs])
    has = np.array([label for _, label in pairs])
    if has.all() or not has.any():
        return
    found = auc(scores, has)
    assert found.value == pytest.approx(roc_auc_score(has, scores))
    assert 0 <= found.low <= found.value <= found.high <= 1


def clouds(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """h [N, D] that varies more in some ways than in others, random values of a label [N], and folds [N]."""
    rng = np.random.default_rng(seed)
    h = rng.standard_normal((n, d)) * np.geomspace(8, 0.01, d) + 5
    return h.astype(np.float32), rng.integers(0, 2, n).astype(float), np.arange(n) % FOLDS


def told_from(h: np.ndarray, values: np.ndarray, folds: np.ndarray) -> Auc:
    return held_out_auc(principal_coordinates(h)[0], values, folds)


def test_a_label_that_means_nothing_beats_chance_hardly_ever():
    told = [told_from(*clouds(60, 200, seed)) for seed in range(60)]
    assert sum(each.beats_chance for each in told) <= 3
    assert abs(np.mean([each.value for each in told]) - 0.5) < 0.05


def test_a_label_that_shifts_h_is_told():
    h, values, folds = clouds(80, 200, 0)
    h[:, 40] += 12 * values
    assert told_from(h, values, folds).low > 0.85


def test_an_interval_goes_from_where_a_label_shows_to_where_it_is_settled():
    timesteps = np.arange(100, 1000, 100)
    curve = np.array([1.0, 1.0, 0.99, 0.9, 0.8, 0.6, 0.55, 0.5, 0.5])
    assert settling(timesteps, curve) == (500, 300)
    assert settling(timesteps, np.where(timesteps <= 300, 1.0, 0.5)) == (400, 300), "no interval is empty"
    assert settling(timesteps, np.linspace(0.4, 0.5, 9)) is None


def test_a_perfect_auc_of_few_images_is_not_certain():
    assert auc(np.arange(20.0), np.arange(20) >= 10).low < 0.95


def test_classes_are_both_there_for_any_values_that_differ():
    assert classes(np.array([1.0, 2, 3, 3, 3, 3])).tolist() == [False, False, True, True, True, True]
    assert classes(np.array([1.0, 2, 3, 4])).tolist() == [False, False, True, True]
    assert classes(np.array([0.0, 5, 0])).tolist() == [False, True, False]


def labelled_images(h: np.ndarray, labelled: int, folds: np.ndarray) -> LabelledImages:
    sketch = PcaSketch(30)
    sketch.add(torch.from_numpy(h)[:, None])
    components = Components(sketch.mean[0], sketch.leading()[:, 0])
    some = h[:labelled]
    return LabelledImages(
        components, components.scores(torch.from_numpy(some)).double().numpy(), some, folds[:labelled]
    )


def planted(seed: int, n: int = 1_000, d: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """h whose label lies along one of its leading components, among nuisance in all."""
    h, values, folds = clouds(n, d, seed)
    h[:, 3] = 20 * values + 3 * np.random.default_rng(seed + 1).standard_normal(n)
    return h, values, folds


@pytest.mark.parametrize("seed", range(3))
def test_a_probe_of_forty_images_reads_the_label_off_a_thousand(seed):
    h, values, folds = planted(seed)
    fitted = labelled_images(h, 40, folds).probe(values[:40])
    read = np.array([fitted.probe.read(torch.from_numpy(each)) for each in h[40:]])
    assert set(read) == {0.0, 1.0} and (read == values[40:]).mean() > 0.9
    assert fitted.held_out.value > 0.9


def test_a_probe_of_a_continuous_label_keeps_its_mean_and_spread():
    h, _, folds = planted(5)
    values = 7 + 2 * h[:, 3].astype(float)
    fitted = labelled_images(h, 80, folds).probe(values[:80])
    read = np.array([fitted.probe.read(torch.from_numpy(each)) for each in h[80:]])
    assert np.corrcoef(read, values[80:])[0, 1] > 0.9
    assert read.mean() == pytest.approx(values.mean(), abs=values.std() / 2)
    assert read.std() == pytest.approx(values.std(), rel=0.3)


def test_few_components_of_many_images_carry_the_weights():
    h, values, folds = planted(7)
    images = labelled_images(h, 60, folds)
    weights = lasso_weights(images.scores, values[:60])
    leading = np.abs(weights).argmax()
    axis = images.components.axes[leading]
    assert (axis[3].abs() / axis.norm()).item() > 0.8
    assert (np.abs(weights) > 0.2 * np.abs(weights).max()).sum() <= 5


@pytest.mark.parametrize(("n", "gap"), [(40, 0.2), (400, 0.2), (400, 1.0)])
def test_the_expected_cosine_is_about_the_cosine_with_the_sought_direction(n, gap):
    generator = torch.Generator().manual_seed(n)
    labels = (torch.arange(n) % 2).float()[:, None]
    sought = torch.randn(2, 3, 20, 20, generator=generator)
    sums = LabelSums(1)
    sums.add(labels, torch.randn(n, 2, 3, 20, 20, generator=generator) + gap * labels[:, :, None, None, None] * sought)
    cosine = torch.nn.functional.cosine_similarity(sums.directions()[0].flatten(), sought.flatten(), dim=0)
    assert sums.statistics()[0].cosine == pytest.approx(cosine.item(), abs=0.1)


def test_the_expected_cosine_is_right_where_loud_numbers_of_h_mean_nothing():
    generator = torch.Generator().manual_seed(1)
    labels = (torch.arange(100) % 2).float()[:, None]
    loud = torch.where(torch.arange(64) < 4, 20.0, 1.0)[:, None, None]
    sought = torch.where(torch.arange(64) < 4, 0.0, 2.0)[:, None, None].expand(64, 4, 4)
    sums = LabelSums(1)
    h = loud * torch.randn(100, 1, 64, 4, 4, generator=generator) + labels[:, :, None, None, None] * sought
    sums.add(labels, h)
    cosine = torch.nn.functional.cosine_similarity(sums.directions()[0].flatten(), sought.flatten(), dim=0)
    assert sums.statistics()[0].cosine == pytest.approx(cosine.item(), abs=0.1)


def test_as_many_labels_as_images_say_nothing():
    sums = LabelSums(9)
    sums.add(torch.randn(10, 9), torch.randn(10, 1, 2, 2, 2))
    with pytest.raises(ValueError, match="10 images are too few for 9 labels"):
        sums.statistics()


def test_sums_on_some_labels_at_some_timesteps_are_those_of_a_regression_on_them_alone():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randn(50, 3, generator=generator)
    h = torch.randn(50, 4, 2, 2, 2, generator=generator)
    whole, part = LabelSums(3), LabelSums(2)
    whole.add(labels, h)
    part.add(labels[:, [2, 0]], h[:, [1, 3]])
    torch.testing.assert_close(whole.only([2, 0]).at([1, 3]).directions(), part.directions())


@pytest.mark.parametrize(
    ("told", "cosine", "trust", "advice"),
    [
        (Auc(0.95, 0.9, 1.0), 0.8, "reliable", ""),
        (Auc(0.95, 0.9, 1.0), 0.6, "weak", "add some thousand images without labels"),
        (Auc(0.8, 0.7, 0.9), 0.9, "weak", "label more images"),
        (Auc(0.8, 0.7, 0.9), 0.5, "weak", "label more images, and add some thousand images"),
        (Auc(0.95, 0.9, 1.0), 0.2, "chance", "add some thousand images without labels"),
        (Auc(0.6, 0.45, 0.7), 0.9, "chance", "label more images, choose a label that can be seen"),
    ],
)
def test_a_verdict_trusts_what_can_be_told_and_is_not_noise(told, cosine, trust, advice):
    verdict = Verdict(told, None, 400, cosine, 128, 2000)
    assert verdict.trust == trust and verdict.advice().startswith(advice)
    said = f"from T to 400, 128 labelled images and 2,000 others, expected cosine {cosine:.2f}: {trust}"
    assert verdict.sentence().endswith(said)
