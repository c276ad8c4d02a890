"""Mixtures of members: products from the mean of probabilities, by numpy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mibf.inference.outputs import ProductName
from pipeline.maps.mixture import Mixture, needed_of_networks

PRODUCTS: tuple[ProductName, ...] = (
    "class", "second_class", "confidence", "probabilities", "entropy", "mutual_information", "kl", "gate",
)  # fmt: skip  # one per line would fill a page


def members(number: int, seed: int) -> list[Tensor]:
    """Probabilities (4, 3, 5) of some members; the pixel at (1, 2) is not wanted."""
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randn(4, 3, 5, generator=generator).mul(2).softmax(dim=0) for _ in range(number)]
    for values in found:
        values[:, 1, 2] = torch.nan
    return found


@given(number=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_products_follow_from_the_weighted_mean(number: int, seed: int) -> None:
    shares = np.random.default_rng(seed).dirichlet(np.ones(number))
    mixture = Mixture(PRODUCTS)
    each = members(number, seed)
    for position, (values, share) in enumerate(zip(each, shares.tolist(), strict=True)):
        others = {"kl": values[0] * 10, "gate": values[:2]} if position % 2 == 0 else None
        mixture.add(values, share, others)  # type: ignore[arg-type]  # names of products
    found = {name: values.numpy() for name, values in mixture.results().items()}
    wanted = np.ones((3, 5), bool)
    wanted[1, 2] = False
    stacked = np.stack([v.numpy().astype(np.float64) for v in each])
    mean = np.tensordot(shares, stacked, axes=1)
    np.testing.assert_allclose(found["probabilities"][:, wanted], mean[:, wanted], rtol=1e-5)
    np.testing.assert_allclose(found["probabilities"][:, wanted].sum(axis=0), 1, rtol=1e-5)
    assert (found["class"][wanted] == mean.argmax(axis=0)[wanted]).all()
    assert (found["second_class"][wanted] == np.argsort(-mean, axis=0)[1][wanted]).all()
    np.testing.assert_allclose(found["confidence"][wanted], mean.max(axis=0)[wanted], rtol=1e-5)

    def entropy(p: np.ndarray) -> np.ndarray:
        return -(p * np.log(p)).sum(axis=-3)

    np.testing.assert_allclose(found["entropy"][wanted], entropy(mean)[wanted], rtol=1e-4)
    information = entropy(mean) - np.tensordot(shares, entropy(stacked), axes=1)
    np.testing.assert_allclose(found["mutual_information"][wanted], information[wanted], atol=1e-5)
    assert (found["mutual_information"][wanted] >= 0).all()
    networks = shares[::2] / shares[::2].sum()
    np.testing.assert_allclose(found["kl"][wanted], 10 * np.tensordot(networks, stacked[::2, 0], axes=1)[wanted], rtol=1e-4)
    for name in PRODUCTS:
        missing = found[name][..., 1, 2]
        assert (missing == -1).all() if name in ("class", "second_class") else np.isnan(missing).all(), name


def test_members_that_agree_have_no_mutual_information() -> None:
    (one,) = members(1, 3)
    mixture = Mixture(("mutual_information",))
    for share in (0.25, 0.75):
        mixture.add(one, share)
    assert mixture.results()["mutual_information"].nan_to_num(0).abs().max() < 1e-6


def test_equal_probabilities_give_the_first_class_and_the_next() -> None:
    mixture = Mixture(("class", "second_class"))
    mixture.add(torch.full((3, 1, 1), 1 / 3), 1.0)
    assert {name: int(values) for name, values in mixture.results().items()} == {"class": 0, "second_class": 1}


def test_networks_compute_probabilities_and_what_only_they_have() -> None:
    assert needed_of_networks(("class", "gate", "entropy")) == ("probabilities", "gate")
    mixture = Mixture(("logits",))
    mixture.add(torch.ones(1, 1, 1), 1.0)
    with pytest.raises(ValueError, match="no logits"):
        mixture.results()
