"""A run or a tick as a script for Slurm's `sbatch`. The script holds the spec."""

import re
import shlex
from collections.abc import Sequence
from datetime import timedelta
from importlib.resources import files

from asyrp.errors import UserError
from jobs.spec.run import RunSpec
from jobs.targets.placement import DRAIN_SECONDS, Resources, run_command, run_spec_yaml

PARTITION = re.compile(r"[\w.,-]+", re.ASCII)


def batch_script(spec: RunSpec, resources: Resources, partition: str | None = None) -> str:
    """A run as a script for `sbatch`. Raises UserError as `slurm_script` does."""
    return slurm_script(run_command(spec, resources), run_spec_yaml(spec), resources, partition)


def slurm_script(
    command: Sequence[str], spec: str, resources: Resources, partition: str | None, dependency: str | None = None
) -> str:
    """A script for `sbatch`. First come the lines of this job, then those that all jobs share (templates/slurm.sh). The
    command gets the file with the spec as its last argument.

    Raises:
        UserError: if the partition is not a valid name.
    """
    if partition is not None and not PARTITION.fullmatch(partition):
        raise UserError(f"--partition {partition!r} is no name of a partition")
    options = {
        "job-name": resources.name,
        "partition": partition,
        "nodes": resources.workers,
        "ntasks-per-node": 1,
        "cpus-per-task": resources.cpus,
        "mem": f"{resources.memory}G",
        "gpus-per-node": resources.gpus or None,
        "time": _slurm_time(resources.time),
        "signal": f"B:USR1@{DRAIN_SECONDS}",
        "dependency": dependency,
    }
    directives = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    variables = [
        f"nodes={resources.workers} cpus={resources.cpus} gpus={resources.gpus}",
        f"command=({shlex.join(command)})",
        f"spec={shlex.quote(spec)}",
    ]
    shared = files("jobs.targets").joinpath("templates/slurm.sh").read_text()
    head = ["#!/bin/bash", *directives, "#SBATCH --requeue", "#SBATCH --exclusive", "#SBATCH --open-mode=append"]
    return "\n".join([*head, "", *variables, "", shared])


def _slurm_time(time: timedelta) -> str:
    """A time as D-HH:MM:SS."""
    minutes, seconds = divmod(time.seconds, 60)
    return f"{time.days}-{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
