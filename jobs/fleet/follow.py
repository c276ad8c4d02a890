"""Follow a job on a Ray cluster: stream its log until it ends, through lost connections."""

from __future__ import annotations

import asyncio
import sys
import time

import aiohttp
import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from jobs.runtime.progress import info
from jobs.workflow.errors import StageError

#: Seconds for which a server may be unavailable.
MAX_UNREACHABLE_SECONDS = 120.0
#: Seconds between polls of a job whose log has ended or cannot be followed.
POLL_SECONDS = 1.0
#: Seconds after which a job that has not started is reported.
PENDING_SECONDS = 30.0


def follow_job(client: JobSubmissionClient, job_id: str, address: str) -> JobDetails:
    """Stream a job's log until the job ends. After a lost connection, reconnect and continue at the same position.

    A job that does not start is reported once.

    Raises:
        StageError: the cluster stopped responding.
    """
    printed, away_since = 0, None
    pending_since: float | None = time.monotonic()
    while True:
        try:
            printed = asyncio.run(_tail(client, job_id, printed))
            details = client.get_job_info(job_id)
            if details.status.is_terminal():
                return details
            away_since = None
            if details.status != JobStatus.PENDING:
                pending_since = None
            elif pending_since is not None and time.monotonic() - pending_since >= PENDING_SECONDS:
                pending_since = None
                info(f"{job_id}: waiting for resources of the cluster, for {PENDING_SECONDS:g} s so far ({details.message})")
        except (requests.RequestException, aiohttp.ClientError, ConnectionError, RuntimeError, OSError) as error:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > MAX_UNREACHABLE_SECONDS:
                raise StageError(
                    f"{address}: stopped responding ({first_line(error)}). Job {job_id} may still be running: repeat the "
                    "same submission to attach to it."
                ) from error
        time.sleep(POLL_SECONDS)


async def _tail(client: JobSubmissionClient, job_id: str, printed: int) -> int:
    """Write a job's log to standard error from character `printed` on; return the number of characters written in total."""
    position = 0
    async for text in client.tail_job_logs(job_id):
        new = text[max(0, printed - position) :]
        position += len(text)
        if new:
            sys.stderr.write(new)
            sys.stderr.flush()
        printed = max(printed, position)
    return printed


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
