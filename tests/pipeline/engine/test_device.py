"""The device: images travel as bytes, nothing waits between upload and download, and batches are sized for it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jobs.runs.record import open_run
from jobs.runs.resolve import ResolvedRun, resolve
from pipeline.engine.batches import Batches
from pipeline.engine.device import Device, as_bytes, as_floats
from pipeline.engine.shard_attempt import Item, ShardAttempt
from pipeline.engine.threads import Meter
from pipeline.engine.transfers import Arriving
from pipeline.engine.worker import Worker, WorkerOptions
from pipeline.images.codec import to_floats, to_uint8
from pipeline.stages.loading import load_functions
from pipeline.storage.store import Store
from tests.support.runs import digests, spec, stand_in_stages

ALL_BYTES = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)


def test_bytes_become_the_floats_that_the_host_makes_of_them_and_the_same_bytes_again():
    floats = as_floats(torch.from_numpy(ALL_BYTES))
    assert np.array_equal(floats.numpy(), to_floats(ALL_BYTES))
    assert np.array_equal(as_bytes(floats).numpy(), ALL_BYTES)


@given(st.lists(st.floats(-1.5, 1.5, width=32), min_size=12, max_size=12))
def test_the_device_rounds_floats_to_the_bytes_of_the_host(values):
    image = np.array(values, np.float32).reshape(3, 2, 2)
    assert np.array_equal(as_bytes(torch.from_numpy(image)).numpy(), to_uint8(image))


def test_every_edge_between_two_bytes_is_rounded_as_on_the_host():
    edges = (np.arange(-2, 513, dtype=np.float64) / 2 / 127.5 - 1).astype(np.float32)
    around = np.concatenate([np.nextafter(edges, np.float32(-9)), edges, np.nextafter(edges, np.float32(9))])
    image = around.reshape(3, 1, -1)
    assert np.array_equal(as_bytes(torch.from_numpy(image)).numpy(), to_uint8(image))


def make_items(resolved: ResolvedRun) -> list[Item]:
    """The items of the first shard of a run, with their pixels."""
    store = Store(resolved.spec.output)
    open_run(store, resolved)
    attempt = ShardAttempt(store, resolved.final, 0, resolved.image_format, "here")
    return [Item(attempt, row, np.full((1, 32, 32, 3), 10 * row.row, np.uint8)) for row in attempt.plan]


def test_images_leave_the_device_as_bytes_with_a_word_on_those_that_are_not_finite(faces, tmp_path):
    def half_broken(batch: Tensor, keys: Sequence[str]) -> Tensor:  # noqa: ARG001
        return torch.stack([batch[:, 0], torch.full_like(batch[:, 0], torch.nan)], dim=1)

    items = make_items(resolve(spec(faces(3), tmp_path / "out")))
    outputs = Device({"fused": half_broken}, 4, "here").launch(items).outputs()
    assert [output.finite.tolist() for output in outputs] == [[True, False]] * 3
    for item, output in zip(items, outputs, strict=True):
        assert output.values.dtype == np.uint8 and np.array_equal(output.values[:1], item.pixels)


WAITING = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "nonzero"}
"""What the host cannot do with a tensor of a GPU without waiting for it."""


class OnDevice(torch.Tensor):
    """A tensor that stands for one of a GPU. All that is computed of it is another. It counts what would wait."""

    waits: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.__name__ in WAITING:
            cls.waits.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs or {})


class CountedTransfers:
    """Transfers to a device that is none."""

    def upload(self, host: Tensor) -> Tensor:
        return host.as_subclass(OnDevice)

    def download(self, tensor: Tensor) -> Arriving:
        assert isinstance(tensor, OnDevice)
        return Arriving(tensor.as_subclass(torch.Tensor))


@pytest.mark.parametrize("process", [{}, {"solver": "ddim"}], ids=["dpmpp_2m", "ddim"])
@pytest.mark.parametrize("edits", [["glasses=1"], ["smile=1", "glasses=1,beard=-0.5"]], ids=["one", "several"])
def test_the_host_does_not_wait_for_the_device_between_upload_and_download(faces, tmp_path, process, edits):
    resolved = resolve(spec(faces(2), tmp_path / "out", edits=edits, t_boost=200, **process))
    device = Device(load_functions(resolved.settings), 2, "here")
    device.transfers = CountedTransfers()
    OnDevice.waits.clear()
    assert len(device.launch(make_items(resolved)).outputs()) == 2
    assert OnDevice.waits == []


def test_the_count_of_waits_sees_one():
    OnDevice.waits.clear()
    assert bool((torch.ones(2).as_subclass(OnDevice) + 1).sum() > 3)
    assert OnDevice.waits == ["__bool__"]


class Ahead(Device):
    """A device that is one batch ahead, as a GPU is. It notes what happens in which order."""

    def __init__(self, events: list[str]) -> None:
        super().__init__(stand_in_stages(), 2, "here")
        self.events, self.ahead = events, 1

    def launch(self, batch: Sequence[Item]) -> Any:
        self.events.append(f"launch {batch[0].plan.key}")
        launched = super().launch(batch)
        return _Noted(launched, self.events)


class _Noted:
    def __init__(self, launched: Any, events: list[str]) -> None:
        self._launched, self._events = launched, events

    def __getattr__(self, name: str) -> Any:
        return getattr(self._launched, name)

    def outputs(self) -> Any:
        self._events.append(f"fetch {self._launched.items[0].plan.key}")
        return self._launched.outputs()


def test_the_next_batch_is_launched_before_the_host_waits_for_the_last(faces, tmp_path):
    events: list[str] = []
    resolved = resolve(spec(faces(6), tmp_path / "out", edits=["glasses=1", "smile=1"], shard_size=6))
    open_run(Store(resolved.spec.output), resolved)
    with Worker(resolved.spec.output, "here", stand_in_stages(), resolved.image_format, WorkerOptions(2)) as worker:
        worker.device = Ahead(events)
        worker.run(resolved.final, 0)
    assert len(digests(tmp_path / "out")) == 12
    assert len(events) == 6 and events[-1].startswith("fetch")
    launches = [event.split()[1] for event in events if event.startswith("launch")]
    assert [event.split()[1] for event in events if event.startswith("fetch")] == launches


def test_an_error_that_comes_with_the_outputs_is_that_of_the_shard(faces, tmp_path):
    class Broken(Ahead):
        def launch(self, batch: Sequence[Item]) -> Any:
            launched = super().launch(batch)
            launched.outputs = lambda: (_ for _ in ()).throw(RuntimeError("CUDA error: an illegal memory access"))
            return launched

    resolved = resolve(spec(faces(3), tmp_path / "out", edits=["glasses=1", "smile=1"]))
    open_run(Store(resolved.spec.output), resolved)
    with Worker(resolved.spec.output, "here", stand_in_stages(), resolved.image_format, WorkerOptions(2)) as worker:
        worker.device = Broken([])
        with pytest.raises(RuntimeError, match="illegal memory access"):
            worker.run(resolved.final, 0)


def test_a_batch_is_there_when_it_is_full_or_nothing_more_is_coming(faces, tmp_path):
    items = make_items(resolve(spec(faces(3), tmp_path / "out")))
    batches = Batches(8, Meter(), lambda: False)
    batches.expect(3)
    assert not batches.has(2)
    for count, item in enumerate(items, start=1):
        batches.put(item)
        batches.arrived()
        assert batches.has(2) == (count >= 2)
    assert len(batches.next(2)) == 2 and batches.has(2)  # the last one, and nothing more is coming
    assert len(batches.next(2, wait=False)) == 1 and not batches.has(2)
    assert batches.next(2, wait=False) == []


def test_what_is_left_of_a_failed_shard_does_not_keep_a_finished_batch_from_the_writers(faces, tmp_path):
    """The items of the failed shard count as ready, and are thrown away when they are taken."""
    items = make_items(resolve(spec(faces(3), tmp_path / "out")))
    batches = Batches(8, Meter(), lambda: False)
    batches.expect(3)
    for item in items:
        batches.put(item)
        batches.arrived()
    items[0].attempt.future.set_exception(RuntimeError("it failed"))
    assert batches.has(2) and batches.next(2, wait=False) == []


def test_a_device_is_prepared_again_for_smaller_batches(faces, tmp_path):
    asked: list[tuple[int | None, float]] = []

    def prepare(count: int | None, share: float) -> int:
        asked.append((count, share))
        return count or 8

    def short_of_memory(batch: Tensor, keys: Sequence[str]) -> Tensor:  # noqa: ARG001
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch

    items = make_items(resolve(spec(faces(5), tmp_path / "out")))
    device = Device({"fused": short_of_memory, "prepare": prepare}, None, "here", share=0.5)
    device.launch(items)
    device.launch(items[:2])
    assert asked == [(None, 0.5), (2, 0.5)] and device.batch_size == 2
