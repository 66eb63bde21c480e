"""The worker, in this process, with real stages and with small stand-ins for the net."""

import errno
import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from asyrp.errors import UserError
from jobs.runs.record import open_run
from jobs.runs.resolve import resolve
from pipeline.engine.worker import Worker, WorkerOptions
from pipeline.images.codec import encode
from pipeline.images.fetch import fetch
from pipeline.run.commit import committed
from pipeline.run.stage import BatchFunction
from pipeline.stages.loading import load_functions
from pipeline.storage.store import Store
from tests.support.runs import digests, pixels, rows, run_here, spec


class StandIn:
    """Gives the source images back, after doing something to the batch."""

    def __init__(self, act: Callable[[torch.Tensor, Sequence[str]], torch.Tensor | None] | None = None) -> None:
        self.act = act or (lambda *_: None)

    def __call__(self) -> Mapping[str, BatchFunction]:
        def fused(batch: torch.Tensor, keys) -> torch.Tensor:
            changed = self.act(batch, keys)
            return batch if changed is None else changed

        return {"fused": fused}


STAGED = {"stages": "staged", "shard_size": 5}


@pytest.mark.parametrize(
    ("solver", "changes"),
    [("dpmpp_2m", {"shard_size": 3}), ("dpmpp_2m", {"shard_size": 50}), ("dpmpp_2m", STAGED), ("ddim", STAGED)],
)
def test_shards_and_stages_do_not_change_a_byte(faces, tmp_path, changes, solver):
    source, process = faces(13), {"solver": solver, "n_inv": 10, "n_gen": 10, "t_boost": 300}
    run_here(resolve(spec(source, tmp_path / "a", **process)))
    run_here(resolve(spec(source, tmp_path / "b", **process, **changes)))
    assert len(digests(tmp_path / "a")) == 13
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_another_batch_size_moves_a_pixel_by_one_level_at_most(faces, tmp_path):
    source = faces(8)
    for batch_size in (1, 8):
        asked = spec(source, tmp_path / str(batch_size), model="avatars", n_inv=20, n_gen=20)
        run_here(resolve(asked), batch_size)
    one, eight = rows(tmp_path / "1"), rows(tmp_path / "8")
    assert len(one) == 8
    for name in one:
        assert np.abs(pixels(tmp_path / "1", one[name]) - pixels(tmp_path / "8", eight[name])).max() <= 1


def test_a_run_works_on_a_store_in_memory(faces):
    root = f"memory://{uuid.uuid4().hex}"
    run_here(resolve(spec(faces(5), root)))
    found = rows(root)
    assert {row["status"] for row in found.values()} == {"ok"} and len(found) == 5
    data = Store(root).read(next(iter(found.values()))["output_uri"])
    assert data.startswith(b"\x89PNG")
    MemoryFileSystem.store.clear()


@pytest.fixture
def odd_folder(faces) -> Path:
    """Twelve good faces with one of each kind of trouble among them, and two folders with the same names."""
    folder = faces(12)
    good = Image.open(folder / "0000.png").convert("RGB").resize((80, 60))
    for name in ("a", "b"):
        (folder / name).mkdir()
        good.save(folder / name / "0001.png")
    good.convert("CMYK").save(folder / "cmyk.jpg")
    good.convert("P").save(folder / "palette.png", transparency=0)
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(folder / "grey16.png")
    good.save(folder / "UPPER ünï.JPG", "JPEG")
    good.save(folder / "really_a_png.jpg", "PNG")
    good.save(folder / "moving.gif", save_all=True, append_images=[good])
    exif = Image.Exif()
    exif[0x0112] = 6
    good.save(folder / "rotated.jpg", exif=exif)
    (folder / "truncated.jpg").write_bytes((folder / "cmyk.jpg").read_bytes()[:400])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    Image.new("RGB", (1, 1)).save(folder / "tiny.png")
    Image.new("1", (20_000, 20_000)).save(folder / "bomb.png")
    return folder


BAD = {
    "truncated.jpg": "decode_error",
    "empty.png": "decode_error",
    "text.png": "decode_error",
    "tiny.png": "rejected_size",
    "bomb.png": "rejected_size",
    "gone.png": "fetch_error",
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("stages", ["fused", "staged"])
def test_a_bad_image_gets_its_row_and_does_not_cost_its_neighbours(odd_folder, tmp_path, stages):
    (odd_folder / "gone.png").write_bytes(b"x")
    resolved = resolve(spec(odd_folder, tmp_path / "out", edits=["glasses=1", "smile=1"], shard_size=7, stages=stages))
    open_run(Store(resolved.spec.output), resolved)
    (odd_folder / "gone.png").unlink()
    run_here(resolved)
    found = rows(tmp_path / "out")
    keys = {str(path.relative_to(odd_folder)) for path in odd_folder.rglob("*.*")} | {"gone.png"}
    assert {(key, edit) for key, edit, _ in found} == {(key, edit) for key in keys for edit in ("glasses", "smile")}
    for (key, _, _), row in found.items():
        assert row["status"] == BAD.get(key, "ok"), (key, row["error"])
        assert bool(row["error"]) == bool(row["error_type"]) == (key in BAD)
        assert (row["output_uri"] is None) == (key in BAD)
    assert (found["rotated.jpg", "smile", 1.0]["source_width"], found["a/0001.png", "smile", 1.0]["source_width"]) == (
        60,
        80,
    )


def test_an_output_that_is_not_finite_is_a_row_of_its_own(faces, tmp_path):
    def poison(batch, keys):
        return torch.stack([x * float("nan") if key == "0002.png" else x for x, key in zip(batch, keys, strict=True)])

    run_here(resolve(spec(faces(5), tmp_path / "out")), make=StandIn(poison))
    statuses = {key: row["status"] for (key, _, _), row in rows(tmp_path / "out").items()}
    assert statuses.pop("0002.png") == "nonfinite"
    assert set(statuses.values()) == {"ok"} and len(statuses) == 4


def test_out_of_memory_halves_the_batch_and_loses_nothing(faces, tmp_path):
    sizes = []

    def small_device(batch, _):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    run_here(resolve(spec(faces(11), tmp_path / "out")), batch_size=8, make=StandIn(small_device))
    assert len(digests(tmp_path / "out")) == 11
    assert sizes[:3] == [8, 4, 2] and max(sizes[sizes.index(2) + 4 :]) == 2


def test_an_error_of_the_stage_reaches_the_caller_and_leaves_no_commit(faces, tmp_path):
    def broken(*_):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_here(resolve(spec(faces(5), tmp_path / "out")), make=StandIn(broken))
    assert committed(Store(str(tmp_path / "out")), "boost") == set()
    assert not list((tmp_path / "out" / "data").rglob("*.png"))


def test_a_store_that_fails_reaches_the_caller(faces, tmp_path, monkeypatch):
    resolved = resolve(spec(faces(5), tmp_path / "out"))
    write = Store.write

    def full(self, name, data):
        if name.startswith("data/"):
            raise OSError(28, "No space left on device")
        write(self, name, data)

    monkeypatch.setattr(Store, "write", full)
    with pytest.raises(OSError, match="No space"):
        run_here(resolved, make=StandIn())


def test_a_batch_spans_shards_and_the_last_one_does_not_wait(faces, tmp_path):
    batches = []
    resolved = resolve(spec(faces(9), tmp_path / "out", shard_size=3))
    plan = open_run(Store(resolved.spec.output), resolved)
    gate = threading.Event()

    def record(_, keys):
        gate.wait(60)  # the first batch may be short: what comes after it finds all the shards on their way
        batches.append(len(set(keys)))

    options = WorkerOptions(4, 2, 2)
    with Worker(resolved.spec.output, "here", StandIn(record)(), resolved.image_format, options) as worker:
        calls = [threading.Thread(target=worker.run, args=(resolved.stages[0], shard)) for shard in range(plan.shards)]
        for call in calls:
            call.start()
        while len(worker.tally.attempts) < plan.shards:
            time.sleep(0.01)
        gate.set()
        for call in calls:
            call.join(60)
    assert sum(batches) == 9 and max(batches) == 4


def test_the_heartbeat_says_what_was_done_and_where_the_time_went(faces, tmp_path):
    run_here(resolve(spec(faces(5), tmp_path / "out")))
    beat = json.loads((tmp_path / "out" / "progress" / "here.json").read_text())
    assert beat["images"] == 5 and beat["closed"] and beat["in_flight"] == []
    assert {"fetch", "decode", "device", "write"} <= beat["seconds"].keys()


def test_inversions_of_another_run_are_used_as_they_are(faces, tmp_path):
    source = faces(6)
    run_here(resolve(spec(source, tmp_path / "first", stages="staged")))
    again = resolve(spec(source, tmp_path / "second", edits=["beard=1"], inversions=str(tmp_path / "first")))
    assert [stage.name for stage in again.stages] == ["edit", "boost"]
    run_here(again)
    run_here(resolve(spec(source, tmp_path / "fused", edits=["beard=1"])))
    assert digests(tmp_path / "second") == digests(tmp_path / "fused")


def test_half_precision_latents_are_close_and_half_as_large(faces, tmp_path):
    source = faces(4)
    for dtype in ("float32", "float16"):
        run_here(resolve(spec(source, tmp_path / dtype, stages="staged", latent_dtype=dtype, solver="ddim")))
    sizes = [sum(f.stat().st_size for f in (tmp_path / d).rglob("latents.safetensors")) for d in ("float32", "float16")]
    assert 1.8 < sizes[0] / sizes[1] < 2.1
    full, half = rows(tmp_path / "float32"), rows(tmp_path / "float16")
    for name in full:
        assert np.abs(pixels(tmp_path / "float32", full[name]) - pixels(tmp_path / "float16", half[name])).mean() < 2


def test_a_node_with_other_weights_is_refused(faces, tmp_path):
    resolved = resolve(spec(faces(2), tmp_path / "out"))
    with pytest.raises(UserError, match="other weights here"):
        load_functions(replace(resolved.settings, model_digest="0" * 64))


@pytest.mark.parametrize(("codec", "suffix"), [("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")])
def test_output_names_keep_the_identity_of_the_source(faces, tmp_path, codec, suffix):
    run_here(resolve(spec(faces(2), tmp_path / "out", edits=["glasses=0.5", "smile=1,beard=-1"], codec=codec)))
    names = sorted(path.name for path in (tmp_path / "out" / "data").rglob(f"*{suffix}"))
    assert names == [
        f"{stem}_{edit}{suffix}" for stem in ("0000", "0001") for edit in ("glasses_0.5", "smile=1,beard=-1_1")
    ]


def run_stand_in(source, output) -> dict[str, dict]:
    run_here(resolve(spec(source, output)), make=StandIn())
    return {key: row for (key, _, _), row in rows(output).items()}


@pytest.mark.parametrize(
    "error",
    [
        KeyError("image.bytes"),
        TypeError("int"),
        pa.ArrowInvalid("overflow"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),
        RecursionError("deep"),
        OSError("a name with \udcff"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.usefixtures("no_waiting")
def test_whatever_is_raised_while_an_image_is_fetched_costs_that_image_alone(monkeypatch, faces, tmp_path, error):
    def fetch_but_one(image, max_bytes):
        if image.key == "0002.png":
            raise error
        return fetch(image, max_bytes=max_bytes)

    monkeypatch.setattr("pipeline.images.read.fetch", fetch_but_one)
    found = run_stand_in(faces(5), tmp_path / "out")
    failed = found.pop("0002.png")
    assert (failed["status"], failed["error_type"]) == ("fetch_error", type(error).__name__) and failed["error"]
    assert {row["status"] for row in found.values()} == {"ok"} and len(found) == 4


def test_a_worker_without_memory_blames_no_image(monkeypatch, faces, tmp_path):
    def fetch_nothing(image, max_bytes):  # noqa: ARG001
        raise MemoryError

    monkeypatch.setattr("pipeline.images.read.fetch", fetch_nothing)
    with pytest.raises(MemoryError):
        run_stand_in(faces(2), tmp_path / "out")


def test_an_image_that_cannot_be_encoded_is_a_row_of_its_own(monkeypatch, faces, tmp_path):
    written = []

    def encode_but_one(pixels, *options):
        written.append(1)
        if len(written) == 3:
            raise RuntimeError("the encoder has no idea")
        return encode(pixels, *options)

    monkeypatch.setattr("pipeline.engine.shard_attempt.encode", encode_but_one)
    found = run_stand_in(faces(5), tmp_path / "out")
    assert Counter(row["status"] for row in found.values()) == {"ok": 4, "write_error": 1}
    failed = next(row for row in found.values() if row["status"] == "write_error")
    assert failed["error"] == "the encoder has no idea" and failed["output_uri"] is None


def refuse_writing(monkeypatch, key: str, error: Exception) -> None:
    """The store does not take the file of an image."""
    write = Store.write

    def write_but_one(store, name, data):
        if Path(name).name.startswith(key):
            raise error
        return write(store, name, data)

    monkeypatch.setattr(Store, "write", write_but_one)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENAMETOOLONG, "File name too long"),
        OSError(errno.EINVAL, "Invalid argument"),
        OSError(errno.EILSEQ, "Invalid or incomplete multibyte or wide character"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory"),
        IsADirectoryError(errno.EISDIR, "Is a directory"),
        ValueError("embedded null byte"),
        UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
    ],
    ids=lambda error: getattr(error, "strerror", None) or type(error).__name__,
)
def test_a_name_that_the_store_refuses_costs_one_image(monkeypatch, faces, tmp_path, error):
    refuse_writing(monkeypatch, "0002", error)
    found = run_stand_in(faces(5), tmp_path / "out")
    failed = found.pop("0002.png")
    assert (failed["status"], failed["error_type"]) == ("write_error", type(error).__name__)
    assert {row["status"] for row in found.values()} == {"ok"} and len(found) == 4


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ECONNRESET])
def test_a_store_that_cannot_write_at_all_fails_the_shard_and_blames_no_image(monkeypatch, faces, tmp_path, code):
    refuse_writing(monkeypatch, "0002", OSError(code, "it does not work"))
    with pytest.raises(OSError, match="it does not work"):
        run_stand_in(faces(5), tmp_path / "out")
    assert not rows(tmp_path / "out")


def test_an_image_that_crashes_its_decoder_costs_neither_the_worker_nor_its_neighbours(monkeypatch, faces, tmp_path):
    source = faces(6)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, signal\n"
        "from PIL import BmpImagePlugin\n"
        "BmpImagePlugin.BmpImageFile._open = lambda image: os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    Image.new("RGB", (32, 32)).save(source / "0100.bmp")
    found = run_stand_in(source, tmp_path / "out")
    failed = found.pop("0100.bmp")
    assert (failed["status"], failed["error_type"]) == ("decode_error", "DecoderCrashed") and "SIGSEGV" in failed[
        "error"
    ]
    assert {row["status"] for row in found.values()} == {"ok"} and len(found) == 6
