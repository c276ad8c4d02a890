"""How far confidences can be believed, and the temperature that makes them honest. Torch and numpy.

The temperature is what logits are divided by before the softmax: one number, fitted on validation samples by their
likelihood; no class changes (Guo et al., "On calibration of modern neural networks", ICML 2017).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mibf.distributed import sum_over_workers
from mibf.metrics import ConfusionMatrix

#: Temperatures that are tried: from 1/4 to 8, eight to an octave.
TRIED = 2.0 ** (torch.arange(-16, 25) / 8)
#: Bins of confidence, of equal width.
BINS = 15


class TemperatureFit:
    """The negative log-likelihood of samples at each temperature, summed batch by batch and over workers.

    No logit is kept, so that validation subsets of any size fit. Between the tried temperatures the minimum is
    that of the parabola through the best one and its neighbours, in log temperature.
    """

    def __init__(self, device: torch.device) -> None:
        self.tried = TRIED.to(device)
        self.sums = torch.zeros(len(TRIED), dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take a batch of logits (B, classes) and class positions (B,) in."""
        logits = logits.float()
        losses = [F.cross_entropy(logits / temperature, labels, reduction="sum") for temperature in self.tried]
        self.sums += torch.stack(losses)

    def temperature(self) -> float:
        """The temperature of all samples of all workers; 1 where there was none."""
        sums = self.sums.clone()
        sum_over_workers(sums)
        if not bool(torch.isfinite(sums).all()) or not bool(sums.any()):
            return 1.0
        best = int(sums.argmin())
        place = float(best)
        if 0 < best < len(sums) - 1:
            left, low, right = (float(s) for s in sums[best - 1 : best + 2])
            place += 0.5 * (left - right) / max(left - 2 * low + right, 1e-12)
        return float(TRIED[0] * 2.0 ** (place / 8))


class Reliability:
    """Accuracy and calibration of probabilities, from sums over samples, batches and workers.

    Probabilities are softmax(logits / temperature + correction); `correction` (classes,) is that of other class
    frequencies (`mibf.priors`), none unless given.
    """

    def __init__(
        self, classes: int, device: torch.device, *, temperature: float = 1.0, correction: Tensor | None = None
    ) -> None:
        self.classes, self.temperature = classes, temperature
        self.correction = torch.zeros(classes, device=device) if correction is None else correction.to(device)
        self.counts = torch.zeros(classes * classes, dtype=torch.int64, device=device)
        #: Of each bin: samples, their confidences and how many of them were right.
        self.bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # squared differences, log-likelihood

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take a batch of logits (B, classes) and class positions (B,) in."""
        logarithms = F.log_softmax(logits.float() / self.temperature + self.correction, dim=1)
        probabilities = logarithms.exp().double()
        confidence, named = probabilities.max(dim=1)
        pairs = labels * self.classes + named
        self.counts.scatter_add_(0, pairs, torch.ones_like(pairs))
        # A bin holds its upper edge, as in Guo et al.
        place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        told = torch.stack([torch.ones_like(confidence), confidence, (named == labels).double()])
        self.bins.scatter_add_(1, place.expand(3, -1), told)
        of_label = labels[:, None]
        squared = probabilities.square().sum() - 2 * probabilities.gather(1, of_label).sum() + len(labels)
        self.sums += torch.stack([squared, logarithms.double().gather(1, of_label).sum()])

    def confusion(self) -> ConfusionMatrix:
        """The counts of all workers."""
        counts = self.counts.clone()
        sum_over_workers(counts)
        return ConfusionMatrix(counts.cpu().numpy().reshape(self.classes, self.classes))

    def figures(self) -> dict[str, Any]:
        """Accuracies as `ConfusionMatrix.figures` has them, and calibration, of all workers' samples.

        `ece`: the expected calibration error, the mean of |accuracy - confidence| over `BINS` bins of equal width weighed
        by samples (Guo et al. 2017). `brier`: the mean over samples of sum over classes of (p - y)^2, from 0 to 2 (Brier
        1950). `log_loss`: the mean negative log-likelihood, in nats. `bins`: samples, mean confidence and accuracy of
        each, for a reliability diagram. NaN of no samples.
        """
        bins, sums = self.bins.clone(), self.sums.clone()
        sum_over_workers(bins, sums)
        count, confident, right = bins.cpu().numpy()
        samples = float(count.sum())
        squared, likelihood = sums.tolist()
        nothing = float("nan")
        return self.confusion().figures() | {
            "ece": float(abs(right - confident).sum() / samples) if samples else nothing,
            "brier": squared / samples if samples else nothing,
            "log_loss": -likelihood / samples if samples else nothing,
            "bins": [
                {"samples": int(n), "confidence": c / n if n else None, "accuracy": r / n if n else None}
                for n, c, r in zip(count.tolist(), confident.tolist(), right.tolist(), strict=True)
            ],
        }
