"""The spec of a data job, checked. A data job repeats a run on a schedule and keeps a data set of its images."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from asyrp.digests import json_digest
from asyrp.errors import UserError
from jobs.spec.mistakes import CHECKED, explain, path_of
from jobs.spec.paths import MAX_NAME, NAME, Url, without_credentials
from jobs.spec.run import RunSpec
from jobs.spec.schedule import Schedule
from jobs.spec.yaml_lines import Document, read_document

OUTPUT_FIELDS = ("date", "tick", "run")
SAID_BY_JOB = "job://output"
"""Stands for the output of the run in the spec of a job, because the job gives each tick's run an output."""

Outcome = Literal["succeeded", "unchanged", "quarantined", "failed", "drained", "skipped"]
"""How a tick ended. `unchanged`: there was nothing to do; `skipped`: another driver was at work."""


def _name(name: str) -> str:
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise ValueError(
            f"begin with a letter, then lower-case letters, digits and '-', at most {MAX_NAME}, as in nightly-glasses"
        )
    return name


def _webhook(url: str) -> str:
    if not re.match(r"https?://|\$\w+$", url):
        raise ValueError("give an http(s) URL, or $NAME for one that is in the environment")
    return without_credentials(url)


class Notifications(BaseModel):
    """Who is told how a tick ended. A notification that fails is reported, and never fails the tick."""

    model_config = CHECKED

    webhook: Annotated[str, AfterValidator(_webhook)] | None = Field(
        None, description="a URL that gets a POST of JSON; $NAME: the URL is in this environment variable"
    )
    command: list[str] | None = Field(
        None, min_length=1, description="a program and its arguments, that gets the JSON on its standard input"
    )
    when: list[Outcome] = Field(["succeeded", "quarantined", "failed"], description="the outcomes that are told of")


class Job(BaseModel):
    """A job that edits what is new or changed in a source at every tick, and adds it to its data set."""

    model_config = CHECKED

    name: Annotated[str, AfterValidator(_name)] = Field(description="of the job, in its runs' names")
    root: Url = Field(description="folder of the job's data set and history, on any fsspec URL")
    output: str = Field(
        "runs/{run}",
        description="where each run goes, below the root or a URL: it holds {run}, and may {date} and {tick:%Y-%m-%d}",
    )
    run: RunSpec = Field(description="what each tick does")
    schedule: Schedule | None = Field(None, description="when it runs; without one, when `asyrp jobs run` is given")
    incremental: bool = Field(
        True, description="edit what is new or changed since the last version; false: everything at every tick"
    )
    overlap: Literal["refuse", "queue"] = Field(
        "refuse", description="a tick that comes while another is at work is left out, or waits"
    )
    notify: Notifications | None = None

    @model_validator(mode="before")
    @classmethod
    def _job_says_output(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("run"), dict):
            return {**data, "run": {"output": SAID_BY_JOB, **data["run"]}}
        return data

    @field_validator("output")
    @classmethod
    def _output_tells_runs_apart(cls, template: str) -> str:
        without_credentials(template)
        try:
            format_output(template, datetime.now(UTC), "run")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            known = ", ".join(f"{{{field}}}" for field in OUTPUT_FIELDS)
            raise ValueError(f"{error} is not among {known}") from error
        if "{run}" not in template:
            raise ValueError("it must hold {run}, which tells the runs of a job apart")
        return template

    @field_validator("run")
    @classmethod
    def _run_suits_a_job(cls, run: RunSpec) -> RunSpec:
        if run.output != SAID_BY_JOB:
            raise _wrong("output", "the 'output:' of the job says where its runs go: leave it out here")
        if run.inversions is not None:
            raise _wrong("inversions", "they are of one run's images, and a job's images change: leave it out")
        return run

    @property
    def zone(self) -> tzinfo:
        return self.schedule.zone if self.schedule else UTC

    def digest(self) -> str:
        """SHA-256 of the spec with its defaults."""
        return json_digest(self.model_dump(mode="json"))

    def last_tick(self, now: datetime) -> datetime:
        """The last tick that is due. Without a schedule it is the present second."""
        return self.schedule.last(now) if self.schedule else now.astimezone(UTC).replace(microsecond=0)

    def spec_of_run(self, tick: datetime, run: str) -> RunSpec:
        """The spec of the run `run` of a tick."""
        output = format_output(self.output, tick.astimezone(self.zone), run)
        is_location = "://" in output or Path(output).is_absolute()
        return self.run.model_copy(update={"output": output if is_location else f"{self.root.rstrip('/')}/{output}"})


def format_output(template: str, tick: datetime, run: str) -> str:
    """The output of a run; date and time are those of `tick` in its own time zone."""
    return template.format(date=tick.date().isoformat(), tick=tick, run=run)


def _wrong(field: str, message: str) -> PydanticCustomError:
    """An error in a field of the model that is being checked."""
    return PydanticCustomError("of_field", "{message}", {"field": field, "message": message})


def load_job(path: Path) -> Job:
    """The job that a YAML file describes.

    Raises:
        UserError: with a sentence for each mistake in the file, and its line.
    """
    document = read_document(path, "the job", "name: nightly-glasses")
    mistakes = [(line, f"'{name}' is there twice: leave one out") for line, name in document.repeated()]
    try:
        job = Job.model_validate(document.data)
    except ValidationError as error:
        mistakes += _mistakes(document, error)
    if mistakes:
        lines = [f"{path}:{line}: {sentence}" for line, sentence in sorted(mistakes)]
        raise UserError("\n  ".join(lines if len(lines) == 1 else [f"{path} has {len(lines)} mistakes", *lines]))
    return job


def _mistakes(document: Document, error: ValidationError) -> Iterator[tuple[int, str]]:
    for details in error.errors():
        path = path_of(details)
        if details["type"] == "of_field":
            path = (*path, details["ctx"]["field"])
        yield document.line(path), _sentence(details, path)


def _sentence(details: ErrorDetails, path: tuple[int | str, ...]) -> str:
    if details["type"] == "missing":
        *parents, name = path
        where = f"below '{parents[-1]}:'" if parents else "at the top"
        return f"'{name}' is missing: add '{name}:' {where}"
    if details["type"] == "of_field":
        return f"{'.'.join(map(str, path))}: {details['msg']}"
    return explain(details, Job)


def job_schema() -> dict[str, Any]:
    """The JSON Schema of a job's file, for editors."""
    schema = Job.model_json_schema()
    run = schema["$defs"]["RunSpec"]
    run["required"].remove("output")  # the job says it
    del run["properties"]["output"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "asyrp data job"}
