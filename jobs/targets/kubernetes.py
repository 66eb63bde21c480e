"""The schedule of a data job as a CronJob of Kubernetes, and as a RayCronJob of KubeRay."""

import re
import shlex
from collections.abc import Sequence
from importlib import resources
from importlib.metadata import version
from typing import Any

from asyrp.errors import UserError
from jobs.runs.run import EXIT_BREAKER, EXIT_QUARANTINE, EXIT_USAGE
from jobs.spec.run import RunSpec
from jobs.targets.cron_dialects import five_fields
from jobs.targets.job_file import LEFT_OUT, Files, JobFile, comment, spec_yaml
from jobs.targets.placement import (
    DRAIN_SECONDS,
    RETRIES,
    Placement,
    Resources,
    _command,
    _spec_yaml,
    cluster_engine,
    local_fields,
    refuse_local,
    to_yaml,
)

LATEST_START_SECONDS = 60
"""How late a CronJob may start a tick where missed ones are not to be caught up with."""
KEPT_JOBS = 3
NO_SPRING = "A time that the clock skips in spring does not come."


def cron_job(scheduled: JobFile, placement: Placement) -> Files:
    """A CronJob of Kubernetes (batch/v1): one pod a tick."""
    schedule, job = scheduled.schedule, placement.job(scheduled.name)
    if job.workers > 1:
        raise UserError("--workers: a CronJob has one pod a tick: leave it out, or use --target raycronjob")
    scheduled.refuse_local()
    spec = {
        "schedule": five_fields(schedule, "Kubernetes"),
        "timeZone": schedule.timezone,
        "concurrencyPolicy": "Forbid" if scheduled.job.overlap == "refuse" else "Allow",
        **({"startingDeadlineSeconds": LATEST_START_SECONDS} if schedule.catch_up == "none" else {}),
        "successfulJobsHistoryLimit": KEPT_JOBS,
        "failedJobsHistoryLimit": KEPT_JOBS,
        "jobTemplate": {"spec": _pod_job(job, placement)},
    }
    manifest = {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": job.name}, "spec": spec}
    notes = [f"The schedule of the data job {job.name}, for kubectl apply -f."]
    if schedule.catch_up == "all":
        notes.append(scheduled.cannot("catch_up", "of the ticks that it missed, Kubernetes starts the last"))
    if scheduled.job.overlap == "refuse":
        late = "; the last such tick is started when the other is through" if schedule.catch_up != "none" else ""
        notes.append(f"With Forbid {LEFT_OUT}{late}.")
    if schedule.timezone != "UTC":
        notes.append(NO_SPRING)
    return {
        f"{job.name}.yaml": comment(notes) + "\n" + to_yaml(config_map(job.name, spec_yaml(scheduled.job)), manifest)
    }


def _pod_job(job: Resources, placement: Placement) -> dict[str, Any]:
    """The `spec` of a Job. What would end the same way again is not tried again."""
    image, account = placement.container_image(), placement.service_account
    template = with_spec(pod_template("asyrp", image, account, job.cpus, job.memory, job.gpus), job.name)
    template["spec"] |= {"restartPolicy": "Never", "terminationGracePeriodSeconds": DRAIN_SECONDS}
    script = resources.files("jobs.targets").joinpath("templates/cronjob.sh").read_text()
    job_name = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-name']"}}
    template["spec"]["containers"][0] |= {
        "command": ["bash", "-c", script, f"{SPEC_FOLDER}/{SPEC_FILE}"],
        "env": [{"name": "JOB_NAME", "valueFrom": job_name}],
    }
    final = {"operator": "In", "values": [EXIT_USAGE, EXIT_QUARANTINE, EXIT_BREAKER]}
    return {
        "backoffLimit": RETRIES,
        "activeDeadlineSeconds": int(job.time.total_seconds()),
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": final}]},
        "template": template,
    }


def ray_cron_job(scheduled: JobFile, placement: Placement) -> Files:
    """A RayCronJob of KubeRay (ray.io/v1): a Ray cluster a tick."""
    schedule, job = scheduled.schedule, placement.job(scheduled.name)
    scheduled.refuse_local()
    command = ["asyrp", "jobs", "run", f"{SPEC_FOLDER}/{SPEC_FILE}"]
    spec = {
        "schedule": five_fields(schedule, "KubeRay"),
        "timeZone": schedule.timezone,
        "jobTemplate": ray_job_spec(command, job, placement.container_image(), placement.service_account),
    }
    manifest = {"apiVersion": "ray.io/v1", "kind": "RayCronJob", "metadata": {"name": job.name}, "spec": spec}
    text = spec_yaml(scheduled.job, **cluster_engine(scheduled.job.run.engine, job))
    then = "it is left out there" if scheduled.job.overlap == "refuse" else "it waits there"
    notes = [
        f"The schedule of the data job {job.name}, for kubectl apply -f. It needs KubeRay 1.6 or newer with the "
        "feature gate RayCronJob, which is alpha and off by default.",
        "A RayCronJob does not tell its job the tick: the job does the last one that is due.",
        f"A tick that comes while another is at work gets a cluster all the same, and {then}.",
        "A RayCronJob keeps every RayJob: delete old ones.",
    ]
    if schedule.catch_up != "last":
        notes.append(scheduled.cannot("catch_up", "of the ticks that it missed, KubeRay starts one"))
    if schedule.timezone != "UTC":
        notes.append(NO_SPRING)
    return {f"{job.name}.yaml": comment(notes) + "\n" + to_yaml(config_map(job.name, text), manifest)}


SPEC_FOLDER, SPEC_FILE = "/etc/asyrp", "spec.yaml"


GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


KEEP_CLUSTER_SECONDS = 60


ACCOUNT = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")


IMAGE = re.compile(r"[\w./:@-]+", re.ASCII)


def ray_job(spec: RunSpec, job: Resources, image: str, service_account: str | None = None) -> str:
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


def ray_job_spec(command: Sequence[str], job: Resources, image: str, service_account: str | None) -> dict[str, Any]:
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
