"""Training of one seed in the test's own process, from a prepared store, with checkpoints in a folder of its own."""

from __future__ import annotations

from typing import Any

from jobs.config.loader import load
from jobs.train.settings import WorkerContext, make_settings, network_spec
from jobs.train.worker_loop import SeedTrainer
from jobs.workflow.workspace import Workspace
from mibf.normalization import scaling_from_json
from pipeline.io import storage
from pipeline.io.checkpoints import Checkpoints
from pipeline.io.lease import Lease
from pipeline.sampling.sampler import Sampler
from pipeline.store.patch_store import PatchStore


class Quiet:
    """Progress callback that discards everything."""

    def seen(self, samples: int, waiting: float) -> None: ...

    def loss(self, value: float) -> None: ...

    def epoch(self, line: str) -> None: ...

    def warn(self, line: str) -> None: ...


def trainer(
    config_file: str,
    checkpoints_url: str,
    worker: WorkerContext,
    *,
    overrides: tuple[str, ...] = (),
    cls: type[SeedTrainer] = SeedTrainer,
    callback: Any = None,
) -> SeedTrainer:
    """The training of seed 0 of the scene `small` on one worker, before its first step."""
    config = load(config_file, overrides=overrides)
    workspace = Workspace.of(config)
    store = PatchStore(workspace.store("small"), without=("test",))
    spec = network_spec(config, store)
    sampler = Sampler([store], scaling_from_json(storage.read_json(workspace.scaling)), spec.patch, "train")
    settings = make_settings(config, workspace, spec, sampler, threads=1, identity={"run": 1}, lease=Lease(), fingerprint="")
    found = cls(settings, 0, worker, callback or Quiet())
    found.checkpoints = Checkpoints(checkpoints_url)
    return found
