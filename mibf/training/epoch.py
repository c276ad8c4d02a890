"""One epoch of training or validation over any iterable of batches, on one or several workers. Torch and numpy.

Independent of stores, Ray and files. If torch.distributed is initialised, sums and buffers are reduced over its workers;
otherwise the same code runs on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from mibf.device import Precision, autocast, ieee_float32
from mibf.distributed import all_agree, average_over_workers, is_distributed, sum_over_workers, workers
from mibf.network.mibfnet import MIBFNet, Output
from mibf.training.batch import Batch, BatchPlacer, PlacedBatch, WindowBatch
from mibf.training.data_parallel import GradientAverage
from mibf.training.ema import ExponentialMovingAverage
from mibf.training.epoch_metrics import EpochMetrics, MetricAccumulator
from mibf.training.loss import Loss, objective
from mibf.training.perturbation import MixedLabels, Perturbation
from mibf.training.step_graph import Capture, StepGraph, cuda_graph, try_capture, warn
from mibf.training.sync_batchnorm import is_synchronized


class NonFiniteError(ArithmeticError):
    """The loss or a gradient is not finite; the optimiser took no step."""


#: Number of steps between the host's checks for non-finite values, by device type.
_CHECK_STEPS = {"cpu": 1, "cuda": 64}
#: Below this loss scale, gradients overflow float16 at any scale: they are not finite.
_SMALLEST_SCALE = 1e-3
#: Loss scale at which a graph is compared with its step: the first one, 65,536, is often too large for finite gradients.
_COMPARED_SCALE = 128.0


@dataclass
class TrainState:
    """A network in training with its optimiser, schedule and averaged weights: the state that a checkpoint stores.

    Args:
        network: of this worker. Several workers start with the same weights, and average their gradients.
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
        capture: makes a CUDA graph of a step; by default on a GPU. Not used for pieces of another size than the first, where
            batch norm is synchronized between workers, or on any worker if one of them cannot capture its step.
        report: called with a line about a step that cannot be captured; by default a warning.
    """

    network: MIBFNet
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
    capture: Capture | Literal["auto"] | None = "auto"
    report: Callable[[str], None] = warn

    def __post_init__(self) -> None:
        self.scaler = GradScaler(self.device.type) if self.precision == "fp16" else None
        if self.capture == "auto":
            self.capture = cuda_graph if self.device.type == "cuda" else None
        self._graph: tuple[StepGraph, float] | None = None
        self._has_decided = False  #: whether steps are captured
        self._gradient_average: GradientAverage | None = None

    @property
    def eval_network(self) -> MIBFNet:
        """The network that is validated and saved: with averaged weights, if there are any."""
        return self.network if self.average is None else self.average.network

    @property
    def device(self) -> torch.device:
        """The device on which the network is trained."""
        return next(self.network.parameters()).device

    def graph(
        self, inputs: Sequence[Tensor], scale: float, step: Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
    ) -> StepGraph | None:
        """The graph of a step with inputs of these shapes, and this factor of the loss; None where there is none.

        It is captured when first asked for, on all workers or on none.
        """
        if not self._has_decided:
            self._has_decided = True
            graph = None
            if self.capture is not None and self.capture != "auto" and not is_synchronized(self.network):
                with self._loss_scaled_by(_COMPARED_SCALE):
                    graph = try_capture(self.network, step, inputs, report=self.report, capture=self.capture)
            if all_agree(graph is not None, self.device) and graph is not None:
                self._graph = graph, scale
            else:
                self.capture = None
        if self._graph is None or self._graph[1] != scale or not self._graph[0].fits(inputs):
            return None
        return self._graph[0]

    @contextmanager
    def _loss_scaled_by(self, scale: float) -> Iterator[None]:
        """Set the scale of a loss in float16 for a while; with another precision there is none."""
        if self.scaler is None:
            yield
            return
        self.scaler.scale(torch.zeros((), device=self.device))  # makes its tensors, which must not be a graph's
        before = self.scaler.get_scale()
        self.scaler.update(scale)
        try:
            yield
        finally:
            self.scaler.update(before)

    def join_workers(self) -> None:
        """Prepare to average gradients over all workers.

        Raises:
            InputError: their networks do not start with the same weights and buffers.
        """
        if self._gradient_average is None and is_distributed():
            self._gradient_average = GradientAverage(self.network)

    def average_gradients(self) -> None:
        """Average the gradient over all workers."""
        if self._gradient_average is not None:
            self._gradient_average()

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
        # Zero times a value that is not finite is NaN, which differs from zero. A scaled gradient may overflow occasionally.
        bad = ((seen[:1] if self.scaler else seen) * 0).sum() != 0
        first = bad > self.found_inf
        torch.where(first, seen, self.seen, out=self.seen)
        self.batch.masked_fill_(first, position)
        self.found_inf.masked_fill_(first, 1.0)
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
    batches: Iterable[Batch | WindowBatch],
    *,
    samples: int | None = None,
    start: int = 0,
    sums: MetricAccumulator | None = None,
    seed: Callable[[int], int] | None = None,
    after_step: Callable[[Step], None] = lambda step: None,
) -> EpochMetrics:
    """Train on each batch once; an optimiser step uses one batch of every worker.

    Gradients are averaged over workers, weighted by samples, and so is the mean gate after every step; buffers are at the
    end (`TrainState.average_buffers`).

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
        InputError: in the first epoch, workers start with different weights.
    """
    network = state.network
    device = state.device
    sums = MetricAccumulator(network.spec.classes, device) if sums is None else sums
    guard = NonFiniteGuard(state)
    network.train()
    state.join_workers()
    for position, (batch, waited) in enumerate(BatchPlacer(device).timed(batches), start):
        if seed is not None:
            torch.manual_seed(seed(position))
        own = len(batch.labels)
        # Gradients are averaged over workers, so each worker scales its loss to its share of the mean over the step.
        share = 1.0 if samples is None else own * workers() / samples
        with ieee_float32(device):
            loss = _backward(state, batch, share, sums)
        state.average_gradients()
        _optimizer_step(state, guard, position, loss)
        state.schedule.step()
        average_over_workers([network.noise.mean_gate])
        if state.average is not None:
            state.average.update(network)
        after_step(Step(position + 1, own, waited, loss, sums, guard.raise_if_nonfinite))
    guard.raise_if_nonfinite()
    state.average_buffers()
    return sums.figures()


def _backward(state: TrainState, batch: PlacedBatch, share: float, sums: MetricAccumulator) -> Tensor:
    """Compute the gradient of a batch's loss times `share`, piece by piece; return the loss."""
    state.optimizer.zero_grad(set_to_none=True)
    own = len(batch.labels)
    bounds = _piece_bounds(own, state.pieces)
    losses = []
    for begin, end in pairwise(bounds):
        sources, labels, mixed = batch.patches(begin, end), batch.labels[begin:end], None
        if state.perturbation is not None:
            sources, mixed = state.perturbation.mix(state.perturbation.patches(sources), labels)
        inputs = [*sources, labels, *(mixed or ())]
        scale = (end - begin) / own * share
        step = partial(_gradient, state, len(sources), scale)
        *terms, logits = (state.graph(inputs, scale, step) or step)(inputs)
        loss = Loss(*terms)
        sums.add(loss, logits, labels)
        losses.append(loss.total * ((end - begin) / own))
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _gradient(state: TrainState, sources: int, scale: float, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Add the gradient of the loss times `scale` to that of the parameters; return the terms of the loss, and the logits.

    The inputs are the patches of the `sources`, the labels, and the mixed labels if there are any.
    """
    labels, *mixed = inputs[sources:]
    output = forward(state.network, list(inputs[:sources]), state.device, state.precision)
    loss = objective(
        output,
        labels,
        beta=state.beta,
        weights=state.weights,
        label_smoothing=state.label_smoothing,
        mixed=MixedLabels(*mixed) if mixed else None,
    )
    scaled = loss.total if scale == 1.0 else loss.total * scale
    torch.autograd.backward(state.scaler.scale(scaled) if state.scaler else scaled)
    return *(term.detach() for term in loss), output.logits.detach()


def _piece_bounds(samples: int, count: int) -> list[int]:
    """Where pieces of nearly equal size begin and end, at least two samples each: batch norm needs a variance."""
    count = max(1, min(count, samples // 2))
    return [samples * i // count for i in range(count + 1)]


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
    batches: Iterable[Batch | WindowBatch],
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
    for batch, _ in BatchPlacer(device).timed(batches):
        labels = batch.labels
        with ieee_float32(device):
            output = forward(network, batch.patches(0, len(labels)), device, precision)
        sums.add(objective(output, labels, beta=beta), output.logits, labels)
        for observer in observers:
            observer.add(output.logits, labels)
        after_step(len(labels))
    return sums.figures()


def forward(network: MIBFNet, sources: list[Tensor], device: torch.device, precision: Precision) -> Output:
    """Run the forward pass in a precision."""
    with autocast(device, precision):
        output: Output = network(sources)
    return output
