"""submit: a stage as a job of a Ray cluster, by its job API, with the stage's own exit status.

Nothing but the configuration goes to the cluster: inputs and outputs are where it says. The job's id is derived from
what the stage depends on, so that who submits the same thing twice finds the job that is there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from jobs.as_run import as_run, relative_places
from jobs.config import Config, load
from jobs.declared import input_urls
from jobs.logs import VARIABLE as LOG_VARIABLE
from jobs.progress import say, warn
from jobs.stages import StageError, StageName, fingerprint, read_manifest
from jobs.version import SUBMITTED_WITH
from jobs.workspace import Workspace
from mibf import __version__
from mibf.errors import InputError
from pipeline import storage
from pipeline.lease import GRAIN, expiry

#: What can be submitted.
COMMANDS = (*get_args(StageName), "run", "rerun", "verify")
#: Seconds to wait for a server to take a connection, and for one that went away to come back.
CONNECT, AWAY = 10.0, 120.0
#: How often it is looked after a job whose log has ended or cannot be followed.
LOOK = 1.0
#: The file of a configuration that goes with a job.
FILE = "mibf.yaml"
#: Jobs of one id whose drivers ended otherwise than well are told apart by numbers; this many are looked through.
ATTEMPTS = 1000


@dataclass(frozen=True)
class Asked:
    """What is to be submitted."""

    command: str  #: one of `COMMANDS`
    config: str | None  #: path or URL; none for a rerun of `everything`
    overrides: tuple[str, ...] = ()
    everything: str | None = None  #: URL below which every run is rerun
    options: tuple[str, ...] = ()  #: of the command, as it is given them
    address: str | None = None  #: of the cluster's job server; the environment's unless given
    cpus: float = 1.0  #: that the driver takes, on any node; 0 runs it on the head
    memory: int | None = None  #: bytes that it takes
    attempts: int = 3  #: how often it is submitted where its node dies with it
    follow: bool = True
    again: bool = False  #: also where the same was done before


@dataclass(frozen=True)
class Submitted:
    """What became of a job."""

    id: str
    address: str
    status: str  #: Ray's word
    exit_status: int | None  #: the command's own; None while it is not known
    message: str = ""
    attached: bool = False  #: whether it was there before

    def to_json(self) -> dict[str, Any]:
        """It as JSON values."""
        return vars(self)


@dataclass(frozen=True)
class _Job:
    """A job as it is sent."""

    entrypoint: str
    name: str  #: what ids of its attempts begin with
    metadata: dict[str, str]
    working_dir: str | None
    is_done: Callable[[], bool]  #: whether what it would make is there
    pause: float  #: seconds until what a dead driver held is free
    env_vars: dict[str, str]


def submit(asked: Asked) -> Submitted:
    """Submit a command, or find it submitted; follow it to its end unless told otherwise.

    Raises:
        InputError: the configuration or an input is refused, the cluster cannot be reached or refuses.
        StageError: the cluster went away.
    """
    if asked.command not in COMMANDS:
        raise InputError(f"{asked.command}: is no command that can be submitted; there are {', '.join(COMMANDS)}.")
    if (asked.config is None) == (asked.everything is None) or (asked.everything is not None and asked.command != "rerun"):
        raise InputError("give a CONFIG; or for `rerun`, --all URL in its place.")
    with ExitStack() as kept:
        if asked.everything is not None:
            job = _job_of_everything(asked, asked.everything)
        else:
            folder = kept.enter_context(tempfile.TemporaryDirectory(prefix="mibf-submit-"))
            job = _job(asked, asked.config or "", Path(folder))
        client, address = connect(asked.address)
        for attempt in range(1, asked.attempts + 1):
            found = _begun(client, job, asked, again=asked.again and attempt == 1)
            say(f"{'attached to' if found.attached else 'submitted'} {found.id} on {address}")
            if not asked.follow:
                return Submitted(found.id, address, str(client.get_job_status(found.id)), None, attached=found.attached)
            details = _followed(client, found.id, address)
            ended = _ended(details, found.id, address, attached=found.attached)
            if ended.exit_status is not None or attempt == asked.attempts:
                break
            warn(f"{ended.id}: its driver died with its node ({ended.message}); submitting it again in {job.pause:g} s")
            time.sleep(job.pause)
    return ended if ended.exit_status is not None else Submitted(**vars(ended) | {"exit_status": 1})


def _job_of_everything(asked: Asked, url: str) -> _Job:
    if storage.is_local(url) and storage.local_path(url) != url.removeprefix("file://").rstrip("/"):
        raise InputError(f"--all {url}: is a relative path, which means another place on the cluster; give an absolute one.")
    return _Job(
        entrypoint=shlex.join(["mibf", asked.command, "--all", url, *asked.options]),
        name=f"mibf-rerun-all-{storage.digest([url, asked.options, __version__])[:12]}",
        metadata={"mibf_stage": "rerun", "mibf_workspace": storage.shown(url), "mibf_version": __version__},
        working_dir=None,
        is_done=lambda: False,
        pause=_pause(url),
        env_vars=_variables(),
    )


def _pause(workspace: str) -> float:
    """Seconds until what a dead driver held of a workspace is free."""
    return LOOK if storage.is_local(workspace) else expiry() + GRAIN


def _variables() -> dict[str, str]:
    """The environment that a job gets of us: no secret is among it."""
    log = os.environ.get(LOG_VARIABLE)
    return {SUBMITTED_WITH: __version__} | ({} if log is None else {LOG_VARIABLE: log})


def _job(asked: Asked, url: str, folder: Path) -> _Job:
    """What is sent; a configuration on this machine's disk goes along as a file of its own."""
    config = load(url, overrides=asked.overrides)
    relative = relative_places(config)
    if relative:
        raise InputError(
            f"{url}: {relative[0]} is a relative path, which means another place on the cluster; give a URL, or an "
            "absolute path that all its nodes see."
        )
    text = as_run(config)
    workspace = Workspace.of(config)
    if storage.is_local(url):
        _check_unsigned(config, text, url)
        (folder / FILE).write_text(text)
        arguments, working_dir = [FILE], str(folder)
    else:
        changes = [part for override in asked.overrides for part in ("--set", override)]
        arguments, working_dir = [url, *changes], None
    stage: StageName | None = asked.command if asked.command in get_args(StageName) else None  # type: ignore[assignment]
    prints = _fingerprint(config, stage or "prepare")
    identity = storage.digest([asked.command, text, prints, __version__])[:12]
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", config.name)[:60]

    def is_done() -> bool:
        manifest = None if stage is None else read_manifest(workspace, stage)
        return manifest is not None and manifest.fingerprint == prints

    return _Job(
        entrypoint=shlex.join(["mibf", asked.command, *arguments, *asked.options]),
        name=f"mibf-{asked.command}-{plain}-{identity}",
        metadata={
            "mibf_stage": asked.command,
            "mibf_name": config.name,
            "mibf_run": config.run,
            "mibf_workspace": storage.shown(workspace.url),
            "mibf_fingerprint": prints or "",
            "mibf_version": __version__,
        },
        working_dir=working_dir,
        is_done=is_done,
        pause=_pause(workspace.url),
        env_vars=_variables(),
    )


def _fingerprint(config: Config, stage: StageName) -> str | None:
    """A stage's fingerprint; None where the cluster's disks hold what it depends on, which are not seen from here."""
    try:
        return fingerprint(config, stage)
    except InputError:
        if any(storage.is_local(url) for url in (config.workspace, *_inputs(config))):
            return None
        raise


def _inputs(config: Config) -> list[str]:
    try:
        return input_urls(config)
    except InputError:  # a STAC item that is not there
        return []


def _check_unsigned(config: Config, text: str, url: str) -> None:
    """See that no URL of a configuration holds a secret: it would lie about in the cluster."""
    if yaml.safe_load(text) != config.model_dump(mode="json"):
        signed = yaml.safe_dump(config.model_dump(mode="json"))
        if storage.without_queries(signed) != signed:
            raise InputError(
                f"{url}: holds URLs with a password, or with a `?` and what may sign them after it; secrets do not travel "
                "with a job. Put the configuration where the cluster can read it, and give its URL."
            )


def connect(address: str | None) -> tuple[JobSubmissionClient, str]:
    """A client of the cluster's job server, and its address as it may be shown.

    Raises:
        InputError: nothing can be reached there, or it refuses the token.
    """
    named = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    url = named if "://" in named else f"http://{named}"
    shown = storage.shown(url)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(
            f"--address {shown}: must be the URL of a Ray cluster's job server (its dashboard), such as http://HOST:8265."
        )
    try:
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        socket.create_connection((parts.hostname, port), timeout=CONNECT).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{shown}: no Ray cluster can be reached there ({error}). Start one, mend `--address`, or forward its port."
        ) from error
    logging.getLogger("ray.dashboard").setLevel(logging.WARNING)  # it tells of every connection that ends
    try:
        client = JobSubmissionClient(url)
    except AuthenticationError as error:
        raise InputError(_refused(shown, error)) from error
    except (requests.RequestException, ConnectionError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"{shown}: answers, but not as a Ray job server ({_first_line(error)}). Give the address of the cluster's "
            "dashboard."
        ) from error
    theirs = getattr(client, "_server_ray_version", None)
    if theirs is not None and theirs.split(".")[:2] != ray.__version__.split(".")[:2]:
        warn(
            f"the cluster has Ray {theirs}, and this machine Ray {ray.__version__}; install the cluster's here if this fails"
        )
    return client, shown


def _refused(address: str, error: Exception) -> str:
    told = str(error)
    why = "asks for a token, and none was given" if told.startswith("Authentication required") else "refuses the token"
    return (
        f"{address}: the cluster {why}. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file that holds the "
        "cluster's token (or RAY_AUTH_TOKEN to the token)."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True)
class _Begun:
    id: str
    attached: bool


def _begun(client: JobSubmissionClient, job: _Job, asked: Asked, *, again: bool) -> _Begun:
    """Submit a job, unless one of the same is at work or has done it."""
    for number in range(1, ATTEMPTS):
        id_ = job.name if number == 1 else f"{job.name}-{number}"
        details = _details(client, id_)
        if details is None:
            try:
                client.submit_job(
                    entrypoint=job.entrypoint,
                    submission_id=id_,
                    metadata=dict(job.metadata),
                    runtime_env={"env_vars": job.env_vars}
                    | ({} if job.working_dir is None else {"working_dir": job.working_dir}),
                    entrypoint_num_cpus=asked.cpus,
                    entrypoint_memory=asked.memory,
                )
            except AuthenticationError as error:
                raise InputError(_refused("the cluster", error)) from error
            except RuntimeError as error:
                if _details(client, id_) is None:
                    raise InputError(f"{id_}: the cluster refuses the job ({_first_line(error)}).") from error
                return _Begun(id_, attached=True)  # somebody was quicker by a moment
            return _Begun(id_, attached=False)
        if not details.status.is_terminal():
            return _Begun(id_, attached=True)
        if details.status == JobStatus.SUCCEEDED and not again and job.is_done():
            return _Begun(id_, attached=True)
    raise InputError(f"{job.name}: was submitted {ATTEMPTS} times already; start a fresh cluster.")


def _details(client: JobSubmissionClient, id_: str) -> JobDetails | None:
    try:
        return client.get_job_info(id_)
    except RuntimeError as error:
        if "404" in str(error):
            return None
        raise


def _followed(client: JobSubmissionClient, id_: str, address: str) -> JobDetails:
    """Show a job's log as it grows until it ends. A connection that is lost is made again, at the place where it was.

    Raises:
        StageError: the cluster does not answer any more.
    """
    shown, away_since = 0, None
    while True:
        try:
            shown = asyncio.run(_tail(client, id_, shown))
            details = client.get_job_info(id_)
            if details.status.is_terminal():
                return details
            away_since = None
        except (requests.RequestException, aiohttp.ClientError, ConnectionError, RuntimeError, OSError) as error:
            away_since = away_since or time.monotonic()
            if time.monotonic() - away_since > AWAY:
                raise StageError(
                    f"{address}: does not answer any more ({_first_line(error)}). Job {id_} may go on there: submit the "
                    "same again to be attached to it."
                ) from error
        time.sleep(LOOK)


async def _tail(client: JobSubmissionClient, id_: str, shown: int) -> int:
    """Write a log from a place on, to standard error; how much of it was written in all."""
    seen = 0
    async for text in client.tail_job_logs(id_):
        new = text[max(0, shown - seen) :]
        seen += len(text)
        if new:
            sys.stderr.write(new)
            sys.stderr.flush()
        shown = max(shown, seen)
    return shown


def _ended(details: JobDetails, id_: str, address: str, *, attached: bool) -> Submitted:
    code = details.driver_exit_code
    if code is None and details.status == JobStatus.SUCCEEDED:
        code = 0
    if details.status == JobStatus.STOPPED:
        code = 130
    if code is not None and code < 0:  # ended by a signal
        code = 1
    message = "" if code == 0 else (details.message or "").splitlines()[0] if details.message else ""
    return Submitted(id_, address, str(details.status), code, message, attached)
