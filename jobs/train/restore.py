"""Restore a seed's training from its newest checkpoint, the same one on every worker. Does not import Ray.

Worker 0 decides which checkpoint that is, because the workers' listings of a folder may differ. Each worker reads it, and
all compare what they restored before the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from jobs.train.resume import same_training
from jobs.train.settings import WorkerContext
from mibf.distributed import decided_by_first, unlike_first
from mibf.errors import InputError
from mibf.training.checkpoint import Checkpoint, TrainingPosition
from mibf.training.epoch import TrainState
from pipeline.io import checksums, storage
from pipeline.io.checkpoints import Checkpoints
from pipeline.io.retry import call_with_retry


class Restored(NamedTuple):
    """Where training continues, the metrics so far and the sums of the epoch so far (None at the start of an epoch)."""

    position: TrainingPosition
    history: list[dict[str, Any]]
    sums: dict[str, torch.Tensor] | None


def restore_newest(
    learner: TrainState,
    checkpoints: Checkpoints,
    worker: WorkerContext,
    *,
    identity: dict[str, Any],
    scaling: Any,
    report: Callable[[str], None],
) -> Restored:
    """Restore the newest intact checkpoint, in place; without checkpoints, leave the initial state.

    `scaling` holds the normalization limits, as JSON values: they too must be equal on all workers.

    Raises:
        InputError: the checkpoint belongs to another training, a worker cannot read it, or the restored states differ.
    """
    report_first = report if worker.rank == 0 else _no_output
    newest: Checkpoint | None = None

    def decide() -> TrainingPosition | None:
        nonlocal newest
        newest = call_with_retry(checkpoints.url, lambda: checkpoints.newest(report_first), report=report_first)
        return None if newest is None else TrainingPosition(newest.epoch, newest.step)

    position = decided_by_first(decide, worker.device)
    if newest is None and position is not None:
        newest = read_chosen(checkpoints, position, worker, report=report)
    found = Restored(TrainingPosition(0, 0), [], None)
    if newest is not None:
        if not same_training(newest.identity, identity):
            raise InputError(
                f"{storage.redact_url(checkpoints.url)}: the checkpoints belong to another training run; restart it "
                "(`mibf train --restart`)."
            )
        newest.restore(learner)
        found = Restored(TrainingPosition(newest.epoch, newest.step), list(newest.history), newest.sums)
    state = Checkpoint.of(learner, epoch=found.position.epoch, step=found.position.step, history=found.history, identity={})
    check_equal(checksums.digest([state.digest(), scaling]), checkpoints, found.position)
    return found


def read_chosen(
    checkpoints: Checkpoints, position: TrainingPosition, worker: WorkerContext, *, report: Callable[[str], None]
) -> Checkpoint:
    """Read the checkpoint at a position that worker 0 decided on.

    Raises:
        InputError: this worker does not see it.
    """
    try:
        return call_with_retry(checkpoints.url, lambda: checkpoints.read(position), report=report)
    except FileNotFoundError as error:
        raise InputError(
            f"{storage.redact_url(checkpoints.checkpoint_url(position))}: worker {worker.rank} does not see this "
            "checkpoint, which worker 0 uses; all workers must have the same workspace at this location."
        ) from error


def check_equal(digest: str, checkpoints: Checkpoints, position: TrainingPosition) -> None:
    """Check that what all workers restored at a position has the same digest.

    Raises:
        InputError: it does not, on every worker.
    """
    others = unlike_first(digest)
    if others:
        listed = ", ".join(map(str, others))
        raise InputError(
            f"{storage.redact_url(checkpoints.url)}: worker {listed} restored another state than worker 0 at epoch "
            f"{position.epoch}, step {position.step}; all workers must have the same workspace at this location, and the "
            "same versions of mibf and torch."
        )


def _no_output(line: str) -> None:
    pass
