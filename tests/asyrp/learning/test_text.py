"""Training a direction from texts: the losses, the gradients, and going on after a stop."""

import csv
import math
import os
import signal
import subprocess
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from asyrp.directions.forms import load_direction
from asyrp.directions.info import read_info
from asyrp.errors import UserError
from asyrp.learning import calibration
from asyrp.learning.text import TextRecipe, TextTraining
from asyrp.measures.clip import Clip
from asyrp.models.find import find_model
from asyrp.models.load import load_model
from jobs.cli.directions.learn_text import RecipeOptions
from jobs.learn.text import TextRequest, TrainingImages, learn_text
from tests.support.runs import ASYRP, SAMPLES, asyrp

GLASSES = TextRecipe("person", "person with glasses", t_edit=800, n_steps=10, learning_rate=0.01, optimizer="adam")


@pytest.fixture(scope="module")
def clip():
    return Clip("avatars")


@pytest.fixture(scope="module")
def model():
    return load_model(find_model("avatars"))


def training(clip, model, recipe=GLASSES) -> TextTraining:
    folder = find_model("avatars")
    return TextTraining(recipe, model, clip, folder.family, folder.h_shape[0], folder.emb_channels)


def test_the_bundled_clip_tells_texts_apart(clip):
    texts = clip.texts(["a person with glasses", "a person without glasses", "a person with a beard"])
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))
    assert clip.cosine("person with glasses", "person with glasses") == pytest.approx(1, abs=1e-5)
    assert clip.cosine("person with glasses", "person without glasses") < 0.9
    assert clip.direction("person", "person with glasses").norm() == pytest.approx(1, abs=1e-5)


def test_opposite_texts_are_trained_only_with_an_l1_term_of_its_own(clip, model):
    opposite = replace(GLASSES, source_text="person without glasses")
    with pytest.raises(UserError, match=r"are opposites \(cosine -0\.\d+\), and the L1 term.* give --no-l1-by-cosine"):
        training(clip, model, opposite)
    assert training(clip, model, replace(opposite, l1_by_cosine=False)).l1_weight == opposite.l1_weight


def test_templates_are_the_prompts_around_the_texts(clip):
    found = clip.direction("person", "person with glasses", ["a photo of a {}.", "{}"])
    ends = [clip.texts([f"a photo of a {text}.", text]).mean(0) for text in ("person with glasses", "person")]
    torch.testing.assert_close(found, torch.nn.functional.normalize(ends[0] - ends[1], dim=0))
    with pytest.raises(UserError, match=r"the template 'a photo' needs one \{\} where the text goes"):
        clip.direction("person", "person with glasses", ["a photo"])


def test_texts_that_say_the_same_are_refused(clip):
    with pytest.raises(UserError, match="'person' and 'person' are the same"):
        clip.direction("person", "person")


def test_a_clip_that_is_not_there_is_one_sentence():
    with pytest.raises(UserError, match="the CLIP model 'ViT-X/none' cannot be loaded") as error:
        Clip("ViT-X/none")
    assert "\n" not in str(error.value)


def test_an_import_computes_the_cosine_of_its_texts_with_a_clip(clip, tmp_path):
    file = tmp_path / "smiling_LC_CelebA_HQ_t999_ninv40_ngen40_0.pth"
    torch.save({str(t): torch.zeros(160, 8, 8) for t in (600, 700)}, file)
    done = asyrp("directions", "import", file, "--model", "avatars", "--name", "x", "-o", tmp_path / "x.safetensors",
                 "--clip", "avatars")  # fmt: skip
    assert done.returncode == 0, done.stderr
    cosine = float(read_info(tmp_path / "x.safetensors").notes["text_cosine"])
    assert cosine == pytest.approx(clip.cosine("face", "smiling face"), abs=1e-3)


def test_gradients_reach_the_image_through_clip(clip):
    x = torch.zeros(2, 3, 64, 64, requires_grad=True)
    clip.images(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_the_clip_loss_is_the_mean_over_images_of_the_directional_one(clip, model):
    """-log((1 + cos) / 2) of each image on its own; the official code took a batch's last image for all."""
    trainer = training(clip, model)
    generator = torch.Generator().manual_seed(0)
    edited, source = (torch.rand(3, 3, 32, 32, generator=generator) * 2 - 1 for _ in range(2))
    together, l1 = trainer.losses(edited, source, source)
    alone = [trainer.losses(edited[i : i + 1], source[i : i + 1], source[i : i + 1])[0] for i in range(3)]
    assert together.item() == pytest.approx(sum(loss.item() for loss in alone) / 3, rel=1e-4)
    change = clip.images(edited[:1]) - clip.images(source[:1])
    cosine = torch.nn.functional.cosine_similarity(change, trainer.text_direction[None]).item()
    assert alone[0].item() == pytest.approx(-math.log((1 + cosine) / 2), rel=1e-4)
    assert l1.item() == pytest.approx((edited - source).abs().mean().item())


def test_only_the_block_is_trained_and_each_timestep_once(clip, model):
    trainer = training(clip, model)
    before = {name: p.clone() for name, p in trainer.block.named_parameters()}
    frozen = [p.clone() for p in model.unet.unet.parameters()]
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    losses = list(trainer.batch(x.clamp(-1, 1), x))
    assert [loss.t for loss in losses] == [999, 888]
    assert all(not torch.equal(p, before[name]) for name, p in trainer.block.named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(model.unet.unet.parameters(), frozen, strict=True))


def test_above_t_start_nothing_is_trained_or_edited(clip, model):
    trainer = training(clip, model, replace(GLASSES, t_edit=500, t_start=800))
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert [loss.t for loss in trainer.batch(x.clamp(-1, 1), x)] == [777, 666, 555]
    with pytest.raises(UserError, match="none of 10 steps lies between t_edit 780 and t_start 800"):
        training(clip, model, replace(GLASSES, t_edit=780, t_start=800))


def test_training_lowers_its_loss(clip, model):
    trainer = training(clip, model, replace(GLASSES, t_edit=400, l1_weight=0.5))
    x_0 = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    x_T = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    totals = [sum(loss.clip for loss in trainer.batch(x_0, x_T)) for _ in range(6)]
    assert totals[-1] < 0.9 * totals[0]


def test_the_rate_decays_by_epochs(clip, model):
    trainer = training(clip, model, replace(GLASSES, decay_epochs=3))
    rates = []
    for epoch in range(7):
        trainer.set_rate(epoch, epoch / 7)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01] * 3 + [0.001] * 3 + [0.0001])


def test_the_rate_falls_to_nothing_over_the_training_where_that_is_asked_for(clip, model):
    trainer = training(clip, model, replace(GLASSES, cosine_decay=True))
    rates = []
    for progress in (0, 0.25, 0.5, 0.75, 1):
        trainer.set_rate(0, progress)
        rates.append(trainer.optimizer.param_groups[0]["lr"] / 0.01)
    assert rates == pytest.approx([1, 0.8536, 0.5, 0.1464, 0], abs=1e-4)


@pytest.mark.parametrize("family", ["ho", "adm"])
def test_a_small_start_scales_the_first_delta_h_and_nothing_else(clip, model, family):
    folder = find_model("avatars")
    whole, small = (
        TextTraining(replace(GLASSES, initial_scale=scale), model, clip, family, folder.h_shape[0], folder.emb_channels)
        for scale in (1.0, 0.1)
    )
    encoded = model.unet.encode(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), 900)
    torch.testing.assert_close(small.block(encoded, 900), 0.1 * whole.block(encoded, 900), rtol=1e-4, atol=1e-6)


def request(output, **changes) -> TextRequest:
    values = {"source": str(SAMPLES), "model": "avatars", "clip": "avatars", "output": output,
              "recipe": GLASSES, "images": 6, "epochs": 2, "batch_size": 2, "n_inv": 6, "check": False,
              "calibrate": False}  # fmt: skip
    return TextRequest(**values | changes)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return learn_text(request(tmp_path_factory.mktemp("text") / "g.safetensors"))


FLAGS = ("directions", "learn", "text", "-s", SAMPLES,
         "--source-text", "person", "--target-text", "person with glasses",
         "--preset", "paper", "--clip", "avatars", "--t-edit", "800", "--n-steps", "10", "--lr", "0.01",
         "--optimizer", "adam",
         "--images", "6", "--epochs", "2", "--batch-size", "2", "--n-inv", "6", "--no-check",
         "--no-calibrate")  # fmt: skip


def test_a_training_that_was_killed_goes_on_to_the_same_result(undisturbed, tmp_path):
    output, state = tmp_path / "g.safetensors", tmp_path / "g.safetensors.training"
    command = [*ASYRP, *map(str, FLAGS), "-o", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not state.exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not output.exists()
    done = torch.load(state, weights_only=True)["done"]
    assert 1 <= done < 6
    finished = asyrp(*FLAGS, "-o", output)
    assert finished.returncode == 0, finished.stderr
    assert f"batch {done} of 6" not in finished.stderr and "batch 6 of 6" in finished.stderr
    assert not state.exists()
    ours, theirs = (load_direction(path).form.state_dict() for path in (output, undisturbed))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6)


def test_what_was_trained_says_how(undisturbed):
    info = read_info(undisturbed)
    assert (info.form, info.t_edit, info.n_steps) == ("implicit", 800, 10)
    assert info.notes["target_text"] == "person with glasses"
    assert info.found_on == "6 images, 2 times"


def test_a_sheet_shows_what_is_learned_so_far_and_changes_nothing(undisturbed, tmp_path):
    path = learn_text(request(tmp_path / "g.safetensors", preview_every=4))
    side = find_model("avatars").image_size
    with Image.open(tmp_path / "g.preview.png") as sheet:
        assert sheet.size == (4 * side, 2 * side)
        first = Image.open(sorted(SAMPLES.glob("*.png"))[0]).convert("RGB")
        np.testing.assert_allclose(np.asarray(sheet)[:side, :side], np.asarray(first), atol=1)
    ours, theirs = (load_direction(file).form.state_dict() for file in (path, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def seen_at_strength(monkeypatch, seen_at):
    """Stands in for CLIP's eye: images lack the target until `edit` is called with strength `seen_at`."""
    strength = []

    def edited(unet, schedule, x_T, pairs, shift):  # noqa: ARG001
        strength.append(shift.terms[0][1])
        return x_T

    monkeypatch.setattr(calibration, "edit", edited)
    monkeypatch.setattr(Clip, "lack", lambda _, x, *__: torch.full((len(x),), not strength or strength[-1] < seen_at))
    return strength


def test_strength_1_is_the_least_that_puts_the_target_on_most_images(undisturbed, tmp_path, monkeypatch):
    tried = seen_at_strength(monkeypatch, seen_at=1.5)
    path = learn_text(request(tmp_path / "g.safetensors", calibrate=True))
    assert tried == [0.5, 0.75, 1.0, 1.25, 1.5]
    assert "90 % of the images that lack it" in read_info(path).unit
    ours, theirs = load_direction(path).form, load_direction(undisturbed).form
    encoded = load_model(find_model("avatars")).unet.encode(torch.ones(1, 3, 32, 32), 900)
    torch.testing.assert_close(ours(encoded, 900), 1.5 * theirs(encoded, 900), rtol=1e-4, atol=1e-6)


def test_strength_1_stays_what_was_trained_where_no_strength_is_enough(undisturbed, tmp_path, monkeypatch, capsys):
    seen_at_strength(monkeypatch, seen_at=100)
    path = learn_text(request(tmp_path / "g.safetensors", calibrate=True))
    assert "not even 3 times that" in capsys.readouterr().err.replace("\n", " ")
    assert read_info(path).unit == read_info(undisturbed).unit
    ours, theirs = (load_direction(file).form.state_dict() for file in (path, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_training_only_on_images_that_lack_what_the_target_says_takes_those_by_their_labels(clip, model, tmp_path):
    with (SAMPLES.parent / "labels.csv").open() as file:
        lacking = [row["key"] for row in csv.DictReader(file) if row["glasses"] == "0"]
    contrast = replace(GLASSES, source_text="person without glasses", l1_by_cosine=False)
    asked = request(tmp_path / "g.safetensors", recipe=contrast, images=64, lacking=True)
    images = TrainingImages(asked, find_model("avatars"), model, clip)
    assert images.keys == lacking
    assert len(TrainingImages(replace(asked, images=5), find_model("avatars"), model, clip).keys) == 5


def test_the_state_of_another_training_is_refused(tmp_path):
    output = tmp_path / "g.safetensors"
    state = tmp_path / "g.safetensors.training"
    torch.save({"identity": "another", "done": 1, "training": {}}, state)
    with pytest.raises(UserError, match="is the state of another training"):
        learn_text(request(output))


def test_the_bundled_model_is_trained_by_its_own_preset_and_others_by_the_papers():
    texts = {"source_text": "person not smiling", "target_text": "person smiling"}
    own, _ = RecipeOptions(**texts).settled()
    papers, _ = RecipeOptions(**texts, model="google/ddpm-ema-celebahq-256").settled()
    assert (own.optimizer, own.l1_by_cosine, own.t_start) == ("adam", False, 410)
    assert papers == TextRecipe("person not smiling", "person smiling", t_edit=500)
    asked = {"t_edit": 300, "l1_by_cosine": True, "cosine_decay": False, "learning_rate": 0.1}
    assert RecipeOptions(**texts, **asked).settled()[0] == replace(own, **asked)


def test_an_empty_source_and_a_wrong_word_are_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no readable image below"):
        learn_text(request(tmp_path / "g.safetensors", source=str(tmp_path / "empty")))
    done = asyrp(*FLAGS, "-o", tmp_path / "g.safetensors", "--preset", "mine")
    assert done.returncode == 2
    assert "--preset mine: give paper or released or avatars" in done.stderr
