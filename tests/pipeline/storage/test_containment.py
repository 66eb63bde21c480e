"""A store reads, writes and deletes below its root only, whatever names it is given."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.storage.store import NotAFile, OutsideRoot, Store

ACTS: dict[str, Callable[[Store, str], Any]] = {
    "read": lambda store, name: store.read(name),
    "exists": lambda store, name: store.exists(name),
    "write": lambda store, name: store.write(name, b"harm"),
    "create": lambda store, name: store.create(name, b"harm"),
    "entries": lambda store, name: store.entries(name),
    "files": lambda store, name: store.files(name),
    "names": lambda store, name: list(store.names(name)),
    "delete": lambda store, name: store.delete(name),
}
PARTS = ("..", ".", "", "out", "in", "self", "a", "data", "*", "[a]", "~", "\0", "victim", "x.png", "file:")


def lay(folder: Path) -> Path:
    """A root with links out of it and into it, beside a victim; the root."""
    root = folder / "root"
    for place in (root / "data", folder / "victim" / "data"):
        place.mkdir(parents=True)
        (place / "x.png").write_bytes(b"pixels")
    (root / "out").symlink_to(folder / "victim")
    (root / "in").symlink_to(root / "data")
    (root / "self").symlink_to("self")
    (root / "data" / "x-out.png").symlink_to(folder / "victim" / "data" / "x.png")
    return root


def outside(folder: Path) -> dict[str, bytes | None]:
    everything = {path for path in folder.rglob("*") if folder / "root" not in (path, *path.parents)}
    return {str(path): path.read_bytes() if path.is_file() else None for path in everything}


@settings(deadline=None, max_examples=300)
@given(
    act=st.sampled_from(sorted(ACTS)),
    parts=st.lists(st.sampled_from(PARTS), max_size=5),
    leads=st.sampled_from(["", "/"]),
)
def test_no_name_reaches_anything_outside_the_root(tmp_path_factory, act, parts, leads):
    folder = tmp_path_factory.mktemp("contained")
    try:
        store, before = Store(str(lay(folder))), outside(folder)
        name = leads + "/".join(parts)
        try:
            answer = ACTS[act](store, name)
        except (OutsideRoot, NotAFile, OSError):
            answer = None
        assert outside(folder) == before and (folder / "root").is_dir()
        if (
            leads
            or ".." in parts
            or "\0" in name
            or (parts[:1] == ["out"] and (act != "delete" or len(set(parts[1:]) - {"", "."})))
        ):
            assert answer is None
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("name", ["../victim/x", "/victim/x", "a/../../victim/x", "a\0b"])
def test_a_name_that_climbs_is_one_sentence_on_any_filesystem(act, name):
    with pytest.raises(OutsideRoot, match=r"outside the root memory://.* was changed by somebody"):
        ACTS[act](Store(f"memory://{uuid.uuid4().hex}"), name)


def test_a_file_that_is_a_link_out_of_the_root_is_not_read(tmp_path):
    store = Store(str(lay(tmp_path)))
    with pytest.raises(OutsideRoot, match=r"'data/x-out.png' leads through a link outside the root"):
        store.read("data/x-out.png")
    assert store.read("in/x.png") == b"pixels"


def test_a_root_may_be_a_link_or_lie_behind_one(tmp_path):
    lay(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "alias").symlink_to(tmp_path / "root")
    for url in (tmp_path / "link" / "root", tmp_path / "alias"):
        store = Store(str(url))
        assert store.read("data/x.png") == b"pixels"
        store.write("data/new.png", b"new")
        assert [entry.name for entry in store.entries("data") if entry.is_file] != []


def test_of_a_link_only_the_link_is_deleted(tmp_path):
    store = Store(str(lay(tmp_path)))
    before = outside(tmp_path)
    for name in ("out", "data/x-out.png", "self"):
        store.delete(name)
        assert not os.path.lexists(store.path(name))
    store.delete("data")
    assert outside(tmp_path) == before


@pytest.mark.parametrize("name", ["", ".", "/", "./", "//"])
def test_a_root_is_never_deleted(tmp_path, name):
    store = Store(str(lay(tmp_path)))
    with pytest.raises(OutsideRoot):
        store.delete(name)
    assert store.exists("data/x.png")


@pytest.mark.parametrize("folder", ["out [1]", "o*t", "wh?t"])
@pytest.mark.parametrize("name", ["*", "a", "[ab]", "b?"])
def test_what_is_deleted_is_a_name_and_no_pattern(tmp_path, folder, name):
    for url in (str(tmp_path / folder), f"memory://{uuid.uuid4().hex}/{folder}"):
        store = Store(url)
        others = ["a1", "b1", "ab/x"]
        for each in (*others, name + "/x", name + "-"):
            store.write(each, b"x")
        store.delete(name)
        assert not store.exists(name + "/x")
        assert all(store.exists(each) for each in (*others, name + "-"))
        store.delete(name + "-")
        assert not store.exists(name + "-") and all(store.exists(each) for each in others)
    MemoryFileSystem.store.clear()
