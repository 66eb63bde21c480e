"""The schedule of a data job for systemd or cron on this machine, or for scrontab on a Slurm cluster."""

import shlex
import sys
from pathlib import Path

from asyrp.errors import UserError
from jobs.targets.cron_dialects import five_fields, on_calendar
from jobs.targets.job_file import LEFT_OUT, Files, JobFile, fill, job_spec_yaml
from jobs.targets.placement import DRAIN_SECONDS, Placement, cluster_engine
from jobs.targets.slurm import slurm_script


def systemd(scheduled: JobFile, placement: Placement) -> Files:  # noqa: ARG001
    """A systemd timer and its service, for this machine."""
    name, schedule = scheduled.name, scheduled.schedule
    notes = [
        f"The data job {name}. Put this and {name}.timer into ~/.config/systemd/user, then:",
        f"systemctl --user enable --now {name}.timer",
        "systemd does not tell the service the tick: the job does the last one that is due.",
    ]
    if schedule.catch_up == "all":
        notes.append(scheduled.cannot("catch_up", "of the ticks that it missed, systemd starts one"))
    if scheduled.job.overlap == "queue":
        notes.append(scheduled.cannot("overlap", LEFT_OUT))
    else:
        notes.append(f"With systemd {LEFT_OUT}.")
    service = fill(
        "job.service",
        notes=notes,
        name=name,
        folder=str(Path.cwd()),
        command=_command_here(scheduled),
        drain_seconds=DRAIN_SECONDS,
    )
    timer = fill("job.timer", name=name, events=on_calendar(schedule), persistent=schedule.catch_up != "none")
    return {f"{name}.service": service, f"{name}.timer": timer}


def crontab(scheduled: JobFile, placement: Placement) -> Files:  # noqa: ARG001
    """A line of a crontab, for this machine."""
    schedule = scheduled.schedule
    notes = [
        f"The data job {scheduled.name}, for crontab -e: put it last, since CRON_TZ is of all lines that follow.",
        f"CRON_TZ is known to cronie. Other crons, Debian's among them, go by the machine's clock: have that in "
        f"{schedule.timezone}.",
        "cron does not tell the job the tick: it does the last one that is due.",
    ]
    if schedule.catch_up != "none":
        notes.append(
            scheduled.cannot("catch_up", "cron starts no tick that it missed, its images come with the next one")
        )
    fields = five_fields(schedule, "cron")
    command = f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(_command_here(scheduled))}"
    return {"crontab": fill("crontab", notes=notes, schedule=schedule, fields=fields, command=command)}


def slurm(scheduled: JobFile, placement: Placement) -> Files:
    """A script for `sbatch` that does a tick, and the scrontab lines that submit it."""
    name, schedule, resources = scheduled.name, scheduled.schedule, placement.resources(scheduled.name)
    if scheduled.folder is None:
        raise UserError("--output is missing: give the folder for the script, which the scrontab names")
    spec = job_spec_yaml(scheduled.job, **cluster_engine(scheduled.job.run.engine, resources))
    dependency = "singleton" if scheduled.job.overlap == "queue" else None
    script = slurm_script(["asyrp", "jobs", "run"], spec, resources, placement.partition, dependency)
    notes = [
        f"The schedule of the data job {name}. To add it:",
        f"(scrontab -l; cat {name}.scrontab) | scrontab -",
        f"scrontab has no time zones: the times are of Slurm's own clock. Have that in {schedule.timezone}.",
        "A tick has to wait for its nodes: the job does the last one that is due when it gets them.",
    ]
    if schedule.catch_up != "last":
        notes.append(scheduled.cannot("catch_up", "of the ticks that it missed, Slurm starts one when it is up again"))
    command = shlex.join(["sbatch", str(scheduled.folder.absolute() / f"{name}.sh")])
    fields = five_fields(schedule, "Slurm")
    lines = fill("scrontab", notes=notes, name=name, fields=fields, command=command)
    return {f"{name}.sh": script, f"{name}.scrontab": lines}


def _command_here(scheduled: JobFile) -> list[str]:
    """The command of a tick on this machine. With -P, Python imports nothing from the folder that it runs in."""
    path = str(scheduled.path.absolute())
    if "\n" in path + str(Path.cwd()):
        raise UserError("the path of the job's file, or of this folder, has more than one line: rename it")
    return [sys.executable, "-P", "-m", "jobs", "jobs", "run", path]
