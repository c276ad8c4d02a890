"""A bundle's network with corrected class priors, and its source dropout."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mibf.bundle.bundle import Bundle
from mibf.bundle.files import from_files, to_files
from mibf.bundle.members import NetworkMember
from mibf.class_priors import Priors
from mibf.errors import InputError
from mibf.inference.dense import Dense
from mibf.metrics.calibration import Reliability
from tests.support.bundles import PRIORS, logits, make_bundle

counts = st.lists(st.integers(1, 1000), min_size=3, max_size=3)


@given(natural=counts, trained=counts, temperature=st.floats(0.3, 5))
@settings(max_examples=25)
def test_prior_correction_multiplies_uncalibrated_probabilities_by_target_over_trained(
    natural: list[int], trained: list[int], temperature: float
) -> None:
    priors = Priors.of(natural, trained)
    bundle = make_bundle(priors=priors, temperature=temperature)
    plain = logits(bundle.network()).softmax(dim=1)
    assert (logits(bundle.network("trained")) == logits(bundle.network())).all()
    for choice, target in (("natural", priors.natural), ("uniform", (1 / 3,) * 3)):
        wanted = (plain * torch.tensor(target).double() / torch.tensor(priors.trained).double()) ** (1 / temperature)
        wanted /= wanted.sum(dim=1, keepdim=True)
        found = (logits(bundle.network(choice)) / temperature).softmax(dim=1)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@given(trained=counts, temperature=st.floats(0.25, 8), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_temperature_changes_no_class_of_corrected_maps_and_both_paths_agree(
    trained: list[int], temperature: float, seed: int
) -> None:
    """Dense inference of a tile against `Reliability` on the trained network's logits, as in `evaluate`."""
    plain = make_bundle(priors=Priors.of([1, 1, 1], trained), temperature=1.0)
    weights = dict(plain.networks[0].weights)
    weights["bottleneck.decoder.weight"] = 200 * weights["bottleneck.decoder.weight"]  # logits as far apart as priors
    plain = replace(plain, members=(NetworkMember(weights),))
    bundle = replace(plain, members=(NetworkMember(weights, temperature),))
    tile = [
        torch.rand(s.bands, 8 * s.scale, 9 * s.scale, generator=torch.Generator().manual_seed(seed))
        for s in bundle.spec.sources
    ]
    products = ("class", "probabilities", "mutual_information")
    mapped = Dense(bundle.network("uniform"), temperature=temperature)(tile, products=products)
    at_one = Dense(plain.network("uniform"), temperature=1.0)(tile, products=("class",))
    assert (mapped["class"] == at_one["class"]).all()
    raw = Dense(bundle.network())(tile, products=("logits",))["logits"].flatten(1).T
    correction = torch.tensor(bundle.priors.correction("uniform"))
    labels = torch.zeros(len(raw), dtype=torch.int64)
    evaluated = Reliability(3, raw.device, temperature=temperature, correction=correction)
    evaluated.add(raw, labels)
    assert evaluated.figures()["overall_accuracy"] == pytest.approx((mapped["class"] == 0).float().mean().item())
    wanted = -mapped["probabilities"][0].double().log().mean().item()
    assert evaluated.figures()["log_loss"] == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_corrected_probabilities_of_a_map_equal_values_computed_by_hand() -> None:
    """Logits 2, 1, 0 for every pixel, T = 2, trained shares 0.8, 0.15, 0.05, uniform priors.

    The corrected logits are 2 - ln 2.4, 1 + ln(20/9), 0 + ln(20/3) = 1.124531, 1.798508, 1.897120; their halves'
    exponentials are 1.754643, 2.457769 and 2.581989.
    """
    weights = dict(make_bundle().networks[0].weights)
    weights["bottleneck.decoder.weight"] = torch.zeros_like(weights["bottleneck.decoder.weight"])
    weights["bottleneck.decoder.bias"] = torch.tensor([2.0, 1.0, 0.0])
    priors = Priors(natural=(0.8, 0.15, 0.05), trained=(0.8, 0.15, 0.05))
    bundle = make_bundle(weights=weights, temperature=2.0, priors=priors)
    tile = [torch.rand(s.bands, 5 * s.scale, 5 * s.scale) for s in bundle.spec.sources]
    products = ("class", "probabilities", "confidence", "entropy", "mutual_information")
    found = Dense(bundle.network("uniform"), temperature=2.0)(tile, products=products)
    wanted = [0.258248, 0.361734, 0.380017]
    assert found["probabilities"].flatten().tolist() == pytest.approx(wanted, abs=2e-5)
    assert found["class"].item() == 2
    assert found["confidence"].item() == pytest.approx(wanted[2], abs=2e-5)
    assert found["entropy"].item() == pytest.approx(-sum(p * math.log(p) for p in wanted), abs=1e-4)
    assert found["mutual_information"].item() == pytest.approx(0, abs=1e-6)
    natural, trained = (
        Dense(bundle.network(choice), temperature=2.0)(tile, products=("probabilities",))["probabilities"]
        for choice in ("natural", "trained")
    )
    assert (natural == trained).all(), "priors equal to those of training change nothing"


def test_prior_correction_does_not_modify_bundle(bundle: Bundle) -> None:
    before = bundle.networks[0].weights["bottleneck.decoder.bias"].clone()
    network = bundle.network("uniform")
    assert (bundle.networks[0].weights["bottleneck.decoder.bias"] == before).all()
    wanted = before + torch.tensor([1 / 3 / t for t in PRIORS.trained]).log()
    torch.testing.assert_close(network.bottleneck.decoder.bias.detach(), wanted)


def test_unknown_prior_choice_raises(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="'even'; must be one of trained, natural, uniform"):
        bundle.network("even")


@pytest.mark.parametrize(
    ("hyperparameters", "wanted"),
    [({"source_dropout": 0.25}, 0.25), ({"source_dropout": 0}, 0), ({"source_dropout": "much"}, 0), ({}, 0), (None, 0)],
)
def test_bundle_reports_source_dropout(hyperparameters: Any, wanted: float) -> None:
    bundle = make_bundle(provenance={"hyperparameters": hyperparameters})
    assert from_files(to_files(bundle)).source_dropout == wanted
    assert make_bundle(provenance={}).source_dropout == 0
