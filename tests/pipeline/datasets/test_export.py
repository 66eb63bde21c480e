"""`asyrp export`: data sets that the usual readers open, with every row once and no image on two sides of a split."""

import io
import json
import shutil
import tarfile
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
import yaml
from datasets import Dataset, DatasetDict, disable_progress_bars, load_dataset
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from asyrp.errors import UserError
from jobs.runs.resolve import resolve
from pipeline.datasets import formats
from pipeline.datasets.card import TOLD_BY
from pipeline.datasets.splits import parse_shares, split_of
from pipeline.images.fetch import ParquetCells, fetch
from pipeline.run.containers import COLUMNS
from pipeline.run.manifest import PIXEL_COLUMNS, SCHEMA
from pipeline.stages.settings import edit_columns
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.store import Store
from tests.support.runs import make_faces, rows, spec, stand_in_run

FORMATS = list(formats.FORMATS)
SPLIT = "train=0.6,test=0.4"
Rows = dict[tuple[str, str, float], dict[str, Any]]

disable_progress_bars()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of two edits over images of two formats, one of them broken, with names that are hard on readers."""
    folder = tmp_path_factory.mktemp("export")
    source = make_faces(folder / "faces", 12)
    for name in ("test", "a.b"):
        (source / name).mkdir()
        shutil.move(source / f"000{len(name)}.png", source / name / "train v1.2 ünï.png")
    Image.open(source / "0005.png").convert("RGB").save(source / "0005.jpg")
    (source / "0007.png").write_bytes(b"broken")
    stand_in_run(source, folder / "run", model="avatars", name="{key}_{edit}_{strength}")
    return folder


def copy(made: Path, to: Path) -> Path:
    return shutil.copytree(made / "run", to / "run")


@pytest.fixture
def export(cli, made, tmp_path) -> Callable[..., Path]:
    """Export the run, or another root; the folder of the data set."""

    def call(kind: str, *arguments: Any, root: Path | None = None, to: str = "set") -> Path:
        code, out, err = cli("export", root or made / "run", "--to", kind, "-o", tmp_path / to, *arguments)
        assert code == 0, out + err
        return tmp_path / to

    return call


# What each reader makes of a data set: per split, (key, edit, strength) to its values, the bytes of images among them


def by_name(values: list[dict[str, Any]]) -> Rows:
    found = {(value["key"], value["edit"], value["strength"]): value for value in values}
    assert len(found) == len(values), "a row is there twice"
    return found


def read_webdataset(folder: Path, split: str) -> Rows:
    shards = [str(path) for path in sorted(folder.glob(f"{split}-*.tar"))]
    found = []
    for sample in webdataset.WebDataset(shards, shardshuffle=False, empty_check=False):
        members = {
            name.partition(".")[0]: data for name, data in sample.items() if name.startswith(("edited", "source"))
        }
        found.append({**json.loads(sample["json"]), "image": members.get("edited"), "source": members.get("source")})
    return by_name(found)


def read_with_datasets(loaded: Dataset) -> Rows:
    from datasets import Image as ImageFeature

    images = [name for name in ("image", "source") if name in loaded.features]
    for name in images:
        assert isinstance(loaded.features[name], ImageFeature)
        loaded = loaded.cast_column(name, ImageFeature(decode=False))
    found = []
    for row in loaded:
        files = {name: row[name] and (row[name]["bytes"] or Path(row[name]["path"]).read_bytes()) for name in images}
        found.append({**row, **files})
    return by_name(found)


def read(kind: str, folder: Path, cache: Path, split: str) -> Rows:
    if kind == "webdataset":
        return read_webdataset(folder, split)
    loaded = load_dataset(kind, data_dir=str(folder), cache_dir=str(cache / uuid.uuid4().hex))
    return read_with_datasets(loaded[split])


@pytest.mark.parametrize("kind", FORMATS)
def test_every_edited_row_is_in_the_data_set_once_with_its_images_to_the_byte(export, made, tmp_path, kind):
    folder = export(kind, "--split", SPLIT, "--with-source", "--shard-bytes", "10KB")
    expected = {name: row for name, row in rows(made / "run").items() if row["status"] == "ok"}
    assert len(expected) == 24
    found = [read(kind, folder, tmp_path, split) for split in ("train", "test")]
    assert found[0] and found[1] and not found[0].keys() & found[1].keys()
    together = found[0] | found[1]
    assert together.keys() == expected.keys()
    for name, row in together.items():
        assert row["image"] == (made / "run" / expected[name]["output_uri"]).read_bytes()
        assert row["source"] == (made / "faces" / row["key"]).read_bytes()
        assert all(row[column] == expected[name][column] for column in COLUMNS)


@pytest.mark.parametrize("kind", FORMATS)
def test_without_sources_there_are_none(export, tmp_path, kind):
    found = read(kind, export(kind), tmp_path, "train")
    assert len(found) == 24 and all(row.get("source") is None for row in found.values())
    assert all(Image.open(io.BytesIO(row["image"])).size == (32, 32) for row in found.values())


@pytest.mark.parametrize("kind", FORMATS)
def test_the_card_tells_datasets_which_files_are_which_split_whatever_they_are_called(export, tmp_path, kind):
    folder = export(kind, "--split", "mine=0.5,yours=0.5")
    loaded = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded, DatasetDict)
    assert set(loaded) == {"mine", "yours"} and sum(len(split) for split in loaded.values()) == 24


def test_duckdb_and_polars_read_the_images_of_parquet(export, made):
    folder = export("parquet", "--split", SPLIT, "--with-source")
    by_edit = duckdb.sql(f"select edit, count(*), count(source.bytes) from '{folder}/data/*.parquet' group by 1")
    assert sorted(by_edit.fetchall()) == [("glasses", 12, 12), ("smile", 12, 12)]
    frame = polars.read_parquet(f"{folder}/data/*.parquet")
    one = frame.filter((polars.col("key") == "0000.png") & (polars.col("edit") == "smile")).row(0, named=True)
    assert one["strength"] == -0.5 and one["image"]["path"].endswith(".png")
    assert (
        one["image"]["bytes"]
        == (made / "run" / rows(made / "run")["0000.png", "smile", -0.5]["output_uri"]).read_bytes()
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_that_failed_are_there_without_an_image_if_they_are_asked_for(export, tmp_path, kind):
    found = read(kind, export(kind, "--statuses", "ok,decode_error", "--with-source"), tmp_path, "train")
    failed = [row for row in found.values() if row["status"] == "decode_error"]
    assert (
        len(found) == 26
        and [(row["key"], row["image"], row["source"]) for row in failed] == [("0007.png", None, None)] * 2
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_a_column_that_decides_a_pixel_is_in_the_manifest_in_every_export_format_and_in_the_card(
    export, made, tmp_path, kind
):
    settings = resolve(spec(made / "faces", tmp_path / "other", model="avatars")).settings
    edit, *_ = settings.edits
    assert {"edit", "strength", *settings.columns(), *edit_columns(edit, settings.directions)} == set(PIXEL_COLUMNS)
    assert set(PIXEL_COLUMNS) <= set(SCHEMA.names)

    folder, manifest = export(kind), rows(made / "run")
    for name, row in read(kind, folder, tmp_path, "train").items():
        assert {column: row[column] for column in PIXEL_COLUMNS} == {
            column: manifest[name][column] for column in PIXEL_COLUMNS
        }
        assert row["refine"] is not None
    card = (folder / "README.md").read_text()
    for column in PIXEL_COLUMNS:
        assert f"| {TOLD_BY.get(column, column)} | " in card, column


# Shards


@pytest.mark.parametrize("kind", FORMATS)
def test_shards_and_samples_are_numbered_densely(export, kind):
    folder = export(kind, "--split", SPLIT, "--shard-bytes", "5KB")
    for split in ("train", "test"):
        shards = sorted({path for path in folder.rglob("*") if is_shard(path, split)})
        assert len(shards) > 1
        assert [number(path) for path in shards] == list(range(len(shards)))
        names = [name for path in shards for name in samples_of(path)]
        assert names == [f"{index:08d}" for index in range(len(names))]


def is_shard(path: Path, split: str) -> bool:
    return path.name.startswith(f"{split}-") or (path.is_dir() and path.parent.name == split)


def number(path: Path) -> int:
    return int(path.stem.split("-")[-1])


def tar_names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()


def samples_of(shard: Path) -> list[str]:
    """The names of the samples in a shard, in order."""
    if shard.suffix == ".parquet":
        return [cell["path"][:8] for cell in pq.read_table(shard)["image"].to_pylist()]
    names = tar_names(shard.read_bytes()) if shard.suffix == ".tar" else [path.name for path in shard.glob("0*")]
    return sorted({name[:8] for name in names})


def test_no_folder_of_images_grows_beyond_its_bound(export, monkeypatch):
    bounded = formats.Format(**{**vars(formats.FORMATS["imagefolder"]), "max_samples": 5})
    monkeypatch.setitem(formats.FORMATS, "imagefolder", bounded)
    folder = export("imagefolder", "--with-source")
    sizes = [len(list(path.iterdir())) for path in (folder / "train").iterdir()]
    assert len(sizes) == 5 and max(sizes) <= 5 + 3 + 1  # edited, their sources, metadata.parquet


def test_a_source_is_stored_once_for_the_edits_of_its_image_in_a_folder(export):
    folder = export("imagefolder", "--with-source")
    assert len(list(folder.rglob("*_source.*"))) == 12


def test_reading_ahead_keeps_the_order_and_runs_ahead_by_a_bound_only():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    answers = read_ahead(lambda item: item * item, items(), threads=3)
    assert [next(answers) for _ in range(4)] == [0, 1, 4, 9] and len(taken) <= 4 + 2 * 3
    assert list(answers) == [item * item for item in range(4, 100)]


# Splits


@given(
    keys=st.lists(st.text(min_size=1), min_size=1, max_size=50, unique=True),
    order=st.randoms(),
    seed=st.integers(0, 2**31),
    parts=st.lists(st.integers(1, 20), min_size=1, max_size=5),
)
def test_the_split_of_an_image_depends_on_its_key_alone(keys, order, seed, parts):
    shares = {f"s{index}": part / sum(parts) for index, part in enumerate(parts)}
    found = {key: split_of(key, shares, seed) for key in keys}
    shuffled = order.sample(keys, len(keys))
    assert found == {key: split_of(key, shares, seed) for key in shuffled}
    assert set(found.values()) <= shares.keys()


@given(seed=st.integers(0, 2**31), parts=st.lists(st.integers(1, 20), min_size=2, max_size=4))
def test_splits_have_about_their_shares(seed, parts):
    shares = {f"s{index}": part / sum(parts) for index, part in enumerate(parts)}
    count = 2000
    found = Counter(split_of(f"folder/{index}.png", shares, seed) for index in range(count))
    for name, share in shares.items():
        assert abs(found[name] - share * count) <= 6 * (share * (1 - share) * count) ** 0.5 + 1


def test_another_seed_splits_otherwise():
    shares = {"train": 0.5, "test": 0.5}
    first, second = ([split_of(str(key), shares, seed) for key in range(100)] for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("kind", FORMATS)
def test_edits_of_one_image_never_straddle_splits(export, tmp_path, kind):
    folder = export(kind, "--split", "train=0.4,validation=0.3,test=0.3")
    splits = [read(kind, folder, tmp_path, split) for split in ("train", "validation", "test")]
    assert all(splits)
    keys = [{key for key, _, _ in split} for split in splits]
    assert sum(map(len, keys)) == len(set.union(*keys)) == 12
    assert all(len(split) == 2 * len(of) for split, of in zip(splits, keys, strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train=0.9", "the shares add up to 0.9, not to 1"),
        ("train=0.5,train=0.5", "'train=0.5' is not a new name and its share"),
        ("train", "'train' is not a new name"),
        ("train=much", "'train=much' is not"),
        ("train=nan", "'train=nan' is not"),
        ("../x=1", "'../x=1' is not"),
        ("train=1,test=0", "'test=0' is not"),
    ],
)
def test_shares_that_do_not_make_sense_are_one_sentence(text, message):
    with pytest.raises(UserError, match=f".*{message.replace('.', '[.]')}"):
        parse_shares(text)


# What is exported, and where to


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_export_again_gives_the_same_bytes(export, kind):
    arguments = ("--split", SPLIT, "--with-source", "--shard-bytes", "10KB")
    before = contents(export(kind, *arguments))
    assert contents(export(kind, *arguments)) == before
    assert contents(export(kind, *arguments, to="elsewhere")) == before


def test_another_export_to_the_same_place_is_refused_and_touches_nothing(cli, export, made):
    folder = export("parquet")
    before = contents(folder)
    for change in (("--seed", 1), ("--with-source",), ("--split", SPLIT), ("--to", "webdataset")):
        code, _, err = cli("export", made / "run", "--to", "parquet", "-o", folder, *change)
        assert code == 2 and "holds another export" in err
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("{run}/set", "lies inside"),
        ("{run}", "lies inside"),
        ("/dev/null", "give an --output that is empty"),
        ("{file}", "give an --output that is empty"),
    ],
)
def test_an_output_that_cannot_be_one_is_refused_in_one_sentence(cli, made, tmp_path, output, sentence):
    (tmp_path / "file").write_bytes(b"mine")
    before = sorted(made.rglob("*"))
    place = output.format(run=made / "run", file=tmp_path / "file")
    code, _, err = cli("export", made / "run", "--to", "parquet", "-o", place)
    assert code == 2 and sentence in err and "Traceback" not in err
    assert sorted(made.rglob("*")) == before and (tmp_path / "file").read_bytes() == b"mine"


def test_an_output_with_other_files_is_refused_and_touched_in_no_way(cli, made, tmp_path):
    (tmp_path / "set" / "train").mkdir(parents=True)
    (tmp_path / "set" / "train" / "mine.png").write_bytes(b"mine")
    code, _, err = cli("export", made / "run", "--to", "imagefolder", "-o", tmp_path / "set")
    assert code == 2 and "holds other files" in err
    assert contents(tmp_path / "set") == {"train/mine.png": b"mine"}


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_that_was_stopped_has_no_card_and_no_torn_shard_and_can_be_repeated(
    cli, export, made, tmp_path, kind
):
    arguments = ("--with-source", "--shard-bytes", "10KB")
    whole = contents(export(kind, *arguments, to="whole"))
    gone = made / "faces" / "a.b" / "train v1.2 ünï.png"
    data = gone.read_bytes()
    try:
        gone.unlink()
        code, _, err = cli("export", made / "run", "--to", kind, "-o", tmp_path / "set", *arguments)
    finally:
        gone.write_bytes(data)
    assert code == 2 and "cannot read the source" in err and "export without --with-source" in err.replace("\n", " ")
    left = contents(tmp_path / "set")
    assert "README.md" not in left and left.items() <= whole.items() and not any(".tmp" in name for name in left)
    assert contents(export(kind, *arguments)) == whole


def test_a_finished_export_that_is_repeated_and_stopped_has_no_card(cli, export, made, monkeypatch):
    folder = export("parquet", "--with-source")

    def gone(_):
        raise FileNotFoundError

    monkeypatch.setattr("pipeline.run.sinks.fetch", gone)
    code, _, _ = cli("export", made / "run", "--to", "parquet", "-o", folder, "--with-source")
    assert code == 2 and not (folder / "README.md").exists()


def test_shards_that_the_same_export_no_longer_fills_are_deleted(export, monkeypatch):
    arguments = ("--with-source", "--shard-bytes", "10KB")
    before = contents(export("parquet", *arguments))

    def fetch_smaller(image, *cells):  # sources are read without cells
        return fetch(image, *cells) if cells or image.key < "0005" else b"x"

    monkeypatch.setattr("pipeline.run.sinks.fetch", fetch_smaller)
    after = contents(export("parquet", *arguments))
    assert 1 < len(after) < len(before)


@pytest.mark.parametrize("sources", ["faces", "faces.tar", "faces.parquet"])
@pytest.mark.parametrize("stages", ["fused", "staged"])
def test_a_source_that_has_changed_is_told_and_paired_with_nothing(cli, tmp_path, monkeypatch, sources, stages):
    """Of the same length, so that only the content tells."""
    make_faces(tmp_path / "faces", 4)
    SOURCES[sources](tmp_path)
    stand_in_run(tmp_path / sources, tmp_path / "run", stages=stages)
    path = tmp_path / "faces" / "0002.png"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    SOURCES[sources](tmp_path)
    monkeypatch.setattr("pipeline.images.fetch._cells", ParquetCells())  # an export is a process of its own
    command = ("export", tmp_path / "run", "--to", "webdataset", "-o", tmp_path / "set", "--with-source")
    code, out, err = cli(*command, "--json")
    facts = json.loads(out)
    assert code == 0, err
    assert facts["changed_sources"]["images"] == 1 and "0002" in facts["changed_sources"]["examples"][0]
    found = read_webdataset(tmp_path / "set", "train")
    assert len(found) == facts["samples"]["train"] == 6 and not [key for key, _, _ in found if "0002" in key]
    assert (
        "left out, as their sources have changed since they were edited: 1."
        in (tmp_path / "set" / "README.md").read_text()
    )
    code, out, _ = cli(*command)
    assert code == 0 and "left out 1 image whose source is not the one that was edited" in out.replace("\n", " ")


def pack_tar(folder: Path) -> None:
    with tarfile.open(folder / "faces.tar", "w") as tar:
        for path in sorted((folder / "faces").iterdir()):
            tar.add(path, path.name)


def pack_parquet(folder: Path) -> None:
    names = sorted((folder / "faces").iterdir())
    table = pa.table({"key": [p.name for p in names], "image": [p.read_bytes() for p in names]})
    pq.write_table(table, folder / "faces.parquet")


SOURCES: dict[str, Callable[[Path], None]] = {
    "faces": lambda _: None,
    "faces.tar": pack_tar,
    "faces.parquet": pack_parquet,
}


def test_a_source_of_another_size_is_left_out_and_one_that_is_gone_stops_the_export(cli, faces, tmp_path):
    source = faces(3)
    stand_in_run(source, tmp_path / "run")
    (source / "0001.png").write_bytes(b"short")
    command = ("export", tmp_path / "run", "--to", "parquet", "-o", tmp_path / "set", "--with-source", "--json")
    assert json.loads(cli(*command)[1])["changed_sources"] == {"images": 1, "examples": ["0001.png"]}
    (source / "0001.png").unlink()
    code, _, err = cli(*command)
    assert code == 2 and "cannot read the source" in err


def test_an_incomplete_run_is_exported_on_request_only(cli, export, made, tmp_path):
    run = copy(made, tmp_path)
    (run / "commit" / "boost" / "000001.json").unlink()
    code, _, err = cli("export", run, "--to", "parquet", "-o", tmp_path / "set")
    assert code == 2 and "is not complete, 2 of 3 shards are committed: finish it, or give --partial" in err.replace(
        "\n", " "
    )
    assert not (tmp_path / "set").exists()
    folder = export("parquet", "--partial", root=run)
    assert "The run was not complete: 2 of 3 shards were committed." in (folder / "README.md").read_text()
    exported = {(r["key"], r["edit"]) for r in pq.read_table(folder / "data").to_pylist()}
    assert exported == {(key, edit) for key, edit, _ in rows(run)} - {("0007.png", e) for e in ("glasses", "smile")}


def test_files_that_no_commit_names_are_in_no_export(export, made, tmp_path):
    run = copy(made, tmp_path)
    [folder] = (run / "data" / "boost").glob("000000.*")
    shutil.copytree(folder, run / "data" / "boost" / "000000.0123456789ab")
    before = contents(export("parquet", root=made / "run"))
    assert contents(export("parquet", root=run, to="again")) == before


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.unlink(), "is missing at"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!"), "is not what was committed"),
    ],
)
def test_a_damaged_image_is_never_exported(cli, made, tmp_path, harm, message):
    run = copy(made, tmp_path)
    harm(sorted((run / "data").rglob("*.png"))[3])
    code, _, err = cli("export", run, "--to", "webdataset", "-o", tmp_path / "set")
    assert code == 2 and message in err and "asyrp verify" in err and not list((tmp_path / "set").glob("*.tar"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--to", "tfrecord"), "--to tfrecord: give webdataset or imagefolder or parquet"),
        (("--to", "parquet", "--statuses", "good"), "is good: there are 24 ok, 2 decode_error"),
        (("--to", "parquet", "--shard-bytes", "lots"), "--shard-bytes lots: write a size as in"),
        (("--to", "parquet", "--shard-bytes", "0"), "--shard-bytes 0: write a size as in"),
        (("--to", "parquet", "--split", "train=2"), "--split train=2: 'train=2' is not"),
    ],
)
def test_a_mistake_is_one_sentence_and_makes_no_output(cli, made, tmp_path, arguments, message):
    code, _, err = cli("export", made / "run", "-o", tmp_path / "set", *arguments)
    assert code == 2 and message in err.replace("\n", " ") and not (tmp_path / "set").exists()


def test_a_run_without_edited_images_has_nothing_to_export(cli, made, tmp_path):
    run = copy(made, tmp_path)
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "stages": [{**record["stages"][0], "name": "collect"}]}))
    code, _, err = cli("export", run, "--to", "parquet", "-o", tmp_path / "set")
    assert code == 2 and "edited no images" in err


def test_a_data_set_is_written_and_read_on_stores_in_memory(cli, faces):
    name = uuid.uuid4().hex
    store = stand_in_run(faces(6), f"memory://{name}/run")
    code, _, err = cli("export", store.url, "--to", "webdataset", "-o", f"memory://{name}/set", "--with-source")
    assert code == 0, err
    target = Store(f"memory://{name}/set")
    assert sorted(target.names("")) == ["README.md", "train-000000.tar"]
    assert len(tar_names(target.read("train-000000.tar"))) == 6 * 2 * 3
    MemoryFileSystem.store.clear()


# The card


def test_the_card_counts_by_edit_and_split_and_says_how_it_was_made(export):
    folder = export("parquet", "--split", SPLIT)
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train-*.parquet"},
        {"split": "test", "path": "data/test-*.parquet"},
    ]
    counted = Counter(
        (r["edit"], r["strength"]) for r in pq.read_table(folder / "data" / "train-00000.parquet").to_pylist()
    )
    assert (
        f"| glasses | 1 | {counted['glasses', 1.0]} |" in text
        and f"| smile | -0.5 | {counted['smile', -0.5]} |" in text
    )
    assert "left out, by status: 2 decode_error." in text
    for fact in (
        "| model | avatars (",
        "| solver | dpmpp_2m |",
        "| n_inv | 4 |",
        "| n_gen | 4 |",
        "| edits | glasses=1; smile=-0.5 |",
    ):
        assert fact in text


@pytest.mark.parametrize("kind", FORMATS)
def test_no_path_or_name_of_this_machine_is_in_a_data_set(export, made, tmp_path, kind):
    run = copy(made, tmp_path)
    record = json.loads((run / "run.json").read_text())
    record["spec"]["model"] = "/home/someone/nets/metface.pt"
    (run / "run.json").write_text(json.dumps(record))
    data = contents(export(kind, "--with-source", "--statuses", "ok,decode_error", root=run))
    for private in (str(tmp_path).encode(), str(made).encode(), b"/home/someone", b"file://"):
        assert not [name for name, content in data.items() if private in content]
    assert b"| model | metface.pt (" in data["README.md"]
