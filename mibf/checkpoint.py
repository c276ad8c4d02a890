"""What resuming needs: weights, optimiser, schedule, and where the training stood. Torch alone.

A checkpoint is one byte string: a line that says so, the SHA-256 of the rest, and the rest, tensors and plain values
that are read back with `weights_only=True`. Nothing in it can run code, and one cut short is known as such.

Random states are not in it: the order of samples, and every draw of noise and code, are functions of the seed and the
position (`mibf.training.train_epoch`), which are.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mibf.errors import InputError
from mibf.training import Learner

MAGIC = b"mibf checkpoint 2\n"
_DIGEST = hashlib.sha256().digest_size


class DamagedCheckpointError(InputError):
    """The content is not a whole checkpoint of this version."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after a step: `step` steps of epoch `epoch` are done, both counted from 0.

    `sums` are those of the epoch so far (`mibf.training.Sums`), None at an epoch's begin; `history` has the figures
    told so far; `identity` says what was trained on what, so that nothing else goes on with it.
    """

    network: dict[str, Tensor]
    average: dict[str, Tensor] | None
    average_steps: int
    optimiser: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any] | None
    epoch: int
    step: int
    sums: dict[str, Tensor] | None
    history: list[dict[str, Any]]
    identity: dict[str, Any]

    @classmethod
    def of(
        cls,
        learner: Learner,
        *,
        epoch: int,
        step: int = 0,
        sums: dict[str, Tensor] | None = None,
        history: list[dict[str, Any]],
        identity: dict[str, Any],
    ) -> Checkpoint:
        """The state as it is now."""
        average = learner.average
        return cls(
            network=learner.network.state_dict(),
            average=None if average is None else average.network.state_dict(),
            average_steps=0 if average is None else average.steps,
            optimiser=learner.optimiser.state_dict(),
            schedule=_plain(learner.schedule.state_dict()),
            scaler=None if learner.scaler is None else learner.scaler.state_dict(),
            epoch=epoch,
            step=step,
            sums=sums,
            history=history,
            identity=identity,
        )

    def restore(self, learner: Learner) -> None:
        """Put the state back, in place.

        Raises:
            InputError: the state is of another network, optimiser or precision.
        """
        try:
            learner.network.load_state_dict(self.network)
            learner.optimiser.load_state_dict(self.optimiser)
            learner.schedule.load_state_dict(self.schedule)
            if learner.average is not None and self.average is not None:
                learner.average.network.load_state_dict(self.average)
                learner.average.steps = self.average_steps
            if learner.scaler is not None and self.scaler is not None:
                learner.scaler.load_state_dict(self.scaler)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"a checkpoint does not fit the network or optimiser that is to go on with it ({error}); "
                "train anew, or under another name."
            ) from error

    @property
    def judged(self) -> dict[str, Tensor]:
        """The weights that were validated: the averaged ones, where weights are averaged."""
        return self.network if self.average is None else self.average

    def to_bytes(self) -> bytes:
        """The checkpoint as a file's content."""
        buffer = io.BytesIO()
        torch.save(vars(self), buffer)
        content = buffer.getvalue()
        return MAGIC + hashlib.sha256(content).digest() + content

    @classmethod
    def from_bytes(cls, content: bytes) -> Checkpoint:
        """The checkpoint that `to_bytes` wrote, its tensors on the CPU.

        Raises:
            DamagedCheckpointError: the content is no checkpoint of this version, or not all of one.
        """
        start = len(MAGIC) + _DIGEST
        kept, rest = content[len(MAGIC) : start], content[start:]
        if not content.startswith(MAGIC) or hashlib.sha256(rest).digest() != kept:
            raise DamagedCheckpointError("a checkpoint is damaged, cut short or of another version of mibf.")
        try:
            return cls(**torch.load(io.BytesIO(rest), map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, RuntimeError, TypeError, EOFError) as error:
            raise DamagedCheckpointError(f"a checkpoint is damaged ({error}).") from error


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A schedule's state without the function that it was made with, which its owner makes anew."""
    return {key: value for key, value in state.items() if key != "lr_lambdas"} | {"lr_lambdas": [None]}
