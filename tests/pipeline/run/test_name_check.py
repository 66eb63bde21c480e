"""Outputs that cannot stand beside each other are refused at plan time, with both keys."""

import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from asyrp.errors import UserError
from pipeline.images.source import SourceImage
from pipeline.run.name_check import Folding, NameCheck
from pipeline.run.names import output_name
from pipeline.run.plan import PlanSummary, write_plan
from pipeline.storage.store import Store

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))


def plan(store: Store, *keys: str, as_files: bool = True, template: str = "{stem}_{edit}") -> PlanSummary:
    images = (SourceImage(key, f"memory://{key}") for key in keys)
    return write_plan(store, images, 8, lambda key: [output_name(template, "png", key, "smile", 1)], as_files=as_files)


@pytest.fixture
def folding(monkeypatch) -> Callable[[bool, bool], None]:
    """Makes the disk one that takes names of other case or composition for the same."""

    def make(of_case: bool, of_composition: bool) -> None:
        form = Folding(of_case, of_composition).form

        def exists(self: Store, name: str) -> bool:
            return form(name) in {form(path.name) for path in Path(self.root).iterdir()}

        monkeypatch.setattr(Store, "exists", exists)

    return make


@pytest.mark.parametrize("twins", [("A.png", "a.png"), (COMPOSED, DECOMPOSED), ("B/a.png", "b/a.png")])
def test_a_disk_that_tells_them_apart_takes_twins(tmp_path, twins):
    store = Store(str(tmp_path))
    plan(store, *twins)
    assert not [path for path in tmp_path.iterdir() if "probe" in path.name]


@pytest.mark.parametrize(
    ("of_case", "of_composition", "twins"),
    [(True, False, ("A.png", "a.png")), (False, True, (COMPOSED, DECOMPOSED)), (True, True, ("B/É.png", "b/é.png"))],
)
def test_twins_are_refused_where_the_disk_takes_them_for_one(tmp_path, folding, of_case, of_composition, twins):
    folding(of_case, of_composition)
    with pytest.raises(UserError, match="which are one file there") as refused:
        plan(Store(str(tmp_path)), *twins)
    assert all(f"'{key}'" in str(refused.value) for key in twins)
    plan(Store(str(tmp_path)), *twins, as_files=False)
    plan(Store(str(tmp_path)), "a.png", "b.png")


def test_a_disk_that_folds_one_thing_takes_the_other(tmp_path, folding):
    folding(True, False)
    assert plan(Store(str(tmp_path)), COMPOSED, DECOMPOSED).images == 2


def test_a_file_where_another_image_needs_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'a.png'.*'a_smile.png/b.png'.*needs a folder"):
        plan(Store(str(tmp_path)), "a.png", "c.png", "a_smile.png/b.png")
    plan(Store(str(tmp_path)), "a.png", "a_smile.png/b.png", as_files=False)


def test_a_root_that_leaves_no_room_for_a_name_is_refused():
    store = Store(f"memory://{'r' * 900}")
    plan(store, "a.png")
    with pytest.raises(UserError, match=r"image 'd/d.*give a shorter --output"):
        plan(store, "a.png", "d/" * 100 + "x.png")


def test_names_that_differ_are_never_refused():
    check = NameCheck(None)
    keys = [f"{number}/{number}" for number in range(1000)]
    for key in keys:
        check.add(key, [key])
    check.check(lambda: keys, partial(lambda key: [key]))


@pytest.mark.parametrize("template", ["{stem}_{edit}", "{key}_{edit}_{strength}"])
def test_a_key_that_is_there_twice_is_said_to_be(tmp_path, template):
    with pytest.raises(UserError, match=r"^two images of the source have the key 'a.png': rename one"):
        plan(Store(str(tmp_path)), "a.png", "b.png", "a.png", template=template)


def test_two_edits_of_one_image_with_one_name_are_said_to_be(tmp_path):
    with pytest.raises(UserError, match=r"^two edits of image 'a.png' would both be written as 'a.png': tell them"):
        write_plan(Store(str(tmp_path)), [SourceImage("a.png", "memory://a.png")], 8, lambda key: [key, key])
