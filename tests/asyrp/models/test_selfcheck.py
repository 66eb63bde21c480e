"""The self-check: it passes a working net, and names what is wrong with another."""

import shutil
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file

from asyrp.diffusion.schedule import NoiseSchedule
from asyrp.diffusion.unet import Encoded
from asyrp.models import selfcheck
from asyrp.models.adm import fuse_qkv, split_qkv
from asyrp.models.find import find_model
from asyrp.models.folder import BUNDLED, WEIGHTS
from asyrp.models.load import Model, load_model
from pipeline.stages.editor import self_check
from pipeline.stages.models import check_images
from tests.support.official import FOLDERS_OF_PHOTOGRAPHS
from tests.support.runs import SAMPLES, asyrp


@pytest.fixture(scope="module")
def folder():
    return find_model("avatars")


@pytest.fixture(scope="module")
def images(folder):
    pixels, own_domain = check_images(folder)
    assert own_domain
    return torch.from_numpy(pixels)


@pytest.fixture
def model(folder):
    return load_model(folder)


def test_the_bundled_model_passes(folder, model):
    report = self_check(model, folder)
    assert report.passes
    assert all(level.error < 0.4 * level.allowed for level in report.levels)


def test_a_working_net_passes_on_images_that_are_none_of_its_domain(model, images):
    assert selfcheck.check(model, images.flip(2), own_domain=False).passes


@pytest.mark.parametrize("photographs", FOLDERS_OF_PHOTOGRAPHS)
def test_a_working_net_passes_on_photographs(folder, model, photographs):
    pixels, _ = check_images(folder, str(photographs))
    assert selfcheck.check(model, torch.from_numpy(pixels), own_domain=False).passes


@torch.no_grad()
def shuffle_conv_in(unet: UNet2DModel) -> None:
    weight = unet.conv_in.weight
    order = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(0))
    weight.copy_(weight.flatten()[order].view_as(weight))


@torch.no_grad()
def take_bgr(unet: UNet2DModel) -> None:
    unet.conv_in.weight.copy_(unet.conv_in.weight.flip(1))
    unet.conv_out.weight.copy_(unet.conv_out.weight.flip(0))
    unet.conv_out.bias.copy_(unet.conv_out.bias.flip(0))


@torch.no_grad()
def read_qkv_in_the_new_order(unet: UNet2DModel) -> None:
    width = unet.config.attention_head_dim
    for layer in unet.modules():
        if hasattr(layer, "to_q"):
            for name in ("weight", "bias"):
                parts = [getattr(head, name) for head in (layer.to_q, layer.to_k, layer.to_v)]
                mixed = split_qkv(fuse_qkv(parts, width, new_order=False), width, new_order=True)
                for part, value in zip(parts, mixed, strict=True):
                    part.copy_(value)


@torch.no_grad()
def not_a_number(unet: UNet2DModel) -> None:
    unet.conv_out.bias.fill_(float("nan"))


CHANGES: dict[str, tuple[Callable[[UNet2DModel], None], str]] = {
    "shuffled": (shuffle_conv_in, "its weights are damaged"),
    "BGR": (take_bgr, "colours in the order BGR"),
    "heads": (read_qkv_in_the_new_order, "in the legacy order of qkv"),
    "nan": (not_a_number, "its weights are damaged"),
}


@pytest.mark.parametrize("own_domain", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_net_fails_with_its_own_message(model, images, change, own_domain):
    apply, message = CHANGES[change]
    apply(model.unet.unet)
    assert message in selfcheck.check(model, images, own_domain).mistake


class Reparametrised:
    """A net whose output is read as something else than eps: `form(x_t, eps, a)`."""

    def __init__(self, model: Model, form: Callable) -> None:
        self.unet, self.schedule, self.form = model.unet, model.schedule, form
        self.device, self.prediction = model.unet.device, model.unet.prediction

    def encode(self, x: torch.Tensor, t: int) -> Encoded:
        self.x, self.t = x, t
        return self.unet.encode(x, t)

    def decode(self, encoded: Encoded, h: torch.Tensor) -> torch.Tensor:
        a = self.schedule.level(self.t)
        return self.form(self.x, self.unet.decode(encoded, h), a)


def as_x0(x: torch.Tensor, eps: torch.Tensor, a: float) -> torch.Tensor:
    return (x - (1 - a) ** 0.5 * eps) / a**0.5


def as_v(x: torch.Tensor, eps: torch.Tensor, a: float) -> torch.Tensor:
    return a**0.5 * eps - (1 - a) ** 0.5 * as_x0(x, eps, a)


@pytest.mark.parametrize(("form", "message"), [(as_x0, "it predicts x_0"), (as_v, "it predicts v")])
def test_a_net_that_predicts_something_else_is_named(model, images, form, message):
    other = Model(Reparametrised(model, form), model.schedule)
    for own_domain in (True, False):
        assert message in selfcheck.check(other, images, own_domain).mistake


def test_a_net_that_takes_pixels_from_0_to_1_is_named(model, images):
    """The same net behind x_t of pixels in [0, 1]: the image's part of x_t is scaled and moved back for it."""

    class UnitRange(Reparametrised):
        def encode(self, x, t):
            # x = sqrt(a) (x_0 + 1) / 2 + noise: adding the missing half of the image is what no net can do, but for
            # the images of this check it can be done here
            a = self.schedule.level(t)
            return super().encode(x + a**0.5 * (images - (images + 1) / 2), t)

    other = Model(UnitRange(model, lambda _x, eps, _a: eps), model.schedule)
    assert "pixels in [0, 1]" in selfcheck.check(other, images, own_domain=True).mistake


def test_the_wrong_schedule_is_named(model, images):
    cosine = Model(model.unet, NoiseSchedule.cosine())
    for own_domain in (True, False):
        assert "trained on the linear schedule" in selfcheck.check(cosine, images, own_domain).mistake


def test_stand_in_images_fill_the_size_of_any_model(folder, tmp_path):
    shutil.copytree(folder.unet, tmp_path / "m")
    for size in (16, 32, 80):
        stranger = find_model(str(tmp_path / "m"))
        stranger.config["sample_size"] = size
        pixels, own_domain = check_images(stranger)
        assert pixels.shape == (4, 3, size, size)
        assert not own_domain
        assert np.std(pixels) > 0.2


def copy_without_record(tmp_path, change=None):
    """The bundled net as a bare folder of its own, changed."""
    net = UNet2DModel.from_pretrained(BUNDLED / "avatars" / "unet")
    if change:
        change(net)
    net.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_the_command_prints_the_check_and_fails_with_a_sentence(tmp_path):
    good = asyrp("models", "check", "avatars")
    assert good.returncode == 0
    assert "avatars works" in good.stdout
    bad = asyrp("models", "check", copy_without_record(tmp_path, take_bgr), "--images", SAMPLES)
    assert bad.returncode == 2
    assert "colours in the order BGR" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_a_run_refuses_a_net_that_fails_before_it_writes_an_image(tmp_path):
    broken = copy_without_record(tmp_path, shuffle_conv_in)
    command = ("run", "-s", f"{SAMPLES}/face_00*", "-o", tmp_path / "out", "--model", broken, "-e", "reconstruction")
    few = ("--n-inv", "4", "--n-gen", "4", "--shard-size", "4", "--preview", "0")
    done = asyrp(*command, *few)
    assert done.returncode == 2
    assert "fails its self-check" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "data").exists()
    assert asyrp(*command, *few, "--no-check").returncode == 0


def test_damaged_files_are_named_by_the_command(tmp_path):
    folder = copy_without_record(tmp_path)
    weights = folder / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5000])
    assert "cut short" in asyrp("models", "check", folder).stderr
    save_file(load_file(BUNDLED / "avatars" / "unet" / WEIGHTS), weights)
    torch.save({"x": pytest.raises}, tmp_path / "code.pt")
    refused = asyrp("models", "check", tmp_path / "code.pt")
    assert refused.returncode == 2
    assert "could run code" in refused.stderr
