"""What the decoder answers to most, held against Jacobians computed whole."""

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from asyrp.diffusion.unet import HSpaceUNet
from asyrp.directions.forms import load_direction
from asyrp.errors import UserError
from asyrp.learning.jacobian import JacobianSums, singular_vectors
from asyrp.learning.labels import HALVES
from jobs.learn.request import LearnRequest
from jobs.learn.unsupervised import JacobianQuestion, learn_jacobian
from jobs.spec.run import EngineSpec
from pipeline.images.codec import encode, to_uint8
from tests.support.runs import SAMPLES

SIZE = 8


@pytest.fixture(scope="module")
def unet() -> HSpaceUNet:
    torch.manual_seed(0)
    return HSpaceUNet(
        UNet2DModel(
            sample_size=SIZE,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            layers_per_block=1,
            attention_head_dim=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
    )


def dense_jacobian(unet, encoded, mask=None) -> torch.Tensor:
    """d eps / d h [N, D], a row of the output at a time."""

    def eps(h):
        predicted = unet.decode(encoded, h.reshape(encoded.h.shape))
        return (predicted if mask is None else predicted * mask).flatten()

    return torch.autograd.functional.jacobian(eps, encoded.h.flatten())


def encoded_at(unet, seed=0, t=400):
    with torch.no_grad():
        return unet.encode(torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)), t)


@pytest.mark.parametrize("masked", [False, True])
def test_singular_vectors_are_those_of_the_whole_jacobian(unet, masked):
    mask = None
    if masked:
        mask = torch.zeros(SIZE, SIZE)
        mask[:3, :4] = 1
    encoded = encoded_at(unet)
    values, vectors = singular_vectors(unet, encoded, 3, mask)
    _, expected, right = torch.linalg.svd(dense_jacobian(unet, encoded, mask), full_matrices=False)
    torch.testing.assert_close(values, expected[:3], rtol=2e-3, atol=0)
    cosines = (vectors.flatten(1) * right[:3]).sum(1).abs()
    assert cosines.min() > 0.99


def test_singular_vectors_can_be_had_in_inference_mode_and_twice_the_same(unet):
    with torch.inference_mode():
        encoded = unet.encode(torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)), 400)
        first, again = (singular_vectors(unet, encoded, 2, seed=5) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_what_jacobians_have_in_common_is_their_stacked_svd_however_they_are_merged(unet):
    encodings = [encoded_at(unet, seed) for seed in range(4)]
    rows = torch.cat([dense_jacobian(unet, encoded) for encoded in encodings])
    _, expected, right = torch.linalg.svd(rows, full_matrices=False)
    parts = [JacobianSums(), JacobianSums()]
    for index, encoded in enumerate(encodings):
        values, vectors = singular_vectors(unet, encoded, 12)
        parts[index % 2].add(encoded.h, (values[:, None, None, None] * vectors)[None])
    merged, other = JacobianSums(), JacobianSums()
    merged.load(parts[0].tensors())
    other.load(parts[1].tensors())
    merged.merge(other)
    found, values = merged.directions(2)
    torch.testing.assert_close(values, expected[:2], rtol=0.02, atol=0)
    units = found / found.norm(dim=1, keepdim=True)
    assert (units * right[:2]).sum(1).abs().min() > 0.99
    h = torch.cat([encoded.h for encoded in encodings]).flatten(1)
    torch.testing.assert_close(found.norm(dim=1), HALVES * (h @ units.T).std(0), rtol=1e-3, atol=0)


def request(output, source=SAMPLES) -> LearnRequest:
    engine = EngineSpec.model_validate({"check": False, "batch_size": 4})
    return LearnRequest(str(source), "avatars", output, n_steps=2, t_edit=600, engine=engine)


@pytest.mark.usefixtures("ray_cluster")
def test_a_masked_jacobian_of_one_image_becomes_global_directions(tmp_path):
    mask = torch.zeros(3, 16, 16)
    mask[:, :8] = 1
    (tmp_path / "mask.png").write_bytes(encode(to_uint8((2 * mask - 1).numpy()), "png", 100))
    asked = JacobianQuestion(2, 1, frozenset({"face_01.png"}), tmp_path / "mask.png")
    source = f"{SAMPLES}/face_0[0-3].png"
    paths = learn_jacobian(request(tmp_path / "jv", source), asked)
    assert [path.name for path in paths] == ["jv01.safetensors", "jv02.safetensors"]
    first = load_direction(paths[0])
    assert first.info.form == "global" and "within mask.png, 1 images" in first.info.found_by
    second = load_direction(paths[1])
    cosine = torch.nn.functional.cosine_similarity(first.form.delta_h.flatten(), second.form.delta_h.flatten(), dim=0)
    assert abs(cosine) < 1e-3


def test_an_empty_mask_is_refused(tmp_path):
    (tmp_path / "mask.png").write_bytes(encode(np.zeros((16, 16, 3), dtype=np.uint8), "png", 100))
    with pytest.raises(UserError, match=r"the mask .*mask.png is empty: paint"):
        learn_jacobian(request(tmp_path / "jv"), JacobianQuestion(2, 1, mask=tmp_path / "mask.png"))


def test_an_image_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no image 'nobody.png' below"):
        learn_jacobian(request(tmp_path / "jv"), JacobianQuestion(2, 1, frozenset({"nobody.png"})))


@pytest.mark.usefixtures("without_ray")
def test_one_image_alone_does_not_say_how_far_h_varies(tmp_path):
    with pytest.raises(UserError, match="cannot be seen from fewer than two images; give more images"):
        learn_jacobian(request(tmp_path / "jv", f"{SAMPLES}/face_00*"), JacobianQuestion(1, 1))
