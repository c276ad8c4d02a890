"""All workers of a training restore the same state, whatever each of them sees in the folder of checkpoints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.train.settings import WorkerContext
from mibf.errors import InputError
from mibf.training.checkpoint import Checkpoint, TrainingPosition
from pipeline.io import storage
from pipeline.io.checkpoints import Checkpoints
from tests.support.distributed import two_workers
from tests.support.scenes import SmallScene
from tests.support.trainers import trainer

CPU = torch.device("cpu")
STEPS = (5, 10)


@pytest.fixture
def interrupted(prepared: tuple[SmallScene, Any], tmp_path: Path) -> tuple[str, str]:
    """A prepared configuration, and a folder with two checkpoints of a training, which differ in their weights."""
    config, folder = str(prepared[0].folder / "small.yaml"), str(tmp_path / "checkpoints")
    one = trainer(config, folder, WorkerContext(0, 1, CPU))
    for step in STEPS:
        with torch.no_grad():
            for weights in one.learner.network.parameters():
                weights.fill_(step / 100)
        checkpoint = Checkpoint.of(one.learner, epoch=0, step=step, history=[], identity={"run": 1})
        one.checkpoints.write(checkpoint, best=None)
    return config, folder


def hide_newest() -> None:
    """Let the listing lack the newest checkpoint, as on a file system that caches listings."""
    real = storage.names
    storage.names = lambda url: [name for name in real(url) if "000010" not in name]


def read_other_content() -> None:
    """Read another checkpoint's weights under the same name, as in a copy of the workspace."""
    real = Checkpoints.read

    def read(self: Checkpoints, position: TrainingPosition) -> Checkpoint:
        found = real(self, position)
        found.network[next(iter(found.network))].add_(1)
        return found

    Checkpoints.read = read  # type: ignore[method-assign]  # in a process of its own


def restore_twice(config: str, folder: str, rank: int) -> dict[str, Any]:
    """Restore on one of two workers, of which the second sees other files; return the step, the weights and the error."""
    one = trainer(config, folder, WorkerContext(rank, 2, CPU))
    if rank == 1:
        hide_newest()
    position, _ = one._restored()
    weights = torch.cat([each.detach().flatten() for each in one.learner.network.parameters()])
    found = {"step": position.step, "weights": float(weights.mean())}
    if rank == 1:
        read_other_content()
    try:
        one._restored()
    except InputError as error:
        return found | {"error": str(error)}
    return found | {"error": ""}


@pytest.mark.slow
def test_workers_restore_what_the_first_one_sees_and_stop_if_they_cannot(
    interrupted: tuple[str, str], tmp_path: Path
) -> None:
    workers = two_workers(partial(restore_twice, *interrupted), tmp_path)
    assert [worker["step"] for worker in workers] == [10, 10]
    assert [worker["weights"] for worker in workers] == pytest.approx([0.1, 0.1])
    for worker in workers:
        assert "worker 1 restored another state than worker 0 at epoch 0, step 10" in worker["error"]


def test_digest_of_a_checkpoint_covers_weights_optimizer_position_and_history(interrupted: tuple[str, str]) -> None:
    config, folder = interrupted
    one = trainer(config, folder, WorkerContext(0, 1, CPU))
    same = Checkpoint.of(one.learner, epoch=0, step=5, history=[], identity={})
    before = same.digest()
    assert Checkpoint.from_bytes(same.to_bytes()).digest() == before
    changed = [
        Checkpoint.of(one.learner, epoch=1, step=5, history=[], identity={}),
        Checkpoint.of(one.learner, epoch=0, step=5, history=[{"epoch": 1}], identity={}),
    ]
    with torch.no_grad():
        next(one.learner.network.parameters()).add_(1e-3)
    changed.append(Checkpoint.of(one.learner, epoch=0, step=5, history=[], identity={}))
    assert len({before, *(each.digest() for each in changed)}) == 4
