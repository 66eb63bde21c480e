"""A run as a job of Kubernetes (KubeRay) or Slurm: one self-contained file that holds the spec."""

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from importlib.metadata import version
from typing import Any

import yaml

from asyrp.errors import UserError
from jobs.spec.run import EngineSpec, JobSpec

MAX_NAME = 47  # of a RayJob: KubeRay adds to it, and a Kubernetes label holds 63
SPEC_FOLDER, SPEC_FILE = "/etc/asyrp", "spec.yaml"
GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
DEFAULT_WORKERS, DEFAULT_GPUS, DEFAULT_CPUS, DEFAULT_MEMORY, DEFAULT_TIME = 1, 1, 8, 32, "24:00:00"
RESOURCES = ("workers", "gpus_per_worker", "cpus_per_worker", "memory_per_worker", "time")
OF_PODS = ("image", "service_account")
RETRIES = 3
KEEP_CLUSTER_SECONDS = 60
DRAIN_SECONDS = 300  # between the signal and Slurm's time limit: long enough for the shards in flight

NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
ACCOUNT = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
PARTITION = re.compile(r"[\w.,-]+", re.ASCII)
IMAGE = re.compile(r"[\w./:@-]+", re.ASCII)
TIME = re.compile(r"(?:(\d{1,4})-)?(\d{1,4}):([0-5]\d):([0-5]\d)", re.ASCII)


@dataclass(frozen=True)
class Job:
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

    def job(self, name: str) -> Job:
        """What the job of that name asks for. Raises UserError as `Job` does."""
        gpus = DEFAULT_GPUS if self.gpus_per_worker is None else self.gpus_per_worker
        return Job(
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


def cluster_engine(knobs: EngineSpec, job: Job) -> dict[str, Any]:
    """How a run on the cluster of its job differs from one here. Device and actors are named: the run waits for those
    that come late."""
    device = "cuda" if job.gpus else "cpu"
    return {"address": "auto", "device": device, "actors": knobs.actors or job.workers * max(job.gpus, 1)}


def _command(spec: JobSpec, job: Job) -> list[str]:
    """What runs on the head, less the file of the spec."""
    flags = [text for name, value in cluster_engine(spec.engine, job).items() for text in (f"--{name}", str(value))]
    return ["asyrp", "run", *flags, "--config"]


def _spec_yaml(spec: JobSpec) -> str:
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


def ray_job(spec: JobSpec, job: Job, image: str, service_account: str | None = None) -> str:
    """A ConfigMap with the spec and a RayJob that runs it, for `kubectl apply -f`.

    Raises:
        UserError: for a file of this machine in the spec, which no pod has, or an image or account that is no name.
    """
    refuse_local(local_fields(spec))
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": job.name},
        "spec": ray_job_spec([*_command(spec, job), f"{SPEC_FOLDER}/{SPEC_FILE}"], job, image, service_account),
    }
    return to_yaml(config_map(job.name, _spec_yaml(spec)), manifest)


def config_map(name: str, spec: str) -> dict[str, Any]:
    """The spec as a file for pods."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {SPEC_FILE: spec}}


def ray_job_spec(command: Sequence[str], job: Job, image: str, service_account: str | None) -> dict[str, Any]:
    """The `spec` of a RayJob: a cluster of its own, and the command on its head, which sees the spec in SPEC_FOLDER.

    Raises:
        UserError: for an image or account that is no name.
    """
    head = with_spec(pod_template("ray-head", image, service_account, cpus=2, memory=8), job.name)
    worker = pod_template("ray-worker", image, service_account, job.cpus, job.memory, job.gpus)
    return {
        "entrypoint": shlex.join(command),
        "backoffLimit": RETRIES,
        "activeDeadlineSeconds": int(job.time.total_seconds()),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEEP_CLUSTER_SECONDS,
        "rayClusterSpec": {
            "rayVersion": version("ray"),
            "authOptions": {"mode": "token"},
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": head},
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": job.workers,
                    "minReplicas": job.workers,
                    "maxReplicas": job.workers,
                    "rayStartParams": {},
                    "template": worker,
                }
            ],
        },
    }


def local_fields(spec: JobSpec) -> dict[str, str | None]:
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


def pod_template(
    name: str, image: str, service_account: str | None, cpus: int, memory: int, gpus: int = 0
) -> dict[str, Any]:
    """A pod of one container.

    Raises:
        UserError: for an image or account that is no name.
    """
    check_image(image, service_account)
    resources = pod_resources(cpus, memory, gpus)
    container = {"name": name, "image": image, "resources": {"requests": resources, "limits": dict(resources)}}
    spec: dict[str, Any] = {"containers": [container]}
    if gpus:
        spec["tolerations"] = [GPU_TOLERATION]
    if service_account is not None:
        spec["serviceAccountName"] = service_account
    return {"spec": spec}


def pod_resources(cpus: int, memory: int, gpus: int) -> dict[str, Any]:
    """What a pod is given; memory in GiB."""
    return {"cpu": cpus, "memory": f"{memory}Gi", **({"nvidia.com/gpu": gpus} if gpus else {})}


def with_spec(template: dict[str, Any], name: str) -> dict[str, Any]:
    """A pod that sees the ConfigMap of that name in SPEC_FOLDER."""
    template["spec"]["containers"][0]["volumeMounts"] = [{"name": "spec", "mountPath": SPEC_FOLDER, "readOnly": True}]
    template["spec"]["volumes"] = [{"name": "spec", "configMap": {"name": name}}]
    return template


def check_image(image: str, service_account: str | None) -> None:
    """Raises UserError for an image or account that is no name."""
    if not IMAGE.fullmatch(image):
        raise UserError(f"--image {image!r} is no container image: write it as registry/name:tag")
    if service_account is not None and not ACCOUNT.fullmatch(service_account):
        raise UserError(f"--service-account {service_account!r} is no name of a service account")


# Slurm


def batch_script(spec: JobSpec, job: Job, partition: str | None = None) -> str:
    """A run as a script for `sbatch`. Raises UserError as `slurm_script` does."""
    return slurm_script(_command(spec, job), _spec_yaml(spec), job, partition)


def slurm_script(
    command: Sequence[str], spec: str, job: Job, partition: str | None, dependency: str | None = None
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
