"""A compiled net gives what the plain one gives, from one compilation for all timesteps.

torch's backend "eager" traces the graphs and runs them as they are. Generating code for them takes minutes.
"""

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from asyrp.diffusion.unet import HSpaceUNet
from asyrp.models.checkpoint import Checkpoint
from asyrp.models.convert import convert
from tests.support.nets import small_unet
from tests.support.reference_nets import AdmNet, HoNet, randomised

SIZE, BATCH = 16, 3


def converted(net: nn.Module, head_channels: int | None = None) -> UNet2DModel:
    return convert(Checkpoint("net.pt", randomised(net, 0).state_dict(), ()), SIZE, head_channels).unet


FAMILIES: dict[str, Callable[[], UNet2DModel]] = {
    "diffusers": small_unet,
    "Ho": lambda: converted(HoNet(32, (1, 2), 1, (1,))),
    "iDDPM, ADM-P2": lambda: converted(AdmNet(32, (1, 2), 1, (1,), 16), 16),
}


@pytest.fixture(params=FAMILIES)
def unet(request) -> HSpaceUNet:
    torch._dynamo.reset()
    return HSpaceUNet(FAMILIES[request.param]())


def evaluated(unet: HSpaceUNet, x: Tensor, t: int) -> list[Tensor]:
    """h, and what both decodes of an edited step give."""
    encoded = unet.encode(x, t)
    shift = torch.linspace(-1, 1, encoded.h[0].numel()).reshape(1, *encoded.h.shape[1:])
    return [encoded.h, unet.decode(encoded, encoded.h), unet.decode(encoded, encoded.h + shift)]


@torch.inference_mode()
def assert_compiles_to_itself(unet: HSpaceUNet, backend: str) -> None:
    """One compilation serves all timesteps and repeated images, and gives what the plain net gives."""
    x = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([x[:1]] * BATCH)
    timesteps = range(0, 1000, 25)
    plain = [evaluated(unet, batch, t) for t in timesteps for batch in (x, padded)]
    unet.compile(x, backend)
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled = [evaluated(unet, batch, t) for t in timesteps for batch in (x, padded)]
    for ours, theirs in zip(compiled, plain, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm()


def test_one_compilation_without_a_graph_break_serves_all_timesteps(unet):
    assert_compiles_to_itself(unet, "eager")


@pytest.mark.slow
def test_generated_code_gives_what_the_plain_net_gives(unet):
    assert_compiles_to_itself(unet, "inductor")


@torch.inference_mode()
@pytest.mark.parametrize("batch", [1, BATCH])
def test_a_net_in_bfloat16_is_compiled_as_well(batch):
    torch._dynamo.reset()
    unet, x = HSpaceUNet(small_unet().bfloat16()), torch.randn(batch, 3, SIZE, SIZE)
    plain = evaluated(unet, x, 500)
    unet.compile(x, "eager")
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled = evaluated(unet, x, 500)
    assert all(torch.equal(a, b) for a, b in zip(compiled, plain, strict=True))


@torch.inference_mode()
def test_a_batch_of_another_shape_runs_as_if_nothing_were_compiled():
    torch._dynamo.reset()
    unet, x = HSpaceUNet(small_unet()), torch.randn(BATCH, 3, SIZE, SIZE)
    plain = evaluated(unet, x[:1], 500)
    unet.compile(x, "eager")
    with torch.compiler.set_stance("fail_on_recompile"):
        other = evaluated(unet, x[:1], 500)
    assert all(torch.equal(a, b) for a, b in zip(other, plain, strict=True))


def test_an_embedding_that_was_computed_in_inference_is_good_for_gradients():
    unet, x = HSpaceUNet(small_unet()), torch.randn(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        unet.encode(x, 500)
    encoded = unet.encode(x, 500)
    h = encoded.h.detach().requires_grad_()
    unet.decode(encoded, h).sum().backward()
    assert h.grad is not None and h.grad.abs().sum() > 0
