"""`mibf submit`: run a stage as a job on a Ray cluster through its job API, and return the stage's exit status.

Only the configuration is sent to the cluster: inputs and outputs are at the locations that it names. The job id is derived
from what the stage depends on, so submitting the same thing twice attaches to the existing job.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args
from urllib.parse import urlsplit

import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from jobs.config.config import Config
from jobs.config.loader import load
from jobs.config.resolve import input_urls
from jobs.fleet.follow import POLL_SECONDS, first_line, follow_job
from jobs.runtime.logs import VARIABLE as LOG_VARIABLE
from jobs.runtime.progress import info, warn
from jobs.runtime.version import SUBMITTED_WITH
from jobs.workflow.fingerprint import fingerprint
from jobs.workflow.found_items import NotSearchedError, found_items
from jobs.workflow.manifest import StageName, read_manifest
from jobs.workflow.saved_config import SavedConfig, relative_paths, set_values
from jobs.workflow.workspace import Workspace
from mibf import __version__
from mibf.errors import InputError
from pipeline.io import checksums, storage
from pipeline.io.lease import GRAIN, expiry

#: The commands that can be submitted.
COMMANDS = ("prepare", "train", "evaluate", "map", "report", "run", "rerun", "verify")
#: Seconds to wait for a server to accept a connection, and to answer the first request.
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 30.0
#: Name of the configuration file that is sent with a job.
FILE = "mibf.yaml"
#: Maximum number of jobs with the same base id; further submissions of a job that did not succeed are numbered.
ATTEMPTS = 1000


@dataclass(frozen=True)
class SubmitOptions:
    """The options of a submission."""

    command: str  #: one of `COMMANDS`
    config: str | None  #: path or URL; None for a rerun of `everything`
    overrides: tuple[str, ...] = ()
    everything: str | None = None  #: URL below which every run is rerun
    options: tuple[str, ...] = ()  #: command-line options passed to the command
    address: str | None = None  #: URL of the cluster's job server; by default from the environment
    cpus: float = 1.0  #: CPUs reserved for the driver, on any node; without any resources it runs on the head node
    gpus: int = 0  #: GPUs reserved for the driver, 0 or 1
    memory: int | None = None  #: bytes of memory reserved for the driver
    attempts: int = 3  #: maximum number of submissions if the driver's node dies
    follow: bool = True
    again: bool = False  #: submit even if the same job has already succeeded


@dataclass(frozen=True)
class Submitted:
    """The result of a submission."""

    id: str
    address: str
    status: str  #: Ray's job status
    exit_status: int | None  #: exit status of the command; None while unknown
    message: str = ""
    attached: bool = False  #: whether the job already existed

    def lines(self) -> list[str]:
        """Format the job's state as one line."""
        ended = "" if self.exit_status is None else f", exit status {self.exit_status}"
        return [f"{self.id}: {self.status}{ended}{f': {self.message}' if self.message else ''}"]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return vars(self)


@dataclass(frozen=True)
class _Job:
    """A job as it is sent to the cluster."""

    entrypoint: str
    name: str  #: prefix of the ids of its attempts
    metadata: dict[str, str]
    working_dir: str | None
    is_done: Callable[[], bool]  #: whether its output already exists
    pause: float  #: seconds until the lease of a dead driver expires
    env_vars: dict[str, str]


def submit(options: SubmitOptions) -> Submitted:
    """Submit a command or attach to the existing job; follow it to its end unless `follow` is false.

    Raises:
        InputError: the configuration or an input is refused, or the cluster cannot be reached or refuses the job.
        StageError: the cluster stopped responding.
    """
    if options.command not in COMMANDS:
        raise InputError(f"{options.command}: this command cannot be submitted; choose one of {', '.join(COMMANDS)}.")
    if (options.config is None) == (options.everything is None) or (
        options.everything is not None and options.command != "rerun"
    ):
        raise InputError("give a CONFIG, or for `rerun` --all URL instead.")
    with ExitStack() as kept:
        if options.everything is not None:
            job = _rerun_all_job(options, options.everything)
        else:
            folder = kept.enter_context(tempfile.TemporaryDirectory(prefix="mibf-submit-"))
            job = _job(options, options.config or "", Path(folder))
        client, address = connect(options.address)
        for attempt in range(1, options.attempts + 1):
            found = _submit_job(client, job, options, again=options.again and attempt == 1)
            info(f"{'attached to' if found.attached else 'submitted'} {found.id} on {address}")
            if not options.follow:
                return Submitted(found.id, address, str(client.get_job_status(found.id)), None, attached=found.attached)
            details = follow_job(client, found.id, address)
            ended = _ended(details, found.id, address, attached=found.attached)
            if ended.exit_status is not None or attempt == options.attempts:
                break
            warn(f"{ended.id}: the driver died with its node ({ended.message}); resubmitting in {job.pause:g} s")
            time.sleep(job.pause)
    return ended if ended.exit_status is not None else Submitted(**vars(ended) | {"exit_status": 1})


def _rerun_all_job(options: SubmitOptions, url: str) -> _Job:
    if storage.is_local(url) and storage.local_path(url) != url.removeprefix("file://").rstrip("/"):
        raise InputError(
            f"--all {url}: is a relative path, which is a different location on the cluster; give an absolute path."
        )
    return _Job(
        entrypoint=shlex.join(["mibf", options.command, "--all", url, *options.options]),
        name=f"mibf-rerun-all-{checksums.digest([url, options.options, __version__])[:12]}",
        metadata={"mibf_stage": "rerun", "mibf_workspace": storage.redact_url(url), "mibf_version": __version__},
        working_dir=None,
        is_done=lambda: False,
        pause=_pause(url),
        env_vars=_variables(),
    )


def _pause(workspace: str) -> float:
    """Seconds until the workspace lease of a dead driver expires."""
    return POLL_SECONDS if storage.is_local(workspace) else expiry() + GRAIN


def _variables() -> dict[str, str]:
    """The environment variables that a job gets; they contain no secrets."""
    log = os.environ.get(LOG_VARIABLE)
    return {SUBMITTED_WITH: __version__} | ({} if log is None else {LOG_VARIABLE: log})


def _job(options: SubmitOptions, url: str, folder: Path) -> _Job:
    """Build the job; a configuration on a local disk is sent along as a file."""
    config = load(url, overrides=options.overrides)
    relative = relative_paths(config)
    if relative:
        raise InputError(
            f"{url}: {relative[0]} is a relative path, which is a different location on the cluster; give a URL, or an "
            "absolute path that all nodes can read."
        )
    saved = SavedConfig.of(config)
    workspace = Workspace.of(config)
    if storage.is_local(url):
        _check_unsigned(config, url)
        (folder / FILE).write_text(saved.yaml)
        if saved.table is not None:
            (folder / saved.table[0]).write_bytes(saved.table[1])
        arguments, working_dir = [FILE], str(folder)
    else:
        changes = [part for override in options.overrides for part in ("--set", override)]
        arguments, working_dir = [url, *changes], None
    stage = cast(StageName, options.command) if options.command in get_args(StageName) else None
    prints = _fingerprint(config, stage or "prepare")
    identity = checksums.digest([options.command, saved.yaml, prints, __version__])[:12]
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", config.name)[:60]

    def is_done() -> bool:
        manifest = None if stage is None else read_manifest(workspace, stage)
        return manifest is not None and manifest.fingerprint == prints

    return _Job(
        entrypoint=shlex.join(["mibf", options.command, *arguments, *options.options]),
        name=f"mibf-{options.command}-{name}-{identity}",
        metadata={
            "mibf_stage": options.command,
            "mibf_name": config.name,
            "mibf_run": config.run,
            "mibf_workspace": storage.redact_url(workspace.url),
            "mibf_fingerprint": prints or "",
            "mibf_version": __version__,
        },
        working_dir=working_dir,
        is_done=is_done,
        pause=_pause(workspace.url),
        env_vars=_variables(),
    )


def _fingerprint(config: Config, stage: StageName) -> str | None:
    """A stage's fingerprint; None if it depends on a search to come, or on the cluster's disks, unreadable from here."""
    try:
        return fingerprint(config, stage)
    except NotSearchedError:  # the job searches
        return None
    except InputError:
        if any(storage.is_local(url) for url in (config.workspace, *_inputs(config))):
            return None
        raise


def _inputs(config: Config) -> list[str]:
    try:
        return input_urls(found_items(config))
    except InputError:  # a STAC item was not found
        return []


def _check_unsigned(config: Config, url: str) -> None:
    """Check that no URL in a configuration contains credentials, which would be stored on the cluster."""
    text = json.dumps(set_values(config), indent=0, ensure_ascii=False)  # a value a line
    if storage.without_queries(text) != text:
        raise InputError(
            f"{url}: contains URLs with a password, or with a `?` that may precede a signature; credentials are not "
            "sent with a job. Put the configuration where the cluster can read it, and give its URL."
        )


def connect(address: str | None) -> tuple[JobSubmissionClient, str]:
    """A client of the cluster's job server, and its redacted address.

    Raises:
        InputError: the server cannot be reached, or refuses the token.
    """
    named = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    url = named if "://" in named else f"http://{named}"
    redacted = storage.redact_url(url)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"--address {redacted}: must be the URL of a Ray cluster's job server (its dashboard), such as http://HOST:8265."
        )
    try:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname, port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{redacted}: no Ray cluster can be reached there ({error}). Start one, correct `--address`, or forward its "
            "port."
        ) from error
    try:
        requests.get(f"{url}/api/version", timeout=ANSWER_SECONDS)
    except requests.Timeout as error:  # Ray's client would wait forever
        raise InputError(
            f"{redacted}: accepts connections, but has not answered for {ANSWER_SECONDS:g} s. Check the cluster's "
            "dashboard, and the proxy or the forwarded port in front of it."
        ) from error
    except requests.RequestException:  # the client says what is wrong
        pass
    logging.getLogger("ray.dashboard").setLevel(logging.WARNING)  # it logs every closed connection
    try:
        client = JobSubmissionClient(url)
    except AuthenticationError as error:
        raise InputError(_refused(redacted, error)) from error
    except (requests.RequestException, ConnectionError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"{redacted}: responds, but not as a Ray job server ({first_line(error)}). Give the address of the cluster's "
            "dashboard."
        ) from error
    theirs = getattr(client, "_server_ray_version", None)
    if theirs is not None and theirs.split(".")[:2] != ray.__version__.split(".")[:2]:
        warn(
            f"the cluster has Ray {theirs}, this machine Ray {ray.__version__}; if this fails, install the cluster's version"
        )
    return client, redacted


def _refused(address: str, error: Exception) -> str:
    message = str(error)
    why = "requires a token, and none was given" if message.startswith("Authentication required") else "refuses the token"
    return (
        f"{address}: the cluster {why}. Set RAY_AUTH_MODE=token, and set RAY_AUTH_TOKEN_PATH to the file that contains the "
        "cluster's token (or RAY_AUTH_TOKEN to the token itself)."
    )


@dataclass(frozen=True)
class SubmittedJob:
    """A job on a cluster: its id, and whether it already ran there when it was submitted."""

    id: str
    attached: bool


def _submit_job(client: JobSubmissionClient, job: _Job, options: SubmitOptions, *, again: bool) -> SubmittedJob:
    """Submit a job, unless the same job is running or has already succeeded."""
    for number in range(1, ATTEMPTS):
        job_id = job.name if number == 1 else f"{job.name}-{number}"
        details = _details(client, job_id)
        if details is None:
            try:
                client.submit_job(
                    entrypoint=job.entrypoint,
                    submission_id=job_id,
                    metadata=dict(job.metadata),
                    runtime_env={"env_vars": job.env_vars}
                    | ({} if job.working_dir is None else {"working_dir": job.working_dir}),
                    entrypoint_num_cpus=options.cpus,
                    entrypoint_num_gpus=options.gpus,
                    entrypoint_memory=options.memory,
                )
            except AuthenticationError as error:
                raise InputError(_refused("the cluster", error)) from error
            except RuntimeError as error:
                if _details(client, job_id) is None:
                    raise InputError(f"{job_id}: the cluster refuses the job ({first_line(error)}).") from error
                return SubmittedJob(job_id, attached=True)  # another client submitted it just before
            return SubmittedJob(job_id, attached=False)
        if not details.status.is_terminal():
            return SubmittedJob(job_id, attached=True)
        if details.status == JobStatus.SUCCEEDED and not again and job.is_done():
            return SubmittedJob(job_id, attached=True)
    raise InputError(f"{job.name}: has already been submitted {ATTEMPTS} times; start a new cluster.")


def _details(client: JobSubmissionClient, job_id: str) -> JobDetails | None:
    try:
        return client.get_job_info(job_id)
    except RuntimeError as error:
        if "404" in str(error):
            return None
        raise


def _ended(details: JobDetails, job_id: str, address: str, *, attached: bool) -> Submitted:
    code = details.driver_exit_code
    if code is None and details.status == JobStatus.SUCCEEDED:
        code = 0
    if details.status == JobStatus.STOPPED:
        code = 130
    if code is not None and code < 0:  # killed by a signal
        code = 1
    message = "" if code == 0 else (details.message or "").splitlines()[0] if details.message else ""
    return Submitted(job_id, address, str(details.status), code, message, attached)
