"""Hard names through every source, sink, command and format: each is a row with its key."""

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from jobs.runs.growth import extend, retry, spec_of
from jobs.runs.resolve import resolve
from jobs.spec.run import EngineSpec
from pipeline.images.keys import safe_key
from pipeline.images.selection import Selection
from pipeline.run.additions import shard_ids
from pipeline.run.commit import committed
from pipeline.run.plan import current_plan
from pipeline.run.sinks import read_output
from pipeline.sources.files import is_clutter
from pipeline.sources.listing import list_images
from pipeline.storage.store import Store
from tests.support.names import FILES, FOREIGN, NAMES, PATHS
from tests.support.runs import asyrp, rows, run_here, stand_in_run, stand_in_stages
from tests.support.servers import moto, reached

SINKS = ("files", "webdataset", "parquet")
FORMATS = ("webdataset", "imagefolder", "parquet")
FEW = {*FILES[::12], *FILES[-20:], *PATHS, *FOREIGN}
"""What the usual suite tries; the proofs try all."""

HOW_MANY = [pytest.param(FEW, id="few"), pytest.param(set(NAMES), id="all", marks=pytest.mark.slow)]
ROOTS = ("out [1]", "x::y", "50%", "~x", "a*b", "#1", "what?", "a\\b", "-rf", "{key}", "é\u0301", "a\nb", "\x1b[31m")


def face(number: int) -> bytes:
    """An image like no other."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (number % 256, number // 256, 99)).save(stream, "PNG")
    return stream.getvalue()


FACES = {name: face(number) for number, name in enumerate(NAMES)}


def is_listed_in_a_folder(name: str) -> bool:
    """Whether a name is that of a visible file of a folder on Linux."""
    parts = name.split("/")
    return name in (*FILES, *PATHS) and not any(part.startswith(".") for part in parts)


def is_image(name: str) -> bool:
    return name.endswith(".png") and not name.rpartition("/")[2].startswith("._")


def as_folder(folder: Path, names: set[str]) -> tuple[str, dict[str, str]]:
    for name in names & {*FILES, *PATHS}:
        path = folder / "faces" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(FACES[name])
    return str(folder / "faces"), {safe_key(name): name for name in names if is_listed_in_a_folder(name)}


def as_glob(folder: Path, names: set[str]) -> tuple[str, dict[str, str]]:
    source, _ = as_folder(folder, names)
    return f"{source}/*.png", {safe_key(n): n for n in names & set(FILES) if "/" not in n and not is_clutter(n)}


def belongs_to_another(name: str, names: set[str]) -> bool:
    """By WebDataset's convention `metadata.parquet.png` belongs to the image `metadata.png`."""
    folder, slash, base = name.rpartition("/")
    image = f"{folder}{slash}{base.partition('.')[0]}.png"
    return name != image and image in names


def as_tar(folder: Path, names: set[str]) -> tuple[str, dict[str, str]]:
    names = {name for name in names if is_image(name) and not belongs_to_another(name, names)}
    with tarfile.open(folder / "faces.tar", "w") as tar:
        for name in sorted(names):
            member = tarfile.TarInfo("x")
            member.pax_headers = {"path": name}  # as tarfile itself writes no NUL
            member.size = len(FACES[name])
            tar.addfile(member, io.BytesIO(FACES[name]))
    return str(folder / "faces.tar"), {safe_key(name): name for name in names if not is_clutter(name)}


def as_parquet(folder: Path, names: set[str]) -> tuple[str, dict[str, str]]:
    chosen = sorted(names)
    pq.write_table(pa.table({"key": chosen, "image": [FACES[name] for name in chosen]}), folder / "faces.parquet")
    return str(folder / "faces.parquet"), {safe_key(name): name for name in chosen}


SOURCES: dict[str, Callable[[Path, set[str]], tuple[str, dict[str, str]]]] = {
    "folder": as_folder,
    "glob": as_glob,
    "tar": as_tar,
    "parquet": as_parquet,
}


def assert_whole(root: str, keys: Sequence[str] | set[str]) -> None:
    """Every key is a row of each edit, and its image is read again by the manifest."""
    found = rows(root)
    assert {key for key, _, _ in found} == set(keys)
    assert {(key, row["status"], row["error"]) for (key, _, _), row in found.items() if row["status"] != "ok"} == set()
    store = Store(root)
    for row in found.values():
        assert read_output(store, row).startswith(b"\x89PNG")


def called(*arguments: str | Path) -> dict[str, Any]:
    done = asyrp(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_commands_work(root: str, keys: set[str], folder: Path) -> None:
    """What reads a run finds every name: verify, report, and export in every format."""
    assert called("verify", root, "--deep")["findings"] == []
    called("gc", root, "--older-than", "0")
    assert called("report", root, "--format", "both")["rows"] == 2 * len(keys)
    for format_ in FORMATS:
        called("export", root, "--to", format_, "-o", folder / format_, "--with-source")
        assert exported_keys(folder / format_) == keys, format_


def exported_keys(folder: Path) -> set[str]:
    if tars := sorted(map(str, folder.rglob("*.tar"))):
        samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
        assert all("edited.png" in sample for sample in samples)
        return {json.loads(sample["json"])["key"] for sample in samples}
    return {key for table in folder.rglob("*.parquet") for key in pq.read_table(table)["key"].to_pylist()}


@pytest.mark.parametrize("names", HOW_MANY)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("sink", SINKS)
def test_every_name_of_a_source_is_a_row_whose_image_is_read_again(tmp_path, names, source, sink):
    url, keys = SOURCES[source](tmp_path, names)
    assert {image.key for image in list_images(url)} == set(keys)
    store = stand_in_run(url, tmp_path / "out", sink=sink, shard_size=50)
    assert_whole(store.url, set(keys))


@pytest.mark.parametrize("names", HOW_MANY)
@pytest.mark.parametrize("sink", SINKS)
def test_every_command_finds_every_name(tmp_path, names, sink):
    url, keys = as_parquet(tmp_path, names)
    store = stand_in_run(url, tmp_path / "out", sink=sink, shard_size=50)
    assert_commands_work(store.url, set(keys), tmp_path)


@pytest.mark.parametrize("names", HOW_MANY)
def test_a_run_is_a_source_of_names(tmp_path, names):
    url, keys = as_parquet(tmp_path, names)
    first = stand_in_run(url, tmp_path / "first", shard_size=50)
    with_source_key = Selection(columns=("source_key",))
    listed = {image.key: image.columns["source_key"] for image in list_images(first.url, with_source_key)}
    assert len(listed) == 2 * len(keys) and set(listed.values()) == set(keys)
    second = stand_in_run(first.url, tmp_path / "second", shard_size=50)
    assert_whole(second.url, set(listed))


@pytest.mark.parametrize("names", HOW_MANY)
def test_names_go_through_stages_and_are_tried_again_and_added(tmp_path, names):
    url, _ = as_folder(tmp_path, names)
    broken = tmp_path / "faces" / FILES[0]
    whole = broken.read_bytes()
    broken.write_bytes(b"broken")
    store = stand_in_run(url, tmp_path / "out", stages="staged", shard_size=50)
    broken.write_bytes(whole)
    (tmp_path / "faces" / "zz [1]\x1b\n::x.png").write_bytes(face(6000))
    assert retry(store.url, frozenset({"decode_error"})) is not None
    plan = current_plan(store)
    asked = resolve(spec_of(store.url, EngineSpec(check=False)))
    assert (extension := extend(store.url, asked).addition) and extension.images == 1
    run_here(asked, make=stand_in_stages, shards=sorted(set(shard_ids(store, plan.shards)) - committed(store, "boost")))
    assert called("verify", store.url, "--deep")["findings"] == []


@pytest.mark.parametrize("name", [*ROOTS[:4], *(pytest.param(name, marks=pytest.mark.slow) for name in ROOTS[4:])])
def test_a_root_may_have_any_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    url, keys = as_parquet(tmp_path, set(FILES[:4]))
    for sibling in ("out 1", "axb", "whatx"):
        (tmp_path / sibling).mkdir()
    store = stand_in_run(url, name)
    assert Path(store.root) == tmp_path / name
    assert_whole(store.url, set(keys))
    assert_commands_work(f"./{name}", set(keys), tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {*FORMATS, name, "out 1", "axb", "whatx"}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("s3")
    with moto(folder, folder) as server, reached(server):
        yield server.bucket


CARRIED = [name for name in sorted(FEW) if is_listed_in_a_folder(name) and safe_key(name) == name]
ON_S3 = {name for name in CARRIED[::3] if "?versionId=" not in name}
"""Moto takes no control characters, and s3fs reads a version in a name."""


@pytest.mark.parametrize("sink", ["files", *(pytest.param(sink, marks=pytest.mark.slow) for sink in SINKS[1:])])
def test_object_stores_take_every_name(tmp_path, bucket, sink):
    source = f"{bucket}/{sink} in::#1 %2F"
    store = Store(source)
    for name in ON_S3:
        store.write(name, FACES[name])
    assert {image.key for image in list_images(source)} == set(map(safe_key, ON_S3))
    made = stand_in_run(source, f"{bucket}/{sink} out::[1]*?#%", sink=sink, shard_size=20)
    assert_whole(made.url, set(map(safe_key, ON_S3)))
    assert_commands_work(made.url, set(map(safe_key, ON_S3)), tmp_path)


def test_urls_of_a_list_are_fetched_as_they_are_written(tmp_path, httpserver: HTTPServer):
    names = sorted(name for name in FEW if is_listed_in_a_folder(name))
    by_path = {f"/faces/{quote(name)}": FACES[name] for name in names}

    def answer(request: Request) -> Response:
        return Response(by_path.get(request.environ["REQUEST_URI"], b""))

    httpserver.expect_request(re.compile(".*")).respond_with_handler(answer)
    (tmp_path / "list.txt").write_text("\n".join(httpserver.url_for(path) for path in by_path))
    store = stand_in_run(tmp_path / "list.txt", tmp_path / "out", shard_size=50)
    host = httpserver.url_for("/").split("/")[2]
    assert_whole(store.url, {f"{host}{path}" for path in by_path})
