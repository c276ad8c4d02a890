"""Measure `mibf prepare` on a local Ray cluster of one and of two nodes with one CPU each, and its driver's peak memory.

Run `python benchmarks/prepare_on_nodes.py [FOLDER]`; up to 10 GB are written there, by default to a temporary folder. The
time is that of the stage, without the start of the command; each node has one core. Every round prepares each scene on one
node and on two, and compares the stored bytes with those of threads. Give a folder in memory (/dev/shm) where a disk is
slower than the cores.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

from jobs.sample.synthetic import synth

#: Scenes by size and bands, those whose speed is compared, rounds, and seconds between looks at the driver's memory.
SCENES = (("2048", "4+2"), ("4096", "64+4"), ("8192", "4+2"), ("16384", "4+2"))
COMPARED, ROUNDS, POLL_SECONDS = (("4096", "64+4"), ("8192", "4+2")), 3, 0.05


@dataclass(frozen=True)
class Run:
    """One preparation."""

    command: float  #: seconds of the whole command
    stage: float  #: seconds of the stage
    driver_bytes: int  #: peak of the driver's own process
    digest: str  #: of all objects of the store


@contextmanager
def nodes(number: int) -> Iterator[str]:
    """Run a cluster of a head without CPUs and nodes with one core each; yield its address."""
    cores = sorted(os.sched_getaffinity(0))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for core in cores[:number]:
            os.sched_setaffinity(0, {core})  # inherited by the node: libraries have threads of their own
            cluster.add_node(num_cpus=1)
        os.sched_setaffinity(0, cores)
        yield cluster.address
    finally:
        os.sched_setaffinity(0, cores)
        cluster.shutdown()


def prepared(config: Path, workspace: Path, **environment: str) -> Run:
    """Prepare a configuration into an empty workspace."""
    shutil.rmtree(workspace, ignore_errors=True)
    command = [sys.executable, "-m", "jobs.cli", "prepare", str(config), "--json", "--set", f"workspace={workspace}"]
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
    driver, most = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            most = max(most, driver.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(POLL_SECONDS)
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    (stage,) = json.loads(out)["stages"]
    return Run(time.monotonic() - started, stage["seconds"], most, digest(workspace / "stores"))


def digest(folder: Path) -> str:
    """SHA-256 of the names and bytes of the objects below a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*/c/**/*")):
        if path.is_file():
            found.update(str(path.relative_to(folder)).encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def main(folder: Path) -> None:
    """Prepare all scenes and print the figures."""
    configs = {scene: folder / "_".join(scene) / "synth.yaml" for scene in SCENES}
    for (size, bands), config in configs.items():
        if not config.exists():  # in a folder that was given they stay, as writing them takes minutes
            synth(
                str(config.parent), size=size, bands=bands, labelled=0.02, nodata=0.0, blob=None, crs="EPSG:32633", seed=0,
                overwrite=True,
            )  # fmt: skip  # one call, two lines
    runs: dict[tuple[tuple[str, str], str], list[Run]] = {}
    work = folder / "work"
    for scene in SCENES:
        runs[scene, "threads"] = [prepared(configs[scene], work, RAY_ADDRESS="")]
    for number in range(ROUNDS):
        for engine in ("1", "2"):
            with nodes(int(engine)) as address:
                for scene in SCENES if number == 0 else COMPARED:
                    runs.setdefault((scene, engine), []).append(prepared(configs[scene], work, RAY_ADDRESS=address))
    for scene in SCENES:
        name = f"{scene[0]} x {scene[0]}, {scene[1]} bands"
        for engine in ("threads", "1", "2"):
            own = runs[scene, engine]
            same = all(run.digest == runs[scene, "threads"][0].digest for run in own)
            print(
                f"{name}, {engine}: {[round(run.stage, 1) for run in own]} s, with the start of the command "
                f"{[round(run.command, 1) for run in own]} s, driver {max(run.driver_bytes for run in own) / 1e6:.0f} MB, "
                f"{'the same bytes' if same else 'OTHER BYTES'}"
            )
        ratios = [one.stage / two.stage for one, two in zip(runs[scene, "1"], runs[scene, "2"], strict=True)]
        print(f"{name}: two nodes are {statistics.median(ratios):.2f} times as fast as one")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory(prefix="mibf-bench-") as temporary:
            main(Path(temporary))
