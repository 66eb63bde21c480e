"""The targets of `asyrp jobs schedule render`: the schedulers that can start the ticks of a data job.

Each of them calls `asyrp jobs run`; the lease of the job keeps two ticks apart. Where a scheduler has no option for a
setting of the job, a comment in the rendered text says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.targets.airflow import airflow
from jobs.targets.host import crontab, slurm, systemd
from jobs.targets.job_file import Files, JobFile
from jobs.targets.kubernetes_schedule import cron_job, ray_cron_job
from jobs.targets.placement import POD_OPTIONS, RESOURCE_OPTIONS, Placement


@dataclass(frozen=True)
class Target:
    """Another scheduler: `render` writes the schedule for it, `options` are the fields of a placement that it uses."""

    render: Callable[[JobFile, Placement], Files]
    options: Sequence[str] = ()


TARGETS = {
    "k8s-cronjob": Target(cron_job, (*RESOURCE_OPTIONS, *POD_OPTIONS)),
    "raycronjob": Target(ray_cron_job, (*RESOURCE_OPTIONS, *POD_OPTIONS)),
    "systemd": Target(systemd),
    "crontab": Target(crontab),
    "slurm": Target(slurm, (*RESOURCE_OPTIONS, "partition")),
    "airflow": Target(airflow, (*RESOURCE_OPTIONS, *POD_OPTIONS)),
}


def render(path: Path, target: str, placement: Placement, folder: Path | None) -> Files:
    """The schedule of the job at `path` for another scheduler. Writes nothing; `folder` is where the files will be.

    Raises:
        UserError: if the file describes no job with a schedule, or the target cannot do something that the job needs.
    """
    placement.only(target, TARGETS[target].options)
    return TARGETS[target].render(JobFile.load(path, folder), placement)
