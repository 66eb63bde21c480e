"""`t_edit` in all its forms: read from YAML and run.json, asked by code, written as it was."""

import json

import pytest

from asyrp.errors import UserError
from jobs.spec.ends import Ends
from jobs.spec.run import RunSpec, load_spec

GIVEN = {"source": "/faces", "output": "/out", "edits": ["smile=1", "beard=1"]}
PER_IMAGE = {"measure": "lpips", "distances": {"smile": 0.3}, "otherwise": {"smile": 400}}
FORMS = [None, 0, 500, "auto", "per-image", {}, {"smile": 300}, PER_IMAGE]


@pytest.mark.parametrize("form", FORMS)
def test_a_run_json_keeps_the_form_that_it_was_given(form):
    spec = RunSpec.model_validate({**GIVEN, "t_edit": form})
    written = json.loads(json.dumps(spec.model_dump(mode="json")))
    assert written["t_edit"] == form == spec.identity()["t_edit"]
    assert RunSpec.model_validate(written) == spec and RunSpec.model_validate(written).identity() == spec.identity()


def test_a_spec_that_does_not_say_t_edit_is_written_with_null():
    assert RunSpec.model_validate(GIVEN).model_dump(mode="json")["t_edit"] is None
    assert "t_edit" not in RunSpec.model_validate(GIVEN).model_dump(mode="json", exclude_unset=True)


@pytest.mark.parametrize(
    ("form", "learned", "per_image", "smile", "beard"),
    [
        (None, False, False, None, None),
        (500, False, False, 500, 500),
        ({"smile": 300}, False, False, 300, None),
        (PER_IMAGE, False, True, 400, None),
    ],
)
def test_ends_say_where_each_direction_ends(form, learned, per_image, smile, beard):
    ends = Ends.model_validate(form)
    assert (ends.learned, ends.per_image is not None) == (learned, per_image)
    assert (ends.of("smile"), ends.of("beard")) == (smile, beard)


@pytest.mark.parametrize(("form", "settled"), [("auto", {"smile": 400}), ("per-image", PER_IMAGE)])
def test_learned_ends_are_settled_to_numbers(form, settled):
    ends = Ends.model_validate(form)
    assert ends.learned and ends.per_image is None
    found = ends.settled({"smile": 400}, "lpips", {"smile": 0.3})
    assert found.model_dump() == settled and not found.learned


@pytest.mark.parametrize(
    ("form", "sentence"),
    [
        (1000, "t_edit: Input should be less than or equal to 999 (it is 1000)"),
        ("late", "t_edit: Input should be a valid integer, unable to parse string as an integer (it is 'late')"),
        ({"smile": 1000}, "t_edit.smile: Input should be less than or equal to 999 (it is 1000)"),
        ({"timestep": 1000}, "t_edit.timestep: Input should be less than or equal to 999 (it is 1000)"),
        ({**PER_IMAGE, "distance": 1}, "unknown field 't_edit.distance': did you mean 'distances'?"),
    ],
)
def test_a_mistake_in_t_edit_is_one_sentence_that_names_its_place(form, sentence):
    with pytest.raises(UserError) as error:
        load_spec(None, {**GIVEN, "t_edit": form}, [])
    assert str(error.value) == sentence
