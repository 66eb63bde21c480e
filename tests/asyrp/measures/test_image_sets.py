"""FID and KID of features that are streamed and added up."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from asyrp.errors import UserError
from asyrp.measures.clip import Clip
from asyrp.measures.image_sets import FeatureSums, set_distance
from tests.support.runs import SAMPLES, asyrp, make_faces, stand_in_run

D = 24


def sums(features, ranks=None, size=10_000):
    if ranks is None:
        ranks = torch.from_numpy(np.random.default_rng(0).permutation(len(features)))
    found = FeatureSums(size)
    found.add(features, ranks)
    return found


@pytest.fixture
def sets():
    torch.manual_seed(0)
    return torch.randn(400, D) @ torch.randn(D, D), torch.randn(300, D) * 2 + 0.5


def test_fid_is_the_distance_of_two_normal_distributions(sets):
    a, b = (features.double().numpy() for features in sets)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    expected = mean + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert set_distance(sums(sets[0]), sums(sets[1])).fid == pytest.approx(expected, rel=1e-6)


def test_kid_is_the_unbiased_mean_discrepancy_of_a_cubic_kernel(sets):
    a, b = (features[:200].double().numpy() for features in sets)
    k_aa, k_bb, k_ab = ((x @ y.T / D + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = sum((k.sum() - np.trace(k)) / (200 * 199) for k in (k_aa, k_bb))
    found = set_distance(sums(sets[0][:200]), sums(sets[1][:200]))
    assert found.kid == pytest.approx(within - 2 * k_ab.mean(), rel=1e-6) and found.kid_std < 1e-9


def test_parts_add_up_to_the_whole_in_any_order(sets):
    features, ranks = sets[0], torch.randperm(400)
    whole = sums(features, ranks, 50).tensors()
    parts = [sums(features[i::4], ranks[i::4], 50) for i in range(4)]
    parts[2].merge(parts[0])
    parts[3].merge(parts[1])
    parts[2].merge(parts[3])
    merged = parts[2].tensors()
    assert parts[2].images == 400 and torch.equal(merged["ranks"], whole["ranks"]) and len(merged["ranks"]) == 50
    for name, tensor in whole.items():
        torch.testing.assert_close(merged[name], tensor)


def test_a_set_of_one_image_has_no_distance(sets):
    with pytest.raises(UserError, match="two images on each side"):
        set_distance(sums(sets[0][:1]), sums(sets[1]))


def test_more_noise_is_further_away():
    faces = [np.asarray(Image.open(file), np.float32) / 127.5 - 1 for file in sorted(SAMPLES.glob("*.png"))]
    images = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)
    clip, noise = Clip("avatars"), torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = {level: clip.embeddings((images + level * noise).clamp(-1, 1)) for level in (0, 0.05, 0.2, 0.5)}
    plain, *noisy = (sums(part.clone()) for part in features.values())
    found = [set_distance(part, plain) for part in (plain, *noisy)]
    assert found[0].fid == pytest.approx(0, abs=1e-5)
    assert all(a.fid < b.fid for a, b in pairwise(found))
    assert all(a.kid < b.kid for a, b in pairwise(found))


@pytest.mark.slow
@pytest.mark.usefixtures("without_ray")
def test_edits_are_compared_with_what_they_were_made_from_and_any_two_sources_with_each_other(tmp_path):
    source = make_faces(tmp_path / "faces", 9)
    store = stand_in_run(source, tmp_path / "run")
    found = json.loads(asyrp("fid", store.url, "--json").stdout)
    of = found["distances"]
    assert found["features"] == "clip:avatars" and list(of) == ["glasses 1", "smile -0.5"]
    assert of["glasses 1"]["images"] == [9, 9]
    assert of["glasses 1"]["fid"] == pytest.approx(0, abs=1e-5) and of["smile -0.5"]["fid"] > 0.001
    two = json.loads(asyrp("fid", source, store.url, "--work", tmp_path / "work", "--json").stdout)["distances"]
    [between] = two.values()
    assert between["images"] == [9, 18] and (tmp_path / "work" / "a" / "run.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-run"], "there is no run at"),
        (["no-run", "nowhere", "--clip", "nothing/such"], "cannot be loaded"),
        (["no-run", "nowhere"], "no-run is no folder"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    found = asyrp("fid", *arguments)
    assert found.returncode == 2 and said in found.stderr.replace("\n", " ") and "Traceback" not in found.stderr
