"""A small scene with a trained model, to be mapped under faults: 3 x 3 tiles of 64 pixels over 2 x 2 shards of 128.

What a test does to the processes of a map comes from without: a `sitecustomize.py` on their path, no hook in the product.
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

from jobs.cli import app
from pipeline.ledger import Ledger
from tests.conftest import SmallScene, make_scene

TRAIN = {"epochs": 1, "batch": 64, "rate": 3e-3, "workers": 0, "threads": 1}
MAP = {"tile": 64, "workers": 0, "attempts": 1, "backoff": 0}
#: The corners of the tiles.
TILES = [f"y{y}_x{x}" for y in (0, 64, 128) for x in (0, 64, 128)]

#: Before a tile is read its process sleeps `MIBF_TESTS_SLEEP` seconds, and is killed if it is tile `MIBF_TESTS_FATAL`.
_SITE = """
import importlib.util, os, signal, sys, time

class Finder:
    def find_spec(self, name, path, target=None):
        if name != "pipeline.predict":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            read = module.TilePredictor.read

            def disturbed(predictor, store, tile):
                time.sleep(float(os.environ.get("MIBF_TESTS_SLEEP", "0")))
                if tile.key == os.environ.get("MIBF_TESTS_FATAL"):
                    os.kill(os.getpid(), signal.SIGKILL)
                return read(predictor, store, tile)

            module.TilePredictor.read = disturbed

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def disturbed(folder: Path, *, sleep: float = 0, fatal: str = "") -> dict[str, str]:
    """What the environment of a process needs so that its tiles are slow, or one of them fatal; `folder` is for its hook."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITE)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "MIBF_TESTS_SLEEP": str(sleep), "MIBF_TESTS_FATAL": fatal}


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


class Mapped:
    """A trained scene in a folder of its own, and the commands on it."""

    def __init__(self, scene: SmallScene) -> None:
        self.scene, self.folder = scene, scene.folder
        self.config = scene.folder / "small.yaml"
        self.map = scene.folder / "work/maps/small/main"

    @classmethod
    def make(cls, folder: Path, **changes: Any) -> Mapped:
        """Write a scene, prepare it and train on it."""
        scene = make_scene(folder)
        scene.write_config(**{"train": TRAIN, "map": MAP, "prepare": {"shard": 128}} | changes)
        made = cls(scene)
        made.does("prepare")
        made.does("train")
        return made

    def copy(self, folder: Path) -> Mapped:
        """The same in another folder; a map of both has the same fingerprint."""
        shutil.copytree(self.folder, folder)
        config = folder / self.config.name
        config.write_text(config.read_text().replace(str(self.folder), str(folder)))
        return Mapped(replace(self.scene, folder=folder))

    @contextmanager
    def changed(self) -> Iterator[dict[str, Any]]:
        """The configuration, to be changed in the block."""
        values = yaml.safe_load(self.config.read_text())
        yield values
        self.config.write_text(yaml.safe_dump(values, sort_keys=False))

    def arguments(self, command: str, *parts: str) -> list[str]:
        """The arguments of a command; parts with a `=` that are no options are keys changed."""
        changed = [p for p in parts if "=" in p and not p.startswith("-")]
        others = [p for p in parts if p not in changed]
        return [command, str(self.config), *others, *(p for change in changed for p in ("--set", change))]

    def mibf(self, command: str, *parts: str) -> Result:
        """Do a command in this process, which is faster than in one of its own."""
        threads = torch.get_num_threads()
        try:
            found = CliRunner().invoke(app, self.arguments(command, *parts))
        finally:
            torch.set_num_threads(threads)
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        return Result(found.exit_code, found.stdout, found.stderr)

    def does(self, command: str, *parts: str, status: int = 0) -> Result:
        """Do a command in this process, which must end with a status."""
        result = self.mibf(command, *parts)
        assert result.status == status, result.stderr
        return result

    def mibf_apart(self, command: str, *parts: str, environment: Mapping[str, str] | None = None) -> Result:
        """Do a command in a process of its own, as Ray needs it."""
        done = subprocess.run(
            [sys.executable, "-m", "jobs.cli", *self.arguments(command, *parts)],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env=os.environ | dict(environment or {}),
        )
        return Result(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def running(self, command: str, *parts: str, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        """A command in the background; killed with the block, if it has not ended by then."""
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
        """What the command in the background wrote to standard error."""
        return (self.folder / "stderr").read_text()

    def published(self) -> dict[str, bytes]:
        """The rasters of the published map."""
        return {path.name: path.read_bytes() for path in sorted(self.map.glob("*.tif"))}

    def pixels(self, product: str = "class") -> NDArray[Any]:
        """The pixels of one of them."""
        with rasterio.open(self.map / f"{product}.tif") as dataset:
            return np.asarray(dataset.read())

    def files(self) -> dict[Path, bytes]:
        """All files, but for the lease that a killed command leaves: its lock has gone with it."""
        kept = ("stderr", "lease.json")
        return {p: p.read_bytes() for p in self.folder.rglob("*") if p.is_file() and p.name not in kept}

    def events(self, state: str | None = None) -> list[dict[str, Any]]:
        """The events of the map's ledger, in order, each with its tile; those of a state, if one is given."""
        rows = Ledger.open(str(self.map / "ledger")).table().to_pylist()
        return [row | {"tile": f"y{row['y']}_x{row['x']}"} for row in rows if state in (None, row["state"])]

    def count(self, state: str) -> Counter[str]:
        """How often each tile came to a state."""
        return Counter(event["tile"] for event in self.events(state))

    def states(self, *parts: str) -> dict[str, int]:
        """The number of tiles by state that `mibf status` tells, without those of no tile."""
        (scene,) = self.does("status", "--json", *parts).json
        return {state: count for state, count in scene["tiles"].items() if count}

    def shard(self, row: int, column: int, source: str = "optical") -> Path:
        """The file of a shard of a source."""
        return self.folder / f"work/stores/small.zarr/sources/{source}/c/0/{row}/{column}"


def workers_below(pid: int) -> list[psutil.Process]:
    """The processes of the workers that map, below a command's process or a node's."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if "ray::MapWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def alive(process: psutil.Process) -> bool:
    """Whether a process is still at work; one whose end nobody has asked for is not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
