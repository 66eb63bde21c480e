"""Every form of source: the same images, stable keys, bytes in place, and nothing that leaves the source."""

import io
import json
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from asyrp.errors import UserError
from jobs.runs.run import exit_code, run
from pipeline.images.fetch import fetch
from pipeline.images.selection import ALL, Condition, Selection
from pipeline.sources.listing import list_images
from tests.support.pictures import whole_png
from tests.support.runs import SAMPLES, rows, spec, stand_in_run

FACES = [(path.name, path.read_bytes()) for path in sorted(SAMPLES.glob("*.png"))[:6]]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_tar(path, names=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (name, data) in enumerate(FACES):
            stem = (names or {}).get(number, name.removesuffix(".png"))
            add(tar, f"{stem}.json", json.dumps({"age": 10 * number, "smile": number % 2 == 0}).encode())
            add(tar, f"{stem}.png", data)
            add(tar, f"{stem}.cls", b"1")
    return path


def write_parquet(path, group=4, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": data, "path": name} for name, data in FACES]
    table = pa.table({"image": images, "age": [10 * n for n in range(len(FACES))], **columns})
    pq.write_table(table, path, row_group_size=group)
    return path


def bytes_of(source, selection=ALL) -> list[bytes]:
    return [fetch(image) for image in list_images(str(source), selection)]


EXPECTED = [data for _, data in FACES]


def test_images_are_read_in_place_out_of_tars(tmp_path):
    write_tar(tmp_path / "a" / "000.tar")
    write_tar(tmp_path / "b" / "000.tar")
    assert bytes_of(tmp_path / "a" / "000.tar") == EXPECTED
    assert [image.key for image in list_images(str(tmp_path / "a" / "000.tar"))] == [name for name, _ in FACES]
    for source in (tmp_path, tmp_path / "*" / "*.tar"):
        keys = [image.key for image in list_images(str(source))]
        assert keys == [f"{folder}/000/{name}" for folder in "ab" for name, _ in FACES]


def test_a_tar_member_cannot_climb_out_of_its_folder_and_is_still_edited(tmp_path):
    write_tar(tmp_path / "x.tar", {0: "../../x", 1: "/etc/y", 2: "a b/ünï"})
    found = list(list_images(str(tmp_path / "x.tar")))
    assert [image.key for image in found][:3] == ["%2E%2E/%2E%2E/x.png", "%2Fetc/y.png", "a b/ünï.png"]
    assert [fetch(image) for image in found] == EXPECTED


def test_links_and_devices_in_a_tar_are_no_images(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        add(tar, *FACES[0])
    assert [image.key for image in list_images(str(tmp_path / "x.tar"))] == [FACES[0][0]]


@pytest.mark.parametrize("content", [b"no tar at all", None])
def test_a_tar_that_is_none_or_cut_off_is_one_sentence(tmp_path, content):
    path = write_tar(tmp_path / "x.tar")
    path.write_bytes(path.read_bytes()[:3000] if content is None else content)
    with pytest.raises(UserError, match=r"x.tar is no whole tar: "):
        list(list_images(str(path)))


@pytest.mark.parametrize("group", [1, 4, 100])
def test_images_are_read_out_of_the_cells_of_parquet(tmp_path, group):
    path = write_parquet(tmp_path / "p" / "train.parquet", group)
    assert bytes_of(path) == EXPECTED
    assert [image.key for image in list_images(str(tmp_path / "p"))][:2] == ["train/00000000", "train/00000001"]
    assert sorted(bytes_of(path), key=EXPECTED.index) == EXPECTED


def test_a_key_column_names_the_images_of_a_table(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", key=[f"k/{n}" for n in range(len(FACES))])
    assert [image.key for image in list_images(str(path))][:2] == ["k/0", "k/1"]


def test_a_plain_column_of_bytes_is_one_of_images_and_two_must_be_chosen_from(tmp_path):
    pq.write_table(pa.table({"photo": EXPECTED, "n": range(6)}), tmp_path / "one.parquet")
    assert bytes_of(tmp_path / "one.parquet") == EXPECTED
    pq.write_table(pa.table({"before": EXPECTED, "after": EXPECTED[::-1]}), tmp_path / "two.parquet")
    with pytest.raises(UserError, match="several columns of images, before, after: choose one with --image-column"):
        list(list_images(str(tmp_path / "two.parquet")))
    assert bytes_of(tmp_path / "two.parquet", Selection(image_column="after")) == EXPECTED[::-1]
    pq.write_table(pa.table({"n": [1]}), tmp_path / "none.parquet")
    with pytest.raises(UserError, match="has no column of images or URLs: it has n"):
        list(list_images(str(tmp_path / "none.parquet")))


def test_an_empty_cell_and_a_row_that_is_gone_are_errors_of_their_image(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [EXPECTED[0], None, EXPECTED[2]]}), path)
    images = list(list_images(str(path)))
    assert fetch(images[2]) == EXPECTED[2]
    with pytest.raises(OSError, match="column image is empty in row 1"):
        fetch(images[1])


@pytest.mark.parametrize("ending", ["csv", "txt", "parquet"])
def test_a_list_of_urls_is_a_source(tmp_path, httpserver, ending):
    for name, data in FACES:
        httpserver.expect_request(f"/faces/{name}").respond_with_data(data)
    urls = [httpserver.url_for(f"/faces/{name}") for name, _ in FACES]
    path = tmp_path / f"list.{ending}"
    if ending == "csv":
        path.write_text("url,age\n" + "\n".join(f"{url},{n}" for n, url in enumerate(urls)))
    elif ending == "txt":
        path.write_text("# faces\n\n" + "\n".join(urls))
    else:
        pq.write_table(pa.table({"url": urls}), path)
    assert bytes_of(path) == EXPECTED
    host = f"{httpserver.host}:{httpserver.port}"
    assert [image.key for image in list_images(str(path))] == [f"{host}/faces/{name}" for name, _ in FACES]


def test_urls_that_differ_in_their_query_have_keys_of_their_own(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("https://host/image.png?id=1\nhttps://host/image.png?id=2\nhttps://host/image.png\n")
    keys = [image.key for image in list_images(str(path))]
    assert len(set(keys)) == 3 and keys[2] == "host/image.png"
    assert all(key.endswith(".png") for key in keys)


@pytest.mark.parametrize(
    "url", ["/etc/passwd", "file:///etc/passwd", "simplecache::file:///etc/passwd", "x", "memory://a"]
)
def test_a_list_may_not_name_what_is_on_this_machine(tmp_path, url):
    path = tmp_path / "list.txt"
    path.write_text(f"{url}\n")
    [image] = list_images(str(path))
    with pytest.raises(PermissionError, match="is not a URL that a list may name: give http"):
        fetch(image)


def test_a_link_out_of_the_source_is_denied_and_one_inside_is_followed(tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "faces" / "a.png").write_bytes(EXPECTED[0])
    (tmp_path / "faces" / "inside.png").symlink_to(tmp_path / "faces" / "a.png")
    (tmp_path / "faces" / "outside.png").symlink_to(tmp_path / "secret.png")
    first, inside, outside = list_images(str(tmp_path / "faces"))
    assert fetch(first) == fetch(inside) == EXPECTED[0]
    with pytest.raises(PermissionError, match="is a link out of the source"):
        fetch(outside)


def test_a_compressed_tar_says_what_to_do(tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    with pytest.raises(UserError, match="is compressed as a whole: unpack it"):
        list(list_images(str(tmp_path / "x.tar.gz")))


class Many(AbstractFileSystem):
    """A bucket with one prefix of very many objects, that counts what it is asked."""

    protocol, cachable = "many", False
    objects = 0
    asked: ClassVar[Counter[str]] = Counter()

    def ls(self, path, detail=True, **_):  # noqa: ARG002
        self.asked["ls"] += 1
        numbers = range(self.objects)
        return [{"name": f"bucket/{n:06d}.png", "size": n, "type": "file", "ETag": f"{n:032x}"} for n in numbers]

    def info(self, path, **_):
        self.asked["info"] += 1
        if path != "bucket":
            raise FileNotFoundError(path)
        return {"name": path, "size": 0, "type": "directory"}


@pytest.fixture
def many(monkeypatch):
    """Sets the number of objects at many://bucket."""
    fsspec.register_implementation("many", Many, clobber=True)
    Many.asked.clear()
    return lambda objects: monkeypatch.setattr(Many, "objects", objects)


def test_many_objects_are_listed_without_a_look_at_each(many):
    many(300_000)
    assert sum(1 for _ in list_images("many://bucket")) == 300_000
    assert Many.asked["ls"] == 1 and Many.asked["info"] < 5


def peak_memory(act: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_listing_takes_little_more_memory_than_the_answer_of_the_store(many):
    many(20_000)
    answer = peak_memory(lambda: Many().ls("bucket"))
    assert peak_memory(lambda: sum(1 for _ in list_images("many://bucket"))) < 1.5 * answer


def test_a_folder_that_cannot_be_listed_is_one_sentence_and_not_left_out(monkeypatch, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(EXPECTED[0])
    ls = LocalFileSystem.ls

    def fails_below_b(self, path, **options):
        if path.endswith("/b"):
            raise OSError("SlowDown")
        return ls(self, path, **options)

    monkeypatch.setattr(LocalFileSystem, "ls", fails_below_b)
    with pytest.raises(UserError, match=r"cannot list the source .*: SlowDown"):
        list(list_images(str(tmp_path)))


def test_hard_inputs_have_a_row_each_and_cost_their_neighbours_nothing(tmp_path):
    def saved(name, image, **options):
        image.save(tmp_path / "in" / name, **options)

    (tmp_path / "in").mkdir()
    face = Image.open(io.BytesIO(EXPECTED[0]))
    saved("with a space.png", face)
    saved("ünï cödé 顔.png", face)
    saved("one.gif", Image.new("P", (1, 1)))
    saved("moving.webp", face, save_all=True, append_images=[Image.new("RGB", face.size)], lossless=True)
    saved("turning.gif", face, save_all=True, append_images=[Image.new("RGB", face.size)])
    (tmp_path / "in" / "empty.png").write_bytes(b"")
    (tmp_path / "in" / "huge.png").write_bytes(whole_png(20_000))
    stand_in_run(tmp_path / "in", tmp_path / "out")
    found = rows(tmp_path / "out")
    assert {key: row["status"] for (key, _, _), row in found.items()} == {
        "with a space.png": "ok",
        "ünï cödé 顔.png": "ok",
        "one.gif": "rejected_size",
        "moving.webp": "ok",
        "turning.gif": "ok",
        "empty.png": "decode_error",
        "huge.png": "rejected_size",
    }
    same = {
        found[key, "glasses", 1.0]["output_sha256"] for key in ("with a space.png", "ünï cödé 顔.png", "moving.webp")
    }
    assert len(same) == 1


# Selections


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["age>=20", "age<50"], [2, 3, 4]),
        (["age != 0"], [1, 2, 3, 4, 5]),
        (["age=30"], [3]),
        (["smile==true"], [0, 2, 4]),
        (["smile = False", "age > 10"], [3, 5]),
    ],
)
def test_conditions_on_columns_choose_images(tmp_path, texts, expected):
    path = write_tar(tmp_path / "x.tar")
    chosen = bytes_of(path, Selection(where=tuple(map(Condition.parse, texts))))
    assert [EXPECTED.index(data) for data in chosen] == expected


def test_numbers_of_a_tar_that_are_none_are_carried_as_text(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "a.json", b'{"score": [NaN, 1e999, {"x": -Infinity}, 1e3]}')
        add(tar, "a.png", FACES[0][1])
    [image] = list_images(str(tmp_path / "x.tar"), Selection(columns=("score",)))
    assert image.columns["score"] == ["NaN", "1e999", {"x": "-Infinity"}, 1000.0]


def test_a_condition_that_makes_no_sense_is_one_sentence(tmp_path):
    path = write_tar(tmp_path / "x.tar")
    with pytest.raises(UserError, match="'age' is no condition: write it as column=value"):
        Condition.parse("age")
    for text, sentence in {
        "height=3": "the image '.*' has no column 'height' to select by: it has age, smile",
        "age=old": "'old' is none",
    }.items():
        with pytest.raises(UserError, match=sentence):
            bytes_of(path, Selection(where=(Condition.parse(text),)))


def test_a_sample_is_the_same_images_wherever_they_are_and_about_the_share(tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(f"https://host/{n}.png" for n in range(2000)))
    (tmp_path / "part.txt").write_text("\n".join(f"https://host/{n}.png" for n in range(1999, 999, -1)))
    whole = {image.key for image in list_images(str(tmp_path / "list.txt"), Selection(share=0.1))}
    part = {image.key for image in list_images(str(tmp_path / "part.txt"), Selection(share=0.1))}
    assert 150 < len(whole) < 250
    assert part < whole
    assert len(list(list_images(str(tmp_path / "list.txt"), Selection(share=0.1, limit=7)))) == 7


# Runs


@pytest.mark.usefixtures("without_ray")
def test_a_tar_is_edited_with_its_columns_in_the_manifest_and_a_run_is_a_source(tmp_path):
    path = write_tar(tmp_path / "x.tar", {0: "../../x"})
    selected = {"where": ["age<40"], "columns": ["age"], "shard_size": 2}
    first = run(spec(path, tmp_path / "out", **selected))
    assert exit_code(first.outcome) == 0
    found = rows(tmp_path / "out")
    assert [json.loads(row["source_columns"]) for row in found.values()] == [{"age": 10 * n} for n in range(4)]
    assert {row["status"] for row in found.values()} == {"ok"}
    assert next(iter(found.values()))["key"] == "%2E%2E/%2E%2E/x.png"
    second = run(spec(tmp_path / "out", tmp_path / "again", columns=["edit", "source_key"]))
    assert exit_code(second.outcome) == 0
    again = rows(tmp_path / "again")
    assert len(again) == 4
    for row in again.values():
        columns = json.loads(row["source_columns"])
        assert columns["edit"] == "glasses" and columns["source_key"] in {key for key, _, _ in found}


@pytest.mark.slow
@pytest.mark.usefixtures("without_ray")
def test_parquet_gives_the_same_edits_as_files(tmp_path):
    write_parquet(tmp_path / "x.parquet", 2, key=[name for name, _ in FACES])
    run(spec(tmp_path / "x.parquet", tmp_path / "cells"))
    folder = tmp_path / "files"
    folder.mkdir()
    for name, data in FACES:
        (folder / name).write_bytes(data)
    run(spec(folder, tmp_path / "plain"))
    digests = [{key: row["output_sha256"] for key, row in rows(tmp_path / root).items()} for root in ("cells", "plain")]
    assert digests[0] == digests[1]
    assert len(digests[0]) == len(FACES)
