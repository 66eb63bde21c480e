"""What scheduler_config.json says of the levels is honoured, or refused by the name of the field."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from asyrp.diffusion.process import ddim_step, predict
from asyrp.diffusion.schedule import LEAST_LEVEL
from asyrp.diffusion.unet import HSpaceUNet
from asyrp.errors import UserError
from asyrp.models.find import find_model
from asyrp.models.load import load_model
from asyrp.models.scheduler import read_scheduler
from tests.support.nets import small_unet

LEVELS = {
    "linear": {"beta_schedule": "linear"},
    "linear of others": {"beta_schedule": "linear", "beta_start": 0.0015, "beta_end": 0.0195},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "trained": {"trained_betas": torch.linspace(1e-5, 0.03, 1000).tolist()},
    "short": {"beta_schedule": "linear", "num_train_timesteps": 500},
    "zero SNR": {"beta_schedule": "linear", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
}


@pytest.mark.parametrize("name", LEVELS)
def test_the_levels_are_those_of_diffusers(tmp_path, name):
    scheduler = DDPMScheduler(**LEVELS[name])
    scheduler.save_pretrained(tmp_path)
    ours = read_scheduler(tmp_path).schedule().alpha_bar
    torch.testing.assert_close(ours.float(), scheduler.alphas_cumprod.clamp(min=LEAST_LEVEL), rtol=2e-4, atol=1e-7)


def test_a_scheduler_of_another_class_with_ddpms_levels_is_read(tmp_path):
    EulerDiscreteScheduler(beta_schedule="scaled_linear").save_pretrained(tmp_path)
    theirs = DDPMScheduler(beta_schedule="scaled_linear").alphas_cumprod
    torch.testing.assert_close(read_scheduler(tmp_path).schedule().alpha_bar.float(), theirs, rtol=2e-4, atol=1e-7)


REFUSED = {
    "thresholding": {"thresholding": True},
    "beta_schedule": {"beta_schedule": "laplace"},
    "prediction_type": {"prediction_type": "flow"},
    "trained_betas": {"trained_betas": [0.1, 0.2]},
    "num_train_timesteps": {"num_train_timesteps": 0},
    "beta_start": {"beta_start": "much"},
    "beta_end": {"beta_end": float("nan")},
    "rescale_betas_zero_snr": {"rescale_betas_zero_snr": True},
    "use_flow_sigmas": {"use_flow_sigmas": True},
    "noise_offset": {"noise_offset": 0.1},
    "DDPMScheduler": {"_class_name": ["DDPMScheduler"]},
    "FlowMatchEulerDiscreteScheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_cannot_be_honoured_is_refused_by_its_name(tmp_path, name):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(REFUSED[name]))
    with pytest.raises(UserError, match=name):
        read_scheduler(tmp_path)


def test_betas_outside_0_to_1_are_refused(tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"trained_betas": [0.5] * 999 + [1.5]}))
    with pytest.raises(UserError, match=r"trained_betas\.999 is 1\.5"):
        read_scheduler(tmp_path)


def test_a_flow_matching_model_is_refused(tmp_path):
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler"):
        read_scheduler(tmp_path)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_ddim_step_of_any_prediction_is_that_of_diffusers(tmp_path, prediction, zero_snr):
    if zero_snr and prediction == "epsilon":
        pytest.skip("such a net cannot be")
    scheduler = DDIMScheduler(
        prediction_type=prediction, clip_sample=False, rescale_betas_zero_snr=zero_snr, timestep_spacing="trailing"
    )
    scheduler.save_pretrained(tmp_path)
    small_unet().save_pretrained(tmp_path)
    model = load_model(find_model(str(tmp_path)))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    scheduler.set_timesteps(10)
    for t in (999, 599, 99):
        t_next = t - 100
        theirs = scheduler.step(small_unet()(x, t).sample, t, x).prev_sample
        a, a_next = model.schedule.level(t), model.schedule.level(t_next)
        ours = ddim_step(x, predict(model.unet, x, t), a, a_next)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_an_item_of_a_batch_gives_the_noise_of_its_own_latent(tmp_path, prediction):
    DDIMScheduler(prediction_type=prediction).save_pretrained(tmp_path)
    small_unet().save_pretrained(tmp_path)
    unet: HSpaceUNet = load_model(find_model(str(tmp_path))).unet
    encoded = unet.encode(torch.randn(3, 3, 16, 16), 500)
    whole, one = unet.decode(encoded, encoded.h), encoded.item(1)
    torch.testing.assert_close(unet.decode(one, one.h), whole[1:2], rtol=1e-4, atol=1e-4)
