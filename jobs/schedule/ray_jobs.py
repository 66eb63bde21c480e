"""Submits a tick as a job of a running Ray cluster, through Ray's Jobs API.

The id of the Ray job consists of the name of the data job and the tick, so a tick that is submitted again is found.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count

from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from asyrp.errors import UserError
from jobs.runs.run import EXIT_DRAINED
from jobs.schedule.next_version import tick_text
from jobs.spec.job import Job
from jobs.targets.job_file import job_spec_yaml
from jobs.targets.placement import DRAIN_SECONDS

SPEC_VARIABLE = "ASYRP_JOB_SPEC"


@dataclass(frozen=True)
class Submission:
    """A Ray job that does a tick. `is_new` is False if it was there already."""

    id: str
    status: str
    is_new: bool

    @property
    def has_succeeded(self) -> bool:
        return self.status == JobStatus.SUCCEEDED


class RayJobs:
    """The jobs of a Ray cluster.

    Raises:
        UserError: if there is no cluster at the address, or its Jobs API cannot be used from here.
    """

    def __init__(self, address: str | None) -> None:
        where = address or "the address that `ray job` would take"
        try:
            self.client = JobSubmissionClient(address)
        except AuthenticationError as error:
            raise UserError(
                f"the Ray cluster at {where} wants its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what "
                "is in ~/.ray/auth_token on its head"
            ) from error
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"there is no Ray cluster that takes jobs at {where}: {error}") from error

    def submit(self, job: Job, tick: datetime) -> Submission:
        """Submits a tick, unless a Ray job is at work on it or has done it. After a job that failed or was stopped, the
        next job has the same id with a number.

        Raises:
            UserError: if the cluster refuses the job.
        """
        name = f"{job.name}-{tick_text(tick)}"
        submission_id, there = self._newest(name)
        if there is not None:
            return Submission(submission_id, there.status, is_new=False)
        command = f"asyrp jobs run /dev/stdin --tick {tick.astimezone(UTC).isoformat()}"
        variables = {
            SPEC_VARIABLE: job_spec_yaml(job, address="auto"),
            "RAY_JOB_STOP_WAIT_TIME_S": str(DRAIN_SECONDS),  # from SIGTERM to SIGKILL; 3 s by default
        }
        try:
            self.client.submit_job(
                entrypoint=f'printf %s "${SPEC_VARIABLE}" | {command}',
                submission_id=submission_id,
                runtime_env={"env_vars": variables},
                metadata={"job": job.name, "tick": tick_text(tick), "root": job.root},
            )
        except RuntimeError as error:
            _, meanwhile = self._newest(name)
            if meanwhile is None:
                raise UserError(f"the Ray cluster refuses the job {submission_id}: {error}") from error
            return Submission(submission_id, meanwhile.status, is_new=False)
        return Submission(submission_id, JobStatus.PENDING, is_new=True)

    def _newest(self, name: str) -> tuple[str, JobDetails | None]:
        """The id and details of the Ray job `name` that is at work or done; if there is none, the id of the next
        one."""
        there = {details.submission_id: details for details in self.client.list_jobs()}
        for number in count(1):
            submission_id = name if number == 1 else f"{name}-{number}"
            details = there.get(submission_id)
            if details is None:
                return submission_id, None
            if details.status not in (JobStatus.FAILED, JobStatus.STOPPED):
                return submission_id, details
        raise AssertionError

    def follow(self, submission_id: str, show: Callable[[str], None]) -> int:
        """Shows the log of a Ray job until it ends. Gives its exit code.

        Raises:
            UserError: if its driver did not start.
        """

        async def tail() -> None:
            async for lines in self.client.tail_job_logs(submission_id):
                show(lines)

        asyncio.run(tail())
        info = self.client.get_job_info(submission_id)
        if info.status == JobStatus.STOPPED:
            return EXIT_DRAINED
        if info.driver_exit_code is None:
            raise UserError(f"the Ray job {submission_id} did not start: {info.message}")
        return info.driver_exit_code
