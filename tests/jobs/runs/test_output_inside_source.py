"""An output must not lie where its source is listed: the edits would be edited."""

import pytest

from asyrp.errors import UserError
from jobs.runs.estimate import estimate
from jobs.runs.record import refuse_output_inside_source
from jobs.runs.resolve import resolve
from tests.support.runs import make_faces, spec


def test_plan_refuses_an_output_inside_the_source_as_run_does(tmp_path):
    make_faces(tmp_path / "in", 1)
    with pytest.raises(UserError, match="lies inside the source"):
        estimate(resolve(spec(tmp_path / "in", tmp_path / "in" / "out")))


def test_plan_says_what_is_there_where_nothing_is_read(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.heic").touch()
    with pytest.raises(UserError, match=r"the source holds no images .*; not read: 1 .heic"):
        estimate(resolve(spec(tmp_path / "in", tmp_path / "out")))


@pytest.mark.parametrize(
    ("source", "output", "refused"),
    [
        ("in", "in/out", True), ("in", "link/out", True), ("link", "in/out", True), ("in/**/*.png", "in/out", True),
        ("in/*.png", "in/out", False), ("in", "in2/out", False), ("in", "out", False),
    ],
)  # fmt: skip
def test_links_and_globs_do_not_hide_an_output_inside_the_source(tmp_path, source, output, refused):
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    asked = spec(tmp_path / source, tmp_path / output)
    if not refused:
        refuse_output_inside_source(asked)
        return
    with pytest.raises(UserError, match="lies inside the source"):
        refuse_output_inside_source(asked)
