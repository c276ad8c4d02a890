"""Checkpoints of one training run, in a folder at a URL: the two newest and the best are kept.

File names state the position, so no index can disagree with them: `epoch-0003-step-000120` has three epochs done and
120 steps of the fourth.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mibf.errors import InputError
from mibf.training.checkpoint import Checkpoint, DamagedCheckpointError, TrainingPosition
from pipeline.io import storage

_NAME = re.compile(r"epoch-(\d+)-step-(\d+)\.pt")
#: Number of newest checkpoints that are kept: if one is corrupt, the previous one remains.
NEWEST = 2


@dataclass(frozen=True)
class Checkpoints:
    """The folder of a run's checkpoints; one process writes, any may read."""

    url: str

    def checkpoint_url(self, position: TrainingPosition) -> str:
        """The URL of the checkpoint at a position."""
        return storage.join(self.url, f"epoch-{position.epoch:04d}-step-{position.step:06d}.pt")

    def positions(self) -> list[TrainingPosition]:
        """Positions of the existing checkpoints, newest last."""
        found = (_NAME.fullmatch(name) for name in storage.names(self.url))
        return sorted(
            (TrainingPosition(int(match[1]), int(match[2])) for match in found if match), key=lambda p: (p.epoch, p.step)
        )

    def write(
        self,
        checkpoint: Checkpoint,
        *,
        best: TrainingPosition | None,
        before_each: Callable[[], object] = lambda: None,
    ) -> None:
        """Write a checkpoint, then remove those that are neither among the newest nor the best.

        `before_each` is called before each file is written or removed.
        """
        position = TrainingPosition(checkpoint.epoch, checkpoint.step)
        content = checkpoint.to_bytes()
        before_each()
        storage.write_bytes(self.checkpoint_url(position), content)
        there = self.positions()
        for old in there[:-NEWEST]:
            if old != best:
                before_each()
                storage.remove(self.checkpoint_url(old))

    def read(self, position: TrainingPosition) -> Checkpoint:
        """Read the checkpoint at a position.

        Raises:
            FileNotFoundError: it does not exist.
            DamagedCheckpointError: it is corrupt.
        """
        return Checkpoint.from_bytes(storage.read_bytes(self.checkpoint_url(position)))

    def newest(self, report: Callable[[str], None] = lambda line: None) -> Checkpoint | None:
        """Read the newest intact checkpoint, None without checkpoints; `report` gets one line for each corrupt one.

        Raises:
            InputError: there are checkpoints, but all are corrupt.
        """
        positions = self.positions()
        for position in reversed(positions):
            try:
                return self.read(position)
            except DamagedCheckpointError:
                report(f"{storage.redact_url(self.checkpoint_url(position))}: is corrupt; using the previous checkpoint")
        if positions:
            raise InputError(
                f"{storage.redact_url(self.url)}: all checkpoints are corrupt; restart training with `mibf train --restart`."
            )
        return None

    def remove(self) -> None:
        """Remove all checkpoints."""
        storage.remove(self.url)
