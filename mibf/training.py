"""One epoch of training or validation over any iterable of batches, on one worker or several. Torch and numpy.

Knows nothing of stores, of Ray or of files. Where torch.distributed is initialised, sums and
buffers are reduced over its workers; otherwise the same code runs alone.
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

from mibf.average import Average
from mibf.distributed import average_over_workers, gather_on_first, sum_over_workers, workers
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
#: Below this scale of the loss, gradients overflow float16 however small it is: they are not finite at all.
_SMALLEST_SCALE = 1e-3


@dataclass
class Learner:
    """A network in training, with all that moves with it: what a checkpoint holds.

    Args:
        model: an `MIBFNet` or a data-parallel wrapper of one.
        optimiser: one of torch's fused ones, as `make_optimiser` gives, which `found_inf` holds still.
        schedule: of its rate.
        beta: the weight of the rate in the objective.
        precision: of the forward pass; with "fp16" the loss is scaled so that gradients do not vanish.
        weights: of the classes in the objective, (classes,) on the model's device; None for equal ones.
        average: what is judged and kept in place of the network itself, where weights are averaged.
        clip: gradients of a larger norm are scaled down to it; None for never.
        pieces: parts that a worker's batch is computed in, one after the other, to save memory.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    beta: float
    precision: Precision = "float32"
    weights: Tensor | None = None
    average: Average | None = None
    clip: float | None = None
    pieces: int = 1

    def __post_init__(self) -> None:
        self.scaler = GradScaler(self.device.type) if self.precision == "fp16" else None

    @property
    def network(self) -> MIBFNet:
        """The network itself, out of the wrapper that averages gradients, if there is one."""
        network = getattr(self.model, "module", self.model)
        assert isinstance(network, MIBFNet)
        return network

    @property
    def judged(self) -> MIBFNet:
        """The network that is validated and kept: of averaged weights, where there are any."""
        return self.network if self.average is None else self.average.network

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return next(self.model.parameters()).device

    def agree(self) -> None:
        """Make buffers, batch norm's running statistics among them, those of all workers: their mean.

        Both they and their averages are linear in what each worker saw, so that it does not matter when this is done.
        """
        average_over_workers(self.network.buffers())
        if self.average is not None:
            average_over_workers(self.average.network.buffers())


class _Guard:
    """Holds the optimiser still from the first batch on whose loss or gradient is not finite.

    The optimiser looks at `found_inf` on the device itself, so that no step waits for the host to read a number;
    the host asks every `_ASKED` steps, and at the end, whether it came to that.
    """

    def __init__(self, learner: Learner) -> None:
        device = learner.device
        # A scaler puts its own `found_inf` in place of ours: the host asks at once then.
        self.every = 1 if learner.scaler else _ASKED[device.type]
        self.batch = torch.full((), -1, device=device)
        self.seen = torch.zeros(2, device=device)  # loss and gradient norm there
        self.held = torch.zeros((), device=device)
        self.scaler = learner.scaler
        learner.optimiser.found_inf = self.held  # type: ignore[attr-defined]  # what torch's gradient scaler sets

    @torch.no_grad()
    def look(self, position: int, loss: Tensor, norm: Tensor) -> None:
        """Take a batch's loss and gradient norm in, before the optimiser's step."""
        seen = torch.stack([loss.detach().float(), norm.float()])
        finite = torch.isfinite(seen[:1] if self.scaler else seen).all()  # a scaled gradient may overflow now and then
        first = (self.held == 0) & ~finite
        self.batch.copy_(torch.where(first, position, self.batch))
        self.seen.copy_(torch.where(first, seen, self.seen))
        self.held.copy_(torch.maximum(self.held, first.float()))
        if position % self.every == 0:
            self.ask()

    def ask(self) -> None:
        """Raise what was found, on all workers alike."""
        held = self.held
        if self.scaler:  # unlike the averaged gradient, a loss is a worker's own
            held = held.clone()
            sum_over_workers(held)
        if bool(held):
            loss, norm = self.seen.tolist()
            raise NonFiniteError(
                f"batch {int(self.batch)}: loss {loss}, gradient norm {norm}; "
                "weights are unchanged, and the last checkpoint is kept. A lower train.rate or float32 precision is the "
                "usual cure; either is another training, to be begun with `--anew` or under another `run`."
            )
        if self.scaler and self.scaler.get_scale() < _SMALLEST_SCALE:
            raise NonFiniteError(
                "gradients overflow float16 however small the loss is made; weights are unchanged. Take train.precision "
                "bf16 or float32, or a lower train.rate."
            )


class Figures(NamedTuple):
    """Means over all samples of an epoch and of all workers, and their confusion matrix."""

    loss: float
    cross_entropy: float
    rate: float
    confusion: ConfusionMatrix


class Sums:
    """Sums of loss terms and counts, divided once at the end: a mean of batches' means would be wrong.

    `terms` are of the samples since the epoch began, `recent` of those since they were last told.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes = classes
        self.terms = torch.zeros(3, dtype=torch.float64, device=device)
        self.counts = torch.zeros(classes * classes, dtype=torch.int64, device=device)
        self.recent = torch.zeros(4, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, loss: Loss, logits: Tensor, labels: Tensor) -> None:
        """Take a batch in: the means of its loss, and what its samples were taken for."""
        terms = torch.stack(loss).detach().double() * len(labels)
        self.terms += terms
        self.recent[:3] += terms
        self.recent[3] += len(labels)
        pairs = labels * self.classes + logits.argmax(dim=1)
        self.counts.scatter_add_(0, pairs, torch.ones_like(pairs))  # bincount would wait for the device

    def figures(self) -> Figures:
        """The figures of all workers."""
        terms, counts = self.terms.clone(), self.counts.clone()
        sum_over_workers(terms, counts)
        confusion = ConfusionMatrix(counts.cpu().numpy().reshape(self.classes, self.classes))
        loss, cross_entropy, rate = (terms.cpu() / max(1, confusion.samples)).tolist()
        return Figures(loss, cross_entropy, rate, confusion)

    def told(self) -> tuple[float, float, float, int]:
        """Mean loss, cross-entropy and rate of all workers' samples since the last call, and their number."""
        recent = self.recent.clone()
        self.recent.zero_()
        sum_over_workers(recent)
        *terms, samples = recent.tolist()
        loss, cross_entropy, rate = (term / max(1.0, samples) for term in terms)
        return loss, cross_entropy, rate, int(samples)

    def state(self) -> dict[str, Tensor]:
        """The sums of all workers, which the first one holds from now on, as a checkpoint keeps them."""
        gather_on_first(self.terms, self.counts, self.recent)
        return {"terms": self.terms.cpu(), "counts": self.counts.cpu(), "recent": self.recent.cpu()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take up on the first worker what `state` gave."""
        self.terms.copy_(state["terms"])
        self.counts.copy_(state["counts"])
        self.recent.copy_(state["recent"])


class Step(NamedTuple):
    """What has just been done: the step's number in its epoch, counted from 1, and this worker's part of it."""

    number: int
    samples: int
    waited: float  #: seconds that the step waited for its batch
    loss: Tensor  #: mean of this worker's samples, on the device
    sums: Sums
    check: Callable[[], None]  #: raises `NonFiniteError` where a step so far was not finite; to be asked before one is kept


def train_epoch(
    learner: Learner,
    batches: Iterable[Batch],
    *,
    samples: int | None = None,
    start: int = 0,
    sums: Sums | None = None,
    seed: Callable[[int], int] | None = None,
    after_step: Callable[[Step], None] = lambda step: None,
) -> Figures:
    """Train on each batch once; a step of the optimiser is one batch of every worker.

    Gradients are averaged over workers by the wrapper, weighed by samples; the mean gate is averaged after every step,
    buffers at the end (`Learner.agree`).

    Args:
        learner: what is trained.
        batches: this worker's.
        samples: of all workers in a step; what this worker's batch holds times the number of workers unless given.
        start: steps of the epoch that were done before.
        sums: of the epoch so far; begun anew unless given.
        seed: of the draws of noise and code by the step's number from 0. Being functions of it they need not be kept to
            resume exactly. Torch's generator goes on unless given.
        after_step: called after each step.

    Raises:
        NonFiniteError: loss or gradient of a batch; weights are as before that batch (buffers are not).
    """
    network = learner.network
    device = learner.device
    sums = Sums(network.spec.classes, device) if sums is None else sums
    guard = _Guard(learner)
    learner.model.train()
    for position, (batch, waited) in enumerate(_timed(batches), start):
        if seed is not None:
            torch.manual_seed(seed(position))
        own = len(batch.labels)
        # The wrapper takes the mean over workers of what is each one's share of the whole step's mean.
        share = 1.0 if samples is None else own * workers() / samples
        loss = _descend(learner, batch, share, sums)
        _move(learner, guard, position, loss)
        learner.schedule.step()
        average_over_workers([network.noise.mean_gate])
        if learner.average is not None:
            learner.average.update(network)
        after_step(Step(position + 1, own, waited, loss, sums, guard.ask))
    guard.ask()
    learner.agree()
    return sums.figures()


def _timed(batches: Iterable[Batch]) -> Iterator[tuple[Batch, float]]:
    """Batches, each with the seconds that it was waited for."""
    iterator = iter(batches)
    while True:
        asked = time.perf_counter()
        batch = next(iterator, None)
        if batch is None:
            return
        yield batch, time.perf_counter() - asked


def _descend(learner: Learner, batch: Batch, share: float, sums: Sums) -> Tensor:
    """The gradient of a batch's loss times `share`, piece by piece; the loss itself."""
    learner.optimiser.zero_grad(set_to_none=True)
    own = len(batch.labels)
    pieces = _pieces(batch, learner.pieces)
    losses = []
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        with nullcontext() if last else _held_together(learner.model):
            output, labels = _forward(learner.model, piece, learner.device, learner.precision)
            loss = objective(output, labels, beta=learner.beta, weights=learner.weights)
            part = loss.total * (len(labels) / own)
            scaled = part if share == 1.0 else part * share
            torch.autograd.backward(learner.scaler.scale(scaled) if learner.scaler else scaled)
        sums.add(loss, output.logits, labels)
        losses.append(part.detach())
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _pieces(batch: Batch, count: int) -> list[Batch]:
    """A batch in pieces of nearly equal size, two samples at least each: batch norm wants a deviation."""
    own = len(batch.labels)
    count = max(1, min(count, own // 2))
    bounds = [own * i // count for i in range(count + 1)]
    return [Batch(tuple(x[begin:end] for x in batch.sources), batch.labels[begin:end]) for begin, end in pairwise(bounds)]


def _held_together(model: nn.Module) -> AbstractContextManager[Any]:
    """The context in which gradients add up without being sent to other workers."""
    no_sync = getattr(model, "no_sync", None)
    return nullcontext() if no_sync is None else no_sync()


def _move(learner: Learner, guard: _Guard, position: int, loss: Tensor) -> None:
    """The optimiser's step, unless something is not finite."""
    optimiser, scaler = learner.optimiser, learner.scaler
    if scaler:
        scaler.unscale_(optimiser)
    parameters = [p for p in learner.network.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if learner.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, learner.clip, norm)
    # The averaged gradient carries any worker's NaN to all of them, so all stop at the same batch.
    guard.look(position, loss, norm)
    if scaler:
        scaler.step(optimiser)
        scaler.update()
    else:
        optimiser.step()


class Judge(Protocol):
    """What sees the logits of a validation."""

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take logits (B, classes) and class positions (B,) in."""


@torch.no_grad()
def validate(
    network: MIBFNet,
    batches: Iterable[Batch],
    *,
    beta: float,
    precision: Precision,
    judges: Sequence[Judge] = (),
    after_step: Callable[[int], None] = lambda samples: None,
) -> Figures:
    """The figures of a network in evaluation mode over batches, summed over workers; `judges` see its logits."""
    device = next(network.parameters()).device
    sums = Sums(network.spec.classes, device)
    network.eval()
    for batch in batches:
        with ieee_float32(device):
            output, labels = _forward(network, batch, device, precision)
        sums.add(objective(output, labels, beta=beta), output.logits, labels)
        for judge in judges:
            judge.add(output.logits, labels)
        after_step(len(labels))
    return sums.figures()


def _forward(model: nn.Module, batch: Batch, device: torch.device, precision: Precision) -> tuple[Output, Tensor]:
    sources = [torch.from_numpy(x).to(device, non_blocking=True) for x in batch.sources]
    with autocast(device, precision):
        output: Output = model(sources)
    return output, torch.from_numpy(batch.labels).to(device, non_blocking=True)
