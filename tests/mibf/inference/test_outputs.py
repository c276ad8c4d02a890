"""Entropy, mutual information and temperature: properties, and values with known answers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mibf.inference.outputs import OutputDecoder, PixelOutputs, entropy, information, standard_draws
from mibf.metrics.calibration import TemperatureFit

CPU = torch.device("cpu")


@given(st.integers(2, 12))
def test_entropy_of_equal_classes_is_log_of_class_count(classes: int) -> None:
    assert math.isclose(float(entropy(torch.zeros(1, classes).log_softmax(-1))), math.log(classes), rel_tol=1e-5)
    certain = torch.zeros(1, classes)
    certain[0, 0] = 1e4
    assert float(entropy(certain.log_softmax(-1))) == 0


def test_mutual_information_is_zero_for_equal_samples_and_maximal_for_disagreeing_ones() -> None:
    same = torch.randn(1, 5, 4).expand(6, 5, 4)
    assert information(same).max() < 1e-6
    split = 1e3 * torch.eye(4)[:, None]  # four samples, each certain of a different class
    assert math.isclose(float(information(split)[0]), math.log(4), rel_tol=1e-5)


@given(st.integers(2, 20), st.integers(2, 6), st.integers(0, 1000))
def test_mutual_information_is_between_zero_and_entropy_of_mean(draws: int, classes: int, seed: int) -> None:
    logits = 3 * torch.randn(draws, 8, classes, generator=torch.Generator().manual_seed(seed))
    found = information(logits)
    mean = logits.softmax(-1).mean(0)
    assert (found >= 0).all()
    assert (found <= torch.special.entr(mean).sum(-1) + 1e-5).all()
    assert (found <= math.log(draws) + 1e-5).all()


def test_monte_carlo_noise_depends_only_on_seed() -> None:
    assert torch.equal(standard_draws(4, 3, seed=1), standard_draws(4, 3, seed=1))
    assert not torch.equal(standard_draws(4, 3, seed=1), standard_draws(4, 3, seed=2))


@given(st.lists(st.lists(st.sampled_from([-1.0, 0.0, 2.0, 2.5]), min_size=3, max_size=3), min_size=1, max_size=8))
def test_second_class_is_next_best_with_ties_to_lower_index(rows: list[list[float]]) -> None:
    decoder = OutputDecoder(torch.zeros(3, 6), standard_draws(2, 6, seed=0))
    outputs = PixelOutputs(torch.tensor(rows), None, None, None)
    first, second = (decoder.product(name, outputs).tolist() for name in ("class", "second_class"))
    for logits, best, next_best in zip(rows, first, second, strict=True):
        assert [best, next_best] == sorted(range(3), key=lambda i: (-logits[i], i))[:2]


def test_sampled_logits_equal_decoder_on_each_sample() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 3)
    mean, std = torch.randn(5, 6), torch.rand(5, 6)
    decoder = OutputDecoder(layer.weight.detach(), standard_draws(7, 6, seed=0), temperature=2.0)
    with torch.no_grad():
        found = decoder.drawn_logits(PixelOutputs(layer(mean), torch.ones(5, 1), mean, std))
        wanted = torch.stack([layer(mean + std * eps) for eps in decoder.noise]) / 2
    torch.testing.assert_close(found, wanted)


@given(st.floats(0.3, 6.0), st.integers(0, 20))
def test_fit_recovers_temperature_that_generated_labels(temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * temperature * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
    fit = TemperatureFit(CPU)
    for part in torch.arange(20_000).split(3000):  # in batches, as in validation
        fit.add(logits[part], labels[part])
    assert math.isclose(fit.temperature(), temperature, rel_tol=0.08)


def test_fitted_temperature_minimizes_cross_entropy_to_one_percent() -> None:
    torch.manual_seed(0)
    logits = 4 * torch.randn(3000, 4)
    labels = torch.randint(0, 4, (3000,)).where(torch.rand(3000) < 0.3, logits.argmax(1))
    fit = TemperatureFit(CPU)
    fit.add(logits, labels)
    fine = torch.linspace(0.5, 8, 3000)
    losses = torch.stack([F.cross_entropy(logits / t, labels) for t in fine])
    assert math.isclose(fit.temperature(), float(fine[losses.argmin()]), rel_tol=0.01)


def test_temperature_without_samples_is_one() -> None:
    assert TemperatureFit(CPU).temperature() == 1.0
