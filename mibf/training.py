"""One epoch of training or validation over any iterable of batches, on one worker or several. Torch and numpy.

Knows nothing of stores, of Ray or of files. Where torch.distributed is initialised, sums and
buffers are reduced over its workers; otherwise the same code runs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mibf.calibration import TemperatureFit
from mibf.distributed import average_over_workers, sum_over_workers
from mibf.metrics import ConfusionMatrix
from mibf.network import MIBFNet, Output
from mibf.objective import Loss, objective
from mibf.precision import Precision, autocast, ieee_float32


class Batch(NamedTuple):
    """B samples: patches of every source, (B, C, p, p) float32 in [0, 1], and class positions (B,) int64."""

    sources: tuple[NDArray[np.float32], ...]
    labels: NDArray[np.int64]


class NonFiniteError(ArithmeticError):
    """The loss or a gradient is not finite; the optimiser has not moved."""


#: Steps after which the host asks whether all was finite, by type of device.
_ASKED = {"cpu": 1, "cuda": 64}


class _Guard:
    """Holds the optimiser still from the first batch on whose loss or gradient is not finite.

    The optimiser looks at `found_inf` on the device itself, so that no step waits for the host to read a number;
    the host asks every `_ASKED` steps, and at the end, whether it came to that.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, device: torch.device) -> None:
        self.every = _ASKED[device.type]
        self.batch = torch.full((), -1, device=device)
        self.seen = torch.zeros(2, device=device)  # loss and gradient norm there
        self.held = torch.zeros((), device=device)
        optimiser.found_inf = self.held  # type: ignore[attr-defined]  # what torch's gradient scaler sets

    @torch.no_grad()
    def look(self, position: int, loss: Tensor, norm: Tensor) -> None:
        """Take a batch's loss and gradient norm in, before the optimiser's step."""
        seen = torch.stack([loss.detach().float(), norm.float()])
        first = (self.held == 0) & ~torch.isfinite(seen).all()
        self.batch.copy_(torch.where(first, position, self.batch))
        self.seen.copy_(torch.where(first, seen, self.seen))
        self.held.copy_(torch.maximum(self.held, first.float()))
        if position % self.every == 0:
            self.ask()

    def ask(self) -> None:
        """Raise what was found."""
        if bool(self.held):
            loss, norm = self.seen.tolist()
            raise NonFiniteError(
                f"batch {int(self.batch)}: loss {loss}, gradient norm {norm}; "
                "weights are unchanged. A lower train.rate or float32 precision is the usual cure."
            )


class Figures(NamedTuple):
    """Means over all samples of an epoch and of all workers, and their confusion matrix."""

    loss: float
    cross_entropy: float
    rate: float
    confusion: ConfusionMatrix


class _Sums:
    """Sums of loss terms and counts, divided once at the end: a mean of batches' means would be wrong."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes = classes
        self.terms = torch.zeros(3, dtype=torch.float64, device=device)
        self.counts = torch.zeros(classes * classes, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, loss: Loss, logits: Tensor, labels: Tensor) -> None:
        self.terms += torch.stack(loss).detach().double() * len(labels)
        pairs = labels * self.classes + logits.argmax(dim=1)
        self.counts.scatter_add_(0, pairs, torch.ones_like(pairs))  # bincount would wait for the device

    def figures(self) -> Figures:
        sum_over_workers(self.terms, self.counts)
        confusion = ConfusionMatrix(self.counts.cpu().numpy().reshape(self.classes, self.classes))
        loss, cross_entropy, rate = (self.terms.cpu() / max(1, confusion.samples)).tolist()
        return Figures(loss, cross_entropy, rate, confusion)


def inner(model: nn.Module) -> MIBFNet:
    """The network itself, out of the wrapper that averages gradients, if there is one."""
    network = getattr(model, "module", model)
    assert isinstance(network, MIBFNet)
    return network


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    beta: float,
    precision: Precision,
    after_step: Callable[[int], None] = lambda samples: None,
) -> Figures:
    """Train on each batch once; `model` is an `MIBFNet` or a data-parallel wrapper of one.

    `optimiser` is one of torch's fused ones, as `make_optimiser` gives, which `found_inf` holds still.
    Gradients are averaged over workers by the wrapper, the mean gate after every step, the batch
    norm's running statistics at the end. `after_step` is told this worker's number of samples.

    Raises:
        NonFiniteError: loss or gradient of a batch; weights are as before that batch (buffers are not).
    """
    network = inner(model)
    device = next(network.parameters()).device
    parameters = list(network.parameters())
    sums = _Sums(network.spec.classes, device)
    guard = _Guard(optimiser, device)
    model.train()
    for position, batch in enumerate(batches):
        output, labels = _forward(model, batch, device, precision)
        loss = objective(output, labels, beta=beta)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss.total)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # The averaged gradient carries any worker's NaN to all of them, so all stop at the same batch.
        guard.look(position, loss.total, norm)
        optimiser.step()
        schedule.step()
        average_over_workers([network.noise.mean_gate])
        sums.add(loss, output.logits, labels)
        after_step(len(labels))
    guard.ask()
    average_over_workers(network.buffers())
    return sums.figures()


@torch.no_grad()
def validate(
    network: MIBFNet,
    batches: Iterable[Batch],
    *,
    beta: float,
    precision: Precision,
    calibration: TemperatureFit | None = None,
    after_step: Callable[[int], None] = lambda samples: None,
) -> Figures:
    """The figures of a network in evaluation mode over batches, summed over workers; `calibration` sees its logits."""
    device = next(network.parameters()).device
    sums = _Sums(network.spec.classes, device)
    network.eval()
    for batch in batches:
        with ieee_float32(device):
            output, labels = _forward(network, batch, device, precision)
        sums.add(objective(output, labels, beta=beta), output.logits, labels)
        if calibration is not None:
            calibration.add(output.logits, labels)
        after_step(len(labels))
    return sums.figures()


def _forward(model: nn.Module, batch: Batch, device: torch.device, precision: Precision) -> tuple[Output, Tensor]:
    sources = [torch.from_numpy(x).to(device, non_blocking=True) for x in batch.sources]
    with autocast(device, precision):
        output: Output = model(sources)
    return output, torch.from_numpy(batch.labels).to(device, non_blocking=True)
