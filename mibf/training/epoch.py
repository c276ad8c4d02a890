"""One epoch of training or validation over any iterable of batches, on one or several workers. Torch and numpy.

Independent of stores, Ray and files. If torch.distributed is initialised, sums and buffers are reduced over its workers;
otherwise the same code runs on its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from mibf.device import Precision, autocast, ieee_float32
from mibf.distributed import average_over_workers, gather_on_first, sum_over_workers, workers
from mibf.metrics.confusion import ConfusionMatrix
from mibf.network.mibfnet import MIBFNet, Output
from mibf.training.ema import ExponentialMovingAverage
from mibf.training.loss import Loss, objective
from mibf.training.perturbation import Perturbation


class Batch(NamedTuple):
    """B samples: patches of every source, (B, C, p, p) float32 in [0, 1], and class positions (B,) int64."""

    sources: tuple[NDArray[np.float32], ...]
    labels: NDArray[np.int64]


class NonFiniteError(ArithmeticError):
    """The loss or a gradient is not finite; the optimiser took no step."""


#: Number of steps between the host's checks for non-finite values, by device type.
_CHECK_STEPS = {"cpu": 1, "cuda": 64}
#: Below this loss scale, gradients overflow float16 at any scale: they are not finite.
_SMALLEST_SCALE = 1e-3


@dataclass
class TrainState:
    """A network in training with its optimiser, schedule and averaged weights: the state that a checkpoint stores.

    Args:
        model: an `MIBFNet` or a data-parallel wrapper of one.
        optimizer: a fused one of torch, as from `make_optimizer`, which skips its step if `found_inf` is set.
        schedule: of the learning rate.
        beta: the weight of the KL term in the loss.
        precision: of the forward pass; with "fp16" the loss is scaled so that gradients do not vanish.
        weights: of the classes in the loss, (classes,) on the model's device; None for equal weights.
        average: averaged weights, validated and saved in place of the network's own; None for no averaging.
        clip_grad_norm: maximum gradient norm; larger gradients are scaled down to it; None for no clipping.
        label_smoothing: share of each label that is spread over all classes.
        perturbation: random changes of each batch; None for none.
        pieces: number of parts in which a worker's batch is computed, one after the other, to save memory.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    beta: float
    precision: Precision = "float32"
    weights: Tensor | None = None
    average: ExponentialMovingAverage | None = None
    clip_grad_norm: float | None = None
    label_smoothing: float = 0.0
    perturbation: Perturbation | None = None
    pieces: int = 1

    def __post_init__(self) -> None:
        self.scaler = GradScaler(self.device.type) if self.precision == "fp16" else None

    @property
    def network(self) -> MIBFNet:
        """The network itself, without the wrapper that averages gradients, if there is one."""
        network = getattr(self.model, "module", self.model)
        assert isinstance(network, MIBFNet)
        return network

    @property
    def eval_network(self) -> MIBFNet:
        """The network that is validated and saved: with averaged weights, if there are any."""
        return self.network if self.average is None else self.average.network

    @property
    def device(self) -> torch.device:
        """The device on which the network is trained."""
        return next(self.model.parameters()).device

    def average_buffers(self) -> None:
        """Average buffers over all workers, including batch norm's running statistics.

        Buffers and their moving averages are linear in what each worker saw, so it does not matter when this is called.
        """
        average_over_workers(self.network.buffers())
        if self.average is not None:
            average_over_workers(self.average.network.buffers())


class NonFiniteGuard:
    """Blocks all optimiser steps from the first batch on whose loss or gradient is not finite.

    The optimiser reads `found_inf` on the device, so no step waits for the host to read a number; the host checks every
    `_CHECK_STEPS` steps, and at the end, whether that happened.
    """

    def __init__(self, state: TrainState) -> None:
        device = state.device
        # A scaler replaces our `found_inf` with its own, so the host must check at every step.
        self.every = 1 if state.scaler else _CHECK_STEPS[device.type]
        self.batch = torch.full((), -1, device=device)
        self.seen = torch.zeros(2, device=device)  # loss and gradient norm of that batch
        self.found_inf = torch.zeros((), device=device)
        self.scaler = state.scaler
        state.optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]  # set by torch's gradient scaler, too

    @torch.no_grad()
    def record(self, position: int, loss: Tensor, norm: Tensor) -> None:
        """Record a batch's loss and gradient norm, before the optimiser's step."""
        seen = torch.stack([loss.detach().float(), norm.float()])
        finite = torch.isfinite(seen[:1] if self.scaler else seen).all()  # a scaled gradient may overflow occasionally
        first = (self.found_inf == 0) & ~finite
        self.batch.copy_(torch.where(first, position, self.batch))
        self.seen.copy_(torch.where(first, seen, self.seen))
        self.found_inf.copy_(torch.maximum(self.found_inf, first.float()))
        if position % self.every == 0:
            self.raise_if_nonfinite()

    def raise_if_nonfinite(self) -> None:
        """Raise `NonFiniteError` on all workers if a value was not finite."""
        found = self.found_inf
        if self.scaler:  # unlike the averaged gradient, the loss differs between workers
            found = found.clone()
            sum_over_workers(found)
        if bool(found):
            loss, norm = self.seen.tolist()
            raise NonFiniteError(
                f"batch {int(self.batch)}: loss {loss}, gradient norm {norm}; "
                "weights are unchanged, and the last checkpoint is kept. The usual fix is a lower "
                "train.learning_rate or float32 precision; either needs a new training run: start it with "
                "`--restart` or under another `run`."
            )
        if self.scaler and self.scaler.get_scale() < _SMALLEST_SCALE:
            raise NonFiniteError(
                "gradients overflow float16 at any loss scale; weights are unchanged. Use train.precision bf16 or float32, "
                "or a lower train.learning_rate."
            )


class EpochMetrics(NamedTuple):
    """Means over all samples of an epoch on all workers, and their confusion matrix; `rate` is the KL term."""

    loss: float
    cross_entropy: float
    rate: float
    confusion: ConfusionMatrix


class MetricAccumulator:
    """Sums of loss terms and counts, divided once at the end: a mean of batch means would be wrong.

    `terms` cover the samples since the start of the epoch, `recent` those since the last report.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes = classes
        self.terms = torch.zeros(3, dtype=torch.float64, device=device)
        self.counts = torch.zeros(classes * classes, dtype=torch.int64, device=device)
        self.recent = torch.zeros(4, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, loss: Loss, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: the means of its loss terms, and the predicted classes of its samples."""
        terms = torch.stack(loss).detach().double() * len(labels)
        self.terms += terms
        self.recent[:3] += terms
        self.recent[3] += len(labels)
        pairs = labels * self.classes + logits.argmax(dim=1)
        self.counts.scatter_add_(0, pairs, torch.ones_like(pairs))  # bincount would wait for the device

    def figures(self) -> EpochMetrics:
        """Return the metrics over all workers."""
        terms, counts = self.terms.clone(), self.counts.clone()
        sum_over_workers(terms, counts)
        confusion = ConfusionMatrix(counts.cpu().numpy().reshape(self.classes, self.classes))
        loss, cross_entropy, rate = (terms.cpu() / max(1, confusion.samples)).tolist()
        return EpochMetrics(loss, cross_entropy, rate, confusion)

    def recent_means(self) -> tuple[float, float, float, int]:
        """Return mean loss, cross-entropy and KL term of all workers' samples since the last call, and their number."""
        recent = self.recent.clone()
        self.recent.zero_()
        sum_over_workers(recent)
        *terms, samples = recent.tolist()
        loss, cross_entropy, rate = (term / max(1.0, samples) for term in terms)
        return loss, cross_entropy, rate, int(samples)

    def state(self) -> dict[str, Tensor]:
        """Return the sums of all workers for a checkpoint, and move them to the first worker."""
        gather_on_first(self.terms, self.counts, self.recent)
        return {"terms": self.terms.cpu(), "counts": self.counts.cpu(), "recent": self.recent.cpu()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Load on the first worker what `state` returned."""
        self.terms.copy_(state["terms"])
        self.counts.copy_(state["counts"])
        self.recent.copy_(state["recent"])


class Step(NamedTuple):
    """A completed step: its number in the epoch, counted from 1, and this worker's part of it."""

    number: int
    samples: int
    waited: float  #: seconds for which the step waited for its batch
    loss: Tensor  #: mean over this worker's samples, on the device
    sums: MetricAccumulator
    check: Callable[[], None]  #: raises `NonFiniteError` if any step so far was not finite; call it before saving


def train_epoch(
    state: TrainState,
    batches: Iterable[Batch],
    *,
    samples: int | None = None,
    start: int = 0,
    sums: MetricAccumulator | None = None,
    seed: Callable[[int], int] | None = None,
    after_step: Callable[[Step], None] = lambda step: None,
) -> EpochMetrics:
    """Train on each batch once; an optimiser step uses one batch of every worker.

    The wrapper averages gradients over workers, weighted by samples; the mean gate is averaged after every step, buffers
    at the end (`TrainState.average_buffers`).

    Args:
        state: what is trained.
        batches: of this worker.
        samples: number of samples of all workers in a step; default this worker's batch times the number of workers.
        start: number of steps of the epoch that are already done.
        sums: of the epoch so far; default empty.
        seed: seed for sampling noise and code, by step number from 0. As the samples depend only on it, no random state
            has to be stored to resume exactly. By default torch's generator is not reseeded.
        after_step: called after each step.

    Raises:
        NonFiniteError: the loss or gradient of a batch is not finite; weights are as before that batch (buffers are
            not).
    """
    network = state.network
    device = state.device
    sums = MetricAccumulator(network.spec.classes, device) if sums is None else sums
    guard = NonFiniteGuard(state)
    state.model.train()
    for position, (batch, waited) in enumerate(_timed(batches), start):
        if seed is not None:
            torch.manual_seed(seed(position))
        own = len(batch.labels)
        # The wrapper averages over workers, so each worker scales its loss to its share of the mean over the step.
        share = 1.0 if samples is None else own * workers() / samples
        with ieee_float32(device):
            loss = _backward(state, batch, share, sums)
        _optimizer_step(state, guard, position, loss)
        state.schedule.step()
        average_over_workers([network.noise.mean_gate])
        if state.average is not None:
            state.average.update(network)
        after_step(Step(position + 1, own, waited, loss, sums, guard.raise_if_nonfinite))
    guard.raise_if_nonfinite()
    state.average_buffers()
    return sums.figures()


def _timed(batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    """Yield batches, each with the seconds spent waiting for it."""
    iterator = iter(batches)
    while True:
        start = time.perf_counter()
        batch = next(iterator, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - start


def _backward(state: TrainState, batch: Batch, share: float, sums: MetricAccumulator) -> Tensor:
    """Compute the gradient of a batch's loss times `share`, piece by piece; return the loss."""
    state.optimizer.zero_grad(set_to_none=True)
    own = len(batch.labels)
    pieces = _split_batch(batch, state.pieces)
    losses = []
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        with nullcontext() if last else _no_grad_sync(state.model):
            sources, labels = on_device(piece, state.device)
            mixed = None
            if state.perturbation is not None:
                sources, mixed = state.perturbation.mix(state.perturbation.patches(sources), labels)
            output = forward(state.model, sources, state.device, state.precision)
            loss = objective(
                output,
                labels,
                beta=state.beta,
                weights=state.weights,
                label_smoothing=state.label_smoothing,
                mixed=mixed,
            )
            part = loss.total * (len(labels) / own)
            scaled = part if share == 1.0 else part * share
            torch.autograd.backward(state.scaler.scale(scaled) if state.scaler else scaled)
        sums.add(loss, output.logits, labels)
        losses.append(part.detach())
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _split_batch(batch: Batch, count: int) -> list[Batch]:
    """Split a batch into pieces of nearly equal size, at least two samples each: batch norm needs a variance."""
    own = len(batch.labels)
    count = max(1, min(count, own // 2))
    bounds = [own * i // count for i in range(count + 1)]
    return [Batch(tuple(x[begin:end] for x in batch.sources), batch.labels[begin:end]) for begin, end in pairwise(bounds)]


def _no_grad_sync(model: nn.Module) -> AbstractContextManager[Any]:
    """Return a context in which gradients accumulate without being sent to other workers."""
    no_sync = getattr(model, "no_sync", None)
    return nullcontext() if no_sync is None else no_sync()


def _optimizer_step(state: TrainState, guard: NonFiniteGuard, position: int, loss: Tensor) -> None:
    """Take an optimiser step, unless something is not finite."""
    optimizer, scaler = state.optimizer, state.scaler
    if scaler:
        scaler.unscale_(optimizer)
    parameters = [p for p in state.network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if state.clip_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, state.clip_grad_norm, norm)
    # The averaged gradient carries any worker's NaN to all of them, so all stop at the same batch.
    guard.record(position, loss, norm)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()


class ValidationObserver(Protocol):
    """Receives the logits of a validation."""

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits (B, classes) and class positions (B,)."""


@torch.no_grad()
def validate(
    network: MIBFNet,
    batches: Iterable[Batch],
    *,
    beta: float,
    precision: Precision,
    observers: Sequence[ValidationObserver] = (),
    after_step: Callable[[int], None] = lambda samples: None,
) -> EpochMetrics:
    """Compute the metrics of a network in evaluation mode over all workers' batches; `observers` receive its logits."""
    device = next(network.parameters()).device
    sums = MetricAccumulator(network.spec.classes, device)
    network.eval()
    for batch in batches:
        with ieee_float32(device):
            sources, labels = on_device(batch, device)
            output = forward(network, sources, device, precision)
        sums.add(objective(output, labels, beta=beta), output.logits, labels)
        for observer in observers:
            observer.add(output.logits, labels)
        after_step(len(labels))
    return sums.figures()


def on_device(batch: Batch, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Return the patches and labels of a batch as tensors; on a CPU they share its memory."""
    sources = [torch.from_numpy(x).to(device, non_blocking=True) for x in batch.sources]
    return sources, torch.from_numpy(batch.labels).to(device, non_blocking=True)


def forward(model: nn.Module, sources: list[Tensor], device: torch.device, precision: Precision) -> Output:
    """Run the forward pass in a precision."""
    with autocast(device, precision):
        output: Output = model(sources)
    return output
