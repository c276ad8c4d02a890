"""A small scene with a trained model, for mapping tests: 3 x 3 tiles of 64 pixels over 2 x 2 shards of 128 pixels.

Faults are injected into map processes from outside, by a `sitecustomize.py` on their path; the product has no test hooks.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rasterio
import torch
import yaml
from numpy.typing import NDArray
from typer.testing import CliRunner

from jobs.cli.common import app
from jobs.map.attempt import WORKER_DIED
from jobs.map.device_health import WORKER_REPLACED
from pipeline.maps.ledger import Ledger
from tests.support.scenes import SmallScene, make_scene

TRAIN = {"epochs": 1, "batch_size": 64, "learning_rate": 3e-3, "workers": 0, "threads": 1}
MAP = {"tile_size": 64, "workers": 0, "attempts": 1, "backoff": 0}
#: Tile corners.
TILES = [f"y{y}_x{x}" for y in (0, 64, 128) for x in (0, 64, 128)]
#: Before reading a tile or a shard, a process sleeps `MIBF_TESTS_SLEEP` seconds; it kills itself at tile `MIBF_TESTS_FATAL`.
_SITE = """
import importlib.util, os, signal, sys, time

def sleep():
    time.sleep(float(os.environ.get("MIBF_TESTS_SLEEP", "0")))

def disturb_tiles(module):
    read = module.TileReader.read

    def disturbed(reader, store, tile, **options):
        sleep()
        if tile.key == os.environ.get("MIBF_TESTS_FATAL"):
            os.kill(os.getpid(), signal.SIGKILL)
        return read(reader, store, tile, **options)

    module.TileReader.read = disturbed

def disturb_shards(module):
    read = module.shard_arrays

    def disturbed(scene, window):
        sleep()
        return read(scene, window)

    module.shard_arrays = disturbed

class Finder:
    def __init__(self, name, disturb):
        self.name, self.disturb = name, disturb

    def find_spec(self, name, path, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            self.disturb(module)

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder("pipeline.maps.predictor", disturb_tiles))
sys.meta_path.insert(0, Finder("pipeline.store.build", disturb_shards))
"""


def disturbed(folder: Path, *, sleep: float = 0, fatal: str = "") -> dict[str, str]:
    """Return environment variables that slow all tiles and shards, or make a tile kill its process.

    The hook is written to `folder`.
    """
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITE)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "MIBF_TESTS_SLEEP": str(sleep), "MIBF_TESTS_FATAL": fatal}


@dataclass(frozen=True)
class Result:
    """Exit status and output of a command."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


class Mapped:
    """A trained scene in its own folder, and the commands to run on it."""

    def __init__(self, scene: SmallScene) -> None:
        self.scene, self.folder = scene, scene.folder
        self.config = scene.folder / "small.yaml"
        self.map = scene.folder / "work/maps/small/main"

    @classmethod
    def make(cls, folder: Path, **changes: Any) -> Mapped:
        """Write a scene, prepare it and train a model on it."""
        scene = make_scene(folder)
        scene.write_config(**{"train": TRAIN, "map": MAP, "prepare": {"shard": 128}} | changes)
        made = cls(scene)
        made.does("prepare")
        made.does("train")
        return made

    def copy(self, folder: Path) -> Mapped:
        """Copy to another folder; maps of both have the same fingerprint."""
        shutil.copytree(self.folder, folder)
        config = folder / self.config.name
        config.write_text(config.read_text().replace(str(self.folder), str(folder)))
        return Mapped(replace(self.scene, folder=folder))

    @contextmanager
    def changed(self) -> Iterator[dict[str, Any]]:
        """Yield the configuration for editing; save it when the block ends."""
        values = yaml.safe_load(self.config.read_text())
        yield values
        self.config.write_text(yaml.safe_dump(values, sort_keys=False))

    def arguments(self, command: str, *parts: str) -> list[str]:
        """Return the arguments of a command; parts with `=` that are not options become `--set` overrides."""
        changed = [p for p in parts if "=" in p and not p.startswith("-")]
        others = [p for p in parts if p not in changed]
        return [command, str(self.config), *others, *(p for change in changed for p in ("--set", change))]

    def mibf(self, command: str, *parts: str) -> Result:
        """Run a command in this process, which is faster than starting another."""
        threads = torch.get_num_threads()
        try:
            found = CliRunner().invoke(app, self.arguments(command, *parts))
        finally:
            torch.set_num_threads(threads)
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        return Result(found.exit_code, found.stdout, found.stderr)

    def does(self, command: str, *parts: str, status: int = 0) -> Result:
        """Run a command in this process and check its exit status."""
        result = self.mibf(command, *parts)
        assert result.status == status, result.stderr
        return result

    def mibf_apart(self, command: str, *parts: str, environment: Mapping[str, str] | None = None) -> Result:
        """Run a command in a separate process, as Ray requires.

        No worker of a map may die, unless a fatal tile is part of the environment.
        """
        done = subprocess.run(
            [sys.executable, "-m", "jobs.cli", *self.arguments(command, *parts)],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
            env=os.environ | dict(environment or {}),
        )
        if not (environment or {}).get("MIBF_TESTS_FATAL"):
            self.check_no_worker_died(done.stderr)
        return Result(done.returncode, done.stdout, done.stderr)

    def check_no_worker_died(self, stderr: str) -> None:
        """Check that no worker of the scene's map died: Ray replaces it and repeats its tasks, so that the map succeeds."""
        assert_no_worker_died(stderr)
        if (self.map / "ledger").exists():
            assert not [event["tile"] for event in self.events("failed") if event["cause"] == WORKER_DIED]

    @contextmanager
    def running(self, command: str, *parts: str, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command in the background; kill it at the end of the block if it is still running."""
        with (self.folder / "stderr").open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "jobs.cli", *self.arguments(command, *parts)],
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=os.environ | dict(environment),
            )
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    def errors(self) -> str:
        """Return the standard error of the background command."""
        return (self.folder / "stderr").read_text()

    def published(self) -> dict[str, bytes]:
        """Return the rasters of the published map by file name."""
        return {path.name: path.read_bytes() for path in sorted(self.map.glob("*.tif"))}

    def pixels(self, product: str = "class") -> NDArray[Any]:
        """Return the pixels of a published raster, (band, y, x)."""
        with rasterio.open(self.map / f"{product}.tif") as dataset:
            return np.asarray(dataset.read())

    def files(self) -> dict[Path, bytes]:
        """Return the contents of all files except the lease file, which a killed command leaves behind unlocked."""
        kept = ("stderr", "lease.json")
        return {p: p.read_bytes() for p in self.folder.rglob("*") if p.is_file() and p.name not in kept}

    def events(self, state: str | None = None) -> list[dict[str, Any]]:
        """Return the events of the map's ledger in order, each with its tile; optionally only those with a given state."""
        rows = Ledger.open(str(self.map / "ledger")).table().to_pylist()
        return [row | {"tile": f"y{row['y']}_x{row['x']}"} for row in rows if state in (None, row["state"])]

    def count(self, state: str) -> Counter[str]:
        """Count how many times each tile entered a state."""
        return Counter(event["tile"] for event in self.events(state))

    def states(self, *parts: str) -> dict[str, int]:
        """Return the number of tiles by state reported by `mibf status`, without states that have no tiles."""
        (scene,) = self.does("status", "--json", *parts).json
        return {state: count for state, count in scene["tiles"].items() if count}

    def shard(self, row: int, column: int, source: str = "optical") -> Path:
        """Return the path of a shard of a source."""
        return self.folder / f"work/stores/small.zarr/sources/{source}/c/0/{row}/{column}"


def assert_no_worker_died(stderr: str) -> None:
    """Check that a command did not report the death of a map worker."""
    assert WORKER_REPLACED not in stderr, stderr
    assert WORKER_DIED not in stderr, stderr


def workers_below(pid: int) -> list[psutil.Process]:
    """Return the map worker processes that descend from a command's or a node's process."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if "ray::MapWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def alive(process: psutil.Process) -> bool:
    """Return whether a process is running; a zombie is not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
