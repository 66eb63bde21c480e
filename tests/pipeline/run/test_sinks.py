"""Edited images as files, tars or tables: the same bytes, found again by everything that reads a run."""

import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from datasets import Image as ImageFeature
from datasets import disable_progress_bars, load_dataset
from PIL import Image

from jobs.runs.record import open_run
from jobs.runs.resolve import resolve
from pipeline.images.fetch import RowGroup, fetch
from pipeline.results import sheet
from pipeline.run import containers, manifest, sinks
from pipeline.run.commit import Attempt, committed, read_commit
from pipeline.run.containers import COLUMNS
from pipeline.run.sinks import DamagedOutput, open_sink, read_output
from pipeline.sources.listing import list_images
from pipeline.storage.store import Store
from tests.support.runs import digests, make_faces, rows, run_here, spec, stand_in_run, stand_in_stages

SINKS = ["files", "webdataset", "parquet"]
CONTAINERS = {"webdataset": "images.tar", "parquet": "images.parquet"}
EDITS = ["glasses=1", "smile=-0.5"]
IMAGES = 7  # in shards of 5 and 2

disable_progress_bars()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The same run with each sink: two edits of seven images, one broken, with names that are hard on readers."""
    folder = tmp_path_factory.mktemp("sinks")
    source = make_faces(folder / "faces", IMAGES)
    (source / "test.d").mkdir()
    shutil.move(source / "0001.png", source / "test.d" / "train v1.2%2E ünï.png")
    (source / "0003.png").write_bytes(b"broken")
    for sink in SINKS:
        stand_in_run(source, folder / sink, sink=sink, preview=2)
    return folder


@pytest.fixture(params=CONTAINERS)
def sink(request) -> str:
    return request.param


def images(root: Path | str) -> dict[tuple[str, str | None, float | None], bytes]:
    """Every finished image of a run."""
    store = Store(str(root))
    return {name: read_output(store, row) for name, row in rows(root).items() if row["status"] == "ok"}


def container(root: Path, sink: str, shard: int = 0) -> Path:
    [path] = (root / "data" / "boost").glob(f"{shard:06d}.*/{CONTAINERS[sink]}")
    return path


def test_an_image_has_the_same_bytes_and_row_whatever_the_sink(made, sink):
    assert images(made / sink) == images(made / "files")
    assert len(images(made / sink)) == 2 * (IMAGES - 1)
    where = {"attempt", "output_uri", "output_member", "output_offset", "actor", "committed_at"}
    timed = {name for name in manifest.SCHEMA.names if name.endswith("_ms")}
    ours, theirs = (
        {name: {c: v for c, v in row.items() if c not in where | timed} for name, row in rows(made / at).items()}
        for at in (sink, "files")
    )
    assert ours == theirs


def test_an_attempt_is_one_file_and_the_commit_names_it(made, sink):
    for shard in committed(Store(str(made / sink)), "boost"):
        commit = read_commit(Store(str(made / sink)), "boost", shard)
        data = [file.path for file in commit.files if file.path.startswith("data/")]
        assert data == [f"data/boost/{shard:06d}.{commit.attempt}/{CONTAINERS[sink]}"]


def test_a_shard_that_is_done_again_gives_the_same_file(made, tmp_path, sink):
    stand_in_run(made / "faces", tmp_path / "again", sink=sink)
    assert container(tmp_path / "again", sink).read_bytes() == container(made / sink, sink).read_bytes()


def test_a_shard_whose_images_all_failed_has_no_file(faces, tmp_path, sink):
    source = faces(1)
    (source / "0000.png").write_bytes(b"")
    store = stand_in_run(source, tmp_path / "out", sink=sink)
    assert not store.files("data") and [row["status"] for row in rows(store.url).values()] == ["decode_error"] * 2


# The usual readers


def expected(made: Path) -> dict[tuple[str, str, float], bytes]:
    return {
        (key, str(edit), float(strength or 0)): data for (key, edit, strength), data in images(made / "files").items()
    }


def test_webdataset_reads_the_tars_with_the_values_of_each_row(made):
    tars = sorted(map(str, (made / "webdataset" / "data" / "boost").glob("*/images.tar")))
    found = {}
    for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False):
        values = json.loads(sample["json"])
        assert set(values) == set(COLUMNS)
        found[values["key"], values["edit"], values["strength"]] = sample["edited.png"]
    assert found == expected(made)


@pytest.mark.parametrize("name", CONTAINERS)
def test_datasets_reads_tars_and_tables(made, tmp_path, name):
    files = str(made / name / "data" / "boost" / "*" / CONTAINERS[name])
    loaded = load_dataset(name, data_files=files, split="train", cache_dir=str(tmp_path))
    column = "image" if name == "parquet" else "edited.png"
    assert isinstance(loaded.features[column], ImageFeature)
    assert Image.open(io.BytesIO(next(iter(expected(made).values())))).size == loaded[0][column].size
    found = {}
    for row in loaded.cast_column(column, ImageFeature(decode=False)):
        values = row if name == "parquet" else row["json"]
        found[values["key"], values["edit"], values["strength"]] = row[column]["bytes"]
    assert found == expected(made)


def test_duckdb_reads_the_tables(made):
    files = made / "parquet" / "data" / "boost" / "*" / "images.parquet"
    found = duckdb.sql(f"select key, edit, strength, image.bytes from '{files}'").fetchall()
    assert {(key, edit, strength): data for key, edit, strength, data in found} == expected(made)


def test_the_manifest_says_where_an_image_is_in_the_file(made):
    for (key, edit, strength), row in rows(made / "webdataset").items():
        if row["status"] == "ok":
            with tarfile.open(made / "webdataset" / row["output_uri"]) as tar:
                member = tar.getmember(row["output_member"])
            assert (member.offset_data, member.size) == (row["output_offset"], row["output_bytes"])
            other = rows(made / "parquet")[key, edit, strength]
            cell = pq.read_table(made / "parquet" / other["output_uri"])["image"][other["output_offset"]].as_py()
            assert cell["path"] == other["output_member"]


# Everything that reads finished images


@pytest.mark.parametrize("name", SINKS)
def test_the_names_and_keys_of_a_later_run_do_not_depend_on_the_sink(made, name):
    found = list(list_images(str(made / name)))
    assert [image.key for image in found] == [image.key for image in list_images(str(made / "files"))]
    assert "test.d/train v1.2%2E ünï_smile_-0.5.png" in {image.key for image in found}
    assert [fetch(image) for image in found] == list(images(made / "files").values())


def test_a_later_run_reads_them(made, tmp_path, sink):
    stand_in_run(made / "files", tmp_path / "a", edits=["glasses=1", "smile=2"])
    stand_in_run(made / sink, tmp_path / "b", edits=["glasses=1", "smile=2"])
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_the_contact_sheet_is_the_same(made, sink):
    drawn = []
    for name in ("files", sink):
        resolved = resolve(spec(made / "faces", made / name, edits=EDITS, shard_size=5, preview=2, sink=name))
        sheet.write_sheet(Store(resolved.spec.output), resolved.stages, resolved.image_format, 2)
        drawn.append((made / name / sheet.NAME).read_bytes())
    assert drawn[0] == drawn[1]


def test_an_export_is_the_same(cli, made, tmp_path, sink):
    for name in ("files", sink):
        code, _, err = cli("export", made / name, "--to", "parquet", "-o", tmp_path / name)
        assert code == 0, err
    table = "data/train-00000.parquet"
    assert (tmp_path / sink / table).read_bytes() == (tmp_path / "files" / table).read_bytes()


def test_a_staged_run_has_the_same_images(made, tmp_path, sink):
    in_full = {"solver": "ddim"}  # latents that are kept as they are
    stand_in_run(made / "faces", tmp_path / "staged", sink=sink, stages="staged", **in_full)
    assert images(tmp_path / "staged") == images(made / "files")


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def in_an_image(root: Path) -> int:
    return container(root, "webdataset").read_bytes().index(b"IDAT") + 20


def in_a_json(root: Path) -> int:
    return container(root, "webdataset").read_bytes().index(b'{"key"') + 10


@pytest.mark.parametrize("deep", [(), ("--deep",)])
def test_a_run_is_whole_with_every_sink(cli, made, sink, deep):
    code, out, _ = cli("verify", made / sink, "--json", *deep)
    assert code == 0 and json.loads(out)["findings"] == []


def test_verify_and_export_load_a_row_group_of_a_table_once(cli, made, tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "ROWS_PER_GROUP", 3)
    store = stand_in_run(made / "faces", tmp_path / "run", sink="parquet", shard_size=5)
    loaded: Counter[tuple[str, int]] = Counter()
    open_group = RowGroup

    def counting(fs: Any, path: str, column: str, group: int, first: int) -> RowGroup:
        loaded[path, group] += 1
        return open_group(fs, path, column, group, first)

    monkeypatch.setattr("pipeline.images.fetch.RowGroup", counting)
    for command in (
        ["verify", store.url, "--deep"],
        ["export", store.url, "--to", "webdataset", "-o", tmp_path / "set"],
    ):
        assert cli(*command)[0] == 0
        assert len(loaded) > 4 and set(loaded.values()) == {1}
        loaded.clear()


@pytest.mark.parametrize("place", [in_an_image, in_a_json])
def test_a_flipped_byte_of_a_tar_is_found_by_reading_deeply(cli, made, tmp_path, place):
    root = shutil.copytree(made / "webdataset", tmp_path / "run")
    flip(container(root, "webdataset"), place(root))
    assert cli("verify", root)[0] == 0
    code, out, _ = cli("verify", root, "--deep")
    assert code == 3 and "images.tar is not what was committed" in out.replace("\n", "")


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, 700)


def flip_an_image(path: Path) -> None:
    flip(path, path.read_bytes().index(b"IDAT") + 20)


@pytest.mark.parametrize(("harm", "message"), [(lose, "missing at"), (cut, "not what"), (flip_an_image, "not what")])
def test_a_damaged_image_in_a_tar_is_never_read(made, tmp_path, harm, message):
    root = shutil.copytree(made / "webdataset", tmp_path / "run")
    first = rows(root)["0000.png", "glasses", 1.0]
    harm(container(root, "webdataset"))
    with pytest.raises(DamagedOutput, match=f"{first['output_member']} in {first['output_uri']} .*{message}"):
        read_output(Store(str(root)), first)


# What a run is


def test_another_sink_is_another_run(cli, made, tmp_path):
    resolved = resolve(spec(made / "faces", tmp_path / "out"))
    open_run(Store(resolved.spec.output), resolved)
    other = ("--sink", "webdataset", "--n-inv", "4", "--n-gen", "4", "--preview", "0")
    code, _, err = cli("run", "-s", made / "faces", "-o", tmp_path / "out", "-e", "glasses=1", *other)
    assert code == 2 and "sink: files there, webdataset here" in err
    code, _, err = cli("run", "-s", made / "faces", "-o", tmp_path / "x", "-e", "glasses=1", "--sink", "zip")
    assert code == 2 and "sink: Input should be 'files', 'webdataset' or 'parquet' (it is 'zip')" in err


def test_an_attempt_that_fails_leaves_nothing(made, tmp_path, sink):
    resolved = resolve(spec(made / "faces", tmp_path / "out", edits=EDITS, sink=sink))

    def failing() -> dict[str, Callable[..., Any]]:
        def fused(*_: Any) -> None:
            raise RuntimeError("no device")

        return {**stand_in_stages(), "fused": fused}

    with pytest.raises(RuntimeError, match="no device"):
        run_here(resolved, make=failing)
    assert not Store(resolved.spec.output).files("data")


def test_images_come_in_any_order_and_wait_on_disk_where_they_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "SPOOLED_BYTES", 100)
    store = Store(str(tmp_path))
    attempt = Attempt(store, "boost", 0)
    sink = open_sink("webdataset", attempt, 20)
    data = {number: bytes([number]) * 50 for number in range(20)}
    found = [{"key": f"{number}", "status": "ok"} for number in range(20)]
    for number in reversed(range(20)):
        found[number] |= sink.put(number, f"{number}.png", data[number])
    sink.finish(found)
    sink.close()
    assert [read_output(store, row) for row in found] == list(data.values())
    with tarfile.open(tmp_path / attempt.files[0].path) as tar:
        assert tar.getnames()[::2] == [f"{number}.edited.png" for number in range(20)]


def test_no_folder_of_an_attempt_grows_beyond_its_bound_and_names_stay(made, tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "FILES_PER_FOLDER", 4)
    store = stand_in_run(made / "faces", tmp_path / "out", name="{name}_{edit}")
    folders = sorted(Path(store.path("data/boost")).glob("000000.*/*"))
    assert [path.name for path in folders] == ["0000", "0001", "0002"]
    assert max(len(list(path.iterdir())) for path in folders) == 4
    assert len(list(Path(store.path("data/boost")).glob("000001.*/*.png"))) == 4, "few files need no folders"
    assert [image.key for image in list_images(store.url)][:2] == ["0000_glasses.png", "0000_smile.png"]
    assert images(store.url) == images(made / "files")


def test_a_manifest_of_an_earlier_version_has_nulls_for_what_it_did_not_write():
    schema = pa.schema([field for field in manifest.SCHEMA if field.name not in ("output_offset", "source_sha256")])
    buffer = io.BytesIO()
    row = {"key": "a.png", "shard": 0, "row": 0, "stage": "boost", "status": "ok"}
    pq.write_table(pa.Table.from_pylist([row], schema=schema), buffer)
    [found] = manifest.from_bytes(buffer.getvalue())
    assert found["key"] == "a.png" and found["output_offset"] is None and found["source_sha256"] is None
