"""Tables as people write them: keys are text, types are those of Arrow, and what cannot be read is one sentence."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyrp.errors import UserError
from pipeline.images import fetch as fetching
from pipeline.images.fetch import Changed, ParquetCells, fetch
from pipeline.images.objects import TooLarge
from pipeline.images.selection import ALL, Cell, Condition, Selection
from pipeline.images.source import DENIED, SourceImage
from pipeline.sources.listing import list_images
from pipeline.sources.tables import KEY
from tests.support.runs import SAMPLES

IMAGES = [path.read_bytes() for path in sorted(SAMPLES.glob("*.png"))[:4]]


def listed(path, selection=ALL) -> list[SourceImage]:
    return list(list_images(str(path), selection))


def keys_of(path, selection=ALL) -> list[str]:
    return [image.key for image in listed(path, selection)]


def write_csv(path, *rows: str, encoding="utf-8"):
    path.write_bytes("".join(f"{row}\n" for row in rows).encode(encoding))
    return path


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


# CSV


def test_the_keys_of_a_csv_file_are_text_as_it_is_written(tmp_path):
    keys = ["00000", "007", "7", "12345678901234567890123", "2024-01-05", "1e3", "true", "NA", "1.50"]
    path = write_csv(tmp_path / "x.csv", "url,key", *(f"https://host/{n}.png,{key}" for n, key in enumerate(keys)))
    assert keys_of(path) == keys


@given(st.lists(st.text("01.-+eE~ax", min_size=1, max_size=12), min_size=1, max_size=5))
def test_a_carried_cell_says_in_json_what_the_table_says(texts):
    for text in texts:
        carried = Cell(text).carried()
        assert (carried if isinstance(carried, str) else json.dumps(carried)) == text


@pytest.mark.parametrize(
    ("condition", "chosen"),
    [
        ("age>=9", ["a", "b", "c"]),
        ("age<10", ["a"]),
        ("age=9", ["a"]),
        ("age!=9", ["b", "c", "e"]),
        ("age=NA", ["e"]),
        ("big=9007199254740993", ["b"]),
        ("name<b", ["c"]),
        ("smile=TRUE", ["a", "b"]),
    ],
)
def test_a_condition_compares_the_numbers_of_a_csv_file_as_numbers(tmp_path, condition, chosen):
    path = write_csv(
        tmp_path / "x.csv",
        "url,key,age,big,name,smile",
        "https://h/a,a,09,9007199254740992,cat,true",
        "https://h/b,b,10,9007199254740993,bee,True",
        "https://h/c,c,1e2,9007199254740994,ant,false",
        "https://h/d,d,,1,dog,",
        "https://h/e,e,NA,1,elk,false",
    )
    assert keys_of(path, Selection(where=(Condition.parse(condition),))) == chosen


def test_a_column_that_is_carried_is_as_it_is_written_and_still_a_number_where_it_can_be(tmp_path):
    path = write_csv(tmp_path / "x.csv", "url,id,age,zip", "https://h/a,00123456789012345678,30,02134")
    [image] = listed(path, Selection(columns=("id", "age", "zip"), where=(Condition.parse("zip>2000"),)))
    assert image.columns == {"id": "00123456789012345678", "age": 30, "zip": "02134"}


def test_a_column_that_is_carried_is_json_whatever_numbers_it_holds(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", url=["https://h/a"] * 3, score=[float("nan"), float("-inf"), 0.5])
    images = listed(path, Selection(columns=("score",)))
    assert [image.columns["score"] for image in images] == [None, "-inf", 0.5]


def test_an_empty_key_is_no_key(tmp_path):
    path = write_csv(tmp_path / "x.csv", "url,key", "https://host/a.png,", "https://host/b.png,b")
    assert keys_of(path) == ["host/a.png", "b"]
    path = write_parquet(tmp_path / "x.parquet", image=IMAGES[:3], key=["a", None, ""])
    assert keys_of(path) == ["a", "00000001", "00000002"]


def test_a_csv_file_may_have_a_byte_order_mark_and_cells_of_several_lines(tmp_path):
    path = write_csv(
        tmp_path / "x.csv", "url,key,text", 'https://h/a,"a","two\nlines, and ""quotes"""', encoding="utf-8-sig"
    )
    [image] = listed(path, Selection(columns=("text",)))
    assert (image.key, image.columns["text"]) == ("a", 'two\nlines, and "quotes"')


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("url,key\nhttps://h/a,b\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (b"url,k\xe9y\nhttps://h/a,b\n", "is not UTF-8 in its first line"),
        (b"url,key\nhttps://h/a,b\nhttps://h/b,caf\xe9\n", r"row 2 of .* is not UTF-8 \(line 3"),
        (b"", "cannot be read as CSV: Empty CSV file"),
        (b"url,key\nhttps://h/a\n", "cannot be read as CSV: .*Expected 2 columns"),
        (b'url,key\nhttps://h/a,"b\n' + b"x\n" * 1_000_000, "a row of over 1,000,000 bytes, or an open quote"),
        (b"url,key,key\nhttps://h/a,b,c\n", "2 columns 'key': rename all but one"),
        (b"a,b\n1,2\n", "has no column 'url': it has a, b; give --image-column"),
        (",".join(map(str, range(5000))).encode() + b"\n", "has no column 'url': it has 0, 1, .* and 4,970 more"),
    ],
)
def test_a_csv_file_that_cannot_be_read_is_one_sentence(tmp_path, content, sentence):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        listed(tmp_path / "x.csv")


# Lists


def test_a_list_may_have_a_byte_order_mark(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfhttps://host/a.png\r\nhttps://host/b.png\n")
    assert [image.uri for image in listed(tmp_path / "x.txt")] == ["https://host/a.png", "https://host/b.png"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"https://h/a\nhttps://h/caf\xe9\n", "line 2 of .* is not UTF-8"),
        ("https://h/a\n".encode("utf-16"), "line 1 of .* is not UTF-8"),
        (b"https://h/a\n" + b"x" * 200_000, "line 2 of .* has over 100,000 letters"),
    ],
)
def test_a_list_that_cannot_be_read_is_one_sentence_with_the_line(tmp_path, content, sentence):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        listed(tmp_path / "x.txt")


@pytest.mark.parametrize(
    "url", ["http://[::1/x.png", "http://[x]y/z.png", "https://h/\x00", "s3://", "//", "http:///a"]
)
def test_a_line_that_is_no_url_costs_its_neighbours_nothing(tmp_path, url):
    (tmp_path / "x.txt").write_text(f"https://host/a.png\n{url}\nhttps://host/b.png\n")
    first, _, last = listed(tmp_path / "x.txt")
    assert [first.key, last.key] == ["host/a.png", "host/b.png"]


def test_a_url_without_bounds_is_a_row_and_costs_its_neighbours_nothing(tmp_path):
    (tmp_path / "x.txt").write_text(f"https://host/a.png\nhttps://host/{'a' * 90_000}\nhttps://host/b.png\n")
    first, long, last = listed(tmp_path / "x.txt")
    assert [first.key, long.key, last.key] == ["host/a.png", "00000001", "host/b.png"]
    with pytest.raises(PermissionError, match="it has 90,013 letters, and a URL may have 8,000"):
        fetch(long)


@given(st.text(st.characters(exclude_characters="\n\r#", codec="utf-8"), min_size=1))
def test_any_line_has_a_key_and_a_location(tmp_path_factory, line):
    path = tmp_path_factory.mktemp("list") / "x.txt"
    path.write_text(f"https://host/a.png\nhttp://h/{line}\n", encoding="utf-8")
    assert len(listed(path)) >= 2


# Parquet

BYTES = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())]
TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.binary()]


@pytest.mark.parametrize("kind", BYTES, ids=str)
def test_images_may_be_of_any_type_of_bytes(tmp_path, kind):
    path = write_parquet(tmp_path / "x.parquet", image=pa.array(IMAGES, pa.binary()).cast(kind))
    assert [fetch(image) for image in listed(path)] == IMAGES
    if not pa.types.is_dictionary(kind):
        structs = pa.StructArray.from_arrays([pa.array(IMAGES, kind)], ["bytes"])
        path = write_parquet(tmp_path / "s.parquet", photo=structs)
        assert [fetch(image) for image in listed(path)] == IMAGES


def test_images_may_all_have_the_same_number_of_bytes(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", image=pa.array([b"abc", b"def"], pa.binary(3)))
    assert [fetch(image) for image in listed(path)] == [b"abc", b"def"]


@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_keys_and_urls_may_be_of_any_type_of_text(tmp_path, kind):
    texts = pa.array(["https://h/a", "https://h/b"]).cast(kind)
    path = write_parquet(tmp_path / "x.parquet", url=texts, key=pa.array(["007", "7"]).cast(kind))
    assert [(image.key, image.uri) for image in listed(path)] == [("007", "https://h/a"), ("7", "https://h/b")]


def test_text_that_is_not_utf8_is_percent_escaped_in_the_key(tmp_path):
    keys = pa.array([b"caf\xe9", b"ok"], pa.binary())
    bad = pa.StringArray.from_buffers(2, *keys.buffers()[1:])
    path = write_parquet(tmp_path / "x.parquet", image=IMAGES[:2], key=bad)
    assert keys_of(path) == ["caf%E9", "ok"]
    assert [fetch(image) for image in listed(path)] == IMAGES[:2]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"url": [1, 2]}, "the column 'url' of .* holds int64: images are bytes, structs with bytes, or URLs"),
        ({"image": [[b"a"], [b"b"]]}, "has no column of images or URLs: it has image"),
        ({"image": [{"bytes": "text"}]}, "has no column of images or URLs"),
        ({"image": [{"bytes": 1}]}, "has no column of images or URLs"),
        ({"image": [b"x"], "key": [[1]]}, "the column 'key' of .* holds list<.*>: keys are texts or numbers"),
        ({"image": [{"bytes": b"x"}], "image.bytes": [b"y"]}, "a column 'image.bytes' beside the structs 'image'"),
    ],
)
def test_a_column_that_holds_no_images_is_one_sentence(tmp_path, columns, sentence):
    path = write_parquet(tmp_path / "x.parquet", **columns)
    with pytest.raises(UserError, match=sentence):
        listed(path, Selection(image_column="image" if "image.bytes" in columns else None))


@pytest.mark.parametrize("values", [[[b"a"]], [{"bytes": "text"}], [{"path": "a.png"}], [3.5]])
def test_a_chosen_column_that_holds_no_images_is_one_sentence(tmp_path, values):
    path = write_parquet(tmp_path / "x.parquet", image=values)
    with pytest.raises(UserError, match=r"the column 'image' of .*x.parquet holds .*: images are bytes"):
        listed(path, Selection(image_column="image"))


def test_two_columns_of_one_name_are_one_sentence_only_if_they_are_needed(tmp_path):
    for name, refused in (("image", True), ("key", True), ("other", False)):
        columns = [pa.array(IMAGES), pa.array(IMAGES)] if name == "image" else [pa.array(["a", "b", "c", "d"])] * 2
        table = pa.Table.from_arrays(
            [pa.array(IMAGES), *columns], names=["png" if name == "image" else "image", name, name]
        )
        pq.write_table(table, tmp_path / "x.parquet")
        selection = Selection(image_column="image")
        if refused:
            with pytest.raises(UserError, match=f"has 2 columns '{name}': rename all but one"):
                listed(tmp_path / "x.parquet", selection)
        else:
            assert [fetch(image) for image in listed(tmp_path / "x.parquet", selection)] == IMAGES


@pytest.mark.parametrize("name", ["image.bytes", "a.b", "x.bytes.bytes", ".", "b ü/"])
def test_a_column_may_have_a_dot_in_its_name(tmp_path, name):
    path = write_parquet(tmp_path / "x.parquet", **{name: IMAGES, "n": [1, 2, 3, 4]})
    assert [fetch(image) for image in listed(path)] == IMAGES
    path = write_parquet(tmp_path / "s.parquet", **{name: [{"bytes": data, "path": None} for data in IMAGES]})
    assert [fetch(image) for image in listed(path)] == IMAGES


def test_only_the_columns_that_are_needed_are_read(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "x.parquet", image=IMAGES, key=["a", "b", "c", "d"], n=[1, 2, 3, 4], text=["x"] * 4)
    asked = []
    iter_batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, *a, columns, **o: asked.append(columns) or iter_batches(self, *a, columns=columns, **o),
    )
    assert keys_of(path, Selection(where=(Condition.parse("n>2"),))) == ["c", "d"]
    assert asked == [[KEY, "n"]]


# Paths in place of bytes, as Dataset.to_parquet writes them


def test_the_paths_of_a_table_are_read_beside_it(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(IMAGES[0])
    images = [{"bytes": None, "path": "photos/a.png"}, {"bytes": IMAGES[1], "path": "gone.png"}]
    path = write_parquet(tmp_path / "x.parquet", image=pa.array(images, tables_image()))
    assert [fetch(image) for image in listed(path)] == IMAGES[:2]
    path = write_parquet(tmp_path / "n.parquet", image=[{"bytes": None, "path": "photos/a.png"}])
    assert [fetch(image) for image in listed(path)] == IMAGES[:1]


def tables_image() -> pa.DataType:
    return pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../secret.png", "a/../../secret.png", "https://h/a.png", "link.png", "a/b/../../../secret.png"],
)
def test_a_table_may_not_name_what_is_outside_its_folder(tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    path = write_parquet(tmp_path / "in" / "x.parquet", image=pa.array([{"bytes": None, "path": name}], tables_image()))
    [image] = listed(path)
    with pytest.raises(PermissionError, match="it may only name files in its own folder"):
        fetch(image)


# Row groups


@pytest.fixture
def many(tmp_path):
    cells = [bytes([n % 256]) * (500 + n) for n in range(300)]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [{"bytes": cell, "path": None} for cell in cells]}), path, row_group_size=200)
    return cells, listed(path)


@given(order=st.permutations(range(300)).map(lambda rows: rows[:12]))
def test_cells_are_the_same_in_any_order_and_with_little_memory(tmp_path_factory, order):
    cells = [bytes([n % 256]) * (500 + n) for n in range(300)]
    path = tmp_path_factory.mktemp("cells") / "x.parquet"
    pq.write_table(pa.table({"image": cells}), path, row_group_size=200)
    images = listed(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetching, "SLICE_BYTES", 5_000)
        few = ParquetCells(1)
        assert [fetch(images[row], few) for row in order] == [cells[row] for row in order]
        assert few._bytes <= 5_000


def test_two_shards_of_one_row_group_do_not_begin_it_again_for_each_image(many, monkeypatch):
    cells, images = many
    begun = []
    begin = fetching.RowGroup.__init__
    monkeypatch.setattr(fetching.RowGroup, "__init__", lambda self, *a: begun.append(a) or begin(self, *a))
    monkeypatch.setattr(fetching, "SLICE_BYTES", 2_000)
    kept = ParquetCells(2)
    for near, far in zip(range(20), range(150, 170), strict=True):
        assert (fetch(images[near], kept), fetch(images[far], kept)) == (cells[near], cells[far])
    assert len(begun) == 2


def test_a_row_group_larger_than_what_is_kept_is_read_with_little_memory(many, monkeypatch):
    cells, images = many
    monkeypatch.setattr(fetching, "SLICE_BYTES", 1_000)
    kept = ParquetCells()
    assert [fetch(image, kept) for image in images] == cells
    assert kept._bytes <= 4_000 and len(kept._groups) <= 4


def test_a_damaged_page_costs_the_rows_behind_it_and_no_others(tmp_path, no_waiting):  # noqa: ARG001
    cells = [bytes([n]) * 5_000 for n in range(100)]
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"image": cells}),
        path,
        row_group_size=50,
        compression="none",
        use_dictionary=False,
        data_page_size=20_000,
    )
    images = listed(path)
    data = bytearray(path.read_bytes())
    at = data.index(cells[30])
    data[at - 4 : at] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    kept = ParquetCells()
    for row, image in enumerate(images):
        if 24 <= row < 50:
            continue
        assert fetch(image, kept) == cells[row]
    with pytest.raises(Changed, match="the file is damaged"):
        fetch(images[30], kept)


def test_a_cell_that_is_too_large_costs_its_neighbours_nothing(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", image=[b"a", b"b" * 5000, b"c"])
    first, large, last = listed(path)
    assert (fetch(first, max_bytes=1000), fetch(last, max_bytes=1000)) == (b"a", b"c")
    with pytest.raises(TooLarge, match=r"it has 5,000 bytes or more, and the limit is 1,000"):
        fetch(large, max_bytes=1000)


def test_a_row_before_the_first_is_not_there(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", image=IMAGES)
    [image, *_] = listed(path)
    with pytest.raises(Changed):
        fetch(SourceImage("x", image.uri, member=image.member, offset=-1))


def test_a_url_that_must_not_be_named_is_denied_in_every_form(tmp_path):
    write_csv(tmp_path / "x.csv", "url", "file:///etc/passwd")
    write_parquet(tmp_path / "x.parquet", url=["file:///etc/passwd"])
    for name in ("x.csv", "x.parquet"):
        [image] = listed(tmp_path / name)
        assert image.uri.startswith(DENIED)


def test_two_colons_in_a_url_are_a_chain_only_before_another_location(tmp_path):
    urls = [
        "s3://b/i::j.png",
        "s3://b/x::file:///etc/passwd",
        "https://h/x::simplecache::file:///etc",
        "s3://b/x::/etc",
    ]
    images = listed(write_csv(tmp_path / "x.csv", "url", *urls))
    assert [image.uri.startswith(DENIED) for image in images] == [False, True, True, True]
