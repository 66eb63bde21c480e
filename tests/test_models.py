"""Finding, identifying and loading models."""

import json

import pytest
import torch
from test_process import small_unet

from asyrp import models, registry
from asyrp.errors import UserError
from asyrp.process import predict


def test_a_local_folder_is_a_model_with_or_without_a_unet_folder(tmp_path):
    unet = small_unet()
    unet.save_pretrained(tmp_path / "bare")
    unet.save_pretrained(tmp_path / "pipeline" / "unet")
    x = torch.randn(1, 3, 16, 16)
    for name in ("bare", "pipeline"):
        folder = registry.find(str(tmp_path / name))
        assert folder.image_size == 16
        torch.testing.assert_close(predict(models.load(folder).unet, x, 7), unet(x, 7).sample)


def test_the_digest_is_that_of_the_tensors_whatever_the_file(tmp_path):
    small_unet().save_pretrained(tmp_path / "a")
    small_unet().save_pretrained(tmp_path / "pickled", safe_serialization=False)
    other = small_unet()
    with torch.no_grad():
        other.conv_in.bias += 1
    other.save_pretrained(tmp_path / "other")
    a, pickled, different = (registry.find(str(tmp_path / name)) for name in ("a", "pickled", "other"))
    assert a.digest == pickled.digest != different.digest
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(predict(models.load(a).unet, x, 7), predict(models.load(pickled).unet, x, 7))


def test_a_pickle_of_more_than_tensors_is_never_opened(tmp_path):
    small_unet().save_pretrained(tmp_path / "m", safe_serialization=False)
    torch.save({"x": pytest.raises}, tmp_path / "m" / registry.PICKLED_WEIGHTS)
    with pytest.raises(UserError, match="more than tensors"):
        _ = registry.find(str(tmp_path / "m")).digest


def test_a_folder_that_is_no_model_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        registry.find(str(tmp_path))
    with pytest.raises(UserError, match="there is no model 'avatar'"):
        registry.find("avatar")


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="is not in the local cache and the hub cannot be reached"):
        registry.find("nobody/nothing-of-this-name")


@pytest.mark.parametrize(("field", "value"), [("beta_schedule", "squaredcos_cap_v2"), ("prediction_type", "sample")])
def test_a_schedule_that_is_not_linear_epsilon_is_refused(tmp_path, field, value):
    config = {"beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000, field: value}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="linear schedule"):
        models.read_schedule(tmp_path)
