"""Classify the samples of a subset with a model, once, for every setting of the class priors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from mibf.bundle.bundle import Bundle
from mibf.class_priors import CHOICES, PriorSetting
from mibf.device import best_device, to_device
from mibf.ensemble import mixture_log_probabilities
from mibf.metrics.calibration import Reliability
from mibf.network.mibfnet import MIBFNet
from mibf.training.epoch import validate
from pipeline.sampling.drawn_pixels import every_pixel
from pipeline.sampling.sample_logits import SampleModel
from pipeline.sampling.sampler import Sampler

#: Samples that a single network classifies at a time.
BATCH = 1024


class Predictions(NamedTuple):
    """The reliability of one model on a subset's samples, uncalibrated and calibrated for each setting of the priors."""

    uncalibrated: Reliability
    by_priors: dict[PriorSetting, Reliability]


def predict(bundle: Bundle, sampler: Sampler, beta: float, advance: Callable[[int], None]) -> Predictions:
    """Classify the samples of a subset once, for every setting of the class priors that the model supports.

    Args:
        bundle: the model.
        sampler: of the subset, for all scenes and one worker.
        beta: weight of the KL term in the loss, which is not part of the result.
        advance: called with the number of samples after each batch.
    """
    known: tuple[PriorSetting, ...] = ("trained",) if bundle.priors is None else CHOICES
    corrections = {choice: None if choice == "trained" else bundle.correction(choice) for choice in known}
    if bundle.single is None:
        return _of_members(bundle, sampler, corrections, advance)
    return _of_network(
        to_device(bundle.network(), best_device()), bundle.single.temperature, sampler, corrections, beta, advance
    )


def _of_network(
    network: MIBFNet,
    temperature: float,
    sampler: Sampler,
    corrections: dict[PriorSetting, torch.Tensor | None],
    beta: float,
    advance: Callable[[int], None],
) -> Predictions:
    """Classify with a single network, in batches that the sampler reads ahead."""
    device, classes = next(network.parameters()).device, network.spec.classes
    by_priors = {
        choice: Reliability(classes, device, temperature=temperature, correction=correction)
        for choice, correction in corrections.items()
    }
    predictions = Predictions(Reliability(classes, device), by_priors)
    validate(
        network,
        sampler.in_order(batch=BATCH),
        beta=beta,
        precision="float32",
        observers=[predictions.uncalibrated, *by_priors.values()],
        after_step=advance,
    )
    return predictions


def _of_members(
    bundle: Bundle, sampler: Sampler, corrections: dict[PriorSetting, torch.Tensor | None], advance: Callable[[int], None]
) -> Predictions:
    """Classify with a model of several members, or of boosted trees."""
    model = SampleModel(bundle, sampler.report)
    classes = bundle.spec.classes
    by_priors = {choice: Reliability(classes, model.device) for choice in corrections}
    predictions = Predictions(Reliability(classes, model.device), by_priors)
    shares = [member.share for member in bundle.members]
    temperatures, ones = [member.temperature for member in bundle.members], [1.0] * len(shares)
    for pixels in every_pixel(sampler.stores, sampler.subset, report=sampler.report):
        for logits, labels in model.batches(sampler.stores[pixels.store], pixels):
            # The log-probabilities of a mixture are logits of temperature 1.
            predictions.uncalibrated.add(mixture_log_probabilities(logits, ones, shares), labels)
            for choice, correction in corrections.items():
                by_priors[choice].add(mixture_log_probabilities(logits, temperatures, shares, correction), labels)
            advance(len(labels))
    return predictions
