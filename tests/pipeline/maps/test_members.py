"""Maps of classifiers of pixel features and of blends: exact for any tiling, equal to the members' probabilities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mibf.bundle.bundle import Bundle
from mibf.bundle.members import LinearMember, NetworkMember, TreesMember
from mibf.class_priors import Priors
from mibf.network.mibfnet import MIBFNet
from pipeline.classifiers.linear import LinearClassifier
from pipeline.classifiers.pixel_features import pixel_features
from pipeline.classifiers.trees import fit_trees
from pipeline.grid import Window, tile_grid
from pipeline.maps.predictor import TileInput, TilePredictor
from pipeline.maps.products import product
from pipeline.sampling.drawn_pixels import DrawnPixels
from pipeline.sampling.sample_logits import SampleModel
from pipeline.store.patch_store import PatchStore
from tests.support.maps import write_map

PROBABILITIES = product("probabilities", "float32")


@pytest.fixture(scope="module")
def text() -> str:
    """Trees on the 3 x 4 features of the small scene; the third class depends on the radar's value."""
    generator = np.random.default_rng(0)
    features = generator.normal([1000] * 3 + [0.5] + [1000] * 3 + [0.5] + [60] * 3 + [0.1], 1, (600, 12)).astype(np.float32)
    features[:, :3] += 500 * (np.arange(600) % 2)[:, None]
    labels = np.where(features[:, 3] > 1, 2, np.arange(600) % 2)
    return fit_trees(features, labels, classes=3, rounds=4).text


@pytest.fixture(scope="module")
def linear() -> LinearMember:
    """Logistic regression on the same features, with coefficients whose sums depend on the order of the features."""
    generator = np.random.default_rng(1)
    coefficients = generator.normal(size=(3, 12)) * 10.0 ** generator.integers(-3, 0, (3, 12))
    return LinearMember(LinearClassifier(coefficients, generator.normal(size=3), np.full(12, 700.0)).weights, 3.0)


@pytest.fixture
def blended(bundle: Bundle, text: str, linear: LinearMember) -> Bundle:
    """Two networks, trees and logistic regression, with class priors."""
    torch.manual_seed(1)
    second = NetworkMember(MIBFNet(bundle.spec).state_dict(), 1.5, 0.25)
    members = (
        replace(bundle.networks[0], temperature=0.5, share=0.25),
        second,
        TreesMember(text, 1.2, 0.3),
        replace(linear, share=0.2),
    )
    return replace(bundle, members=members, priors=Priors.of([5, 3, 2], [5, 3, 2]))


@pytest.mark.parametrize("kind", ["trees", "linear", "blend"])
def test_map_does_not_depend_on_the_tile_size(store: PatchStore, blended: Bundle, kind: str) -> None:
    alone = [replace(member, share=1.0) for member in blended.members if member.kind == kind]
    model = replace(blended, members=tuple(alone)) if alone else blended
    products = [product(name) for name in ("class", "second_class", "confidence", "probabilities", "entropy")]
    products += [product(name) for name in ("mutual_information", "kl", "gate")] if kind == "blend" else []
    maps = []
    for side in (64, 128, 192):
        predictor = TilePredictor(model, products=products, precision="float32")
        whole = {p.name: np.zeros((8, *store.shape)) for p in products}
        for tile in tile_grid("small", store.shape, side):
            for name, values in predictor.predict(store, tile).items():
                whole[name][: len(values), *tile.window.slices] = values
        maps.append(whole)
    for other in maps[1:]:
        for name, values in maps[0].items():
            np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_blend_maps_the_weighted_mean_of_its_members(store: PatchStore, blended: Bundle) -> None:
    """Against patches and features cut one by one, with corrected class priors."""
    window = Window(20, 30, 24, 28)
    (tile,) = [t for t in tile_grid("small", store.shape, 64) if t.window.y == 0 and t.window.x == 0]
    found = TilePredictor(blended, products=[PROBABILITIES], precision="float32", priors="uniform").predict(store, tile)
    rows, columns = (axis.ravel() for axis in np.mgrid[:24, :28])
    pixels = DrawnPixels(0, window, rows, columns, np.zeros(len(rows), np.int64))
    logits, _ = next(iter(SampleModel(blended).batches(store, pixels)))
    correction = blended.correction("uniform")
    assert correction is not None
    wanted = sum(
        m.share * ((own + correction) / m.temperature).softmax(dim=1) for m, own in zip(blended.members, logits, strict=True)
    )
    mapped = found["probabilities"][:, *window.slices].reshape(3, -1).T
    np.testing.assert_allclose(mapped, wanted.numpy(), atol=2e-6)


def test_trees_map_the_scores_of_pixel_features(store: PatchStore, blended: Bundle, text: str) -> None:
    model = replace(blended, members=(TreesMember(text),))
    window = Window(0, 0, 64, 64)
    (tile,) = [t for t in tile_grid("small", store.shape, 64) if t.window == window]
    found = TilePredictor(model, products=[PROBABILITIES], precision="float32").predict(store, tile)["probabilities"]
    features = pixel_features(store, window, store.sources)
    scores = torch.from_numpy(
        TilePredictor(model, products=[], precision="float32").classifiers[0].scores(features.reshape(12, -1).T)
    )
    wanted = scores.softmax(dim=1).T.reshape(3, 64, 64).numpy()
    usable = store.usable(window)
    np.testing.assert_allclose(found[:, usable], wanted[:, usable], rtol=1e-6)
    assert np.isnan(found[:, ~usable]).all()


def test_input_of_a_blend_survives_the_transfer_between_machines(store: PatchStore, blended: Bundle) -> None:
    predictor = TilePredictor(blended, products=[PROBABILITIES], precision="float32")
    tile = predictor.read(store, next(iter(tile_grid("small", store.shape, 64))))
    again = TileInput.from_bytes(tile.to_bytes())
    assert len(again.sources) == 2
    assert len(again.values) == 2
    for one, other in zip((*tile.sources, *tile.values), (*again.sources, *again.values), strict=True):
        np.testing.assert_array_equal(one, other)
    first, second = predictor.compute(tile), predictor.compute(again)
    np.testing.assert_array_equal(first["probabilities"], second["probabilities"])


def test_blend_of_one_network_and_itself_is_that_network(store: PatchStore, bundle: Bundle, tmp_path: Path) -> None:
    """Up to rounding: the same probabilities, no disagreement, the same gate and KL term."""
    half = replace(bundle.networks[0], share=0.5)
    one = write_map(store, bundle, tmp_path / "one.zarr", 64)
    two = write_map(store, replace(bundle, members=(half, half)), tmp_path / "two.zarr", 64)
    for name in ("probabilities", "gate", "kl", "entropy"):
        values = [work.array(product(name))[:].astype(int) for work in (one, two)]
        assert abs(values[0] - values[1]).max() <= 1, name
    disagreement = two.array(product("mutual_information"))[0]
    assert disagreement[disagreement < 65535].max() <= 1
