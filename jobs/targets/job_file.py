"""The file of a data job whose schedule is rendered, and the templates that it is rendered with."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyrp.errors import UserError
from jobs.spec.job import Job, load_job
from jobs.spec.schedule import Schedule
from jobs.targets.placement import local_fields, refuse_local, to_yaml

if TYPE_CHECKING:  # Jinja loads only where there is something to render
    from jinja2 import Environment

COMMENT_WIDTH = 118
LEFT_OUT = "a tick that comes while another is at work is not started, and does not stand in the job's history"

Files = dict[str, str]
"""Texts by the names of the files that hold them."""


@dataclass(frozen=True)
class JobFile:
    """A data job with a schedule, and the file at `path` that describes it. `folder` is where the rendered files will
    be, None if that is not known."""

    path: Path
    job: Job
    schedule: Schedule
    folder: Path | None

    @classmethod
    def load(cls, path: Path, folder: Path | None) -> "JobFile":
        """Raises UserError if the file describes no job, or the job has no schedule."""
        job = load_job(path)
        if job.schedule is None:
            raise UserError(f"{path} has no schedule to render: add 'schedule:' with a 'cron:'")
        return cls(path, job, job.schedule, folder)

    @property
    def name(self) -> str:
        return self.job.name

    def refuse_local(self) -> None:
        """Raises UserError if the job names a path of this machine, which pods cannot reach."""
        fields = {f"run.{name}": url for name, url in local_fields(self.job.run).items() if name != "output"}
        refuse_local({"root": self.job.root, "output": self.job.output, **fields})

    def cannot(self, setting: str, why: str) -> str:
        """A note that the scheduler has no option for a setting of the job."""
        value = self.job.overlap if setting == "overlap" else self.schedule.catch_up
        return f"'{setting}: {value}' cannot be said here: {why}."


def job_spec_yaml(job: Job, **engine: Any) -> str:
    """The fields of a job that the user has set, as YAML. `engine` replaces speed knobs of its run."""
    facts = job.model_dump(mode="json", exclude_unset=True, exclude={"run": {"output"}})
    if engine:
        facts["run"]["engine"] = {**facts["run"].get("engine", {}), **engine}
    return to_yaml(facts)


def comment(notes: Sequence[str]) -> str:
    """Sentences as lines that begin with '#'."""
    lines = (line for note in notes for line in textwrap.wrap(note, COMMENT_WIDTH, break_on_hyphens=False))
    return "\n".join(f"# {line}" for line in lines)


def _unit_path(path: str) -> str:
    """A path as a systemd unit takes it: a unit expands what begins with '%'."""
    return path.replace("%", "%%")


def _unit_command(command: Sequence[str]) -> str:
    """A command as a systemd unit takes it (`man systemd.service`, command lines)."""
    escapes = str.maketrans({"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$"})
    return " ".join(f'"{word.translate(escapes)}"' for word in command)


def _cron_command(command: str) -> str:
    """A command as a crontab takes it: there a bare '%' ends the line."""
    return command.replace("%", "\\%")


def _python_text(text: str) -> str:
    """A text as a Python expression, with one string for each of its lines."""
    lines = "\n".join(f"    {line!r}" for line in text.splitlines(keepends=True))
    return f"(\n{lines}\n)"


def fill(template: str, **values: Any) -> str:
    """A template of `templates/`, filled with values."""
    return _environment().get_template(f"{template}.jinja").render(values)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("jobs.targets"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "comment": comment,
        "unit_path": _unit_path,
        "unit_command": _unit_command,
        "cron_command": _cron_command,
        "python": repr,
        "python_text": _python_text,
    }
    return environment
