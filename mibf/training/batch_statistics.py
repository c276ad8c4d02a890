"""Batch norm's statistics, computed again for the weights that are validated and saved. Torch only.

In training each layer keeps running averages of its batches' statistics, weighted towards the last ten or so batches. They
lag behind the weights, they are noisy where batches are small, and for averaged weights they are those of other weights
than the averaged ones. As for stochastic weight averaging (Izmailov et al. 2018, section 3.1), a pass over training samples
gives the statistics of the weights themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from mibf.device import Precision, ieee_float32
from mibf.distributed import average_over_workers
from mibf.network.mibfnet import MIBFNet
from mibf.training.batch import Batch, BatchPlacer, WindowBatch
from mibf.training.epoch import forward


@torch.no_grad()
def recompute_statistics(network: MIBFNet, batches: Iterable[Batch | WindowBatch], *, precision: Precision) -> None:
    """Replace all running statistics by their means over the batches of all workers; leave the network in evaluation mode.

    All else computes as in evaluation: without noise, dropout and samples of the code. `torch.optim.swa_utils.update_bn`
    runs the whole network in training mode instead, whose noise would widen the statistics of what follows it.
    """
    device = next(network.parameters()).device
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    network.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean of all batches
        layer.train()
    for batch, _ in BatchPlacer(device).timed(batches):
        with ieee_float32(device):
            forward(network, batch.patches(0, len(batch.labels)), device, precision)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.eval()
    average_over_workers(network.buffers())
