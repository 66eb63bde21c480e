"""The schedule of a data job as a CronJob of Kubernetes, and as a RayCronJob of KubeRay."""

from importlib import resources
from typing import Any

from asyrp.errors import UserError
from jobs.runs.run import EXIT_BREAKER, EXIT_QUARANTINE, EXIT_USAGE
from jobs.targets.cron_dialects import five_fields
from jobs.targets.job_file import LEFT_OUT, Files, JobFile, comment, spec_yaml
from jobs.targets.placement import (
    DRAIN_SECONDS,
    RETRIES,
    SPEC_FILE,
    SPEC_FOLDER,
    Job,
    Placement,
    cluster_engine,
    config_map,
    pod_template,
    ray_job_spec,
    to_yaml,
    with_spec,
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


def _pod_job(job: Job, placement: Placement) -> dict[str, Any]:
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
