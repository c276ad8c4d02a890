"""The checkpoints of one training, in a folder at a URL: kept are the two newest ones and the best.

Their names tell where the training stood, so that no index can be at odds with them: `epoch-0003-step-000120` has three
epochs done and 120 steps of the fourth.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mibf.checkpoint import Checkpoint, DamagedCheckpointError
from mibf.errors import InputError
from pipeline import storage
from pipeline.batches import Position

_NAME = re.compile(r"epoch-(\d+)-step-(\d+)\.pt")
#: Newest ones that are kept: should one not be whole, there is the one before.
NEWEST = 2


@dataclass(frozen=True)
class Checkpoints:
    """The folder of a training's checkpoints; one process writes, any may read."""

    url: str

    def place(self, position: Position) -> str:
        """Where the checkpoint of a position lies."""
        return storage.join(self.url, f"epoch-{position.epoch:04d}-step-{position.step:06d}.pt")

    def positions(self) -> list[Position]:
        """Those that are there, the newest last."""
        found = (_NAME.fullmatch(name) for name in storage.names(self.url))
        return sorted((Position(int(match[1]), int(match[2])) for match in found if match), key=lambda p: (p.epoch, p.step))

    def write(self, checkpoint: Checkpoint, *, best: Position | None) -> None:
        """Write a checkpoint, then remove what is neither among the newest nor the best."""
        position = Position(checkpoint.epoch, checkpoint.step)
        storage.write_bytes(self.place(position), checkpoint.to_bytes())
        there = self.positions()
        for old in there[:-NEWEST]:
            if old != best:
                storage.remove(self.place(old))

    def read(self, position: Position) -> Checkpoint:
        """The checkpoint of a position.

        Raises:
            FileNotFoundError: there is none.
            DamagedCheckpointError: it is not whole.
        """
        return Checkpoint.from_bytes(storage.read_bytes(self.place(position)))

    def newest(self, tell: Callable[[str], None] = lambda line: None) -> Checkpoint | None:
        """The newest one that is whole; `tell` is given a line for each that is not.

        Raises:
            InputError: there are some, and none is whole.
        """
        there = self.positions()
        for position in reversed(there):
            try:
                return self.read(position)
            except DamagedCheckpointError:
                tell(f"{storage.shown(self.place(position))}: is not whole; the one before is taken")
        if there:
            raise InputError(f"{storage.shown(self.url)}: no checkpoint is whole; train anew (`mibf train --anew`).")
        return None

    def remove(self) -> None:
        """Remove all."""
        storage.remove(self.url)
