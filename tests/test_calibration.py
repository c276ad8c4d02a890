"""Temperature, expected calibration error and Brier score: by hand, by their laws, and whatever the batches are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mibf.calibration import BINS, Reliability, TemperatureFit

CPU = torch.device("cpu")


def drawn(samples: int, classes: int, seed: int, *, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from their softmax: with sharpness 1 the confidences are right."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return sharpness * logits, labels


def judged(logits: Tensor, labels: Tensor, *, parts: int = 1, **given_: object) -> dict[str, float]:
    judge = Reliability(logits.shape[1], CPU, **given_)  # type: ignore[arg-type]  # passed on
    for some, theirs in zip(logits.chunk(parts), labels.chunk(parts), strict=True):
        judge.add(some, theirs)
    return judge.figures()


def test_four_samples_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    figures = judged(probabilities.log(), torch.tensor([0, 1, 1, 1]))
    # Two samples of confidence 0.9, one of them right; one each of 0.6 and 0.8, both right.
    assert figures["ece"] == pytest.approx((2 * abs(0.5 - 0.9) + abs(1 - 0.6) + abs(1 - 0.8)) / 4)
    assert figures["brier"] == pytest.approx((2 * 0.1**2 + 2 * 0.9**2 + 2 * 0.4**2 + 2 * 0.2**2) / 4)
    assert figures["log_loss"] == pytest.approx(-np.log([0.9, 0.1, 0.6, 0.8]).mean(), rel=1e-6)
    assert figures["overall_accuracy"] == 0.75


@given(st.integers(2, 5), st.integers(0, 1000), st.integers(1, 7))
def test_figures_do_not_depend_on_the_batches(classes: int, seed: int, parts: int) -> None:
    logits, labels = drawn(70, classes, seed)
    whole, apart = judged(logits, labels), judged(logits, labels, parts=parts)
    for name in ("ece", "brier", "log_loss", "overall_accuracy"):
        assert apart[name] == pytest.approx(whole[name], rel=1e-9, abs=1e-12)


@given(st.integers(2, 5), st.integers(0, 1000), st.floats(0.2, 5))
def test_each_figure_lies_within_its_bounds(classes: int, seed: int, sharpness: float) -> None:
    figures = judged(*drawn(50, classes, seed, sharpness=sharpness))
    assert 0 <= figures["ece"] <= 1
    assert 0 <= figures["brier"] <= 2
    assert figures["log_loss"] >= 0
    bins = figures["bins"]
    assert len(bins) == BINS
    assert sum(b["samples"] for b in bins) == 50


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_sharpness_and_mends_the_calibration(sharpness: float) -> None:
    logits, labels = drawn(20_000, 4, 1, sharpness=sharpness)
    fit = TemperatureFit(CPU)
    fit.add(logits, labels)
    temperature = fit.temperature()
    assert temperature == pytest.approx(sharpness, rel=0.05)
    raw, mended = judged(logits, labels), judged(logits, labels, temperature=temperature)
    assert mended["ece"] < 0.02
    assert mended["log_loss"] <= raw["log_loss"] + 1e-4
    assert mended["overall_accuracy"] == raw["overall_accuracy"]
    if sharpness != 1:
        assert raw["ece"] > 3 * mended["ece"]


def test_the_correction_turns_probabilities_to_other_class_frequencies() -> None:
    """By Bayes' rule on two classes whose likelihoods are known."""
    likelihood = torch.tensor([[0.8, 0.3], [0.2, 0.7]])  # (class, what is seen)
    trained, target = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    posterior = (likelihood * trained[:, None] / (likelihood * trained[:, None]).sum(0)).T
    wanted = (likelihood * target[:, None] / (likelihood * target[:, None]).sum(0)).T
    correction = target.log() - trained.log()
    for temperature in (1.0, 2.5):
        logits = temperature * posterior.log()
        figures = judged(logits, torch.tensor([0, 1]), temperature=temperature, correction=correction)
        expected = -F.nll_loss(wanted.log(), torch.tensor([0, 1])).item()
        assert figures["log_loss"] == pytest.approx(-expected, rel=1e-5)
    assert judged(posterior.log(), torch.tensor([0, 1]))["overall_accuracy"] == 0.5
    assert judged(posterior.log(), torch.tensor([0, 1]), correction=correction)["overall_accuracy"] == 1


def test_no_samples_give_no_figures() -> None:
    figures = Reliability(3, CPU).figures()
    assert np.isnan([figures["ece"], figures["brier"], figures["log_loss"]]).all()
    assert TemperatureFit(CPU).temperature() == 1
