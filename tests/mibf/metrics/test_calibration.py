"""Temperature, expected calibration error and Brier score: by hand, by their properties, and for any batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mibf.metrics.calibration import BINS, Reliability, TemperatureFit

CPU = torch.device("cpu")


def sampled_logits(samples: int, classes: int, seed: int, *, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return logits and labels sampled from their softmax; with sharpness 1 the confidences are calibrated."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return sharpness * logits, labels


def calibration_metrics(logits: Tensor, labels: Tensor, *, parts: int = 1, **options: object) -> dict[str, float]:
    reliability = Reliability(logits.shape[1], CPU, **options)
    for part_logits, part_labels in zip(logits.chunk(parts), labels.chunk(parts), strict=True):
        reliability.add(part_logits, part_labels)
    return reliability.figures()


def test_calibration_metrics_of_four_samples_match_hand_computation() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    figures = calibration_metrics(probabilities.log(), torch.tensor([0, 1, 1, 1]))
    # Two samples have confidence 0.9, one of them correct; one each has 0.6 and 0.8, both correct.
    assert figures["ece"] == pytest.approx((2 * abs(0.5 - 0.9) + abs(1 - 0.6) + abs(1 - 0.8)) / 4)
    assert figures["brier"] == pytest.approx((2 * 0.1**2 + 2 * 0.9**2 + 2 * 0.4**2 + 2 * 0.2**2) / 4)
    assert figures["log_loss"] == pytest.approx(-np.log([0.9, 0.1, 0.6, 0.8]).mean(), rel=1e-6)
    assert figures["overall_accuracy"] == 0.75


@given(st.integers(2, 5), st.integers(0, 1000), st.integers(1, 7))
def test_calibration_metrics_do_not_depend_on_batches(classes: int, seed: int, parts: int) -> None:
    logits, labels = sampled_logits(70, classes, seed)
    together, apart = calibration_metrics(logits, labels), calibration_metrics(logits, labels, parts=parts)
    for name in ("ece", "brier", "log_loss", "overall_accuracy"):
        assert apart[name] == pytest.approx(together[name], rel=1e-9, abs=1e-12)


@given(st.integers(2, 5), st.integers(0, 1000), st.floats(0.2, 5))
def test_calibration_metrics_are_within_bounds(classes: int, seed: int, sharpness: float) -> None:
    figures = calibration_metrics(*sampled_logits(50, classes, seed, sharpness=sharpness))
    assert 0 <= figures["ece"] <= 1
    assert 0 <= figures["brier"] <= 2
    assert figures["log_loss"] >= 0
    bins = figures["bins"]
    assert len(bins) == BINS
    assert sum(b["samples"] for b in bins) == 50


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_fitted_temperature_recovers_sharpness_and_reduces_ece(sharpness: float) -> None:
    logits, labels = sampled_logits(20_000, 4, 1, sharpness=sharpness)
    fit = TemperatureFit(CPU)
    fit.add(logits, labels)
    temperature = fit.temperature()
    assert temperature == pytest.approx(sharpness, rel=0.05)
    raw, calibrated = calibration_metrics(logits, labels), calibration_metrics(logits, labels, temperature=temperature)
    assert calibrated["ece"] < 0.02
    assert calibrated["log_loss"] <= raw["log_loss"] + 1e-4
    assert calibrated["overall_accuracy"] == raw["overall_accuracy"]
    if sharpness != 1:
        assert raw["ece"] > 3 * calibrated["ece"]


def test_prior_correction_follows_bayes_rule() -> None:
    """Compare with Bayes' rule for two classes with known likelihoods."""
    likelihood = torch.tensor([[0.8, 0.3], [0.2, 0.7]])  # (class, observation)
    trained, target = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    posterior = (likelihood * trained[:, None] / (likelihood * trained[:, None]).sum(0)).T
    wanted = (likelihood * target[:, None] / (likelihood * target[:, None]).sum(0)).T
    correction = target.log() - trained.log()
    for temperature in (1.0, 2.5):
        logits, labels = posterior.log(), torch.tensor([0, 1])
        figures = calibration_metrics(logits, labels, temperature=temperature, correction=correction)
        softened = wanted ** (1 / temperature) / (wanted ** (1 / temperature)).sum(dim=1, keepdim=True)
        assert figures["log_loss"] == pytest.approx(F.nll_loss(softened.log(), labels).item(), rel=1e-5)
    assert calibration_metrics(posterior.log(), torch.tensor([0, 1]))["overall_accuracy"] == 0.5
    assert calibration_metrics(posterior.log(), torch.tensor([0, 1]), correction=correction)["overall_accuracy"] == 1


def test_corrected_log_loss_of_one_sample_matches_hand_computation() -> None:
    """Halves of the corrected logits 2 - ln 2.4, 1 + ln(20/9), ln(20/3) give 0.258248, 0.361734, 0.380017."""
    correction = (torch.tensor([1 / 3] * 3) / torch.tensor([0.8, 0.15, 0.05])).log()
    for label, wanted in enumerate((0.258248, 0.361734, 0.380017)):
        figures = calibration_metrics(
            torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([label]), temperature=2.0, correction=correction
        )
        assert figures["log_loss"] == pytest.approx(-np.log(wanted), abs=1e-4)
        assert figures["overall_accuracy"] == (label == 2)


@given(st.integers(2, 6), st.integers(0, 1000), st.floats(0.25, 8))
def test_temperature_changes_no_class_whatever_the_correction(classes: int, seed: int, temperature: float) -> None:
    logits, labels = sampled_logits(200, classes, seed)
    correction = 3 * torch.randn(classes, generator=torch.Generator().manual_seed(seed))
    sharp, soft = (calibration_metrics(logits, labels, temperature=t, correction=correction) for t in (1.0, temperature))
    assert soft["overall_accuracy"] == sharp["overall_accuracy"]
    assert soft["average_accuracy"] == sharp["average_accuracy"]


def test_calibration_without_samples_gives_nan_and_temperature_one() -> None:
    figures = Reliability(3, CPU).figures()
    assert np.isnan([figures["ece"], figures["brier"], figures["log_loss"]]).all()
    assert TemperatureFit(CPU).temperature() == 1
