"""The spec of a data job: what is refused, on which line, and what an editor is told."""

import json
from datetime import UTC, datetime
from importlib import resources

import jsonschema
import pytest
import yaml

from asyrp.errors import UserError
from jobs.spec.job import Job, job_schema, load_job
from tests.support.runs import EXAMPLES

GOOD = """\
name: nightly
root: s3://bucket/nightly
run:
  source: s3://bucket/faces
  edits: ["glasses=1"]
schedule:
  cron: "30 2 * * *"
"""


@pytest.fixture
def load(tmp_path):
    def from_text(text: str) -> Job:
        path = tmp_path / "job.yaml"
        path.write_text(text)
        return load_job(path)

    return from_text


def mistakes(load, text: str) -> list[str]:
    """The sentences on a spec, each with its line in place of its path."""
    with pytest.raises(UserError) as refused:
        load(text)
    lines = str(refused.value).splitlines()
    return [line.split("job.yaml:", 1)[1] for line in (lines if len(lines) == 1 else lines[1:])]


def test_a_spec_with_five_mistakes_is_five_sentences_with_their_lines(load):
    found = mistakes(
        load,
        """\
name: Nightly
root: s3://bucket/nightly
output: "{date}"
run:
  source: s3://bucket/faces
  edit: ["glasses=1"]
  edits: ["glasses=1"]
  engine:
    actors: 0
schedule:
  cron: "61 2 * * *"
""",
    )
    assert [line.split(":")[0] for line in found] == ["1", "3", "6", "9", "11"]
    for sentence, part in zip(
        found, ["begin with a letter", "must hold {run}", "did you mean 'edits'", "greater", "bad minute"], strict=True
    ):
        assert part in sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    {
        ("  cron:", "  cron: '0 0 * * *'\n  cron:"): "8: 'cron' is there twice",
        ('  source: s3://bucket/faces\n', ""): "3: 'source' is missing: add 'source:' below 'run:'",
        ("name: nightly\n", ""): "1: 'name' is missing: add 'name:' at the top",
        ("30 2 * * *", "0 0 31 2 *"): "7: schedule.cron: ",
        ('"30 2 * * *"', '"@daily"'): "7: schedule.cron: '@daily' is no schedule: wrong number of fields",
        ("schedule:", "schedule:\n  timezone: Mars/Olympus"): "7: schedule.timezone: 'Mars/Olympus' is no time zone",
        ("  edits", "  output: elsewhere\n  edits"): "5: run.output: the 'output:' of the job says",
        ("  edits", "  inversions: elsewhere\n  edits"): "5: run.inversions: they are of one run's images",
        ("name: nightly", "name: nightly\noutput: x/{day}/{run}"): "2: output: 'day' is not among {date}, {tick},",
        ("name: nightly", "name: nightly\nnotify: {webhook: ftp://x}"): "2: notify.webhook: give an http(s) URL",
        ("name: nightly", "name: nightly\nnotify: {webhook: 'https://me:p@x'}"): "2: notify.webhook: https://***@x",
        ("name: nightly", "name: [nightly"): "2: this is not YAML",
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_its_line(load, change, sentence):
    assert change[0] in GOOD
    [found] = mistakes(load, GOOD.replace(*change))
    assert found.startswith(sentence)


def test_an_output_is_below_the_root_and_dated_by_the_clock_of_the_schedule(load):
    job = load(
        GOOD.replace("30 2", "30 2", 1) + "  timezone: Pacific/Auckland\n" + 'output: "{date}/{tick:%H}/{run}"\n'
    )
    tick = datetime(2026, 11, 21, 13, 30, tzinfo=UTC)
    assert job.spec_of_run(tick, "nightly-1").output == "s3://bucket/nightly/2026-11-22/02/nightly-1"
    elsewhere = load(GOOD + 'output: "s3://other/{run}"\n')
    assert elsewhere.spec_of_run(tick, "nightly-1").output == "s3://other/nightly-1"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_jobs_and_follow_the_schema_that_their_first_line_names(example):
    named = example.read_text().splitlines()[0].partition("$schema=")[2]
    schema = json.loads((example.parent / named).read_text())
    jsonschema.validate(yaml.safe_load(example.read_text()), schema)
    load_job(example)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"name": "x", "root": "y", "run": {"source": "z", "edit": ["glasses=1"]}}, schema)


def test_the_shipped_schema_is_that_of_the_model():
    shipped = json.loads((resources.files("jobs.spec") / "job.schema.json").read_text())
    assert shipped == job_schema(), "asyrp jobs schema > jobs/spec/job.schema.json"
