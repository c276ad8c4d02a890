"""Metrics of an epoch, summed over its batches and over all workers. Torch and numpy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mibf.distributed import gather_on_first, sum_over_workers
from mibf.metrics.confusion import ConfusionMatrix
from mibf.training.loss import Loss


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
        self._sums = torch.zeros(2, 4, dtype=torch.float64, device=device)  # three terms, and the number of samples
        self.terms, self.recent = self._sums[0, :3], self._sums[1]
        self.counts = torch.zeros(classes * classes, dtype=torch.int64, device=device)
        self._one = torch.ones(1, dtype=torch.float32, device=device)
        self._one_sample = torch.ones(1, dtype=torch.int64, device=device)

    @torch.no_grad()
    def add(self, loss: Loss, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: the means of its loss terms, and the predicted classes of its samples."""
        self._sums += torch.stack([*(term.detach() for term in loss), self._one[0]]).double() * len(labels)
        pairs = torch.add(logits.argmax(dim=1), labels, alpha=self.classes)
        self.counts.scatter_add_(0, pairs, self._one_sample.expand(len(labels)))  # bincount would wait for the device

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
