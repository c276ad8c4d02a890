"""Count operations of torch, and emulate CUDA graphs on a CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from mibf.training.batch import Batch
from mibf.training.epoch import TrainState, train_epoch
from mibf.training.step_graph import Capture


class Operations(TorchDispatchMode):
    """Counts operations that compute something: on a GPU, each is at least one launch."""

    def __init__(self) -> None:
        super().__init__()
        self.names = Counter[str]()

    @property
    def count(self) -> int:
        """Number of operations."""
        return self.names.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))


def emulated_graphs(network: nn.Module) -> Capture:
    """Return what captures steps of a network as a CUDA graph does: without an effect, and with outputs in fixed memory.

    `Operations` counts a replay as none.
    """

    def capture(work: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
        buffers = list(network.buffers())
        before = [buffer.clone() for buffer in buffers]
        with torch.random.fork_rng([]):
            outputs = work()
        torch._foreach_copy_(buffers, before)
        parameters = [p for p in network.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters]

        def replay() -> tuple[Tensor, ...]:
            with _disable_current_modes():
                for ours, new in zip(outputs, work(), strict=True):
                    ours.copy_(new)
                for parameter, ours in zip(parameters, gradients, strict=True):
                    assert ours is not None
                    assert parameter.grad is not None
                    ours.copy_(parameter.grad)
            return outputs

        return replay

    return capture


def step_operations(state: TrainState, batch: Batch, **given: Any) -> int:
    """Count the operations of a training step outside its graph, without those of an epoch's end."""
    train_epoch(state, [batch], seed=lambda step: step, **given)  # captures
    with Operations() as once:
        train_epoch(state, [batch], seed=lambda step: step, **given)
    with Operations() as twice:
        train_epoch(state, [batch, batch], seed=lambda step: step, **given)
    return twice.count - once.count
