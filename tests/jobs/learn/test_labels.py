"""Directions learned over many images: sums that do not depend on how the work was cut, and what they say."""

import os
import signal
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.decomposition import PCA

from asyrp.directions.forms import load_direction
from asyrp.errors import UserError
from asyrp.learning.labels import LabelSums
from asyrp.learning.pca import PcaSketch
from jobs.learn.labels import CURVE_STEPS, LabelQuestion, learn_labels
from jobs.learn.request import LearnRequest
from jobs.learn.unsupervised import learn_pca
from jobs.spec.run import EngineSpec
from pipeline.run.progress import read_heartbeats
from pipeline.stages.statistics import STAGE
from pipeline.storage.store import Store
from tests.support.models import tiny_model
from tests.support.runs import SAMPLES, make_faces, wait_for_commits

LABELS = str(SAMPLES.parent / "labels.csv")


def samples(n: int, d: int, groups: int = 1, seed: int = 0) -> torch.Tensor:
    """Correlated samples [n, groups, d] with a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(groups, d, d, generator=generator) * torch.logspace(0, -1.5, d)
    return torch.einsum("ngd,gde->nge", torch.randn(n, groups, d, generator=generator), mixing.transpose(1, 2)) + 3


def sketch_of(x: torch.Tensor, rank: int) -> PcaSketch:
    sketch = PcaSketch(rank)
    sketch.add(x)
    return sketch


@settings(max_examples=25, deadline=None)
@given(st.integers(6, 40), st.integers(3, 12), st.lists(st.integers(1, 39), max_size=4), st.integers(0, 5))
def test_a_sketch_of_full_rank_is_exactly_the_pca_of_scikit_learn(n, d, cuts, seed):
    x = samples(n, d, seed=seed)
    merged = PcaSketch(d)
    for part in torch.tensor_split(x, sorted(cut for cut in cuts if cut < n)):
        merged.merge(sketch_of(part, d))
    k = min(3, d, n - 1)
    expected = PCA(k).fit(x[:, 0].double().numpy())
    rows, shares = merged.components(k)
    np.testing.assert_allclose(shares[:, 0], expected.explained_variance_ratio_, rtol=1e-3, atol=1e-5)
    scaled = expected.components_ * np.sqrt(expected.explained_variance_)[:, None]
    ours = rows[:, 0].numpy() * np.sign(np.sum(rows[:, 0].numpy() * scaled, axis=1, keepdims=True))
    np.testing.assert_allclose(ours, scaled, atol=1e-3 * np.abs(scaled).max())
    torch.testing.assert_close(merged.mean[0], x[:, 0].mean(0), rtol=1e-4, atol=1e-4)


def test_a_sketch_of_small_rank_keeps_the_leading_components():
    x = samples(400, 60)
    rows, shares = sketch_of(x, 12).components(3)
    expected = PCA(3).fit(x[:, 0].numpy())
    np.testing.assert_allclose(shares[:, 0], expected.explained_variance_ratio_, rtol=0.02)
    cosines = (rows[:, 0] / rows[:, 0].norm(dim=1, keepdim=True) * torch.from_numpy(expected.components_)).sum(1).abs()
    assert cosines.min() > 0.99


def test_signs_agree_from_one_timestep_to_the_next():
    x = samples(50, 8)
    rows, _ = sketch_of(torch.cat([x, -x, x], dim=1), 8).components(4)
    torch.testing.assert_close(rows[:, 0], rows[:, 1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(rows[:, 0], rows[:, 2], rtol=1e-3, atol=1e-3)


def test_more_components_than_there_are_is_said():
    with pytest.raises(ValueError, match="5 components are asked for and the data has 3"):
        sketch_of(samples(4, 8), 8).components(5)


def test_the_t_value_of_a_label_that_means_nothing_is_about_one():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (300, 2), generator=generator).float()
    h = torch.randn(300, 2, 4, 4, 4, generator=generator)
    h[:, :, 0] += 2 * labels[:, :1, None, None]
    sums = LabelSums(2)
    sums.add(labels, h)
    told, chance = sums.statistics()
    assert (told.t_value > 5).all()
    assert ((chance.t_value > 0.7) & (chance.t_value < 1.3)).all()
    assert (told.effect > 5 * chance.effect).all()
    assert sums.images == 300


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return make_faces(tmp_path_factory.mktemp("learn") / "faces", 64)


def request(source, output, **changes) -> LearnRequest:
    engine = EngineSpec.model_validate({"actors": changes.pop("actors", 1), "check": changes.pop("check", False)})
    settings = {"n_steps": 10, "t_edit": 700, "shard_size": 8} | changes
    return LearnRequest(str(source), "avatars", output, engine=engine, **settings)


def tensors(paths) -> torch.Tensor:
    return torch.stack([load_direction(path).form.delta_h for path in paths])


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_one_actor_and_two_find_the_same_and_so_does_one_that_was_killed(faces, tmp_path):
    def slow(output, **changes):  # long enough to be killed in the middle
        return request(faces, output, t_edit=0, shard_size=4, **changes)

    one = tensors(learn_pca(slow(tmp_path / "one"), 4, False, 16, 10))
    two = tensors(learn_pca(slow(tmp_path / "two", actors=2), 4, False, 16, 10))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    work = tmp_path / "work"

    def kill():
        store = wait_for_commits(work, 2, STAGE)
        os.kill(read_heartbeats(store)[0]["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    survived = tensors(learn_pca(slow(tmp_path / "three", work=str(work)), 4, False, 16, 10))
    killer.join()
    assert len(read_heartbeats(Store(str(work)))) == 2
    torch.testing.assert_close(one, survived, rtol=1e-5, atol=1e-5)
    again = tensors(learn_pca(slow(tmp_path / "four", work=str(work)), 2, False, 16, 10))
    torch.testing.assert_close(again, survived[:2])
    with pytest.raises(UserError, match=r"is another one: .*\n.*joint: False there, True here"):
        learn_pca(slow(tmp_path / "five", work=str(work)), 2, True, 16, 10)


@pytest.mark.usefixtures("without_ray")
def test_joint_components_span_all_timesteps(faces, tmp_path):
    [path] = learn_pca(request(faces, tmp_path / "pca"), 1, True, 16, 3)
    direction = load_direction(path)
    assert direction.form.delta_h.shape[0] == 3
    assert direction.info.name == "pc01"
    assert "jointly over time" in direction.info.found_by


@pytest.mark.usefixtures("without_ray")
def test_folders_are_labels(tmp_path):
    for name, numbers in {"plain": range(8), "other": range(8, 16)}.items():
        (tmp_path / "faces" / name).mkdir(parents=True)
        for number in numbers:
            file = SAMPLES / f"face_{number:02d}.png"
            (tmp_path / "faces" / name / file.name).write_bytes(file.read_bytes())
    asked = LabelQuestion("folders", ("other",), force=True)
    [path] = learn_labels(request(tmp_path / "faces", tmp_path / "d.safetensors"), asked)
    info = load_direction(path).info
    assert info.found_on == "16 images"
    assert "(1 is chance)" in info.notes["t_value"]
    with pytest.raises(UserError, match="there is no folder 'none': there are other, plain"):
        learn_labels(request(tmp_path / "faces", tmp_path / "d.safetensors"), LabelQuestion("folders", ("none",)))


@pytest.mark.usefixtures("without_ray")
def test_a_corrupt_image_costs_the_statistics_nothing_but_itself(tmp_path):
    folder = tmp_path / "faces"
    folder.mkdir()
    for number in range(12):
        file = SAMPLES / f"face_{number:02d}.png"
        (folder / file.name).write_bytes(file.read_bytes())
    [whole] = learn_labels(request(folder, tmp_path / "a.safetensors"), LabelQuestion(LABELS, ("smile",), force=True))
    (folder / "face_99.png").write_text("not an image")
    [other] = learn_pca(request(folder, tmp_path / "pca"), 1, False, 16, 1)
    assert load_direction(whole).info.found_on == load_direction(other).info.found_on == "12 images"


@pytest.mark.usefixtures("without_ray")
def test_more_components_than_images_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="9 components are asked for and the data has 3; give more images"):
        learn_pca(request(f"{SAMPLES}/face_0[0-3].png", tmp_path / "pca"), 9, False, 16, 1)


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """240 images of noise in large patches, every second with a brighter corner; labels of the first 60 and of all."""
    folder = tmp_path_factory.mktemp("marked")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    rows = ["key,corner,chance"]
    for index in range(240):
        patches = np.kron(rng.integers(60, 140, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        patches[:8, :8] += np.uint8(80 * (index % 2))
        Image.fromarray(patches).save(folder / "images" / f"{index:03d}.png")
        rows.append(f"{index:03d}.png,{index % 2},{rng.integers(2)}")
    (folder / "all.csv").write_text("\n".join(rows))
    (folder / "some.csv").write_text("\n".join(rows[:61]))
    return folder


def learned(marked, output, name="corner", table="some.csv", interval=(250, 100), **changes):
    engine = EngineSpec.model_validate({"check": False})
    asked = LabelQuestion(str(marked / table), (name,), (), **changes)
    own = LearnRequest(
        str(marked / "images"), str(tiny_model()), output, 10, interval[1], interval[0], shard_size=64, engine=engine
    )
    [path] = learn_labels(own, asked)
    return load_direction(path)


@pytest.mark.usefixtures("without_ray")
def test_images_without_labels_bring_a_direction_of_few_labels_nearer_to_that_of_all(marked, tmp_path):
    whole = learned(marked, tmp_path / "a", table="all.csv")
    few, both = (learned(marked, tmp_path / "b", estimator=way, force=True) for way in ("difference", "auto"))
    assert (whole.info.found_on, few.info.found_on, both.info.found_on) == ("240 images", "60 images", "240 images")
    assert "60 labelled images and 180 others" in both.info.notes["verdict"]

    def cosine(direction):
        steps = [whole.form.delta_h[whole.form.nearest(t)].flatten() for t in direction.form.steps]
        own = direction.form.delta_h.flatten(1)
        return torch.nn.functional.cosine_similarity(own, torch.stack(steps), dim=1).mean().item()

    assert cosine(both) > cosine(few)


@pytest.mark.usefixtures("without_ray")
def test_a_label_of_chance_is_refused_before_it_costs_anything_and_force_writes_it(marked, tmp_path):
    with pytest.raises(UserError, match=r"'chance' cannot be told from h .* 0.5 is chance; label more images"):
        learned(marked, tmp_path / "x", "chance")
    assert not (tmp_path / "x").exists()
    forced = learned(marked, tmp_path / "x", "chance", force=True, most_unlabelled=0)
    assert forced.info.notes["verdict"].endswith(": chance")


@pytest.mark.usefixtures("ray_cluster")
def test_another_source_gives_images_without_labels(marked, tmp_path):
    (tmp_path / "more").mkdir()
    for number in range(10):  # under names that the source has too
        name = f"{number:03d}.png"
        (tmp_path / "more" / name).write_bytes((marked / "images" / name).read_bytes())
    found = learned(marked, tmp_path / "d", table="all.csv", unlabelled=str(tmp_path / "more"), estimator="propagated")
    assert "240 labelled images and 10 others" in found.info.notes["verdict"]
    with pytest.raises(UserError, match=r"there are no images without labels below .*: give some with --unlabelled"):
        learned(marked, tmp_path / "e", table="all.csv", unlabelled=f"{marked}/images/00*.png", estimator="propagated")


@pytest.mark.usefixtures("without_ray")
def test_too_few_images_of_a_class_are_one_sentence_and_force_takes_them(marked, tmp_path):
    (marked / "few.csv").write_text("\n".join((marked / "all.csv").read_text().splitlines()[:12]))
    with pytest.raises(UserError, match=r"few.csv: 5 images with 'corner' and 6 without: 10 of each say"):
        learned(marked, tmp_path / "d", table="few.csv")
    assert learned(marked, tmp_path / "d", table="few.csv", force=True).info.found_on == "11 images"


@pytest.mark.usefixtures("without_ray")
def test_forced_chance_has_an_interval_even_where_no_curve_rises(marked, tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.learn.labels.settling", lambda *_: None)
    forced = learned(marked, tmp_path / "x", "chance", interval=(None, None), force=True, most_unlabelled=0)
    assert (forced.info.t_start, forced.info.t_edit) == (None, 400)


@pytest.mark.usefixtures("without_ray")
def test_an_interval_that_is_not_given_is_found(marked, tmp_path):
    found = learned(marked, tmp_path / "d", interval=(None, None))
    assert found.info.t_start is not None and found.info.t_edit is not None
    assert found.info.t_start >= max(found.form.steps) and min(found.form.steps) >= found.info.t_edit
    curve = dict(point.split(": ") for point in found.info.notes["AUC by timestep"].split(", "))
    assert len(curve) == CURVE_STEPS - 1 and float(curve["999"]) < 0.7 < float(curve["66"])


@pytest.mark.usefixtures("without_ray")
def test_an_interval_that_is_given_is_kept(marked, tmp_path):
    found = learned(marked, tmp_path / "d", table="all.csv", interval=(250, 100))
    assert (found.info.t_start, found.info.t_edit, found.form.steps) == (250, 100, [111, 222])
