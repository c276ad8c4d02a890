"""`mibf submit`: submitted jobs, reuse of existing jobs, exit status. Uses a fake job server, not a real cluster."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray.job_submission import JobStatus
from typer.testing import CliRunner

import jobs.fleet.follow
import jobs.fleet.submit
from jobs.cli.common import app
from jobs.config.loader import load
from jobs.runtime.version import SUBMITTED_WITH
from jobs.workflow.saved_config import INLINE_SCENES, as_run, relative_paths
from mibf import __version__
from tests.support.mapped_scene import Result
from tests.support.scenes import SmallScene
from tests.support.tcp_proxy import Faults, tcp_proxy


class Jobs:
    """Fake job server that runs nothing: each submitted job ends with the next status in `endings`."""

    def __init__(self, *endings: tuple[JobStatus, int | None]) -> None:
        self.endings = list(endings)
        self.jobs: dict[str, SimpleNamespace] = {}
        self.sent: list[dict[str, Any]] = []
        self.files: list[str] = []
        self.tables: list[str] = []

    def submit_job(self, **job: Any) -> str:
        self.sent.append(job)
        if "working_dir" in job["runtime_env"]:
            folder = Path(job["runtime_env"]["working_dir"])
            self.files.append((folder / "mibf.yaml").read_text())
            self.tables += [path.name for path in folder.glob("scenes-*.json")]
        status, code = self.endings.pop(0)
        message = "" if status == JobStatus.SUCCEEDED else "first line\nsecond line"
        self.jobs[job["submission_id"]] = SimpleNamespace(status=status, driver_exit_code=code, message=message)
        return str(job["submission_id"])

    def get_job_info(self, id_: str) -> SimpleNamespace:
        if id_ not in self.jobs:
            raise RuntimeError("Request failed with status code 404: no such job.")
        return self.jobs[id_]

    def get_job_status(self, id_: str) -> JobStatus:
        return JobStatus(self.jobs[id_].status)

    async def tail_job_logs(self, id_: str) -> AsyncIterator[str]:
        yield f"log of {id_}\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Jobs:
    made = Jobs()
    monkeypatch.setattr(jobs.fleet.submit, "connect", lambda _: (made, "http://cluster:8265"))
    monkeypatch.setattr(jobs.fleet.submit, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(jobs.fleet.follow, "POLL_SECONDS", 0.0)
    return made


@pytest.fixture
def config(scene: SmallScene) -> str:
    return str(scene.write_config())


def mibf(*arguments: str) -> Result:
    found = CliRunner().invoke(app, list(arguments))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return Result(found.exit_code, found.stdout, found.stderr)


def test_local_configuration_is_uploaded_resolved_with_overrides(server: Jobs, config: str) -> None:
    server.endings = [(JobStatus.SUCCEEDED, 0)]
    done = mibf("submit", "prepare", config, "--set", "model.patch=5", "--cpus", "2", "--json")
    assert (done.status, done.json["exit_status"], done.json["attached"]) == (0, 0, False)
    assert "log of mibf-prepare-small-" in done.stderr
    (job,) = server.sent
    assert job["entrypoint"] == "mibf prepare mibf.yaml"
    assert job["entrypoint_num_cpus"] == 2
    assert job["runtime_env"]["env_vars"] == {SUBMITTED_WITH: __version__}
    assert yaml.safe_load(server.files[0])["model"]["patch"] == 5
    assert not relative_paths(load(config))
    assert job["metadata"]["mibf_stage"] == "prepare"
    assert len(job["metadata"]["mibf_fingerprint"]) == 20


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ((JobStatus.FAILED, 1), 1),
        ((JobStatus.FAILED, 2), 2),
        ((JobStatus.FAILED, 3), 3),
        ((JobStatus.FAILED, 4), 4),
        ((JobStatus.FAILED, -9), 1),
        ((JobStatus.STOPPED, None), 130),
    ],
)
def test_exit_status_is_that_of_the_job(
    server: Jobs, config: str, ending: tuple[JobStatus, int | None], status: int
) -> None:
    server.endings = [ending]
    done = mibf("submit", "prepare", config)
    assert done.status == status
    assert "first line" in done.stdout
    assert "second line" not in done.stdout


def test_running_job_is_attached_to_and_failed_job_is_resubmitted(server: Jobs, config: str) -> None:
    server.endings = [(JobStatus.RUNNING, None), (JobStatus.SUCCEEDED, 0)]
    first = mibf("submit", "prepare", config, "--no-follow", "--json").json
    assert (first["status"], first["exit_status"]) == ("RUNNING", None)
    second = mibf("submit", "prepare", config, "--no-follow", "--json").json
    assert second == first | {"attached": True}
    assert len(server.sent) == 1
    server.jobs[first["id"]] = SimpleNamespace(status=JobStatus.FAILED, driver_exit_code=3, message="tiles failed")
    third = mibf("submit", "prepare", config, "--json").json
    assert (third["id"], third["attached"]) == (f"{first['id']}-2", False)


def test_different_configuration_or_stage_gets_another_job_id(server: Jobs, config: str) -> None:
    server.endings = [(JobStatus.RUNNING, None)] * 3
    ids = {
        mibf("submit", stage, config, "--no-follow", "--json", *more).json["id"]
        for stage, more in [("prepare", ()), ("prepare", ("--set", "model.patch=9")), ("run", ())]
    }
    assert len(ids) == 3


def test_finished_job_is_reused_unless_its_result_is_gone(server: Jobs, config: str) -> None:
    server.endings = [(JobStatus.SUCCEEDED, 0)] * 3
    assert mibf("prepare", config).status == 0  # stands in for the cluster's run
    first = mibf("submit", "prepare", config, "--json").json
    second = mibf("submit", "prepare", config, "--json").json
    assert (second["id"], second["attached"]) == (first["id"], True)
    assert mibf("submit", "prepare", config, "--again", "--json").json["id"] == f"{first['id']}-2"
    (Path(load(config).workspace) / "manifests/prepare.json").unlink()
    assert mibf("submit", "prepare", config, "--json").json["id"] == f"{first['id']}-3"


def test_refresh_is_passed_on_and_is_always_a_new_job(server: Jobs, config: str) -> None:
    server.endings = [(JobStatus.SUCCEEDED, 0), (JobStatus.SUCCEEDED, 0)]
    for _ in range(2):
        assert mibf("submit", "prepare", config, "--refresh").status == 0
    assert [job["entrypoint"] for job in server.sent] == ["mibf prepare mibf.yaml --refresh"] * 2
    refused = mibf("submit", "map", config, "--refresh")
    assert refused.status == 2
    assert "--refresh applies to prepare and run only" in refused.stderr


def test_job_whose_driver_died_is_resubmitted_up_to_the_attempts(server: Jobs, config: str) -> None:
    died = (JobStatus.FAILED, None)
    server.endings = [died, (JobStatus.SUCCEEDED, 0)]
    done = mibf("submit", "prepare", config, "--json")
    assert done.status == 0
    assert done.json["id"].endswith("-2")
    assert "the driver died with its node" in done.stderr
    server.endings = [died, died]
    assert mibf("submit", "prepare", config, "--again", "--attempts", "2").status == 1
    assert len(server.sent) == 4


def test_rerun_all_is_submitted_as_a_new_job_each_time(server: Jobs) -> None:
    server.endings = [(JobStatus.SUCCEEDED, 0)] * 2
    options = ("--max-attempts", "5", "--backoff", "600", "--parallel", "4")
    arguments = ("submit", "rerun", "--all", "s3://bucket/areas", *options, "--json")
    first, second = (mibf(*arguments).json["id"] for _ in range(2))
    assert second == f"{first}-2", "scheduled reruns are always new jobs"
    assert server.sent[0]["entrypoint"] == f"mibf rerun --all s3://bucket/areas {' '.join(options)}"


def test_many_scenes_are_uploaded_as_a_table(server: Jobs, scene: SmallScene) -> None:
    server.endings = [(JobStatus.SUCCEEDED, 0)]
    (one,) = scene.config()["scenes"]
    config = str(scene.write_config(scenes=[one | {"name": f"s{number}"} for number in range(INLINE_SCENES + 1)]))
    assert mibf("submit", "prepare", config, "--json").status == 0
    assert server.tables == [yaml.safe_load(server.files[0])["scenes"]["table"]], "relative to the job's folder"


def test_gpu_is_reserved_for_the_driver(server: Jobs, config: str) -> None:
    server.endings = [(JobStatus.SUCCEEDED, 0)] * 2
    mibf("submit", "evaluate", config, "--cpus", "4", "--gpus", "1")
    mibf("submit", "evaluate", config, "--again")
    assert [(job["entrypoint_num_cpus"], job["entrypoint_num_gpus"]) for job in server.sent] == [(4, 1), (1, 0)]


@pytest.mark.parametrize(
    "given", [["--gpus", "0.3"], ["--gpus", "-1"], ["--gpus", "2"], ["--cpus", "-1"], ["--cpus", "nan"]]
)
def test_impossible_resources_exit_2_before_submitting(server: Jobs, config: str, given: list[str]) -> None:
    done = mibf("submit", "evaluate", config, *given)
    assert done.status == 2
    assert given[0] in done.stderr
    assert not server.sent


def test_job_that_does_not_start_is_reported_once(server: Jobs, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.fleet.follow, "PENDING_SECONDS", 0.0)
    server.endings = [(JobStatus.PENDING, None)]
    polls = iter([JobStatus.PENDING] * 3 + [JobStatus.RUNNING, JobStatus.PENDING, JobStatus.SUCCEEDED])

    def poll(id_: str) -> SimpleNamespace:
        server.jobs[id_].status, server.jobs[id_].driver_exit_code = next(polls), 0
        server.jobs[id_].message = "It may be waiting for resources (CPUs, GPUs)"
        return server.jobs[id_]

    submitted = server.submit_job

    def submit_job(**job: Any) -> str:
        monkeypatch.setattr(server, "get_job_info", poll)
        return submitted(**job)

    monkeypatch.setattr(server, "submit_job", submit_job)
    done = mibf("submit", "prepare", config)
    assert done.status == 0
    assert done.stderr.count("waiting for resources of the cluster, for 0 s so far (It may be waiting for resources") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grow", "{config}"], "this command cannot be submitted; choose one of prepare, train"),
        (["prepare"], "give a CONFIG"),
        (["map", "--all", "s3://bucket"], "for `rerun` --all URL instead"),
        (["map", "{config}", "--backoff", "3"], "--backoff applies to rerun only"),
        (["rerun", "{config}", "--parallel", "3"], "--parallel applies to rerun --all only"),
        (["map", "{config}", "--yes"], "--yes applies to prepare and run only"),
        (["rerun", "--all", "here"], "is a relative path, which is a different location on the cluster"),
        (["prepare", "{config}", "--set", "workspace=here"], "here is a relative path"),
        (["prepare", "{config}", "--set", "map.model=https://some.where/model?signature=abc"], "URLs with a password"),
    ],
)
def test_invalid_arguments_exit_2_before_submitting(server: Jobs, config: str, arguments: list[str], message: str) -> None:
    done = mibf("submit", *(part.format(config=config) for part in arguments), "--no-follow")
    assert done.status == 2
    assert message in done.stderr
    assert "abc" not in done.stderr
    assert not server.sent


# --- connecting to the cluster


@contextmanager
def serving(status: int, body: str) -> Iterator[str]:
    """Run an HTTP server that gives the same response to every request."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Suppress request logging."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_address[1]}"
        made.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, "Unauthorized", "the cluster requires a token, and none was given. Set RAY_AUTH_MODE=token"),
        (403, "Forbidden", "the cluster refuses the token"),
        (404, "nothing", "responds, but not as a Ray job server"),
        (200, "hello", "responds, but not as a Ray job server"),
        (503, "later", "responds, but not as a Ray job server"),
        (200, json.dumps({"ray_version": "1.0.0"}), "responds, but not as a Ray job server"),
    ],
)
def test_unusable_job_server_exits_2_with_cause(config: str, status: int, body: str, message: str) -> None:
    with serving(status, body) as address:
        done = mibf("submit", "prepare", config, "--address", address)
    assert done.status == 2
    assert message in done.stderr


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "127.0.0.1:9"])
def test_unreachable_cluster_exits_2(config: str, address: str) -> None:
    done = mibf("submit", "prepare", config, "--address", address)
    assert done.status == 2
    assert "no Ray cluster can be reached there" in done.stderr


def test_job_server_that_never_answers_exits_2(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.fleet.submit, "ANSWER_SECONDS", 0.2)
    with tcp_proxy(1, Faults(silent=1)) as proxy:
        done = mibf("submit", "prepare", config, "--address", proxy.url)
    assert done.status == 2
    assert f"{proxy.url}: accepts connections, but has not answered for 0.2 s" in done.stderr


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://", "ftp://there"])
def test_invalid_address_exits_2(config: str, address: str) -> None:
    done = mibf("submit", "prepare", config, "--address", address)
    assert done.status == 2
    assert "must be the URL of a Ray cluster's job server" in done.stderr


def test_different_ray_version_on_the_cluster_is_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(200, json.dumps({"ray_version": "2.9.3"})) as address:
        jobs.fleet.submit.connect(address)
    assert "the cluster has Ray 2.9.3, this machine Ray" in capsys.readouterr().err


def test_job_submitted_with_another_mibf_version_exits_2(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUBMITTED_WITH, "0.0.1")
    done = mibf("prepare", config)
    assert done.status == 2
    assert f"this cluster has mibf {__version__}, but the job was submitted with mibf 0.0.1" in done.stderr


def test_saved_configuration_is_independent_of_the_working_directory(
    scene: SmallScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scene.write_config()
    monkeypatch.chdir(scene.folder)
    path.write_text(path.read_text().replace(f"{scene.folder}/", ""))
    relative = load(str(path))
    assert relative_paths(relative)
    kept = tmp_path / "kept.yaml"
    kept.write_text(as_run(relative))
    monkeypatch.chdir("/")
    assert not relative_paths(load(str(kept)))
    assert as_run(load(str(kept))) == kept.read_text()
