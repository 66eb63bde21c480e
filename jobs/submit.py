"""A run as a job of Kubernetes (KubeRay) or Slurm: one self-contained file that holds the spec."""

import re
import shlex
from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from importlib.metadata import version
from typing import Any

import yaml

from asyrp.errors import UserError
from jobs.spec import JobSpec

MAX_NAME = 47  # of a RayJob: KubeRay adds to it, and a Kubernetes label holds 63
SPEC_FOLDER = "/etc/asyrp"
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


def parse_time(text: str) -> timedelta:
    """[D-]HH:MM:SS, as Slurm writes it. Raises UserError."""
    match = TIME.fullmatch(text)
    if match is None:
        raise UserError(f"--time {text!r} is no time: write it as HH:MM:SS or D-HH:MM:SS")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


def _command(spec: JobSpec, job: Job) -> list[str]:
    """What runs on the head, less the spec. Device and actors are named: the run waits for those that come late."""
    device = "cuda" if job.gpus else "cpu"
    actors = spec.engine.actors or job.workers * max(job.gpus, 1)
    return ["asyrp", "run", "--address", "auto", "--device", device, "--actors", str(actors)]


def _spec_yaml(spec: JobSpec) -> str:
    """What the user has set, and no defaults."""
    return _yaml(spec.model_dump(mode="json", exclude_unset=True))


class _Dumper(yaml.SafeDumper):
    """Text of several lines as such, where YAML can say it so."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _yaml(*documents: Any) -> str:
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False)


# Kubernetes


def ray_job(spec: JobSpec, job: Job, image: str, service_account: str | None = None) -> str:
    """A ConfigMap with the spec and a RayJob that runs it, for `kubectl apply -f`.

    Raises:
        UserError: for a file of this machine in the spec, which no pod has, or an image or account that is no name.
    """
    _refuse_local(spec)
    if not IMAGE.fullmatch(image):
        raise UserError(f"--image {image!r} is no container image: write it as registry/name:tag")
    if service_account is not None and not ACCOUNT.fullmatch(service_account):
        raise UserError(f"--service-account {service_account!r} is no name of a service account")
    head = _pod_template("ray-head", image, service_account, cpus=2, memory=8)
    head["spec"]["containers"][0]["volumeMounts"] = [{"name": "spec", "mountPath": SPEC_FOLDER, "readOnly": True}]
    head["spec"]["volumes"] = [{"name": "spec", "configMap": {"name": job.name}}]
    worker = _pod_template("ray-worker", image, service_account, job.cpus, job.memory, job.gpus)
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": job.name},
        "data": {"spec.yaml": _spec_yaml(spec)},
    }
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": job.name},
        "spec": {
            "entrypoint": shlex.join([*_command(spec, job), "--config", f"{SPEC_FOLDER}/spec.yaml"]),
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
        },
    }
    return _yaml(config_map, manifest)


def _refuse_local(spec: JobSpec) -> None:
    urls = {"source": spec.source, "output": spec.output, "inversions": spec.inversions, "model": spec.model}
    urls |= {f"directions.{name}": url for name, url in spec.directions.items()}
    for field, url in urls.items():
        if url is not None and url.startswith("/"):
            raise UserError(
                f"{field} {url} is on this machine, and pods are others: give a URL such as s3://bucket/folder, or "
                f"file://{url} where every pod has it"
            )


def _pod_template(
    name: str, image: str, service_account: str | None, cpus: int, memory: int, gpus: int = 0
) -> dict[str, Any]:
    wanted: dict[str, Any] = {"cpu": cpus, "memory": f"{memory}Gi"}
    spec: dict[str, Any] = {"containers": [{"name": name, "image": image}]}
    if gpus:
        wanted["nvidia.com/gpu"] = gpus
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    spec["containers"][0]["resources"] = {"requests": wanted, "limits": dict(wanted)}
    if service_account is not None:
        spec["serviceAccountName"] = service_account
    return {"spec": spec}


# Slurm


def batch_script(spec: JobSpec, job: Job, partition: str | None = None) -> str:
    """A script for `sbatch`: what is particular to this job, then the lines that all jobs share.

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
    }
    directives = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    variables = [
        f"nodes={job.workers} cpus={job.cpus} gpus={job.gpus}",
        f"command=({shlex.join(_command(spec, job))})",
        f"spec={shlex.quote(_spec_yaml(spec))}",
    ]
    shared = resources.files("jobs").joinpath("templates/slurm.sh").read_text()
    head = ["#!/bin/bash", *directives, "#SBATCH --requeue", "#SBATCH --exclusive", "#SBATCH --open-mode=append"]
    return "\n".join([*head, "", *variables, "", shared])


def _slurm_time(time: timedelta) -> str:
    minutes, seconds = divmod(time.seconds, 60)
    return f"{time.days}-{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
