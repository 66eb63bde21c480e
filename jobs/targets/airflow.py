"""The schedule of a data job as an Airflow DAG."""

from datetime import UTC, datetime

from asyrp.errors import UserError
from jobs.targets.cron_dialects import five_fields
from jobs.targets.job_file import Files, JobFile, fill, job_spec_yaml
from jobs.targets.kubernetes import GPU_TOLERATION, check_image, pod_resources
from jobs.targets.placement import DRAIN_SECONDS, RETRIES, Placement

STARTUP_SECONDS = 3600
"""How long a pod may wait for its GPU."""


def airflow(scheduled: JobFile, placement: Placement) -> Files:
    """An Airflow DAG. Each tick is a pod; without an image, `asyrp` runs on the machines of Airflow's workers."""
    name, schedule, image = scheduled.name, scheduled.schedule, placement.image
    if image is None:
        placement.only("airflow without --image", ())
    else:
        check_image(image, placement.service_account)
        scheduled.refuse_local()
    resources = placement.resources(name)
    if resources.workers > 1:
        raise UserError("--workers: a DAG has one pod a tick: leave it out, or use --target raycronjob")
    provider = "cncf-kubernetes" if image else "standard"
    notes = [
        f"The schedule of the data job {name}, a DAG for Airflow 2.9 or newer with apache-airflow-providers-{provider}."
    ]
    if schedule.catch_up == "none":
        notes.append(scheduled.cannot("catch_up", "of the ticks that it missed, Airflow starts the last"))
    if scheduled.job.overlap == "refuse":
        notes.append("Two runs may be active, so that a tick that comes while another is at work finds that and ends.")
    text = fill(
        "dag.py",
        notes=notes,
        name=name,
        spec=job_spec_yaml(scheduled.job),
        schedule=schedule,
        fields=five_fields(schedule, "Airflow"),
        now=datetime.now(UTC),
        max_active_runs=1 if scheduled.job.overlap == "queue" else 2,
        image=image,
        service_account=placement.service_account,
        resources=pod_resources(resources.cpus, resources.memory, resources.gpus),
        toleration=GPU_TOLERATION if resources.gpus else None,
        startup_seconds=STARTUP_SECONDS,
        drain_seconds=DRAIN_SECONDS,
        seconds=int(resources.time.total_seconds()),
        retries=RETRIES,
    )
    return {f"{name.replace('-', '_')}.py": text}
