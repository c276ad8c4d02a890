"""Features of single pixels against `scipy.ndimage` and numpy, with pixels without data, edges and a finer source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import generic_filter

from pipeline.classifiers import pixel_features as module
from pipeline.classifiers.pixel_features import REACH, at_reference_grid, pixel_features, read_values, value_features
from pipeline.grid import Window
from pipeline.store.patch_store import PatchStore
from pipeline.store.template import StoredSource

SHAPE = (19, 23)
SOURCES = (StoredSource("optical", 2, "exclude"), StoredSource("radar", 1, "fill", 2))


@dataclass
class HoledStore:
    """Two sources with invalid pixels, one of them twice as fine; windows must lie within the grid."""

    values: dict[str, NDArray[Any]]
    valid: dict[str, NDArray[np.bool_]]
    shape: tuple[int, int] = SHAPE

    @classmethod
    def make(cls) -> HoledStore:
        generator = np.random.default_rng(5)
        rows, columns = SHAPE
        optical = generator.integers(0, 60_000, (2, rows, columns)).astype(np.uint16)
        radar = generator.normal(-12, 3, (1, 2 * rows, 2 * columns)).astype(np.float32)
        valid = {"optical": generator.random(SHAPE) < 0.7, "radar": generator.random((2 * rows, 2 * columns)) < 0.4}
        valid["optical"][:9, :9] = False  # no pixel with data within reach of the corner
        return cls({"optical": optical, "radar": radar}, valid)

    def read_source(self, name: str, window: Window, *, halo: int = 0) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        assert halo == 0
        assert min(window.y, window.x) >= 0
        s = next(source.scale for source in SOURCES if source.name == name)
        y, x = (slice(part.start * s, part.stop * s) for part in window.slices)
        return self.values[name][:, y, x], self.valid[name][..., y, x]


def features(store: HoledStore, window: Window) -> NDArray[np.float32]:
    return pixel_features(cast(PatchStore, store), window, SOURCES)


def expected(store: HoledStore) -> NDArray[np.float64]:
    """All features of the whole scene, computed pixel by pixel."""
    optical = np.where(store.valid["optical"], store.values["optical"].astype(float), np.nan)
    rows, columns = SHAPE
    radar = np.full((1, rows, columns), np.nan)
    for y in range(rows):
        for x in range(columns):
            cell = np.s_[2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
            there = store.valid["radar"].reshape(2 * rows, 2 * columns)[cell]
            if there.any():
                radar[0, y, x] = store.values["radar"][0][cell][there].astype(float).mean()
    bands = np.concatenate([optical, radar])

    def around(band: NDArray[np.float64], function: Any) -> NDArray[np.float64]:
        def known(values: NDArray[np.float64]) -> float:
            there = values[~np.isnan(values)]
            return float(function(there)) if len(there) else np.nan

        return np.asarray(generic_filter(band, known, size=7, mode="constant", cval=np.nan))

    return np.concatenate([bands, [around(b, np.mean) for b in bands], [around(b, np.std) for b in bands]])


@pytest.mark.parametrize("by_band", [False, True])
def test_features_equal_those_of_scipy(by_band: bool) -> None:
    """Each band has data of its own where periods without observations are filled."""
    store = HoledStore.make()
    if by_band:
        other = np.random.default_rng(6).random(SHAPE) < 0.6
        store.valid["optical"] = np.stack([store.valid["optical"], other])
        store.valid["radar"] = store.valid["radar"][None]
    found, wanted = features(store, Window(0, 0, *SHAPE)), expected(store)
    assert found.dtype == np.float32
    assert np.isnan(wanted[3, :6, :6]).all(), "the corner has no neighbors with data"
    assert np.isnan(wanted[4, :6, :6]).all() != by_band
    assert (np.isnan(found) == np.isnan(wanted)).all()
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert np.isnan(found[2]).any(), "some reference pixels have no valid radar pixel"
    assert value_features(SOURCES) == slice(0, 3)


@st.composite
def windows_within(draw: st.DrawFn) -> Window:
    """A window within the grid, down to one pixel and up to all of them."""
    (y, bottom), (x, right) = (sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in SHAPE)
    return Window(y, x, bottom - y, right - x)


@given(window=windows_within(), strip=st.sampled_from([1, 40, 100, module.STRIP]), complete=st.booleans())
def test_features_do_not_depend_on_the_window(window: Window, strip: int, complete: bool) -> None:
    store = HoledStore.make()
    if complete:
        store.valid["optical"][:] = True
    full = features(store, Window(0, 0, *SHAPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STRIP", strip)
        assert features(store, window).tobytes() == full[(slice(None), *window.slices)].tobytes()


def test_values_that_are_read_are_missing_without_data_and_beyond_the_grid() -> None:
    store = HoledStore.make()
    optical, radar = read_values(cast(PatchStore, store), Window(15, 0, 4, 9), SOURCES)
    assert (optical.dtype, radar.dtype) == (np.float32, np.float32)
    assert (optical.shape, radar.shape) == ((2, 10, 15), (1, 10, 15))
    assert np.isnan(optical[:, -REACH:]).all(), "below the grid"
    assert np.isnan(optical[:, :, :REACH]).all(), "left of the grid"
    inside = np.where(store.valid["optical"], store.values["optical"], np.nan)[:, 12:19, :12]
    np.testing.assert_array_equal(optical[:, :-REACH, REACH:], inside)


def test_deviation_of_equal_values_is_zero() -> None:
    store = HoledStore.make()
    store.values["optical"][:] = 59_999
    deviations = features(store, Window(0, 0, *SHAPE))[6:8]
    assert set(np.unique(deviations[~np.isnan(deviations)])) == {0}


def test_finer_pixels_are_averaged_over_the_valid_ones() -> None:
    values = np.array([[[1, 2, 9, 9], [3, 400, 9, 9]]], np.uint16)
    valid = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)
    np.testing.assert_array_equal(at_reference_grid(values, valid, scale=2), [[[2, np.nan]]])
