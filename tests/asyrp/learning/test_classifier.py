"""Directions from linear classifiers: the boundary is found, however the images come, and the unit is the data's."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from asyrp.directions.forms import load_direction
from asyrp.errors import UserError
from asyrp.learning.classifier import Classifiers, ClassMoments
from jobs.learn.classifier import ClassifierQuestion, learn_classifier
from jobs.learn.request import LearnRequest
from jobs.spec.run import EngineSpec
from tests.support.runs import SAMPLES

LABELS = str(SAMPLES.parent / "labels.csv")


def two_classes(n=600, d=20, seed=0):
    """h [N, 2, D] of two classes that differ along the first axis at one timestep, and the second at the other."""
    rng = np.random.default_rng(seed)
    has = rng.random(n) < 0.3
    h = rng.standard_normal((n, 2, d)).astype(np.float32) + 5
    h[:, 0, 0] += 3 * has
    h[:, 1, 1] -= 4 * has
    return h, has


def trained(h, has, weights, kind="logistic", batch=100) -> Classifiers:
    moments = ClassMoments()
    parts = [slice(start, start + batch) for start in range(0, len(h), batch)]
    for part in parts:
        moments.add(h[part], has[part], weights[part])
    found = Classifiers(kind, moments, 0)
    for _ in range(20):
        for part in parts:
            found.learn(h[part], has[part], weights[part])
    return found


@pytest.mark.parametrize("kind", ["logistic", "svm"])
def test_the_normal_points_from_one_class_to_the_other_and_is_as_long_as_their_distance(kind):
    h, has = two_classes()
    found = trained(h, has, np.ones(len(h)), kind).directions()
    expected = np.zeros((2, 20))
    expected[0, 0], expected[1, 1] = 3, -4
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.9
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [3, 4], rtol=0.1)


def test_streamed_logistic_regression_agrees_with_one_that_sees_all_at_once():
    h, has = two_classes(d=6)
    ours = trained(h, has, np.ones(len(h)))
    theirs = LogisticRegression(C=1e4).fit(h[:, 0], has)
    normal = theirs.coef_[0] / np.linalg.norm(theirs.coef_[0])
    found = ours.directions()[0]
    assert found @ normal / np.linalg.norm(found) > 0.97
    assert ours.hits(h, has)[0] >= np.sum(theirs.predict(h[:, 0]) == has) - 6


def test_weights_take_a_confounded_label_out():
    rng = np.random.default_rng(1)
    other = rng.random(4000) < 0.5
    has = rng.random(4000) < np.where(other, 0.9, 0.1)
    h = rng.standard_normal((4000, 1, 4)).astype(np.float32)
    h[:, 0, 0] += has
    h[:, 0, 1] += 3 * other
    counts = {(a, b): np.sum((has == a) & (other == b)) for a in (True, False) for b in (True, False)}
    weights = np.array([1000 / counts[a, b] for a, b in zip(has.tolist(), other.tolist(), strict=True)])
    [raw] = np.diff(class_means(h, has, np.ones(4000))[:, 0], axis=0)
    [balanced] = np.diff(class_means(h, has, weights)[:, 0], axis=0)
    assert abs(raw[1]) > 2 and abs(balanced[1]) < 0.15 and abs(balanced[0] - 1) < 0.15


def class_means(h, has, weights):
    moments = ClassMoments()
    moments.add(h, has, weights)
    return moments.means()


def request(output, source=SAMPLES) -> LearnRequest:
    engine = EngineSpec.model_validate({"check": False})
    return LearnRequest(str(source), "avatars", output, n_steps=6, t_edit=300, engine=engine, shard_size=25)


@pytest.mark.usefixtures("without_ray")
def test_a_classifier_of_h_says_how_good_it_is_on_images_it_has_not_seen(tmp_path):
    asked = ClassifierQuestion(LABELS, "long_hair", "svm", ("smile",), n_timesteps=2)
    direction = load_direction(learn_classifier(request(tmp_path / "d.safetensors"), asked))
    assert direction.form.delta_h.shape[0] == 2
    accuracy = float(direction.info.notes["accuracy"].split(" to ")[1].split()[0])
    assert accuracy > 0.7
    assert "(svm) per timestep, balanced over smile" in direction.info.found_by


@pytest.mark.usefixtures("without_ray")
def test_a_label_with_one_class_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("key,smile\n" + "\n".join(f"face_{i:02d}.png,1" for i in range(9)))
    with pytest.raises(UserError, match=r"a classifier needs two classes and 'smile' has 1 value\(s\)"):
        learn_classifier(request(tmp_path / "d"), ClassifierQuestion(str(tmp_path / "labels.csv"), "smile"))
