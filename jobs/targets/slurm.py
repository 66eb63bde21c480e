"""A run or a tick as a Slurm script that holds its spec."""

import re
import shlex
from collections.abc import Sequence
from datetime import timedelta
from importlib import resources

from asyrp.errors import UserError
from jobs.spec.run import RunSpec
from jobs.targets.placement import DRAIN_SECONDS, Resources, _command, _spec_yaml

PARTITION = re.compile(r"[\w.,-]+", re.ASCII)


def batch_script(spec: RunSpec, job: Resources, partition: str | None = None) -> str:
    """A run as a script for `sbatch`. Raises UserError as `slurm_script` does."""
    return slurm_script(_command(spec, job), _spec_yaml(spec), job, partition)


def slurm_script(
    command: Sequence[str], spec: str, job: Resources, partition: str | None, dependency: str | None = None
) -> str:
    """A script for `sbatch`: what is particular to this job, then the lines that all jobs share. The command gets the
    file with the spec as its last argument.

    Raises:
        UserError: for a partition that is no name.
    """
    if partition is not None and not PARTITION.fullmatch(partition):
        raise UserError(f"--partition {partition!r} is no name of a partition")
    options = {
        "job-name": job.name,
        "partition": partition,
        "nodes": job.workers,
        "ntasks-per-node": 1,
        "cpus-per-task": job.cpus,
        "mem": f"{job.memory}G",
        "gpus-per-node": job.gpus or None,
        "time": _slurm_time(job.time),
        "signal": f"B:USR1@{DRAIN_SECONDS}",
        "dependency": dependency,
    }
    directives = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    variables = [
        f"nodes={job.workers} cpus={job.cpus} gpus={job.gpus}",
        f"command=({shlex.join(command)})",
        f"spec={shlex.quote(spec)}",
    ]
    shared = resources.files("jobs.targets").joinpath("templates/slurm.sh").read_text()
    head = ["#!/bin/bash", *directives, "#SBATCH --requeue", "#SBATCH --exclusive", "#SBATCH --open-mode=append"]
    return "\n".join([*head, "", *variables, "", shared])


def _slurm_time(time: timedelta) -> str:
    minutes, seconds = divmod(time.seconds, 60)
    return f"{time.days}-{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
