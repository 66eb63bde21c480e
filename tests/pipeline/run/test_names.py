"""How names that somebody else chose become keys, output names, tar members and texts for people."""

import io
import re
import tarfile
from urllib.parse import unquote

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from asyrp.errors import UserError
from jobs.spec.run import RunSpec
from pipeline.images.keys import safe_key
from pipeline.run.containers import EncodedImage, Sample, tar_writer
from pipeline.run.names import (
    COMPONENT_BYTES,
    PATH_BYTES,
    check_template,
    markdown_cell,
    output_name,
    printable,
    tar_member,
)
from tests.support.names import NAMES

PIECES = st.sampled_from(
    [*"./ab%_-\\ \n\0\x1b", "..", "./", "//", "%2e", "é", "e\u0301", "😀", "\u202e", "\udce9", "\ud800"]
)
TEXTS = st.lists(PIECES, max_size=20).map("".join) | st.text(st.characters())
LONG = st.builds(lambda text, times: text * times, TEXTS, st.integers(1, 400))
CONTROLS = re.compile(r"[\0-\x1f\x7f-\x9f\ud800-\udfff]")


def is_safe(path: str) -> bool:
    """Whether a path is relative, has only names of files in it, and is text that all stores hold."""
    return not CONTROLS.search(path) and not {"", ".", ".."} & set(path.split("/"))


@given(TEXTS)
def test_every_name_has_a_key_that_stays_itself(name):
    key = safe_key(name)
    assert is_safe(key) and safe_key(key) == key


@given(TEXTS)
def test_a_name_that_can_be_carried_is_its_own_key(name):
    if is_safe(name):
        assert safe_key(name) == name


@given(TEXTS, TEXTS)
def test_two_names_share_a_key_only_by_an_escape_that_one_already_had_or_by_a_dot_that_says_nothing(one, other):
    if "%" not in one + other and "./" not in one + other and one and other and "_" not in (one, other):
        assert (safe_key(one) == safe_key(other)) == (one == other)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("../../x.png", "%2E%2E/%2E%2E/x.png"),
        ("/abs.png", "%2Fabs.png"),
        ("a//b.png", "a/%2Fb.png"),
        ("./a/./b.png", "a/b.png"),
        ("a\\..\\b.png", "a\\..\\b.png"),
        ("caf\udce9.png", "caf%E9.png"),
        ("a\0b\n.png", "a%00b%0A.png"),
        ("i::j.png", "i::j.png"),
        ("..png", "..png"),
        ("", "_"),
        (".", "%2E"),
    ],
)
def test_what_a_key_cannot_hold_is_escaped(name, key):
    assert safe_key(name) == key


@settings(deadline=None)
@given(
    LONG.map(safe_key), st.sampled_from(["{stem}_{edit}_{strength}", "{key}", "{parent}/{edit}/{name}", "{name}.{key}"])
)
def test_every_key_has_an_output_name_that_stores_take(key, template):
    name = output_name(template, "jpeg", key, "smile", -0.5)
    assert is_safe(name) and name.endswith(".jpg")
    assert max(len(part.encode()) for part in name.split("/")) <= COMPONENT_BYTES
    assert len(name.encode()) <= PATH_BYTES


def test_long_names_that_differ_at_their_ends_have_other_output_names():
    for long in ("a" * 300, "é" * 200, "a/" * 400, f"{'a' * 250}/{'b' * 250}/{'c' * 250}/", "😀" * 100):
        one, other = (output_name("{stem}_{edit}", "png", long + end, "x", 1) for end in ("1.png", "2.png"))
        assert one != other


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("a/b.c.png", "a/b.c_smile_1.png"),
        (".hidden", ".hidden_smile_1.png"),
        ("..png", "._smile_1.png"),
        ("a.", "a._smile_1.png"),
    ],
)
def test_an_output_keeps_the_name_of_its_source(key, name):
    assert output_name("{stem}_{edit}_{strength}", "png", key, "smile", 1) == name


def test_an_image_at_the_top_has_no_parent_in_its_output_name():
    assert output_name("{parent}/{edit}/{name}", "png", "a.png", "smile", 1) == "smile/a.png"


@pytest.mark.parametrize(
    "template",
    [
        "{key.__class__}", "{key[0]}", "{key!r}", "{key:>9999999999}", "{}", "{0}", "{nope}", "{key", "{key:{edit}}",
        "../{stem}_{edit}", "/{stem}", "{stem}/", "a//{stem}", "{stem}/..", "a\n{stem}",
    ],
)  # fmt: skip
def test_a_template_is_made_of_text_and_plain_fields(template):
    with pytest.raises(UserError, match="no output name"):
        check_template(template)
    with pytest.raises(ValueError, match="no output name"):
        RunSpec.model_validate({"source": "a", "output": "b", "edits": ["smile=1"], "name": template})


@given(TEXTS.map(safe_key))
def test_a_tar_member_gives_its_name_back(name):
    member = tar_member(name)
    assert unquote(member) == name
    assert is_safe(member)


@settings(deadline=None)
@given(st.lists(LONG.map(safe_key) | st.sampled_from(sorted(NAMES)).map(safe_key), min_size=1, max_size=5, unique=True))
def test_webdataset_reads_every_sample_under_its_own_name(names):
    stream = io.BytesIO()
    with tar_writer(stream) as add:
        places = [add(name, Sample({"key": name}, EncodedImage(name.encode(), ".png"), None)) for name in names]
    stream.seek(0)
    files = webdataset.tariterators.tar_file_expander([{"url": "x.tar", "stream": stream}])
    read = list(webdataset.tariterators.group_by_keys(files))
    assert [sample["edited.png"].decode() for sample in read] == names
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as tar:
        for place, name in zip(places, names, strict=True):
            assert tar.extractfile(place.member).read() == name.encode()
            assert tarfile.data_filter(tar.getmember(place.member), "/x").name == place.member


@given(TEXTS)
def test_what_is_shown_cannot_steer_a_terminal(text):
    assert not re.search(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]|[\u202a-\u202e\u2066-\u2069\ud800-\udfff]", printable(text))


def test_a_text_that_steers_nothing_is_shown_as_it_is():
    for text in ("a b.png", "é日本 😀 👩‍🚀", "a\tb\nc", "שלום", "[red]{x}%s\\"):
        assert printable(text) == text
    assert printable("\x1b[31m\u202egnp") == "\\x1b[31m\\u202egnp"


@given(TEXTS)
def test_a_cell_of_markdown_is_one_line_in_which_no_sign_means_anything(text):
    cell = markdown_cell(text)
    assert "\n" not in cell
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*<>\[\]]", cell)
