"""Stores, sources, plans and commits: on the local disk and in memory."""

import errno
import io
import json
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from asyrp.errors import MachineError, UserError
from pipeline.images.fetch import NoDriver, fetch
from pipeline.images.source import SourceImage
from pipeline.run import manifest
from pipeline.run.commit import Attempt, committed, committed_rows, read_commit
from pipeline.run.plan import (
    RUN,
    SHARDS_PER_PART,
    PlanRow,
    PlanSummary,
    current_plan,
    read_plan,
    read_planned,
    source_image,
    write_parts,
    write_plan,
)
from pipeline.run.stage import ImageFormat, Variant
from pipeline.sources.listing import list_images
from pipeline.storage.store import Store, explained
from pipeline.upkeep.garbage import collect_garbage
from tests.support.runs import record_plan, rows, stand_in_run


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    if request.param == "local":
        yield Store(str(tmp_path / "root"))
    else:
        yield Store(f"memory://{uuid.uuid4().hex}")
        MemoryFileSystem.store.clear()


def images(*keys: str) -> list[SourceImage]:
    return [SourceImage(key, f"file:///{key}", 1, "e") for key in keys]


def names_of(template: str):
    image_format = ImageFormat(32, name=template)
    return lambda key: [image_format.output_name(key, Variant(edit, 1.0)) for edit in ("smile", "beard")]


# Stores


def test_of_many_that_create_one_file_one_wins(store):
    start = threading.Barrier(12)

    def create(index: int) -> bool:
        start.wait()
        return store.create("commit/x.json", f"writer {index}".encode())

    if not store.is_local:  # one process, no races: memory is for tests in this one
        assert [store.create("commit/x.json", b"a"), store.create("commit/x.json", b"b")] == [True, False]
        return
    with ThreadPoolExecutor(12) as pool:
        won = list(pool.map(create, range(12)))
    assert won.count(True) == 1
    assert store.read("commit/x.json") == f"writer {won.index(True)}".encode()


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(store, monkeypatch):
    store.write("a/b", b"old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    if store.is_local:
        monkeypatch.setattr("os.fsync", full_disk)
    else:
        monkeypatch.setattr(store.fs, "pipe_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.write("a/b", b"new")
    monkeypatch.undo()
    assert store.read("a/b") == b"old"
    assert store.fs.ls(store.path("a"), detail=False) == [store.path("a/b")]


def test_a_listing_names_what_is_visible_and_nothing_where_there_is_no_folder(store):
    store.write("f/one", b"1")
    store.write("f/.hidden", b"1")
    store.write("f/deeper/two", b"2")
    assert sorted(store.names("f")) == ["deeper", "one"]
    assert list(store.names("nowhere")) == []


def test_an_unknown_protocol_is_one_sentence():
    with pytest.raises(UserError, match="cannot open nope://x"):
        Store("nope://x")


DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "https": "fsspec.implementations.http"}


@pytest.fixture
def without_drivers(monkeypatch):
    for protocol, module in DRIVERS.items():
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)
        monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.usefixtures("without_drivers")
@pytest.mark.parametrize(("protocol", "extra"), [("s3", "s3"), ("gs", "gcs"), ("az", "azure"), ("https", "http")])
def test_a_driver_that_is_not_installed_is_one_sentence_that_names_its_extra(tmp_path, protocol, extra):
    sentence = rf"cannot open {protocol}://x/y: its driver is not installed: pip install 'asyrp\[{extra}\]'"
    with pytest.raises(UserError, match=sentence):
        Store(f"{protocol}://x/y")
    (tmp_path / "list.txt").write_text(f"{protocol}://x/y\n")
    [image] = list_images(str(tmp_path / "list.txt"))
    with pytest.raises(NoDriver, match=sentence):
        fetch(image)


@pytest.mark.usefixtures("without_drivers")
def test_an_image_whose_driver_is_not_installed_has_a_row_that_says_so(tmp_path):
    (tmp_path / "list.txt").write_text("gs://bucket/x.png\n")
    stand_in_run(tmp_path / "list.txt", tmp_path / "out")
    for found in rows(tmp_path / "out").values():
        assert (found["status"], found["error_type"]) == ("fetch_error", "NoDriver")
        assert "pip install 'asyrp[gcs]'" in found["error"]


@pytest.mark.usefixtures("without_drivers")
@pytest.mark.parametrize("option", ["--source", "--output", "--model"])
def test_a_run_whose_driver_is_not_installed_is_one_sentence_and_exit_code_2(cli, tmp_path, option):
    flags = {"--source": str(tmp_path), "--output": str(tmp_path / "out"), "--edit": "glasses=1", option: "gs://x/y"}
    code, out, err = cli("run", *(part for flag in flags.items() for part in flag))
    assert code == 2 and "pip install 'asyrp[gcs]'" in err and "Traceback" not in out + err


@pytest.fixture
def ignoring(monkeypatch):
    """A store that takes no notice of conditions: whoever writes last is there."""
    store = Store(f"memory://{uuid.uuid4().hex}")
    pipe_file = store.fs.pipe_file
    monkeypatch.setattr(store.fs, "pipe_file", lambda path, data, **_: pipe_file(path, data))
    yield store
    MemoryFileSystem.store.clear()


def test_a_store_that_honours_conditional_create_is_found_out_and_left_empty(store):
    assert store.refuses_second_create()
    assert store.entries("") == []


def test_a_store_that_ignores_conditional_create_is_found_out_and_left_empty(ignoring):
    assert not ignoring.refuses_second_create()
    assert ignoring.entries("") == []


def test_a_condition_that_a_server_refuses_without_naming_it_is_a_refusal(monkeypatch):
    store = Store(f"memory://{uuid.uuid4().hex}")

    def answer(number, text):
        def pipe_file(*_, **__):
            raise OSError(number, text)

        monkeypatch.setattr(store.fs, "pipe_file", pipe_file)

    answer(errno.EINVAL, "At least one of the pre-conditions you specified did not hold")
    assert store.create("x", b"") is False
    answer(errno.EINVAL, "The bucket name is not valid")
    with pytest.raises(OSError, match="not valid"):
        store.create("x", b"")


def test_a_store_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot write to .*file/root: "):
        Store(str(tmp_path / "file" / "root")).refuses_second_create()


# Sources


def test_a_full_disk_is_no_mistake_of_the_user():
    said = r"^cannot write to here: No space left on device \(/out\): free some space"
    with pytest.raises(MachineError, match=said), explained("cannot write to here"):
        raise OSError(errno.ENOSPC, "No space left on device", "/out")


def test_a_folder_is_listed_recursively_in_the_order_of_names(store):
    for name in ("b/0001.png", "a/0001.PNG", "a/notes.txt", "z.webp", "a/ünï cödé.jpg", ".hidden/x.png", "a/.x.png"):
        store.write(name, b"x")
    listed = list(list_images(store.url))
    assert [image.key for image in listed] == ["z.webp", "a/0001.PNG", "a/ünï cödé.jpg", "b/0001.png"]
    assert all(image.size == 1 for image in listed)
    assert [image.key for image in list_images(store.url)] == [image.key for image in listed]


def test_the_uri_of_an_image_opens_it_again(store):
    store.write("a/x.png", b"content")
    [image] = list_images(store.url)
    assert fetch(image) == b"content"


def test_a_glob_takes_what_matches_and_keys_below_its_fixed_part(store):
    for name in ("a/1.png", "a/2.jpg", "b/1.png"):
        store.write(name, b"x")
    assert [image.key for image in list_images(f"{store.url}/*/*.png")] == ["a/1.png", "b/1.png"]


def test_the_etag_changes_with_the_file(tmp_path):
    (tmp_path / "x.png").write_bytes(b"1")
    [before] = list_images(str(tmp_path))
    (tmp_path / "x.png").write_bytes(b"22")
    [after] = list_images(str(tmp_path))
    assert (before.etag, before.size) != (after.etag, after.size)


@pytest.mark.parametrize("name", ["missing", "missing/*.png"])
def test_a_source_that_is_not_there_is_one_sentence(tmp_path, name):
    with pytest.raises(UserError, match=r"source .*missing"):
        list(list_images(str(tmp_path / name)))


# Plans


def test_every_image_is_in_one_shard_and_a_shard_is_read_alone(store):
    keys = [f"{index:05d}.png" for index in range(3 * SHARDS_PER_PART + 5)]
    plan = write_plan(store, images(*keys), 2, names_of("{stem}_{edit}"))
    record_plan(store, plan)
    assert (plan.images, plan.shards) == (len(keys), (len(keys) + 1) // 2)
    assert len(list(store.names(plan.folder))) == 2
    assert [row.key for row in read_plan(store)] == keys
    assert [(row.shard, row.row, row.key) for row in read_planned(store, plan, 1030)] == [
        (1030, 0, "02060.png"),
        (1030, 1, "02061.png"),
    ]


def test_a_plan_of_before_columns_were_json_is_planned_again(store):
    columns = '{"score": NaN, "far": Infinity}'
    old = PlanRow(0, 0, "a.png", "memory://a.png", None, None, None, None, columns)
    write_plan(store, [source_image(old)], 8, names_of("{stem}_{edit}"))
    [part] = write_parts(store, [source_image(old)], 8, "again").parts
    assert json.loads(pq.read_table(io.BytesIO(store.read(part.path)))["columns"][0].as_py()) == {
        "score": "NaN",
        "far": "Infinity",
    }


def test_what_other_plannings_left_behind_is_not_part_of_the_plan(store):
    write_plan(store, images("gone.png", "a.png"), 1, names_of("{stem}_{edit}"))
    record_plan(store, write_plan(store, images("a.png"), 1, names_of("{stem}_{edit}")))
    write_plan(store, images("new.png"), 1, names_of("{stem}_{edit}"))
    assert [row.key for row in read_plan(store)] == ["a.png"]


def test_a_plan_from_before_plannings_had_folders_is_read(store):
    write_parts(store, images("a.png"), 1, "plan")
    store.write(RUN, json.dumps({"plan": {"images": 1, "shards": 1, "shard_size": 1, "digest": ""}}).encode())
    assert (
        [row.key for row in read_plan(store)]
        == [row.key for row in read_planned(store, current_plan(store), 0)]
        == ["a.png"]
    )


def test_two_folders_with_the_same_file_names_are_fine(store):
    assert write_plan(store, images("a/1.png", "b/1.png"), 8, names_of("{stem}_{edit}")).images == 2


@pytest.mark.parametrize(
    ("keys", "template"),
    [
        (("a.png", "a.jpg"), "{stem}_{edit}"),
        (("a/1.png", "b/1.png"), "{name}_{edit}"),
        (("a.png",), "{stem}"),
        (("a.png", "b.png"), "{edit}"),
    ],
)
def test_outputs_that_would_share_a_name_are_refused_before_any_work(store, keys, template):
    with pytest.raises(UserError, match="would both be written as"):
        write_plan(store, images(*keys), 8, names_of(template))


def test_a_plan_of_nothing_is_refused(store):
    with pytest.raises(UserError, match="no images"):
        write_plan(store, [], 8, names_of("{stem}"))


def test_the_digest_of_a_plan_is_that_of_its_images(store):
    digests = [
        write_plan(store, listing, 8, names_of("{stem}_{edit}")).digest
        for listing in (images("a.png"), images("a.png"), images("b.png"))
    ]
    assert digests[0] == digests[1] != digests[2]


# Commits


def row(key: str, status: str = "ok") -> manifest.Row:
    return {"key": key, "shard": 0, "row": 0, "stage": "boost", "status": status}


def test_nothing_counts_before_its_commit(store):
    attempt = Attempt(store, "boost", 0)
    attempt.write("x.png", b"pixels")
    assert committed(store, "boost") == set()
    assert attempt.commit([row("x"), row("y", "decode_error")], 2, None)
    commit = read_commit(store, "boost", 0)
    assert committed(store, "boost") == {0}
    assert commit.statuses == {"ok": 1, "decode_error": 1}
    assert {store.exists(file.path) for file in commit.files} == {True}
    assert [found["key"] for found in committed_rows(store, "boost", [0])] == ["x", "y"]


def test_the_attempt_that_loses_the_race_deletes_its_own_files_only(store):
    first, second = Attempt(store, "boost", 0), Attempt(store, "boost", 0)
    for attempt in (first, second):
        attempt.write("x.png", b"pixels")
    assert first.commit([row("x")], 1, None)
    assert not second.commit([row("x")], 1, None)
    assert read_commit(store, "boost", 0).attempt == first.id
    assert all(store.exists(file.path) for file in first.files)
    assert not any(store.exists(file.path) for file in second.files)


def test_a_commit_that_the_store_repeats_is_still_ones_own(store, monkeypatch):
    create = store.create

    def create_twice(name, data):
        create(name, data)
        return create(name, data)  # what a client does when the first answer is lost

    monkeypatch.setattr(store, "create", create_twice)
    attempt = Attempt(store, "boost", 0)
    file = attempt.write("x.png", b"pixels")
    assert attempt.commit([row("x")], 1, None)
    assert store.exists(file.path)


def test_an_attempt_that_may_be_committed_is_never_deleted(store, monkeypatch):
    attempt = Attempt(store, "boost", 0)
    file = attempt.write("x.png", b"pixels")
    read = store.read

    def lost_answer(_):
        raise ConnectionError("the answer got lost")

    monkeypatch.setattr(store, "read", lost_answer)
    with pytest.raises(ConnectionError):
        attempt.commit([row("x")], 1, None)
    attempt.discard()
    monkeypatch.setattr(store, "read", read)
    assert read_commit(store, "boost", 0).attempt == attempt.id and store.exists(file.path)


def test_without_conditional_create_a_late_attempt_sees_the_commit_and_gives_way(ignoring):
    first, late = Attempt(ignoring, "boost", 0), Attempt(ignoring, "boost", 0)
    files = [attempt.write("x.png", b"pixels") for attempt in (first, late)]
    assert first.commit([row("x")], 1, None) and not late.commit([row("x")], 1, None)
    assert read_commit(ignoring, "boost", 0).attempt == first.id
    assert [ignoring.exists(file.path) for file in files] == [True, False]


@pytest.mark.parametrize("overwritten", ["before it reads its commit back", "after"])
def test_without_conditional_create_the_last_commit_counts_and_only_gc_deletes_the_other(
    ignoring, monkeypatch, overwritten
):
    first, last = Attempt(ignoring, "boost", 0), Attempt(ignoring, "boost", 0)
    files = [attempt.write("x.png", b"pixels") for attempt in (first, last)]
    monkeypatch.setattr(ignoring, "exists", lambda _: False)  # neither sees the other's
    create, won = ignoring.create, {}

    def both_create(name, data):
        created = create(name, data)
        if not won:
            won["last"] = True
            won["last"] = last.commit([row("x")], 1, None)
        return created

    if overwritten == "after":
        won["first"] = first.commit([row("x")], 1, None)
        won["last"] = last.commit([row("x")], 1, None)
    else:
        monkeypatch.setattr(ignoring, "create", both_create)
        won["first"] = first.commit([row("x")], 1, None)
    monkeypatch.undo()
    assert won == {"first": overwritten == "after", "last": True}
    assert read_commit(ignoring, "boost", 0).attempt == last.id
    assert all(ignoring.exists(file.path) for file in files)
    record_plan(ignoring, PlanSummary(1, 1, 1, ""))
    [freed] = collect_garbage(ignoring, ["boost"], 0).freed
    assert set(freed.names) == {first.folder, first.manifest}
    assert [ignoring.exists(file.path) for file in files] == [False, True]
    assert [found["key"] for found in committed_rows(ignoring, "boost", [0])] == ["x"]


def test_an_attempt_given_up_leaves_nothing(store):
    attempt = Attempt(store, "boost", 0)
    file = attempt.write("x.png", b"pixels")
    attempt.discard()
    assert not store.exists(file.path)


def test_the_manifest_carries_its_version_and_every_column():
    import io

    import pyarrow.parquet as pq

    schema = pq.read_schema(io.BytesIO(manifest.to_bytes([row("x")])))
    assert schema.metadata[b"asyrp_manifest_version"] == manifest.VERSION.encode()
    assert schema.names == manifest.SCHEMA.names
