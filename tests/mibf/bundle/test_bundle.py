"""A bundle's network with corrected class priors, and its source dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mibf.bundle.bundle import Bundle
from mibf.bundle.files import from_files, to_files
from mibf.class_priors import Priors
from mibf.errors import InputError
from tests.support.bundles import PRIORS, logits, make_bundle

counts = st.lists(st.integers(1, 1000), min_size=3, max_size=3)


@given(natural=counts, trained=counts, temperature=st.floats(0.3, 5))
@settings(max_examples=25)
def test_prior_correction_multiplies_probabilities_by_target_over_trained(
    natural: list[int], trained: list[int], temperature: float
) -> None:
    priors = Priors.of(natural, trained)
    bundle = make_bundle(priors=priors, temperature=temperature)
    plain = (logits(bundle.network()) / temperature).softmax(dim=1)
    assert (logits(bundle.network("trained")) == logits(bundle.network())).all()
    for choice, target in (("natural", priors.natural), ("uniform", (1 / 3,) * 3)):
        wanted = plain * torch.tensor(target).double() / torch.tensor(priors.trained).double()
        wanted /= wanted.sum(dim=1, keepdim=True)
        found = (logits(bundle.network(choice)) / temperature).softmax(dim=1)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_prior_correction_does_not_modify_bundle(bundle: Bundle) -> None:
    before = bundle.weights["bottleneck.decoder.bias"].clone()
    network = bundle.network("uniform")
    assert (bundle.weights["bottleneck.decoder.bias"] == before).all()
    wanted = before + 1.3 * torch.tensor([1 / 3 / t for t in PRIORS.trained]).log()
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
