"""Batch norm over the batches of all workers. Torch only; with one worker it is torch's own batch norm.

In data-parallel training each worker normalises its share of a batch by that share's mean and variance, so the result
depends on the number of workers, more so the fewer rows each has. Here the statistics are those of the global batch
(Ioffe & Szegedy 2015, over all workers), and so are the gradients. `torch.nn.SyncBatchNorm` supports accelerators
only: in training with an initialised process group it rejects CPU tensors (torch 2.13: "SyncBatchNorm expected
input tensor to be on GPU or XPU"). This implementation uses `all_reduce` and plain tensor operations, so it works
wherever torch.distributed does: gloo on the CPU, NCCL on GPUs.

Every worker must run every layer in the same order, with any number of rows, because each forward pass of a layer is
one `all_reduce`, and so is each backward pass.

Legend for shapes: B rows of this worker's batch, C channels, .. pixels if there are any; n values per channel, on this
worker or over all workers.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mibf.distributed import is_distributed

Module = TypeVar("Module", bound=nn.Module)


def synchronize(network: Module) -> Module:
    """Make every batch norm of a network use training statistics over the batches of all workers.

    The network is changed in place and each layer remains the same object: parameters, buffers, state-dict keys, hooks
    and mode are kept, so this may be called before or after the optimiser is created. Evaluation is unchanged, and so
    is training with one worker. Only `BatchNorm1d`, 2d and 3d themselves are converted, not their subclasses.

    >>> network = synchronize(nn.Sequential(nn.Conv2d(3, 8, kernel_size=1), nn.BatchNorm2d(8)))
    >>> type(network[1]).__name__
    'SyncBatchNorm2d'
    """
    for module in network.modules():
        if type(module) in _KINDS:
            module.__class__ = _KINDS[type(module)]
    return network


def is_synchronized(network: nn.Module) -> bool:
    """Whether a training step of a network, as `synchronize` returns it, is computed by several workers together."""
    return is_distributed() and any(isinstance(module, _SyncBatchNorm) for module in network.modules())


class _SyncBatchNorm(_BatchNorm):
    """Common base of the three classes: in training on several workers, the statistics are those of all workers."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, ..) in its own dtype; statistics are at least float32, also under autocast."""
        if not (self.training and is_distributed()):
            return super().forward(x)
        self._check_input_dim(x)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        mean, variance, count = _statistics(x)
        self._remember(mean, variance, count)
        normalised: Tensor = _Normalize.apply(x, self.weight, self.bias, mean, variance, count, self.eps)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return normalised

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running statistics as torch does: by the momentum, or to the mean of all batches without one."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        unbiased = variance * (count / (count - 1).clamp_min(1)).to(variance.dtype)
        for running, value in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.add_((value.to(running.dtype) - running) * share)


class SyncBatchNorm1d(_SyncBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` whose training statistics are over the batches of all workers."""


class SyncBatchNorm2d(_SyncBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are over the batches of all workers."""


class SyncBatchNorm3d(_SyncBatchNorm, nn.BatchNorm3d):
    """`nn.BatchNorm3d` whose training statistics are over the batches of all workers."""


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: SyncBatchNorm1d,
    nn.BatchNorm2d: SyncBatchNorm2d,
    nn.BatchNorm3d: SyncBatchNorm3d,
}


@torch.no_grad()
def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance of each channel over all workers, (C,) each, and the number of values per channel, float64.

    The worker's sum of squares is taken about its own mean, so that it loses no digits in float32. The sums over workers
    are in float64, where squares about zero lose no digits that the float32 values had.
    """
    values = _rows(x)
    count = values.shape[0]
    own = values.sum(dim=0) / max(count, 1)
    scatter = (values - own).square().sum(dim=0)
    mean, squares = own.double(), scatter.double()
    sums = torch.cat([count * mean, squares + count * mean.square(), mean.new_full((1,), count)])
    dist.all_reduce(sums)
    channels, counts = len(own), sums[-1:]
    mean = sums[:channels] / counts
    variance = (sums[channels:-1] / counts - mean.square()).clamp_min(0)
    return mean.to(values.dtype), variance.to(values.dtype), counts


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance are functions of all workers' x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        weight, bias = (None if each is None else each.to(mean.dtype) for each in (weight, bias))
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias.

        With h = (x - mean) / deviation and g the gradient of h, the gradient of x is
        (g - mean of g - h * mean of g h) / deviation, where both means are over all workers (Ioffe & Szegedy 2015,
        section 3). The gradients of weight and bias are this worker's share; data-parallel training adds the others'.
        """
        x, weight, mean, inverse, count = ctx.saved_tensors
        values, upper = _rows(x), _rows(gradient)
        normal = (values - mean) * inverse
        own = torch.stack([upper.sum(dim=0), (upper * normal).sum(dim=0)])  # gradients of bias and weight
        over_x = None
        if ctx.needs_input_grad[0]:
            sums = own.clone()
            dist.all_reduce(sums)
            constant, linear = (sums / count).to(sums.dtype)
            scale = inverse if weight is None else inverse * weight
            over_x = _like((upper - constant - normal * linear) * scale, x)
        over_bias, over_weight = (
            each if wanted else None for each, wanted in zip(own, ctx.needs_input_grad[2:0:-1], strict=True)
        )
        return over_x, over_weight, over_bias, None, None, None, None


def _rows(x: Tensor) -> Tensor:
    """Reshape (B, C, ..) to (n, C), at least float32; a view if x is channels last."""
    return x.movedim(1, -1).flatten(0, -2).to(torch.promote_types(x.dtype, torch.float32))


def _like(rows: Tensor, x: Tensor) -> Tensor:
    """Reshape (n, C) to the shape and dtype of x, (B, C, ..)."""
    return rows.reshape(x.shape[0], *x.shape[2:], x.shape[1]).movedim(-1, 1).to(x.dtype)
