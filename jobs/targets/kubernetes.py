"""A run as a RayJob of KubeRay (`asyrp submit`), and the parts of manifests that all jobs on Kubernetes share."""

import re
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from asyrp.errors import UserError
from jobs.spec.run import RunSpec
from jobs.targets.placement import (
    RETRIES,
    Resources,
    local_fields,
    refuse_local,
    run_command,
    run_spec_yaml,
    to_yaml,
)

SPEC_FOLDER, SPEC_FILE = "/etc/asyrp", "spec.yaml"
"""Where a container finds the spec that its ConfigMap holds."""

GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
KEEP_CLUSTER_SECONDS = 60
"""How long KubeRay keeps the Ray cluster of a job that has ended."""

ACCOUNT = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
IMAGE = re.compile(r"[\w./:@-]+", re.ASCII)


def ray_job(spec: RunSpec, resources: Resources, image: str, service_account: str | None = None) -> str:
    """A ConfigMap with the spec and a RayJob that runs it, for `kubectl apply -f`.

    Raises:
        UserError: if the spec names a file of this machine, which no pod has; if the image or the service account is
            not a valid name.
    """
    refuse_local(local_fields(spec))
    command = [*run_command(spec, resources), f"{SPEC_FOLDER}/{SPEC_FILE}"]
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": resources.name},
        "spec": ray_job_spec(command, resources, image, service_account),
    }
    return to_yaml(config_map(resources.name, run_spec_yaml(spec)), manifest)


def config_map(name: str, spec: str) -> dict[str, Any]:
    """A ConfigMap that gives pods the spec as a file."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {SPEC_FILE: spec}}


def ray_job_spec(
    command: Sequence[str], resources: Resources, image: str, service_account: str | None
) -> dict[str, Any]:
    """The `spec` of a RayJob. It has a Ray cluster of its own; the command runs on the head, which sees the spec in
    SPEC_FOLDER.

    Raises:
        UserError: if the image or the service account is not a valid name.
    """
    head = with_spec(pod_template("ray-head", image, service_account, cpus=2, memory=8), resources.name)
    worker = pod_template(
        "ray-worker",
        image,
        service_account,
        cpus=resources.cpus,
        memory=resources.memory,
        gpus=resources.gpus,
    )
    return {
        "entrypoint": shlex.join(command),
        "backoffLimit": RETRIES,
        "activeDeadlineSeconds": int(resources.time.total_seconds()),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": KEEP_CLUSTER_SECONDS,
        "rayClusterSpec": {
            "rayVersion": version("ray"),
            "authOptions": {"mode": "token"},
            "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": head},
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": resources.workers,
                    "minReplicas": resources.workers,
                    "maxReplicas": resources.workers,
                    "rayStartParams": {},
                    "template": worker,
                }
            ],
        },
    }


def pod_template(
    name: str, image: str, service_account: str | None, *, cpus: int, memory: int, gpus: int = 0
) -> dict[str, Any]:
    """A pod with one container, called `name`; memory in GiB.

    Raises:
        UserError: if the image or the service account is not a valid name.
    """
    check_image(image, service_account)
    amounts = pod_resources(cpus, memory, gpus)
    container = {"name": name, "image": image, "resources": {"requests": amounts, "limits": dict(amounts)}}
    spec: dict[str, Any] = {"containers": [container]}
    if gpus:
        spec["tolerations"] = [GPU_TOLERATION]
    if service_account is not None:
        spec["serviceAccountName"] = service_account
    return {"spec": spec}


def pod_resources(cpus: int, memory: int, gpus: int) -> dict[str, Any]:
    """The resources of a pod as Kubernetes writes them; memory in GiB."""
    return {"cpu": cpus, "memory": f"{memory}Gi", **({"nvidia.com/gpu": gpus} if gpus else {})}


def with_spec(template: dict[str, Any], name: str) -> dict[str, Any]:
    """Mounts the ConfigMap `name` in SPEC_FOLDER of the pod's container."""
    template["spec"]["containers"][0]["volumeMounts"] = [{"name": "spec", "mountPath": SPEC_FOLDER, "readOnly": True}]
    template["spec"]["volumes"] = [{"name": "spec", "configMap": {"name": name}}]
    return template


def check_image(image: str, service_account: str | None) -> None:
    """Raises UserError if the image or the service account is not a valid name."""
    if not IMAGE.fullmatch(image):
        raise UserError(f"--image {image!r} is no container image: write it as registry/name:tag")
    if service_account is not None and not ACCOUNT.fullmatch(service_account):
        raise UserError(f"--service-account {service_account!r} is no name of a service account")
