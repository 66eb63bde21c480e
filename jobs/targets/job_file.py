"""A data job whose schedule another scheduler is to keep, and the templates of what that is given."""

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
    """A data job that has a schedule, the file that describes it, and the folder that takes its schedule for another
    scheduler, if that is known."""

    path: Path
    job: Job
    schedule: Schedule
    folder: Path | None

    @classmethod
    def load(cls, path: Path, folder: Path | None) -> "JobFile":
        """Raises UserError if the file is no job, or one without a schedule."""
        job = load_job(path)
        if job.schedule is None:
            raise UserError(f"{path} has no schedule to render: add 'schedule:' with a 'cron:'")
        return cls(path, job, job.schedule, folder)

    @property
    def name(self) -> str:
        return self.job.name

    def refuse_local(self) -> None:
        """Raises UserError for a place on this machine, where pods run the job."""
        fields = {f"run.{name}": url for name, url in local_fields(self.job.run).items() if name != "output"}
        refuse_local({"root": self.job.root, "output": self.job.output, **fields})

    def cannot(self, setting: str, why: str) -> str:
        """That a scheduler has no word for a setting of the job."""
        value = self.job.overlap if setting == "overlap" else self.schedule.catch_up
        return f"'{setting}: {value}' cannot be said here: {why}."


def spec_yaml(job: Job, **engine: Any) -> str:
    """What the user has set of a job, as YAML, with other speed knobs where it is to run."""
    facts = job.model_dump(mode="json", exclude_unset=True, exclude={"run": {"output"}})
    if engine:
        facts["run"]["engine"] = {**facts["run"].get("engine", {}), **engine}
    return to_yaml(facts)


def comment(notes: Sequence[str]) -> str:
    """Sentences as lines that begin with '#'."""
    lines = (line for note in notes for line in textwrap.wrap(note, COMMENT_WIDTH, break_on_hyphens=False))
    return "\n".join(f"# {line}" for line in lines)


def _unit_path(path: str) -> str:
    """A path as a setting of a unit, which would expand what begins with '%'."""
    return path.replace("%", "%%")


def _unit_command(command: Sequence[str]) -> str:
    """Words of a command as a unit takes them (`man systemd.service`, command lines)."""
    escapes = str.maketrans({"\\": "\\\\", '"': '\\"', "%": "%%", "$": "$$"})
    return " ".join(f'"{word.translate(escapes)}"' for word in command)


def _cron_command(command: str) -> str:
    """A command as a crontab takes it, to which a bare '%' is the end of a line."""
    return command.replace("%", "\\%")


def _python_text(text: str) -> str:
    """A text of several lines as Python, a line each."""
    lines = "\n".join(f"    {line!r}" for line in text.splitlines(keepends=True))
    return f"(\n{lines}\n)"


def fill(template: str, **values: Any) -> str:
    """What a template of `templates` says with these values."""
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
