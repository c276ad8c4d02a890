"""Mixtures of several classifiers' probabilities: combining them, fitting temperatures and shares. Torch and numpy only.

A mixture's probability is the sum over members of share * softmax((logits + correction) / temperature); shares sum to 1. A
temperature is fitted to each member alone (Guo et al., "On calibration of modern neural networks", ICML 2017), the shares
then to all members together, both by maximum likelihood on samples that no member was trained on. Fitted shares are moved
halfway to equal ones: which member is best differs between grounds by more than the likelihood on one of them shows. A
mean of calibrated members is less confident than it is right (Rahaman & Thiery, "Uncertainty quantification and deep
ensembles", NeurIPS 2021), so that last one factor for all temperatures is fitted.

Legend for shapes: B pixels, n samples, K classes, M members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: The range in which temperatures are fitted.
LOWEST, HIGHEST = 0.25, 16.0
#: A member whose fitted share is smaller is dropped: it costs as much time as any other.
LEAST_SHARE = 0.02
#: Bisections of the range of temperatures, in the logarithm: the last interval is 1e-9 of the first.
_BISECTIONS = 30
#: Sections of the range of the factor: the last interval is 1e-4 of the first.
_SECTIONS = 20
#: How far fitted shares are moved to equal ones.
SHRINKAGE = 0.5
#: The range of the factor for all temperatures of a mixture.
_SHARPEST, _SOFTEST = 0.4, 1.25
#: Rounds of expectation maximization at most, and the change of all shares at which it ends.
_ROUNDS, _SETTLED = 1000, 1e-6
#: Log-probabilities below are taken for this: that of a class without any probability is not finite.
_IMPOSSIBLE = -1e6


def mixture_log_probabilities(
    logits: Sequence[Tensor], temperatures: Sequence[float], shares: Sequence[float], correction: Tensor | None = None
) -> Tensor:
    """Combine members to log-probabilities (B, K): log sum of share * softmax((logits + correction) / temperature).

    Stable for logits of any size. With one member of share 1 the result is its own log-softmax, to the last bit.

    Args:
        logits: of each member, (B, K); of any floating-point types, the result has the widest.
        temperatures: of each member, above 0.
        shares: of each member, 0 or more, summing to 1.
        correction: added to each class's logit before the temperature (K,); default 0.
    """
    mixture: Tensor | None = None
    for own, temperature, share in zip(logits, temperatures, shares, strict=True):
        if share <= 0:
            continue
        corrected = own if correction is None else own + correction.to(own)
        member = (corrected / temperature).log_softmax(dim=1)
        if share != 1:
            member = member + math.log(share)
        mixture = member if mixture is None else torch.logaddexp(*_of_one_type(mixture, member))
    if mixture is None:
        raise ValueError(f"the shares are {list(shares)}; at least one must be above 0")
    return mixture


def _of_one_type(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(first.dtype, second.dtype)
    return first.to(wide), second.to(wide)


def fit_temperature(
    logits: NDArray[np.floating], labels: NDArray[np.int64], weights: NDArray[np.floating] | None = None
) -> float:
    """Fit the temperature with the greatest likelihood between `LOWEST` and `HIGHEST`; 1 without samples.

    The log-likelihood is concave in 1 / temperature, so its maximum is where the derivative changes sign.

    Args:
        logits: (n, K).
        labels: class positions (n,).
        weights: of the samples (n,); default equal.
    """
    if not len(labels):
        return 1.0
    values = logits.astype(np.float64)
    values = values - values.max(axis=1, keepdims=True)
    given = values[np.arange(len(labels)), labels]
    each = np.ones(len(labels)) if weights is None else weights.astype(np.float64)

    def is_too_sharp(temperature: float) -> bool:
        """Whether the mean logit under the probabilities exceeds that of the labels: a higher temperature is likelier."""
        scaled = np.exp(values / temperature)
        return bool(each @ ((scaled * values).sum(axis=1) / scaled.sum(axis=1) - given) > 0)

    low, high = math.log(LOWEST), math.log(HIGHEST)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_too_sharp(math.exp(middle)) else (low, middle)
    return math.exp((low + high) / 2)


def between(validation: float, trials: float, *, weight: float = 1.0) -> float:
    """Return the weighted geometric mean of two temperatures of a member.

    That of validation pixels is of the final model, but of few blocks; that of trials is of all blocks, but of models that
    were trained on a part of them, and so is mostly too high. With a weight of 1 both count the same, with 0 only that of
    validation pixels.
    """
    return math.exp((1 - weight / 2) * math.log(validation) + weight / 2 * math.log(trials))


def fit_shares(
    log_probabilities: Sequence[NDArray[np.floating]],
    labels: NDArray[np.int64],
    weights: NDArray[np.floating] | None = None,
) -> tuple[float, ...]:
    """Fit the members' shares (M,) with the greatest likelihood; those below `LEAST_SHARE` are set to 0, one at a time.

    By expectation maximization from equal shares: the likelihood is concave in the shares, so that every round improves it.

    Args:
        log_probabilities: of each member, (n, K).
        labels: class positions (n,).
        weights: of the samples (n,); default equal.
    """
    members = len(log_probabilities)
    if not len(labels):
        return (1 / members,) * members
    rows = np.arange(len(labels))
    likelihood = np.stack([own[rows, labels].astype(np.float64) for own in log_probabilities], axis=1)  # (n, M)
    likelihood = np.maximum(likelihood, _IMPOSSIBLE)
    likelihood = np.exp(likelihood - likelihood.max(axis=1, keepdims=True))
    each = np.full(len(labels), 1 / len(labels)) if weights is None else weights / weights.sum()
    kept = np.arange(members)
    while True:
        shares = _maximize(likelihood[:, kept], each)
        if shares.min() >= LEAST_SHARE:
            break
        kept = np.delete(kept, shares.argmin())
    found = np.zeros(members)
    found[kept] = shares
    return tuple(found.tolist())


def _maximize(likelihood: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares (M,) that maximize the weighted mean of log(likelihood @ shares); likelihood (n, M), weights summing to 1."""
    members = likelihood.shape[1]
    shares = np.full(members, 1 / members)
    for _ in range(_ROUNDS):
        parts = likelihood * shares
        total = parts.sum(axis=1, keepdims=True)
        # A sample that none of the remaining members explains says nothing about them.
        parts = np.divide(parts, total, out=np.tile(shares, (len(parts), 1)), where=total > 0)
        before, shares = shares, weights @ parts
        if abs(shares - before).max() < _SETTLED:
            break
    return np.asarray(shares / shares.sum())


@dataclass(frozen=True)
class Blend:
    """Temperatures and shares of M members."""

    temperatures: tuple[float, ...]
    shares: tuple[float, ...]

    @classmethod
    def fitted(
        cls,
        logits: Sequence[NDArray[np.floating]],
        labels: NDArray[np.int64],
        weights: NDArray[np.floating] | None = None,
    ) -> Blend:
        """Fit a temperature to each member's logits (n, K), then the shares, then a factor for all temperatures.

        Class positions and weights are (n,).
        """
        temperatures = tuple(fit_temperature(own, labels, weights) for own in logits)
        members = [_log_softmax(own, temperature) for own, temperature in zip(logits, temperatures, strict=True)]
        found = cls(temperatures, shrunk(fit_shares(members, labels, weights)))
        return found.sharpened(logits, labels, weights)

    def of_members_with_share(self) -> Blend:
        """Return it without the members that have no share."""
        kept = [(t, share) for t, share in zip(self.temperatures, self.shares, strict=True) if share > 0]
        return Blend(tuple(t for t, _ in kept), tuple(share for _, share in kept))

    def sharpened(
        self,
        logits: Sequence[NDArray[np.floating]],
        labels: NDArray[np.int64],
        weights: NDArray[np.floating] | None = None,
    ) -> Blend:
        """Multiply all temperatures by the factor with the greatest likelihood; one member alone is returned as it is."""
        if sum(share > 0 for share in self.shares) < 2 or not len(labels):
            return self
        rows = np.arange(len(labels))

        def loss(factor: float) -> float:
            scaled = Blend(tuple(factor * t for t in self.temperatures), self.shares)
            return -float(np.average(scaled.log_probabilities(logits)[rows, labels], weights=weights))

        factor = _least(loss, _SHARPEST, _SOFTEST)
        return Blend(tuple(factor * t for t in self.temperatures), self.shares)

    def log_probabilities(self, logits: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
        """Combine the members' logits (n, K) to log-probabilities (n, K)."""
        members = [torch.from_numpy(own.astype(np.float64)) for own in logits]
        found: NDArray[np.float64] = mixture_log_probabilities(members, self.temperatures, self.shares).numpy()
        return found


def shrunk(shares: Sequence[float], *, by: float = SHRINKAGE) -> tuple[float, ...]:
    """Move shares by a part of the way (0 to 1) towards equal ones; members without a share stay without."""
    members = sum(share > 0 for share in shares)
    return tuple((1 - by) * share + by / members if share > 0 else 0.0 for share in shares)


def mean_shares(shares: Sequence[float], others: Sequence[float], *, weight: float) -> tuple[float, ...]:
    """Return the mean of two choices of shares (M,), the others with a weight from 0 to 1.

    Members whose mean is below `LEAST_SHARE` get none; the rest sums to 1.
    """
    means = [(1 - weight) * own + weight * other for own, other in zip(shares, others, strict=True)]
    kept = [mean if mean >= LEAST_SHARE else 0.0 for mean in means]
    return tuple(mean / sum(kept) for mean in kept)


def _least(function: Callable[[float], float], low: float, high: float) -> float:
    """Return where a function of one minimum is least, in the logarithm of its argument, by golden-section search."""
    ratio = (math.sqrt(5) - 1) / 2
    a, b = math.log(low), math.log(high)
    inner, outer = b - ratio * (b - a), a + ratio * (b - a)
    left, right = function(math.exp(inner)), function(math.exp(outer))
    for _ in range(_SECTIONS):
        if left <= right:
            b, outer, right = outer, inner, left
            inner = b - ratio * (b - a)
            left = function(math.exp(inner))
        else:
            a, inner, left = inner, outer, right
            outer = a + ratio * (b - a)
            right = function(math.exp(outer))
    return math.exp((a + b) / 2)


def _log_softmax(logits: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    return Blend((temperature,), (1.0,)).log_probabilities([logits])


def cross_fitted(
    logits: Sequence[NDArray[np.floating]],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    weights: NDArray[np.floating] | None = None,
) -> tuple[NDArray[np.float64], Blend]:
    """Fit a blend to all groups of samples but one and apply it to that one, for each group.

    What is measured on these log-probabilities is what the blend does on samples to which it was not fitted. With one group
    alone, it is fitted and applied to the same samples, which flatters it.

    Args:
        logits: of each member, (n, K), from members that were not trained on the sample.
        labels: class positions (n,).
        groups: of the samples, such as folds or blocks (n,).
        weights: of the samples in the fit (n,); default equal.

    Returns:
        The log-probabilities (n, K), and the blend fitted to all samples.
    """
    blend = Blend.fitted(logits, labels, weights)
    found = blend.log_probabilities(logits)
    present = np.unique(groups)
    for group in present if len(present) > 1 else ():
        inside = groups == group
        others = Blend.fitted(
            [own[~inside] for own in logits], labels[~inside], None if weights is None else weights[~inside]
        )
        found[inside] = others.log_probabilities([own[inside] for own in logits])
    return found, blend
