"""What resuming needs: weights, optimiser, schedule, and where the training stood. Torch alone.

A checkpoint is one byte string of tensors and plain values, read back with `weights_only=True`:
nothing in it can run code.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mibf.errors import InputError
from mibf.network import MIBFNet


@dataclass(frozen=True)
class Checkpoint:
    """The state after an epoch. `history` holds the figures of every epoch so far."""

    network: dict[str, Tensor]
    optimiser: dict[str, Any]
    schedule: dict[str, Any]
    history: list[dict[str, Any]]

    @classmethod
    def of(
        cls,
        network: MIBFNet,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        history: list[dict[str, Any]],
    ) -> Checkpoint:
        """The state as it is now."""
        return cls(network.state_dict(), optimiser.state_dict(), _plain(schedule.state_dict()), history)

    def restore(
        self,
        network: MIBFNet,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        """Put the state back, in place."""
        network.load_state_dict(self.network)
        optimiser.load_state_dict(self.optimiser)
        schedule.load_state_dict(self.schedule)

    def to_bytes(self) -> bytes:
        """The checkpoint as a file's content."""
        buffer = io.BytesIO()
        torch.save(vars(self), buffer)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Checkpoint:
        """The checkpoint that `to_bytes` wrote, its tensors on the CPU.

        Raises:
            InputError: the content is no checkpoint.
        """
        try:
            return cls(**torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, RuntimeError, TypeError, EOFError) as error:
            raise InputError(f"a checkpoint is damaged ({error}); remove the run's checkpoints and train again.") from error


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A schedule's state without the function that it was made with, which its owner makes anew."""
    return {key: value for key, value in state.items() if key != "lr_lambdas"} | {"lr_lambdas": [None]}
