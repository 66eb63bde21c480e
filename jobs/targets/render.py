"""The schedule of a data job for another scheduler, which calls `asyrp jobs run`: job, tick and lease do the rest.

What a scheduler cannot say of a schedule stands in the text as a comment.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.targets.airflow import airflow
from jobs.targets.host import crontab, slurm, systemd
from jobs.targets.job_file import Files, JobFile
from jobs.targets.kubernetes import cron_job, ray_cron_job
from jobs.targets.placement import OF_PODS, RESOURCES, Placement


@dataclass(frozen=True)
class Target:
    """Another scheduler: what writes the schedule for it, and the options of a placement that it knows."""

    render: Callable[[JobFile, Placement], Files]
    options: Sequence[str] = ()


TARGETS = {
    "k8s-cronjob": Target(cron_job, (*RESOURCES, *OF_PODS)),
    "raycronjob": Target(ray_cron_job, (*RESOURCES, *OF_PODS)),
    "systemd": Target(systemd),
    "crontab": Target(crontab),
    "slurm": Target(slurm, (*RESOURCES, "partition")),
    "airflow": Target(airflow, (*RESOURCES, *OF_PODS)),
}


def render(path: Path, target: str, placement: Placement, folder: Path | None) -> Files:
    """The schedule of the job in a file, for another scheduler. Writes nothing; `folder` is where the files will be.

    Raises:
        UserError: if the file is no job with a schedule, or the target has no word for something that the job needs.
    """
    placement.only(target, TARGETS[target].options)
    return TARGETS[target].render(JobFile.load(path, folder), placement)
