"""Folders as people have them: odd names, links, pipes, what systems leave behind, and what is not read."""

import os
import socket
import subprocess
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asyrp.errors import UserError
from pipeline.images.fetch import fetch
from pipeline.images.selection import ALL, Condition, Selection
from pipeline.images.skipped import MOST_ENDINGS, Skipped, not_read
from pipeline.images.source import DENIED, SourceImage, escaped
from pipeline.run.plan import write_plan
from pipeline.sources.files import is_clutter
from pipeline.sources.listing import list_images
from pipeline.storage.store import Store
from tests.support.servers import moto, reached

GLOB_NAMES = ["photos [2024]", "a*b", "x?", "[", "]", "[!a]", "**", "{a,b}", "a[b]c*d?"]


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode(errors="surrogateescape"))
    return root


def listed(source) -> dict[str, SourceImage]:
    return {image.key: image for image in list_images(str(source))}


def denials(source) -> dict[str, str]:
    """The sentences of the images that are denied, by key."""
    return {key: image.uri for key, image in listed(source).items() if image.uri.startswith(DENIED)}


@pytest.mark.parametrize("name", GLOB_NAMES)
def test_a_folder_may_have_the_signs_of_a_glob_in_its_name(tmp_path, name):
    make(tmp_path, f"{name}/a.png", f"{name}/b/c.png", "photos 2/d.png", "ab/e.png", "x1/f.png")
    assert list(listed(tmp_path / name)) == ["a.png", "b/c.png"]
    assert list(listed(f"{tmp_path}/{name}/*.png")) == ["a.png"]
    assert list(listed(f"{tmp_path}/{name}/*/c.*")) == ["b/c.png"]
    assert list(listed(f"{tmp_path}/{name}/**/*.png")) == ["a.png", "b/c.png"]
    assert [fetch(image) for image in listed(f"{tmp_path}/{name}/*.png").values()] == [f"{name}/a.png".encode()]


def test_a_table_may_have_the_signs_of_a_glob_in_its_name(tmp_path):
    (tmp_path / "list [1].txt").write_text("https://host/a.png\n")
    assert list(listed(tmp_path / "list [1].txt")) == ["host/a.png"]


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("*.png", ["a.png"]),
        ("*/*.png", ["x/b.png", "y/d.png"]),
        ("x/*", ["b.png"]),
        ("**/*.png", ["a.png", "x/b.png", "x/z/c.png", "y/d.png"]),
        ("x/**", ["b.png", "z/c.png"]),
        ("?/z/*", ["x/z/c.png"]),
        ("[xy]/[bd].png", ["x/b.png", "y/d.png"]),
        ("**/z/*.png", ["x/z/c.png"]),
    ],
)
def test_a_glob_chooses_files_and_its_keys_begin_at_its_first_wildcard(tmp_path, pattern, keys):
    make(tmp_path, "a.png", "x/b.png", "x/z/c.png", "y/d.png", "y/d.txt")
    assert list(listed(f"{tmp_path}/{pattern}")) == keys


def test_a_glob_does_not_enter_folders_that_cannot_match(tmp_path):
    make(tmp_path, "a/x.png", "b/x.png")
    (tmp_path / "b" / "locked").mkdir()
    fs = fsspec.filesystem("file")
    seen = []
    ls = type(fs).ls
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(fs), "ls", lambda self, path, **options: seen.append(path) or ls(self, path, **options))
        assert list(listed(f"{tmp_path}/a*/*.png")) == ["a/x.png"]
    assert f"{tmp_path}/b" not in seen


@pytest.mark.parametrize("pattern", ["*.jpg", "nothing/*.png", "a**/x.png"])
def test_a_glob_that_matches_nothing_is_one_sentence(tmp_path, pattern):
    make(tmp_path, "a.png")
    with pytest.raises(UserError, match=r"matches no file|is no glob|cannot list the source"):
        listed(f"{tmp_path}/{pattern}")


def test_names_with_the_signs_of_globs_and_second_slashes_are_listed_on_an_object_store(tmp_path):
    with moto(tmp_path, tmp_path) as server, reached(server):
        store = Store(f"{server.bucket}/root")
        names = ["photos [2024]/a.png", "photos//x.png", "photos//y//z.png", "photos/b.png", "photos//.hidden/c.png"]
        for name in names:
            store.fs.pipe_file(store.path(name), name.encode())
        assert list(listed(f"{store.url}/photos [2024]")) == ["a.png"]
        assert list(listed(f"{store.url}/photos [2024]/*.png")) == ["a.png"]
        found = listed(f"{store.url}/photos")
        assert sorted(found) == ["%2Fx.png", "%2Fy/%2Fz.png", "b.png"]
        assert {fetch(image) for image in found.values()} == {name.encode() for name in names[1:4]}


# Names that are not UTF-8


def test_a_name_that_is_not_utf8_costs_its_neighbours_nothing(tmp_path):
    make(tmp_path, os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"\xff\xfe/b.png"), "ok.png", "ünï.png")
    found = listed(tmp_path)
    assert set(found) == {"caf%E9.png", "%FF%FE/b.png", "ok.png", "ünï.png"}
    assert fetch(found["ok.png"]) == b"ok.png"
    with pytest.raises(PermissionError, match="its name is not UTF-8: rename it"):
        fetch(found["caf%E9.png"])
    plan = write_plan(Store(str(tmp_path.parent / "out")), found.values(), 2, lambda key: [key])
    assert plan.images == 4


@pytest.mark.parametrize("text", ["\udce9", "\ud800", "a\udcffb\ud83d", "ü\udc80"])
def test_what_is_escaped_is_utf8(text):
    assert escaped(text).encode()


# Links


@pytest.fixture
def linked(tmp_path):
    root = make(tmp_path / "in", "a.png", "b/c.png")
    make(tmp_path / "out", "secret.png", "secret.tar", "secret.parquet", "deep/secret.png", "notes.txt")
    return root


def test_links_out_of_a_source_are_denied_whatever_they_lead_to(linked):
    out = linked.parent / "out"
    for name in ("secret.png", "secret.tar", "secret.parquet"):
        (linked / name).symlink_to(out / name)
    (linked / "folder").symlink_to(out / "deep")
    (linked / "all").symlink_to(out)
    (linked / "up.png").symlink_to("../out/secret.png")
    (linked / "chain.png").symlink_to(linked / "next.png")
    (linked / "next.png").symlink_to(linked / "b" / "last.png")
    (linked / "b" / "last.png").symlink_to(out / "secret.png")
    (linked / "notes.txt").symlink_to(out / "notes.txt")
    found = denials(linked)
    assert all("is a link out of the source" in sentence for sentence in found.values())
    assert set(found) == {
        *(
            "secret.png",
            "secret.tar",
            "secret.parquet",
            "folder",
            "all",
            "up.png",
            "chain.png",
            "next.png",
            "b/last.png",
        )
    }
    assert set(listed(linked)) - set(found) == {"a.png", "b/c.png"}
    assert set(denials(f"{linked}/*.png")) == {"secret.png", "up.png", "chain.png", "next.png"}
    assert "folder" in denials(f"{linked}/**/*.png")


def test_links_within_a_source_are_followed(linked):
    (linked / "image.png").symlink_to("b/c.png")
    (linked / "chain.png").symlink_to("image.png")
    (linked / "folder").symlink_to("b")
    found = listed(linked)
    assert set(found) == {"a.png", "b/c.png", "image.png", "chain.png", "folder/c.png"}
    assert {fetch(found[key]) for key in found if key != "a.png"} == {b"b/c.png"}


def test_a_source_may_itself_be_a_link(linked):
    (linked.parent / "link").symlink_to(linked)
    assert set(listed(linked.parent / "link")) == {"a.png", "b/c.png"}


def test_links_that_lead_in_circles_or_nowhere_end(linked):
    (linked / "self.png").symlink_to("self.png")
    (linked / "x.png").symlink_to("y.png")
    (linked / "y.png").symlink_to("x.png")
    (linked / "gone.png").symlink_to("nothing")
    (linked / "root").symlink_to(".")
    (linked / "b" / "up").symlink_to("..")
    (linked / "loop").symlink_to("loop")
    skipped = Skipped()
    found = {image.key: image for image in list_images(str(linked), skipped=skipped)}
    assert {key for key, image in found.items() if "leads nowhere" in image.uri} == {
        "self.png", "x.png", "y.png", "gone.png",
    }  # fmt: skip
    assert {key for key in found if "leads nowhere" not in found[key].uri} == {"a.png", "b/c.png"}
    assert skipped.counts == {"not followed as links": 2, "without an ending": 1}


def test_many_links_to_one_folder_do_not_multiply(tmp_path):
    for level in range(12):
        make(tmp_path, f"{level}/x.png")
        for number in range(4):
            (tmp_path / str(level) / f"l{number}").symlink_to(tmp_path / str((level + 1) % 12))
    assert len(listed(tmp_path)) <= 24


def test_folders_may_be_very_deep(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        fd, before = os.open("d", os.O_RDONLY, dir_fd=fd), fd
        os.close(before)
    os.close(fd)
    make(tmp_path, "a.png")
    try:
        assert list(listed(tmp_path)) == ["a.png"]
    finally:
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # shutil and pytest call themselves for each folder


# What is no file


def test_pipes_sockets_and_devices_are_never_opened(tmp_path, monkeypatch):
    make(tmp_path, "ok.png")
    for name in ("pipe.png", "pipe.tar", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the path of a socket must be short
        server.bind("socket.png")
        found = denials(tmp_path)
    assert set(found) == {"pipe.png", "pipe.tar", "pipe.parquet", "device.png", "link.png", "socket.png"}
    assert "is not a regular file" in found["pipe.png"] and "is a link out" in found["device.png"]
    assert fetch(listed(tmp_path)["ok.png"]) == b"ok.png"


@pytest.mark.parametrize("name", ["x.csv", "x.txt", "x.tar", "x.parquet"])
def test_a_source_that_is_a_pipe_is_one_sentence(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is not a regular file"):
        listed(tmp_path / name)


# What is no image, and what is not read


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("._a.png", True), (".a.png", True), ("__MACOSX/a.png", True), ("x/@eaDir/a.png", True), ("Thumbs.db", True),
        ("x/.DS_Store", True), ("desktop.ini", True), ("./a.png", False), ("../a.png", False), ("a.b.png", False),
    ],
)  # fmt: skip
def test_what_systems_leave_beside_images_is_clutter(name, expected):
    assert is_clutter(name) == expected


def test_clutter_is_neither_listed_nor_counted(tmp_path):
    make(tmp_path, "a.png", "._a.png", "__MACOSX/a.png", "@eaDir/a.png", "Thumbs.db", ".DS_Store", "x/.git/b.png")
    for source in (tmp_path, f"{tmp_path}/**/*.png", f"{tmp_path}/*"):
        skipped = Skipped()
        assert [image.key for image in list_images(str(source), skipped=skipped)] == ["a.png"]
        assert not skipped.counts


def test_what_is_not_read_is_counted_by_its_ending(tmp_path):
    make(tmp_path, "a.png", "b.HEIC", "c.heic", "x/d.txt", "README", "e.x\x1b[31m", "png")
    skipped = Skipped()
    list(list_images(str(tmp_path), skipped=skipped))
    assert not_read(skipped.counts) == "2 .heic, 2 without an ending, 1 .txt, 1 with other endings"


def test_counts_of_very_many_endings_take_little_memory():
    skipped = Skipped()
    for number in range(1000):
        skipped.add(f"a.{number}")
    assert len(skipped.counts) <= MOST_ENDINGS + 1 and sum(skipped.counts.values()) == 1000


def test_a_source_in_which_nothing_is_read_says_what_there_is(tmp_path):
    make(tmp_path / "in", "b.heic", "c.heic", "d.txt")
    skipped = Skipped()
    with pytest.raises(UserError, match=r"holds no images .*; not read: 2 .heic, 1 .txt"):
        images = list_images(str(tmp_path / "in"), skipped=skipped)
        write_plan(Store(str(tmp_path / "out")), images, 8, lambda key: [key], skipped=skipped)


def refusal(source: Path, selection: Selection = ALL) -> str:
    skipped, store = Skipped(), Store(str(source.parent / "out"))
    with pytest.raises(UserError) as refused:
        images = list_images(str(source), selection, skipped)
        write_plan(store, images, 8, lambda key: [key], skipped=skipped, selection=selection)
    return str(refused.value)


def test_a_source_of_which_nothing_is_meant_says_by_what_and_names_endings_of_folders_alone(tmp_path):
    make(tmp_path / "in", "a.png")
    make(tmp_path / "texts", "a.txt")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "empty.parquet")
    pq.write_table(pa.table({"image": [b"1"], "age": [3]}), tmp_path / "one.parquet")
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        tar.add(tmp_path / "in" / "a.png", "a.png")
    nothing = "the source holds no images that are meant"
    assert refusal(tmp_path / "empty.parquet") == nothing
    where = Selection(where=(Condition.parse("age>3"),))
    assert refusal(tmp_path / "one.parquet", where) == f"{nothing}: nothing in it fits --where 'age > 3'"
    column = Selection(image_column="nope.png")
    assert (
        refusal(tmp_path / "one.tar", column)
        == f"{nothing}: nothing in it fits --image-column 'nope.png'; not read: 1 .png"
    )
    assert refusal(tmp_path / "in", Selection(share=0.0)) == f"{nothing}: nothing in it fits --sample 0"
    for source in (tmp_path / "texts", tmp_path / "texts" / "*"):
        assert refusal(source).startswith(f"{nothing}: nothing that ends in .png, ")
