"""Getting a net ready: how many images suit a device, and what happens where it cannot be compiled."""

from dataclasses import replace

import pytest
import torch

from asyrp.diffusion.unet import HSpaceUNet
from asyrp.errors import UserError
from jobs.runs.resolve import resolve
from pipeline.stages import preparation
from pipeline.stages.preparation import fastest_batch, prepare
from tests.support.nets import small_unet
from tests.support.runs import spec


@pytest.fixture
def net() -> HSpaceUNet:
    torch._dynamo.reset()
    return HSpaceUNet(small_unet())


@pytest.fixture
def settings(tmp_path):
    return replace(resolve(spec(tmp_path, tmp_path / "out")).settings, image_size=16)


def timed(monkeypatch, seconds_per_image: dict[int, float]) -> None:
    """Stands in for a device of which these times are known; it has no memory for other batches."""

    def halves(unet, size, count, repeats=3):  # noqa: ARG001
        if count not in seconds_per_image:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return seconds_per_image[count] / 3, seconds_per_image[count] / 3

    monkeypatch.setattr(preparation, "time_halves", halves)


@pytest.mark.parametrize(
    ("seconds_per_image", "found"),
    [
        ({1: 8, 2: 4, 4: 2, 8: 1.99, 16: 1}, 4),  # eight are hardly faster than four
        ({1: 8, 2: 4, 4: 2, 8: 1}, 8),  # no memory for more
        ({1: 1, 2: 1.2}, 1),
        ({2**n: 1 / 2**n for n in range(12)}, 64),
    ],
)
def test_a_batch_grows_while_that_is_faster_and_fits(monkeypatch, net, seconds_per_image, found):
    timed(monkeypatch, seconds_per_image)
    assert fastest_batch(net, 16) == found


def test_the_halves_of_a_net_take_time(net):
    encode, decode = preparation.time_halves(net, 16, 2, repeats=1)
    assert encode > 0 and decode > 0


def test_a_cpu_takes_what_is_asked_for_or_eight_and_compiles_nothing(monkeypatch, net, settings):
    monkeypatch.setattr(net, "compile", lambda *_: pytest.fail("it compiled"))
    assert prepare(net, settings, None, 1) == 8
    assert prepare(net, settings, 3, 1) == 3


def failing(reason: str):
    from torch._dynamo.exc import BackendCompilerFailed

    def compile_net(x):  # noqa: ARG001
        raise BackendCompilerFailed("inductor", RuntimeError(reason), None)

    return compile_net


def test_a_net_that_was_to_be_compiled_and_cannot_be_is_one_sentence(monkeypatch, net, settings):
    monkeypatch.setattr(net, "compile", failing("there is no compiler for C++"))
    with pytest.raises(UserError, match=r"cannot be compiled here: .*no compiler for C\+\+.*execution: eager"):
        prepare(net, replace(settings, execution="compiled"), 2, 1)


def test_a_net_that_is_asked_to_be_compiled_is_compiled_for_its_batches(monkeypatch, net, settings, tmp_path):
    seen = []
    monkeypatch.setenv("ASYRP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(net, "compile", lambda x: seen.append(tuple(x.shape)))
    assert prepare(net, replace(settings, execution="compiled"), 5, 1) == 5
    assert seen == [(5, 3, 16, 16)]
