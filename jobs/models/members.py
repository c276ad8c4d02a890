"""Turn what was trained into models: a network of one seed, several networks, or a blend with other classifiers.

Temperatures and shares of a model of several members are fitted to validation pixels (`mibf.ensemble`), or come from trials.
In a bundle the networks stand before the classifiers of pixel features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from jobs.runtime.progress import pluralize, progress_bar, warn
from mibf.bundle.bundle import Bundle
from mibf.bundle.members import KIND_NAMES, Member, NetworkMember, PixelMember
from mibf.ensemble import SHRINKAGE, Blend, between, fit_shares, fit_temperature, mean_shares, shrunk
from pipeline.sampling.drawn_pixels import DrawnPixels, draw_pixels
from pipeline.sampling.predictions import predict
from pipeline.sampling.sample_logits import SampleModel
from pipeline.sampling.sampler import Sampler
from pipeline.store.patch_store import PatchStore

#: Validation pixels to which shares are fitted, at most, and of each class at least.
SAMPLES, LEAST = 25_000, 20


def combine(bundle: Bundle, networks: Sequence[NetworkMember], others: Sequence[PixelMember]) -> Bundle:
    """Return a bundle with these members in place of its own, with equal shares."""
    members: list[Member] = [*networks, *others]
    return replace(bundle, members=tuple(replace(member, share=1 / len(members)) for member in members))


@dataclass(frozen=True)
class TrialBlend:
    """What trials say about the members of a model: the networks together, then each other member."""

    blend: Blend
    #: How far the trials count against validation pixels, 0 to 1. Members that see many times as many samples as those of
    #: the trials gain differently from them.
    weight: float


def fit_to_validation(
    bundle: Bundle, stores: Sequence[PatchStore], *, seed: int, trials: TrialBlend | None = None
) -> Bundle:
    """Fit shares and temperatures of several members to validation pixels; members without a share are left out.

    All networks have the same share: they differ by their seed alone, so differences between them are due to chance.

    Args:
        bundle: with the members.
        stores: without their test pixels.
        seed: of the draw of validation pixels.
        trials: what trials say. Without validation pixels it is used as it is. Otherwise its weight is that of its shares
            against those that fit validation pixels, and `between` gives the temperatures.
    """
    planned = weight = None
    if trials is not None:
        spread, weight = _spread(bundle, trials.blend), trials.weight
        # With a weight below 1, validation pixels can give a share to members that had none in the trials.
        planned = spread.of_members_with_share() if weight == 1 else spread
        bundle = _with(bundle, spread) if weight == 1 else bundle
    if len(bundle.members) < 2:
        return bundle
    drawn = list(draw_pixels(stores, "validation", limit=SAMPLES, least=LEAST, seed=seed, report=warn))
    if not drawn:
        return bundle if planned is None else _with(bundle, planned)
    logits, labels = member_logits(bundle, stores, drawn)
    if planned is None or weight is None:
        return _with(bundle, fit_members(bundle, logits, labels))
    shares = planned.shares
    if weight < 1:
        fitted = fit_members(bundle, logits, labels, shrinkage=0)
        shares = mean_shares(fitted.shares, planned.shares, weight=weight)
    fitted = Blend(tuple(fit_temperature(own, labels) for own in logits), shares).sharpened(logits, labels)
    temperatures = (
        between(own, other, weight=weight) for own, other in zip(fitted.temperatures, planned.temperatures, strict=True)
    )
    return _with(bundle, Blend(tuple(temperatures), shares))


def fit_members(
    bundle: Bundle, logits: Sequence[NDArray[np.float64]], labels: NDArray[np.int64], *, shrinkage: float = SHRINKAGE
) -> Blend:
    """Fit temperatures and shares to the members' logits (n, classes) of samples of known classes (n,)."""
    temperatures = tuple(fit_temperature(own, labels) for own in logits)
    networks = len(bundle.networks)
    if networks == len(bundle.members):
        return Blend(temperatures, (1 / len(logits),) * len(logits)).sharpened(logits, labels)
    others = [
        Blend((t,), (1.0,)).log_probabilities([own])
        for t, own in zip(temperatures[networks:], logits[networks:], strict=True)
    ]
    if not networks:
        return Blend(temperatures, shrunk(fit_shares(others, labels), by=shrinkage)).sharpened(logits, labels)
    together = Blend(temperatures[:networks], (1 / networks,) * networks).log_probabilities(logits[:networks])
    first, *rest = shrunk(fit_shares([together, *others], labels), by=shrinkage)
    return Blend(temperatures, (*(first / networks,) * networks, *rest)).sharpened(logits, labels)


def _spread(bundle: Bundle, plan: Blend) -> Blend:
    """Give every network its part of the share and the temperature that a plan has for all of them."""
    networks = len(bundle.networks)
    temperatures = (*(plan.temperatures[0],) * networks, *plan.temperatures[1:])
    return Blend(temperatures, (*(plan.shares[0] / max(1, networks),) * networks, *plan.shares[1:]))


def _with(bundle: Bundle, blend: Blend) -> Bundle:
    """Return a bundle whose members have these temperatures and shares, without those that have no share."""
    kept = [
        replace(member, temperature=temperature, share=share)
        for member, temperature, share in zip(bundle.members, blend.temperatures, blend.shares, strict=True)
        if share > 0
    ]
    return replace(bundle, members=tuple(kept))


def member_logits(
    bundle: Bundle, stores: Sequence[PatchStore], drawn: Sequence[DrawnPixels]
) -> tuple[list[NDArray[np.float64]], NDArray[np.int64]]:
    """Compute the logits (n, classes) of each member for drawn pixels, and their class positions (n,)."""
    model = SampleModel(bundle, warn)
    logits: list[list[torch.Tensor]] = [[] for _ in bundle.members]
    with progress_bar("members", sum(len(pixels.labels) for pixels in drawn), unit="samples") as advance:
        for pixels in drawn:
            for found, labels in model.batches(stores[pixels.store], pixels):
                for own, values in zip(logits, found, strict=True):
                    own.append(values.cpu())
                advance(len(labels))
    return [torch.cat(own).double().numpy() for own in logits], np.concatenate([pixels.labels for pixels in drawn])


@dataclass(frozen=True)
class Measured:
    """How a model does on validation pixels."""

    uncalibrated: dict[str, Any]
    calibrated: dict[str, Any]  #: by setting of the class priors


def measure(bundle: Bundle, sampler: Sampler, *, beta: float) -> Measured | None:
    """Measure a model on a sampler's pixels; None if there are none."""
    if not sampler.samples():
        return None
    with progress_bar("validate", sampler.samples(), unit="samples") as advance:
        found = predict(bundle, sampler, beta, advance)
    return Measured(found.uncalibrated.figures(), {choice: r.figures() for choice, r in found.by_priors.items()})


def with_figures(bundle: Bundle, measured: Measured | None) -> Bundle:
    """Return a model whose provenance has these validation metrics, named as those of an epoch."""
    if measured is None:
        return bundle
    figures = measured.calibrated["trained"]
    named = {f"validation_{key}": figures[key] for key in ("overall_accuracy", "average_accuracy", "macro_f1", "kappa")}
    chosen = bundle.provenance["chosen"] | named
    chosen["validation_cross_entropy"] = figures["log_loss"]
    chosen["calibration"] = {key: figures[key] for key in ("ece", "brier", "log_loss")}
    return replace(bundle, provenance={**bundle.provenance, "chosen": chosen})


def describe_members(bundle: Bundle) -> str:
    """Describe the members of a model with their shares."""
    parts = []
    if bundle.networks:
        parts.append(f"{pluralize(len(bundle.networks), 'networks')} ({sum(m.share for m in bundle.networks):.2f})")
    parts += [f"{KIND_NAMES[member.kind]} ({member.share:.2f})" for member in bundle.pixelwise]
    return "members and their shares: " + ", ".join(parts)
