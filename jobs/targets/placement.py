"""The resources that a job asks for on a cluster, and the command and spec that it carries there."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import yaml
from pydantic import BaseModel, Field

from asyrp.errors import UserError
from jobs.spec.mistakes import CHECKED
from jobs.spec.paths import MAX_NAME, NAME
from jobs.spec.run import EngineSpec, RunSpec

DEFAULT_WORKERS, DEFAULT_GPUS, DEFAULT_CPUS, DEFAULT_MEMORY, DEFAULT_TIME = 1, 1, 8, 32, "24:00:00"
RESOURCE_OPTIONS = ("workers", "gpus_per_worker", "cpus_per_worker", "memory_per_worker", "time")
POD_OPTIONS = ("image", "service_account")
RETRIES = 3
DRAIN_SECONDS = 300
"""How long a job has to finish the shards in flight, from the signal to the end of its time."""

TIME = re.compile(r"(?:(\d{1,4})-)?(\d{1,4}):([0-5]\d):([0-5]\d)", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The name of a job and what it asks for, on any system. Every worker is a node of its own; CPUs, GPUs and memory
    are those of one worker.

    Raises:
        UserError: if the name is not valid, or the time is too short to finish what is in flight.
    """

    name: str
    workers: int
    gpus: int
    cpus: int
    memory: int  # GiB
    time: timedelta

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or len(self.name) > MAX_NAME:
            raise UserError(
                f"--name {self.name!r} is no job name: begin with a letter, then lower-case letters, digits and '-', "
                f"at most {MAX_NAME}, as in faces-glasses"
            )
        if self.time.total_seconds() <= DRAIN_SECONDS:
            raise UserError(f"--time must be more than the {DRAIN_SECONDS} s in which a run finishes what is in flight")


class Placement(BaseModel):
    """The options that say where a job runs and what it asks for there; None where the user gave none."""

    model_config = CHECKED

    workers: int | None = Field(None, ge=1, description=f"Number of worker nodes. [default: {DEFAULT_WORKERS}]")
    gpus_per_worker: int | None = Field(
        None, ge=0, description=f"GPUs of each node; 0: work on CPUs. [default: {DEFAULT_GPUS}]"
    )
    cpus_per_worker: int | None = Field(None, ge=1, description=f"CPUs of each node. [default: {DEFAULT_CPUS}]")
    memory_per_worker: int | None = Field(
        None, ge=1, description=f"Memory of each node, GiB. [default: {DEFAULT_MEMORY}]"
    )
    time: str | None = Field(None, description=f"Time limit, as [D-]HH:MM:SS. [default: {DEFAULT_TIME}]")
    image: str | None = Field(None, description="Kubernetes: a container image that has asyrp.")
    service_account: str | None = Field(None, description="Kubernetes: the account that gives pods access to storage.")
    partition: str | None = Field(None, description="Slurm: the partition.")

    def only(self, target: str, known: Collection[str]) -> None:
        """Raises UserError if an option is given that the target does not use."""
        for name, value in vars(self).items():
            if value is not None and name not in known:
                raise UserError(f"--{name.replace('_', '-')} is not for --target {target}: leave it out")

    def resources(self, name: str) -> Resources:
        """What the job called `name` asks for, with defaults. Raises UserError as `Resources` does."""
        gpus = DEFAULT_GPUS if self.gpus_per_worker is None else self.gpus_per_worker
        return Resources(
            name=name,
            workers=self.workers or DEFAULT_WORKERS,
            gpus=gpus,
            cpus=self.cpus_per_worker or DEFAULT_CPUS,
            memory=self.memory_per_worker or DEFAULT_MEMORY,
            time=parse_time(self.time or DEFAULT_TIME),
        )

    def container_image(self) -> str:
        """The image of the pods. Raises UserError if none is given."""
        if self.image is None:
            raise UserError("--image is missing: give a container image that has asyrp, as docs/scheduling.md makes it")
        return self.image


def parse_time(text: str) -> timedelta:
    """[D-]HH:MM:SS, as Slurm writes it. Raises UserError."""
    match = TIME.fullmatch(text)
    if match is None:
        raise UserError(f"--time {text!r} is no time: write it as HH:MM:SS or D-HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def cluster_engine(knobs: EngineSpec, resources: Resources) -> dict[str, Any]:
    """The speed knobs that a run on the cluster of its job has in place of the user's. Device and number of actors are
    given, so that the run waits for workers that start late."""
    device = "cuda" if resources.gpus else "cpu"
    actors = knobs.actors or resources.workers * max(resources.gpus, 1)
    return {"address": "auto", "device": device, "actors": actors}


def run_command(spec: RunSpec, resources: Resources) -> list[str]:
    """The command of a run on the head of its cluster; the path of the spec's file is to be appended."""
    knobs = cluster_engine(spec.engine, resources)
    flags = [text for name, value in knobs.items() for text in (f"--{name}", str(value))]
    return ["asyrp", "run", *flags, "--config"]


def run_spec_yaml(spec: RunSpec) -> str:
    """The fields of a run's spec that the user has set, as YAML."""
    return to_yaml(spec.model_dump(mode="json", exclude_unset=True))


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as a block, where YAML allows that."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(*documents: Any) -> str:
    """Documents as YAML; a text of several lines keeps its lines."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False)


def local_fields(spec: RunSpec) -> dict[str, str | None]:
    """The paths and URLs that a spec names, by field."""
    urls = {
        "source": spec.source,
        "output": spec.output,
        "inversions": spec.inversions,
        "model": spec.model,
        "intervals": spec.intervals,
    }
    return urls | {f"directions.{name}": url for name, url in spec.directions.items()}


def refuse_local(urls: Mapping[str, str | None]) -> None:
    """Raises UserError if a field holds a path of this machine, which pods cannot reach."""
    for field, url in urls.items():
        if url is not None and url.startswith("/"):
            raise UserError(
                f"{field} {url} is on this machine, and pods are others: give a URL such as s3://bucket/folder, or "
                f"file://{url} where every pod has it"
            )
