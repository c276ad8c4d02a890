"""`mibf submit`: what is sent, what is found there already, how it ends. The cluster is a double: see the rehearsal."""

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

import jobs.submit
from jobs.as_run import as_run, relative_places
from jobs.cli import app
from jobs.config import load
from jobs.version import SUBMITTED_WITH
from mibf import __version__
from tests.conftest import SmallScene
from tests.mapped import Result


class Jobs:
    """A job server that runs nothing: jobs end as they are told to, one after the other."""

    def __init__(self, *endings: tuple[JobStatus, int | None]) -> None:
        self.endings = list(endings)
        self.jobs: dict[str, SimpleNamespace] = {}
        self.sent: list[dict[str, Any]] = []
        self.files: list[str] = []

    def submit_job(self, **job: Any) -> str:
        self.sent.append(job)
        if "working_dir" in job["runtime_env"]:
            self.files.append((Path(job["runtime_env"]["working_dir"]) / "mibf.yaml").read_text())
        status, code = self.endings.pop(0)
        message = "" if status == JobStatus.SUCCEEDED else "as it was told\nand more"
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
    monkeypatch.setattr(jobs.submit, "connect", lambda _: (made, "http://cluster:8265"))
    monkeypatch.setattr(jobs.submit, "LOOK", 0.0)
    return made


@pytest.fixture
def config(scene: SmallScene) -> str:
    return str(scene.write_config())


def mibf(*arguments: str) -> Result:
    found = CliRunner().invoke(app, list(arguments))
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return Result(found.exit_code, found.stdout, found.stderr)


def test_a_configuration_on_this_disk_goes_along_as_it_is_meant_here(server: Jobs, config: str) -> None:
    server.endings = [(JobStatus.SUCCEEDED, 0)]
    done = mibf("submit", "prepare", config, "--set", "model.patch=5", "--cpus", "2", "--json")
    assert (done.status, done.json["exit_status"], done.json["attached"]) == (0, 0, False)
    assert "log of mibf-prepare-small-" in done.stderr
    (job,) = server.sent
    assert job["entrypoint"] == "mibf prepare mibf.yaml"
    assert job["entrypoint_num_cpus"] == 2
    assert job["runtime_env"]["env_vars"] == {SUBMITTED_WITH: __version__}
    assert yaml.safe_load(server.files[0])["model"]["patch"] == 5
    assert not relative_places(load(config))
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
def test_the_exit_status_is_that_of_the_stage(
    server: Jobs, config: str, ending: tuple[JobStatus, int | None], status: int
) -> None:
    server.endings = [ending]
    done = mibf("submit", "prepare", config)
    assert done.status == status
    assert "as it was told" in done.stdout
    assert "and more" not in done.stdout


def test_one_that_is_at_work_is_attached_to_and_one_that_failed_is_submitted_again(server: Jobs, config: str) -> None:
    server.endings = [(JobStatus.RUNNING, None), (JobStatus.SUCCEEDED, 0)]
    first = mibf("submit", "prepare", config, "--no-follow", "--json").json
    assert (first["status"], first["exit_status"]) == ("RUNNING", None)
    second = mibf("submit", "prepare", config, "--no-follow", "--json").json
    assert second == first | {"attached": True}
    assert len(server.sent) == 1
    server.jobs[first["id"]] = SimpleNamespace(status=JobStatus.FAILED, driver_exit_code=3, message="tiles failed")
    third = mibf("submit", "prepare", config, "--json").json
    assert (third["id"], third["attached"]) == (f"{first['id']}-2", False)


def test_another_configuration_is_another_job(server: Jobs, config: str) -> None:
    server.endings = [(JobStatus.RUNNING, None)] * 3
    ids = {
        mibf("submit", stage, config, "--no-follow", "--json", *more).json["id"]
        for stage, more in [("prepare", ()), ("prepare", ("--set", "model.patch=9")), ("run", ())]
    }
    assert len(ids) == 3


def test_what_was_done_is_not_done_again_but_when_it_is_gone(server: Jobs, config: str) -> None:
    server.endings = [(JobStatus.SUCCEEDED, 0)] * 3
    assert mibf("prepare", config).status == 0  # what the cluster would have done
    first = mibf("submit", "prepare", config, "--json").json
    second = mibf("submit", "prepare", config, "--json").json
    assert (second["id"], second["attached"]) == (first["id"], True)
    assert mibf("submit", "prepare", config, "--again", "--json").json["id"] == f"{first['id']}-2"
    (Path(load(config).workspace) / "manifests/prepare.json").unlink()
    assert mibf("submit", "prepare", config, "--json").json["id"] == f"{first['id']}-3"


def test_a_driver_that_dies_with_its_node_is_submitted_again(server: Jobs, config: str) -> None:
    died = (JobStatus.FAILED, None)
    server.endings = [died, (JobStatus.SUCCEEDED, 0)]
    done = mibf("submit", "prepare", config, "--json")
    assert done.status == 0
    assert done.json["id"].endswith("-2")
    assert "its driver died with its node" in done.stderr
    server.endings = [died, died]
    assert mibf("submit", "prepare", config, "--again", "--attempts", "2").status == 1
    assert len(server.sent) == 4


def test_reruns_of_everything(server: Jobs) -> None:
    server.endings = [(JobStatus.SUCCEEDED, 0)] * 2
    arguments = ("submit", "rerun", "--all", "s3://bucket/areas", "--max-attempts", "5", "--backoff", "600", "--json")
    first, second = (mibf(*arguments).json["id"] for _ in range(2))
    assert second == f"{first}-2", "a schedule asks anew each time"
    assert server.sent[0]["entrypoint"] == "mibf rerun --all s3://bucket/areas --max-attempts 5 --backoff 600"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grow", "{config}"], "is no command that can be submitted; there are prepare, train"),
        (["prepare"], "give a CONFIG"),
        (["map", "--all", "s3://bucket"], "for `rerun`, --all URL in its place"),
        (["map", "{config}", "--backoff", "3"], "--backoff is of rerun alone"),
        (["rerun", "--all", "here"], "is a relative path, which means another place on the cluster"),
        (["prepare", "{config}", "--set", "workspace=here"], "here is a relative path"),
        (["prepare", "{config}", "--set", "map.model=https://some.where/model?signature=abc"], "holds URLs with a password"),
    ],
)
def test_what_is_refused_before_anything_is_sent(server: Jobs, config: str, arguments: list[str], message: str) -> None:
    done = mibf("submit", *(part.format(config=config) for part in arguments), "--no-follow")
    assert done.status == 2
    assert message in done.stderr
    assert "abc" not in done.stderr
    assert not server.sent


# --- the cluster's door


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """A server that says the same to everybody."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_address[1]}"
        made.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, "Unauthorized", "the cluster asks for a token, and none was given. Set RAY_AUTH_MODE=token"),
        (403, "Forbidden", "the cluster refuses the token"),
        (404, "nothing", "answers, but not as a Ray job server"),
        (200, "hello", "answers, but not as a Ray job server"),
        (503, "later", "answers, but not as a Ray job server"),
        (200, json.dumps({"ray_version": "1.0.0"}), "answers, but not as a Ray job server"),
    ],
)
def test_a_cluster_that_does_not_let_us_in(config: str, status: int, body: str, message: str) -> None:
    with answering(status, body) as address:
        done = mibf("submit", "prepare", config, "--address", address)
    assert done.status == 2
    assert message in done.stderr


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "127.0.0.1:9"])
def test_a_cluster_that_is_not_there(config: str, address: str) -> None:
    done = mibf("submit", "prepare", config, "--address", address)
    assert done.status == 2
    assert "no Ray cluster can be reached there" in done.stderr


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://", "ftp://there"])
def test_an_address_that_is_none(config: str, address: str) -> None:
    done = mibf("submit", "prepare", config, "--address", address)
    assert done.status == 2
    assert "must be the URL of a Ray cluster's job server" in done.stderr


def test_another_ray_on_the_cluster_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(200, json.dumps({"ray_version": "2.9.3"})) as address:
        jobs.submit.connect(address)
    assert "the cluster has Ray 2.9.3, and this machine Ray" in capsys.readouterr().err


def test_a_cluster_of_another_mibf_refuses_the_job(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUBMITTED_WITH, "0.0.1")
    done = mibf("prepare", config)
    assert done.status == 2
    assert f"this cluster has mibf {__version__}, and the job was submitted with mibf 0.0.1" in done.stderr


def test_a_configuration_as_run_means_the_same_wherever_it_is_read(
    scene: SmallScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scene.write_config()
    monkeypatch.chdir(scene.folder)
    path.write_text(path.read_text().replace(f"{scene.folder}/", ""))
    relative = load(str(path))
    assert relative_places(relative)
    kept = tmp_path / "kept.yaml"
    kept.write_text(as_run(relative))
    monkeypatch.chdir("/")
    assert not relative_places(load(str(kept)))
    assert as_run(load(str(kept))) == kept.read_text()
