"""Tars as people have them: samples with sidecars, what macOS adds, and headers that make no sense."""

import io
import json
import os
import random
import struct
import tarfile
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyrp.errors import UserError
from pipeline.images.fetch import fetch
from pipeline.images.selection import ALL, Selection
from pipeline.images.skipped import Skipped
from pipeline.images.source import SourceImage
from pipeline.sources.listing import list_images
from pipeline.storage.text import is_text

JSON = Selection(columns=("age",))


def member(name: str, data: bytes = b"image", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def write_tar(path, *members, **options):
    with tarfile.open(path, "w", **options) as tar:
        for found in members:
            info, data = found if isinstance(found, tuple) else member(found, found.encode())
            tar.addfile(info, io.BytesIO(data))
    return path


def listed(path, selection=ALL, skipped=None) -> list[SourceImage]:
    return list(list_images(str(path), selection, skipped))


def keys_of(path, selection=ALL) -> list[str]:
    return [image.key for image in listed(path, selection)]


def test_what_macos_adds_to_a_tar_is_no_image(tmp_path):
    names = ["./._a.png", "./a.png", "__MACOSX/._a.png", "__MACOSX/a.png", "x/.DS_Store", "x/b.png", "._PaxHeader"]
    assert keys_of(write_tar(tmp_path / "x.tar", *names)) == ["a.png", "x/b.png"]


SAMPLE = ["0001.jpg", "0001.json", "0001.seg.png", "0001.txt", "0002.jpg", "0002.seg.png"]


def test_a_sample_has_one_image_and_its_masks_are_counted(tmp_path):
    skipped = Skipped()
    images = listed(write_tar(tmp_path / "x.tar", *SAMPLE), skipped=skipped)
    assert [fetch(image) for image in images] == [b"0001.jpg", b"0002.jpg"]
    assert skipped.counts == {".png": 2, ".txt": 1}


@pytest.mark.parametrize("ending", ["seg.png", ".seg.png", "SEG.PNG"])
def test_the_ending_of_the_images_may_be_chosen(tmp_path, ending):
    path = write_tar(tmp_path / "x.tar", *SAMPLE)
    assert keys_of(path, Selection(image_column=ending)) == ["0001.seg.png", "0002.seg.png"]
    assert keys_of(path, Selection(image_column="jpg")) == ["0001.jpg", "0002.jpg"]
    assert keys_of(path, Selection(image_column="none")) == []


def test_images_without_a_clear_choice_are_all_images(tmp_path):
    names = ["a/1.jpg", "a/1.png", "2.left.png", "2.right.png", "photo.2024.01.jpg", "photo.2024.02.jpg"]
    assert keys_of(write_tar(tmp_path / "x.tar", *names)) == names


def test_links_and_devices_are_no_images_and_links_are_counted(tmp_path):
    links = [
        member(f"{kind.decode()}.png", b"", type=kind, linkname="a.png") for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)
    ]
    devices = [member(f"{kind.decode()}.png", b"", type=kind) for kind in (tarfile.CHRTYPE, tarfile.FIFOTYPE)]
    skipped = Skipped()
    images = listed(write_tar(tmp_path / "x.tar", "a.png", *links, *devices), skipped=skipped)
    assert [image.key for image in images] == ["a.png"]
    assert skipped.counts == {"not followed as links": 2}


def test_tars_that_follow_each_other_in_a_file_are_all_read(tmp_path):
    for name in ("a", "b", "c"):
        write_tar(tmp_path / f"{name}.tar", f"{name}1.png", f"{name}2.png")
    whole = b"".join((tmp_path / f"{name}.tar").read_bytes() for name in "abc")
    (tmp_path / "x.tar").write_bytes(whole)
    images = listed(tmp_path / "x.tar")
    assert [fetch(image).decode() for image in images] == [f"{name}{n}.png" for name in "abc" for n in (1, 2)]


@pytest.mark.parametrize("rest", [b"x", b"x" * 10_000, os.urandom(2000)])
def test_a_tar_with_something_behind_it_is_one_sentence(tmp_path, rest):
    path = write_tar(tmp_path / "x.tar", "a.png")
    path.write_bytes(path.read_bytes() + rest)
    with pytest.raises(UserError, match=r"is no whole tar: from byte 10,240 on it is no tar"):
        listed(path)


def test_a_damaged_header_does_not_lose_the_rest_silently(tmp_path):
    path = write_tar(tmp_path / "x.tar", "a.png", "b.png", "c.png")
    data = bytearray(path.read_bytes())
    data[1024:1100] = random.Random(0).randbytes(76)
    path.write_bytes(data)
    with pytest.raises(UserError, match="is no whole tar"):
        listed(path)


def raw_header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    header = bytearray(struct.pack("100s8s8s8s12s12s8s1s100s6s2s", name, b"0000644\0", b"0" * 7, b"0" * 7, size,
                                   b"0" * 11, b" " * 8, kind, b"", b"ustar\0", b"00"))  # fmt: skip
    header += bytes(512 - len(header))
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    "size",
    [
        b"\xff" * 12, b"\xff" * 11 + b"\x01", b"\x80" + b"\x00" * 3 + b"\x7f" + b"\xff" * 7, b"\x80" + b"\xff" * 11,
        b"77777777777", b"notanumber", b"-0000000001",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"g", b"S"])
def test_a_size_that_makes_no_sense_is_one_sentence_and_no_memory(tmp_path, size, kind):
    good = write_tar(tmp_path / "good.tar", "a.png").read_bytes()[:1024]
    (tmp_path / "x.tar").write_bytes(good + raw_header(b"b.png", size, kind) + bytes(10_240))
    tracemalloc.start()
    try:
        found = listed(tmp_path / "x.tar")
        assert kind == b"S" and len(found) == 2, "a sparse member is a row"
    except UserError as error:
        assert "is no whole tar" in str(error)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    "pax",
    [
        {"GNU.sparse.size": "x"}, {"GNU.sparse.map": "1,2,x"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        {"size": "-512"}, {"size": "9" * 30}, {"size": "1e5"}, {"path": ""}, {"path": "x" * 5_000 + ".png"},
        {"GNU.sparse.size": "5", "GNU.sparse.numblocks": "1", "GNU.sparse.realsize": "9" * 30}, {"mtime": "x"},
    ],
)  # fmt: skip
def test_attributes_that_make_no_sense_are_a_row_or_one_sentence(tmp_path, pax):
    path = write_tar(tmp_path / "x.tar", "a.png", member("b.png", pax_headers=pax), "c.png", format=tarfile.PAX_FORMAT)
    try:
        images = listed(path)
    except UserError as error:
        assert "is no whole tar" in str(error)
    else:
        assert images[0].key == "a.png"


def test_a_chain_of_headers_is_one_sentence(tmp_path):
    chain = (raw_header(b"x", b"00000000000", b"x")) * 20_000
    (tmp_path / "x.tar").write_bytes(chain + raw_header(b"a.png", b"00000000000") + bytes(10_240))
    with pytest.raises(UserError, match="a header is damaged: RecursionError"):
        listed(tmp_path / "x.tar")


def test_a_sparse_member_is_a_row_and_costs_its_neighbours_nothing(tmp_path):
    sparse = {"GNU.sparse.map": "0,5", "GNU.sparse.size": "5000"}
    path = write_tar(
        tmp_path / "x.tar", "a.png", member("b.png", pax_headers=sparse), "c.png", format=tarfile.PAX_FORMAT
    )
    first, middle, last = listed(path)
    assert (fetch(first), fetch(last)) == (b"a.png", b"c.png")
    with pytest.raises(PermissionError, match="is a sparse member of a tar"):
        fetch(middle)


@pytest.mark.parametrize("name", ["caf\udce9.png", "a\nb.png", "x" * 3000 + ".png", "ü" * 90 + ".png"])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_member_of_any_name_is_read(tmp_path, name, form):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for each in ("a.png", name):
            info, data = member(each)
            tar.addfile(info, io.BytesIO(data))
    images = listed(path)
    assert len(images) == 2 and all(is_text(f"{image.key}{image.member}") for image in images)
    assert [fetch(image) for image in images] == [b"image", b"image"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"[" * 100_000, "is no JSON"),
        (b'{"age":' * 50_000, "is no JSON"),
        (b"{", "is no JSON"),
        (b"\xff\xfe{}", "is no JSON"),
        (b"9" * 5_000, "is no JSON"),
        (b" " * 10_000_001, "has 10,000,001 bytes: JSON may have 10,000,000"),
    ],
)
def test_a_json_member_without_sense_or_bounds_is_one_sentence(tmp_path, data, sentence):
    path = write_tar(tmp_path / "x.tar", member("1.json", data), "1.png")
    with pytest.raises(UserError, match=sentence):
        listed(path, JSON)
    assert keys_of(path) == ["1.png"]


def test_the_columns_of_a_sample_are_read_in_a_tar_that_follows_another(tmp_path):
    for number in (1, 2):
        write_tar(
            tmp_path / f"{number}.tar", member(f"{number}.json", json.dumps({"age": number}).encode()), f"{number}.png"
        )
    (tmp_path / "x.tar").write_bytes(b"".join((tmp_path / f"{n}.tar").read_bytes() for n in (1, 2)))
    assert [image.columns["age"] for image in listed(tmp_path / "x.tar", JSON)] == [1, 2]


def test_a_tar_of_nothing_is_no_error(tmp_path):
    assert listed(write_tar(tmp_path / "x.tar")) == []


@given(st.data())
def test_a_tar_with_any_bytes_changed_is_read_or_one_sentence(tmp_path_factory, data):
    path = write_tar(tmp_path_factory.mktemp("tar") / "x.tar", "a.png", "x" * 120 + ".png", "b.json", "b.png")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, 5_000))
        content[at : at + 1] = data.draw(st.binary(min_size=1, max_size=12))
    path.write_bytes(content)
    try:
        for image in listed(path):
            assert is_text(image.key) and (image.size or 0) < len(content)
    except UserError as error:
        assert "is no whole tar" in str(error)
