"""Training checkpoints, from which a run can be resumed: weights, optimiser, schedule and position. Torch only.

A checkpoint is one byte string: a magic line, the SHA-256 of the content, and the content: tensors and plain values
that are read with `weights_only=True`. Nothing in it can run code, and a truncated checkpoint is detected.

Random states are not stored: the order of samples, and every sample of noise and code, are functions of the seed and the
position (`mibf.training.epoch.train_epoch`), which are stored.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mibf.errors import InputError
from mibf.training.epoch import TrainState

MAGIC = b"mibf checkpoint 2\n"
_DIGEST = hashlib.sha256().digest_size


class DamagedCheckpointError(InputError):
    """The content is not a complete checkpoint of this version."""


@dataclass(frozen=True)
class Checkpoint:
    """Training state after a step: `step` steps of epoch `epoch` are done, both counted from 0.

    `sums` are those of the epoch so far (`MetricAccumulator`), None at the start of an epoch; `history` holds the metrics
    reported so far; `identity` describes what was trained on what, so that no other training resumes from it.
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
        state: TrainState,
        *,
        epoch: int,
        step: int = 0,
        sums: dict[str, Tensor] | None = None,
        history: list[dict[str, Any]],
        identity: dict[str, Any],
    ) -> Checkpoint:
        """Capture the current state."""
        average = state.average
        return cls(
            network=state.network.state_dict(),
            average=None if average is None else average.network.state_dict(),
            average_steps=0 if average is None else average.steps,
            optimiser=state.optimizer.state_dict(),
            schedule=_plain(state.schedule.state_dict()),
            scaler=None if state.scaler is None else state.scaler.state_dict(),
            epoch=epoch,
            step=step,
            sums=sums,
            history=history,
            identity=identity,
        )

    def restore(self, state: TrainState) -> None:
        """Restore the state, in place.

        Raises:
            InputError: the state belongs to a different network, optimiser or precision.
        """
        try:
            state.network.load_state_dict(self.network)
            state.optimizer.load_state_dict(self.optimiser)
            state.schedule.load_state_dict(self.schedule)
            if state.average is not None and self.average is not None:
                state.average.network.load_state_dict(self.average)
                state.average.steps = self.average_steps
            if state.scaler is not None and self.scaler is not None:
                state.scaler.load_state_dict(self.scaler)
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(
                f"a checkpoint does not fit the network or optimiser to be resumed ({error}); "
                "restart training, or train under another name."
            ) from error

    @property
    def eval_weights(self) -> dict[str, Tensor]:
        """The weights that were validated: the averaged ones, if weights are averaged."""
        return self.network if self.average is None else self.average

    def digest(self) -> str:
        """SHA-256 of everything in it but the sums, which each worker has for itself."""
        found = hashlib.sha256()
        _update(found, {key: value for key, value in vars(self).items() if key != "sums"})
        return found.hexdigest()

    def to_bytes(self) -> bytes:
        """Serialise the checkpoint to a file's content."""
        buffer = io.BytesIO()
        torch.save(vars(self), buffer)
        content = buffer.getvalue()
        return MAGIC + hashlib.sha256(content).digest() + content

    @classmethod
    def from_bytes(cls, content: bytes) -> Checkpoint:
        """Read the checkpoint that `to_bytes` wrote, with its tensors on the CPU.

        Raises:
            DamagedCheckpointError: the content is not a checkpoint of this version, or is incomplete.
        """
        start = len(MAGIC) + _DIGEST
        kept, rest = content[len(MAGIC) : start], content[start:]
        if not content.startswith(MAGIC) or hashlib.sha256(rest).digest() != kept:
            raise DamagedCheckpointError("a checkpoint is damaged, truncated or from another version of mibf.")
        try:
            return cls(**torch.load(io.BytesIO(rest), map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, RuntimeError, TypeError, EOFError) as error:
            raise DamagedCheckpointError(f"a checkpoint is damaged ({error}).") from error


def _update(found: hashlib._Hash, value: Any) -> None:
    """Add a value to a hash: tensors by dtype, shape and content, containers item by item, anything else as text."""
    if isinstance(value, Tensor):
        found.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    elif isinstance(value, dict):
        for key, below in value.items():
            found.update(f"{key!r}:".encode())
            _update(found, below)
    elif isinstance(value, list | tuple):
        for below in value:
            _update(found, below)
    else:
        found.update(f"{value!r}\n".encode())


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return a schedule's state without its lambda, which the schedule's owner recreates."""
    return {key: value for key, value in state.items() if key != "lr_lambdas"} | {"lr_lambdas": [None]}


@dataclass(frozen=True)
class TrainingPosition:
    """Training position: `step` batches of `epoch` are done, both counted from 0."""

    epoch: int
    step: int

    def to_json(self) -> dict[str, int]:
        """Convert the position to JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> TrainingPosition:
        """Parse a position that `to_json` wrote.

        Raises:
            InputError: the value is not a position.
        """
        match value:
            case {"epoch": int(epoch), "step": int(step)} if epoch >= 0 and step >= 0 and len(value) == 2:
                return cls(epoch, step)
        raise InputError(
            f"{value!r} is not a training position, which is {{'epoch': E, 'step': S}} with two non-negative "
            "integers. Remove the run's checkpoints and train again."
        )
