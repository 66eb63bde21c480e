"""The schedule of a data job as a CronJob of Kubernetes or a RayCronJob of KubeRay (`asyrp jobs schedule render`)."""

from importlib.resources import files
from typing import Any

from asyrp.errors import UserError
from jobs.runs.run import EXIT_BREAKER, EXIT_QUARANTINE, EXIT_USAGE
from jobs.targets.cron_dialects import five_fields
from jobs.targets.job_file import LEFT_OUT, Files, JobFile, comment, job_spec_yaml
from jobs.targets.kubernetes import SPEC_FILE, SPEC_FOLDER, config_map, pod_template, ray_job_spec, with_spec
from jobs.targets.placement import DRAIN_SECONDS, RETRIES, Placement, Resources, cluster_engine, to_yaml

LATEST_START_SECONDS = 60
"""How late a CronJob may start a tick of a job with `catch_up: none`."""
KEPT_JOBS = 3
NO_SPRING = "A time that the clock skips in spring does not come."


def cron_job(scheduled: JobFile, placement: Placement) -> Files:
    """A CronJob of Kubernetes (batch/v1), which starts one pod for each tick."""
    schedule, resources = scheduled.schedule, placement.resources(scheduled.name)
    if resources.workers > 1:
        raise UserError("--workers: a CronJob has one pod a tick: leave it out, or use --target raycronjob")
    scheduled.refuse_local()
    spec = {
        "schedule": five_fields(schedule, "Kubernetes"),
        "timeZone": schedule.timezone,
        "concurrencyPolicy": "Forbid" if scheduled.job.overlap == "refuse" else "Allow",
        **({"startingDeadlineSeconds": LATEST_START_SECONDS} if schedule.catch_up == "none" else {}),
        "successfulJobsHistoryLimit": KEPT_JOBS,
        "failedJobsHistoryLimit": KEPT_JOBS,
        "jobTemplate": {"spec": _pod_job(resources, placement)},
    }
    manifest = {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": scheduled.name}, "spec": spec}
    notes = [f"The schedule of the data job {scheduled.name}, for kubectl apply -f."]
    if schedule.catch_up == "all":
        notes.append(scheduled.cannot("catch_up", "of the ticks that it missed, Kubernetes starts the last"))
    if scheduled.job.overlap == "refuse":
        late = "; the last such tick is started when the other is through" if schedule.catch_up != "none" else ""
        notes.append(f"With Forbid {LEFT_OUT}{late}.")
    if schedule.timezone != "UTC":
        notes.append(NO_SPRING)
    return _file(scheduled.name, notes, job_spec_yaml(scheduled.job), manifest)


def _pod_job(resources: Resources, placement: Placement) -> dict[str, Any]:
    """The `spec` of a Job. It does not try again after an exit code that would come again."""
    pod = pod_template(
        "asyrp",
        placement.container_image(),
        placement.service_account,
        cpus=resources.cpus,
        memory=resources.memory,
        gpus=resources.gpus,
    )
    template = with_spec(pod, resources.name)
    template["spec"] |= {"restartPolicy": "Never", "terminationGracePeriodSeconds": DRAIN_SECONDS}
    script = files("jobs.targets").joinpath("templates/cronjob.sh").read_text()
    job_name = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-name']"}}
    template["spec"]["containers"][0] |= {
        "command": ["bash", "-c", script, f"{SPEC_FOLDER}/{SPEC_FILE}"],
        "env": [{"name": "JOB_NAME", "valueFrom": job_name}],
    }
    final = {"operator": "In", "values": [EXIT_USAGE, EXIT_QUARANTINE, EXIT_BREAKER]}
    return {
        "backoffLimit": RETRIES,
        "activeDeadlineSeconds": int(resources.time.total_seconds()),
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": final}]},
        "template": template,
    }


def ray_cron_job(scheduled: JobFile, placement: Placement) -> Files:
    """A RayCronJob of KubeRay (ray.io/v1), which starts one Ray cluster for each tick."""
    schedule, resources = scheduled.schedule, placement.resources(scheduled.name)
    scheduled.refuse_local()
    command = ["asyrp", "jobs", "run", f"{SPEC_FOLDER}/{SPEC_FILE}"]
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": {"name": scheduled.name},
        "spec": {
            "schedule": five_fields(schedule, "KubeRay"),
            "timeZone": schedule.timezone,
            "jobTemplate": ray_job_spec(command, resources, placement.container_image(), placement.service_account),
        },
    }
    spec = job_spec_yaml(scheduled.job, **cluster_engine(scheduled.job.run.engine, resources))
    then = "it is left out there" if scheduled.job.overlap == "refuse" else "it waits there"
    notes = [
        f"The schedule of the data job {scheduled.name}, for kubectl apply -f. It needs KubeRay 1.6 or newer with the "
        "feature gate RayCronJob, which is alpha and off by default.",
        "A RayCronJob does not tell its job the tick: the job does the last one that is due.",
        f"A tick that comes while another is at work gets a cluster all the same, and {then}.",
        "A RayCronJob keeps every RayJob: delete old ones.",
    ]
    if schedule.catch_up != "last":
        notes.append(scheduled.cannot("catch_up", "of the ticks that it missed, KubeRay starts one"))
    if schedule.timezone != "UTC":
        notes.append(NO_SPRING)
    return _file(scheduled.name, notes, spec, manifest)


def _file(name: str, notes: list[str], spec: str, manifest: dict[str, Any]) -> Files:
    """The file for `kubectl apply -f`: the notes as comments, the ConfigMap with the spec, the manifest."""
    return {f"{name}.yaml": f"{comment(notes)}\n{to_yaml(config_map(name, spec), manifest)}"}
