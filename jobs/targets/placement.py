"""A run as a job of Kubernetes (KubeRay) or Slurm: one self-contained file that holds the spec."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import yaml

from asyrp.errors import UserError
from jobs.spec.paths import MAX_NAME, NAME
from jobs.spec.run import EngineSpec, RunSpec

DEFAULT_WORKERS, DEFAULT_GPUS, DEFAULT_CPUS, DEFAULT_MEMORY, DEFAULT_TIME = 1, 1, 8, 32, "24:00:00"
RESOURCES = ("workers", "gpus_per_worker", "cpus_per_worker", "memory_per_worker", "time")
OF_PODS = ("image", "service_account")
RETRIES = 3
DRAIN_SECONDS = 300  # between the signal and Slurm's time limit: long enough for the shards in flight

TIME = re.compile(r"(?:(\d{1,4})-)?(\d{1,4}):([0-5]\d):([0-5]\d)", re.ASCII)


@dataclass(frozen=True)
class Resources:
    """What a job asks for, on whichever system. Every worker is a node of its own.

    Raises:
        UserError: for a name or a time that the systems do not take.
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


@dataclass(frozen=True)
class Placement:
    """Where a job is to run and what it asks for there, as far as it was said."""

    workers: int | None = None
    gpus_per_worker: int | None = None
    cpus_per_worker: int | None = None
    memory_per_worker: int | None = None  # GiB
    time: str | None = None
    image: str | None = None
    service_account: str | None = None
    partition: str | None = None

    def only(self, target: str, known: Collection[str]) -> None:
        """Refuse what a target has no use for. Raises UserError."""
        for name, value in vars(self).items():
            if value is not None and name not in known:
                raise UserError(f"--{name.replace('_', '-')} is not for --target {target}: leave it out")

    def job(self, name: str) -> Resources:
        """What the job of that name asks for. Raises UserError as `Resources` does."""
        gpus = DEFAULT_GPUS if self.gpus_per_worker is None else self.gpus_per_worker
        return Resources(
            name,
            self.workers or DEFAULT_WORKERS,
            gpus,
            self.cpus_per_worker or DEFAULT_CPUS,
            self.memory_per_worker or DEFAULT_MEMORY,
            parse_time(self.time or DEFAULT_TIME),
        )

    def container_image(self) -> str:
        """Raises UserError if none was given."""
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


def cluster_engine(knobs: EngineSpec, job: Resources) -> dict[str, Any]:
    """How a run on the cluster of its job differs from one here. Device and actors are named: the run waits for those
    that come late."""
    device = "cuda" if job.gpus else "cpu"
    return {"address": "auto", "device": device, "actors": knobs.actors or job.workers * max(job.gpus, 1)}


def _command(spec: RunSpec, job: Resources) -> list[str]:
    """What runs on the head, less the file of the spec."""
    flags = [text for name, value in cluster_engine(spec.engine, job).items() for text in (f"--{name}", str(value))]
    return ["asyrp", "run", *flags, "--config"]


def _spec_yaml(spec: RunSpec) -> str:
    """What the user has set, and no defaults."""
    return to_yaml(spec.model_dump(mode="json", exclude_unset=True))


class _Dumper(yaml.SafeDumper):
    """Text of several lines as such, where YAML can say it so."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(*documents: Any) -> str:
    """YAML in which a text of several lines can be read."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False)


# Kubernetes


def local_fields(spec: RunSpec) -> dict[str, str | None]:
    """The places that a spec names, by field."""
    urls = {
        "source": spec.source,
        "output": spec.output,
        "inversions": spec.inversions,
        "model": spec.model,
        "intervals": spec.intervals,
    }
    return urls | {f"directions.{name}": url for name, url in spec.directions.items()}


def refuse_local(urls: Mapping[str, str | None]) -> None:
    """Refuse places on this machine, by the field that names them, where pods are to reach them."""
    for field, url in urls.items():
        if url is not None and url.startswith("/"):
            raise UserError(
                f"{field} {url} is on this machine, and pods are others: give a URL such as s3://bucket/folder, or "
                f"file://{url} where every pod has it"
            )


# Slurm
