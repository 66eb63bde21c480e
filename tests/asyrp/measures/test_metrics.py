"""Metrics against closed cases, independent computations, and ladders of damage."""

import math

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import gaussian_blur

from asyrp.measures.metrics import IDENTICAL_DB, Metrics, agreement, directional_similarity, psnr
from asyrp.measures.names import Judges
from asyrp.models.find import find_model
from asyrp.models.folder import BUNDLED
from tests.support.runs import SAMPLES

TEXTS = {"glasses_1": ("person without glasses", "person with glasses"), "smile_1": ("person", "smiling person")}
LABELS = ("smile", "glasses")


def faces(count=8):
    images = [np.asarray(Image.open(path)) for path in sorted(SAMPLES.glob("*.png"))[:count]]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def noised(x, amount):
    return (x + amount * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)


def blurred(x, sigma):
    return x if sigma == 0 else gaussian_blur(x, [9, 9], [sigma, sigma])


def embedding(x):
    """Stands for a face model: the picture itself, at a quarter of the size, without its brightness."""
    small = torch.nn.functional.avg_pool2d(x, 4).flatten(1)
    return small - small.mean(1, keepdim=True)


def brightness(x):
    """Stands for a classifier of two labels: is the upper, is the lower half bright."""
    return torch.stack([x[:, :, :16].mean((1, 2, 3)), x[:, :, 16:].mean((1, 2, 3))], 1)


def metrics(*names, **judges):
    nets = {"identity": f"{__name__}:embedding", "segmenter": str(find_model("avatars").segmenter), "clip": "avatars"}
    return Metrics(names, Judges(**{**nets, **judges}), "cpu", TEXTS, {"glasses_1": {"glasses"}, "smile_1": {"smile"}})


def of_edit(measured, before, after):
    return measured.edit(measured.look(before), measured.look(after), ["glasses_1"] * len(after))


def test_psnr_is_that_of_the_eight_bit_images():
    x, y = faces(), noised(faces(), 0.2)
    first, second = ((image + 1) * 127.5 for image in (x, y))
    mean_square = ((first - second) ** 2).mean((1, 2, 3))
    assert torch.allclose(psnr(x, y), 10 * torch.log10(255**2 / mean_square), atol=1e-4)
    assert psnr(x, x).tolist() == [IDENTICAL_DB] * len(x)


@pytest.mark.parametrize("degrees", [0, 30, 90, 180])
def test_directional_similarity_is_the_cosine_of_the_rotation(degrees):
    before = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    direction = torch.tensor([1.0, 0.0])
    angle = math.radians(degrees)
    after = before + 0.3 * torch.tensor([math.cos(angle), math.sin(angle)])
    assert torch.allclose(directional_similarity(before, after, direction), torch.tensor(math.cos(angle)), atol=1e-5)


def test_an_image_that_did_not_change_went_nowhere():
    same = torch.ones(3, 4)
    assert directional_similarity(same, same, torch.tensor([1.0, 0, 0, 0])).tolist() == [0, 0, 0]


def test_agreement_counts_places_and_not_classes():
    parts = torch.tensor([[[0, 1], [2, 3]]])
    assert agreement(parts, parts) == 1
    assert agreement(parts, (parts + 1) % 4) == 0  # the same regions under other names
    assert agreement(parts, torch.tensor([[[0, 1], [3, 2]]])) == 0.5


def test_clip_metrics_are_what_open_clip_says():
    before, after = faces(), faces().flip(0)
    folder = BUNDLED / "clip-avatars"
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.visual.image_mean, model.visual.image_std))
    with torch.no_grad():
        i, j = (model.encode_image(((x + 1) / 2 - mean) / std, normalize=True) for x in (before, after))
        source, target = (
            model.encode_text(tokenizer([t(text) for t in open_clip.OPENAI_IMAGENET_TEMPLATES]), normalize=True).mean(0)
            for text in TEXTS["glasses_1"]
        )
    moved, meant = j - i, target - source
    found = of_edit(metrics("s_dir", "clip_score"), before, after)
    s_dir = (moved @ meant) / moved.norm(dim=1) / meant.norm()
    score = j @ (target / target.norm())
    assert [row["s_dir"] for row in found] == pytest.approx(s_dir.tolist(), abs=1e-4)
    assert [row["clip_score"] for row in found] == pytest.approx(score.tolist(), abs=1e-4)


def test_glasses_put_on_by_the_renderer_have_a_higher_margin_than_none():
    labels = [line.split(",") for line in (SAMPLES.parent / "labels.csv").read_text().splitlines()]
    column = labels[0].index("glasses")
    with_glasses = {row[0] for row in labels[1:] if row[column] == "1"}
    names = [path.name for path in sorted(SAMPLES.glob("*.png"))[:32]]
    found = of_edit(metrics("clip_margin"), faces(32), faces(32))
    margins = {True: [], False: []}
    for name, row in zip(names, found, strict=True):
        margins[name in with_glasses].append(row["clip_margin"])
    assert min(margins[True]) > max(margins[False])


LADDERS = {"noise": (noised, (0, 0.05, 0.2, 0.8)), "blur": (blurred, (0, 0.5, 1, 3))}


@pytest.mark.parametrize("damage", LADDERS)
@pytest.mark.parametrize("name", ["edit_clip", "identity", "segmentation", "recon_psnr", "recon_clip"])
def test_every_metric_gets_worse_with_every_step_of_damage(name, damage):
    change, steps = LADDERS[damage]
    measured, x = metrics(name), faces(16)
    if name.startswith("recon"):
        rows = [measured.reconstruction(x, change(x, step)) for step in steps]
    else:
        rows = [of_edit(measured, x, change(x, step)) for step in steps]
    means = [np.mean([row[name] for row in found]) for found in rows]
    worse = sorted(means, reverse=name in ("identity", "segmentation", "recon_psnr"))
    assert means == worse and len(set(means)) == len(means)


@pytest.mark.parametrize("name", ["edit_clip", "identity", "segmentation"])
def test_another_face_is_worse_than_the_same_one_damaged(name):
    measured, x = metrics(name), faces(16)
    damaged, other = (
        np.mean([row[name] for row in of_edit(measured, x, after)]) for after in (noised(x, 0.05), x.roll(1, 0))
    )
    assert damaged < other if name == "edit_clip" else damaged > other


def test_what_an_edit_is_meant_to_change_does_not_count_as_kept():
    x = torch.zeros(2, 3, 32, 32) - 0.5
    upper, lower = x.clone(), x.clone()
    upper[:, :, :16], lower[:, :, 16:] = 0.9, 0.9
    measured = metrics("kept", classifier=f"{__name__}:brightness", labels=LABELS, threshold=0.0)
    assert [row["kept"] for row in of_edit(measured, x, lower)] == [1, 1]  # only glasses came
    assert [row["kept"] for row in of_edit(measured, x, upper)] == [0, 0]  # a smile came
    [row, _] = of_edit(measured, x, lower)
    assert row["scores"] == pytest.approx({"smile": -0.5, "glasses": 0.9})
    assert row["source_scores"] == pytest.approx({"smile": -0.5, "glasses": -0.5})


def test_a_number_that_is_none_is_null():
    x = faces(2)
    [first, second] = metrics("recon_psnr").reconstruction(x, torch.stack([x[0], torch.full_like(x[0], torch.nan)]))
    assert first == {"recon_psnr": IDENTICAL_DB} and second == {"recon_psnr": None}


def test_only_what_is_asked_is_measured():
    assert [set(row) for row in of_edit(metrics("clip_score"), faces(2), faces(2))] == [{"clip_score"}] * 2


def test_images_that_had_different_edits_are_measured_as_each_edit_is():
    x, names = faces(4), ["s_dir", "clip_margin", "clip_score", "kept"]
    measured = metrics(*names, classifier=f"{__name__}:brightness", labels=LABELS, threshold=0.0)
    before, after = measured.look(x), measured.look(noised(x, 0.5))
    edits = ["glasses_1", "smile_1", "smile_1", "glasses_1"]
    alone = {edit: measured.edit(before, after, [edit] * 4) for edit in set(edits)}
    for index, (edit, row) in enumerate(zip(edits, measured.edit(before, after, edits), strict=True)):
        assert [row[name] for name in names] == pytest.approx([alone[edit][index][name] for name in names], abs=1e-5)
    assert alone["glasses_1"][1]["s_dir"] != pytest.approx(alone["smile_1"][1]["s_dir"], abs=1e-3)
