"""Calibration metrics of confidences, and temperature scaling. Torch and numpy.

The temperature divides the logits before the softmax: one number, fitted on validation samples by maximum likelihood;
predicted classes do not change (Guo et al., "On calibration of modern neural networks", ICML 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mibf.distributed import sum_over_workers
from mibf.metrics.confusion import ConfusionMatrix
from mibf.metrics.prediction_sets import set_figures, set_members

#: Candidate temperatures: from 1/4 to 8, eight per octave.
CANDIDATES = 2.0 ** (torch.arange(-16, 25) / 8)
#: Number of confidence bins, of equal width.
BINS = 15


class TemperatureFit:
    """Negative log-likelihood of samples at each candidate temperature, summed over batches and workers.

    Logits are not stored, so validation subsets of any size fit in memory. Between the candidates the minimum is
    that of the parabola through the best one and its neighbours, in log temperature.
    """

    def __init__(self, device: torch.device) -> None:
        self.candidates = CANDIDATES.to(device)
        self.sums = torch.zeros(len(CANDIDATES), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch of logits (B, classes) and class positions (B,)."""
        logits = logits.float()
        losses = [F.cross_entropy(logits / temperature, labels, reduction="sum") for temperature in self.candidates]
        self.sums += torch.stack(losses)

    def temperature(self) -> float:
        """Return the temperature fitted to the samples of all workers; 1 if there are no samples."""
        sums = self.sums.clone()
        sum_over_workers(sums)
        if not bool(torch.isfinite(sums).all()) or not bool(sums.any()):
            return 1.0
        best = int(sums.argmin())
        position = float(best)
        if 0 < best < len(sums) - 1:
            left, low, right = (float(s) for s in sums[best - 1 : best + 2])
            position += 0.5 * (left - right) / max(left - 2 * low + right, 1e-12)
        return float(CANDIDATES[0] * 2.0 ** (position / 8))


def expected_calibration_error(bins: NDArray[np.float64]) -> float:
    """Return the mean of |accuracy - confidence| over bins, weighted by samples (Guo et al. 2017); NaN without samples.

    Args:
        bins: number of samples, sum of their confidences and number of correct ones per bin, (3, bins).
    """
    count, confident, right = bins
    samples = float(count.sum())
    return float(abs(right - confident).sum() / samples) if samples else float("nan")


class Reliability:
    """Accuracy and calibration of probabilities, from sums over samples, batches and workers.

    Probabilities are softmax((logits + correction) / temperature); `correction` (classes,) adjusts the logits to other
    class priors (`mibf.class_priors`); default 0. With `thresholds` (classes,), prediction sets are counted, too.
    """

    def __init__(
        self,
        classes: int,
        device: torch.device,
        *,
        temperature: float = 1.0,
        correction: Tensor | None = None,
        thresholds: Sequence[float] | None = None,
    ) -> None:
        self.classes, self.temperature, self.thresholds = classes, temperature, thresholds
        self.correction = torch.zeros(classes, device=device) if correction is None else correction.to(device)
        self.counts = torch.zeros(classes * classes, dtype=torch.int64, device=device)
        #: Per predicted class and bin: number of samples, sum of their confidences, number of correct ones.
        self.bins = torch.zeros(3, classes, BINS, dtype=torch.float64, device=device)
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # squared differences, log-likelihood
        #: By class: samples, those whose set holds it, the sum of the sizes of their sets, those whose set is one class.
        self.sets = torch.zeros(4, classes, dtype=torch.int64, device=device)

    def __add__(self, other: Reliability) -> Reliability:
        """Return the sums over the samples of both, which are of the same model."""
        total = Reliability(self.classes, self.counts.device, temperature=self.temperature, correction=self.correction)
        total.thresholds, total.sets = self.thresholds, self.sets + other.sets
        total.counts, total.bins, total.sums = (
            self.counts + other.counts,
            self.bins + other.bins,
            self.sums + other.sums,
        )
        return total

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return the logarithms of the probabilities (B, classes) of logits (B, classes)."""
        return F.log_softmax((logits.float() + self.correction) / self.temperature, dim=1)

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch of logits (B, classes) and class positions (B,)."""
        logarithms = self.log_probabilities(logits)
        probabilities = logarithms.exp().double()
        confidence, named = probabilities.max(dim=1)
        pairs = labels * self.classes + named
        self.counts.scatter_add_(0, pairs, torch.ones_like(pairs))
        # A bin includes its upper edge, as in Guo et al.
        bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        sums = torch.stack([torch.ones_like(confidence), confidence, (named == labels).double()])
        self.bins.view(3, -1).scatter_add_(1, (named * BINS + bins).expand(3, -1), sums)
        columns = labels[:, None]
        squared = probabilities.square().sum() - 2 * probabilities.gather(1, columns).sum() + len(labels)
        self.sums += torch.stack([squared, logarithms.double().gather(1, columns).sum()])
        if self.thresholds is not None:
            members = set_members(probabilities, self.thresholds, dim=1)
            size = members.sum(dim=1)
            found = torch.stack([torch.ones_like(size), members.gather(1, columns)[:, 0].long(), size, (size == 1).long()])
            self.sets.scatter_add_(1, labels.expand(4, -1), found)

    def confusion(self) -> ConfusionMatrix:
        """Return the confusion matrix over all workers."""
        counts = self.counts.clone()
        sum_over_workers(counts)
        return ConfusionMatrix(counts.cpu().numpy().reshape(self.classes, self.classes))

    def figures(self) -> dict[str, Any]:
        """Return the accuracies of `ConfusionMatrix.figures` and calibration metrics, over the samples of all workers.

        `ece`: expected calibration error, the mean of |accuracy - confidence| over `BINS` bins of equal width, weighted
        by samples (Guo et al. 2017). `brier`: mean over samples of the sum over classes of (p - y)^2, from 0 to 2 (Brier
        1950). `log_loss`: mean negative log-likelihood, in nats. `bins`: number of samples, mean confidence and accuracy
        per bin, for a reliability diagram; `class_bins` the same of the samples that are predicted as each class. The
        metrics are NaN if there are no samples.
        """
        bins, sums = self.bins.clone(), self.sums.clone()
        sum_over_workers(bins, sums)
        by_class = bins.cpu().numpy()
        of_all = by_class.sum(axis=1)
        samples = float(of_all[0].sum())
        squared, likelihood = sums.tolist()
        nothing = float("nan")
        return self.confusion().figures() | {
            "ece": expected_calibration_error(of_all),
            "brier": squared / samples if samples else nothing,
            "log_loss": -likelihood / samples if samples else nothing,
            "bins": _bins(of_all),
            "class_bins": [_bins(by_class[:, position]) for position in range(self.classes)],
        }

    def set_figures(self) -> dict[str, Any]:
        """Return what `mibf.metrics.prediction_sets.set_figures` does of the sets of the samples of all workers."""
        sets = self.sets.clone()
        sum_over_workers(sets)
        return set_figures(sets.cpu().numpy())


def _bins(sums: NDArray[np.float64]) -> list[dict[str, float | int | None]]:
    """Number of samples, mean confidence and accuracy per bin, from their sums (3, bins)."""
    return [
        {"samples": int(n), "confidence": c / n if n else None, "accuracy": r / n if n else None}
        for n, c, r in zip(*sums.tolist(), strict=True)
    ]
