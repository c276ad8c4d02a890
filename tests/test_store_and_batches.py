"""The patch store, and the scaling fitted to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.workspace import Workspace
from mibf.errors import InputError
from mibf.scaling import BandScaling, Scaling, scaling_from_json
from pipeline import storage
from pipeline.fit import HIGH, LOW
from pipeline.grid import Window
from pipeline.labels import UNLABELLED
from pipeline.split import CODES
from pipeline.store import ClosedSubsetError, PatchStore, ShardWriter
from tests.conftest import COLUMNS, ROWS, SmallScene

Prepared = tuple[SmallScene, Workspace]


@pytest.fixture
def store(prepared: Prepared) -> PatchStore:
    return PatchStore(prepared[1].store("small"))


@pytest.fixture
def scaling(prepared: Prepared) -> Scaling:
    return scaling_from_json(storage.read_json(prepared[1].scaling))


def test_the_store_holds_the_scene(prepared: Prepared, store: PatchStore) -> None:
    scene, _ = prepared
    valid = store.array("valid/optical")[:].astype(bool)
    assert not valid[:4, :6].any()
    assert valid.sum() == ROWS * COLUMNS - 24
    assert (store.array("sources/optical")[:][:, valid] == scene.optical[:, valid]).all()
    assert store.array("sources/optical").dtype == np.uint16
    assert store.array("sources/radar").dtype == np.float32
    labels = store.array("labels")[:]
    assert set(np.unique(labels)) == {1, 2, 5, UNLABELLED}
    assert (labels == np.where(labels == UNLABELLED, UNLABELLED, scene.truth)).all()


def test_a_store_opened_without_test_samples_tells_nothing_of_them(store: PatchStore) -> None:
    """Neither where they are nor of what class; all else it tells as it is."""
    closed, whole = PatchStore(store.url, without=("test",)), Window(0, 0, ROWS, COLUMNS)
    with pytest.raises(ClosedSubsetError, match="was opened without the test subset"):
        closed.windows_with_samples("test")
    assert set(closed.samples(whole)) == {"train", "validation"}
    ids, codes = store.labelled(whole)
    test = codes == CODES["test"]
    assert test.any()
    shown_ids, shown_codes = closed.labelled(whole)
    assert (shown_ids[test] == UNLABELLED).all()
    assert (shown_codes[test] == 0).all()
    for subset in ("train", "validation"):
        its = codes == CODES[subset]
        assert (shown_ids[its] == ids[its]).all()
        assert (closed.samples(whole)[subset] == store.samples(whole)[subset]).all()


def test_xarray_opens_it_plainly(store: PatchStore) -> None:
    opened = xr.open_zarr(store.url, consolidated=False)
    assert opened["labels"].dims == ("y", "x")
    assert opened.attrs["proj:code"] == "EPSG:32633"
    sources = xr.open_zarr(store.url, group="sources", consolidated=False)
    assert sources["optical"].shape == (3, ROWS, COLUMNS)
    assert sources["radar"].shape == (1, ROWS, COLUMNS)


@given(st.integers(-20, ROWS - 1), st.integers(-20, COLUMNS - 1), st.integers(1, 40), st.integers(0, 7))
@settings(max_examples=40, deadline=None)
def test_a_window_is_a_cut_of_the_mirrored_scene(prepared: Prepared, y: int, x: int, side: int, halo: int) -> None:
    store = PatchStore(prepared[1].store("small"))
    values, valid = store.read_source("optical", Window(y, x, side, side), halo=halo)
    reach = 70
    whole = np.pad(store.array("sources/optical")[:], ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    cut = np.s_[y - halo + reach : y + side + halo + reach, x - halo + reach : x + side + halo + reach]
    assert (values == whole[:, *cut]).all()
    mask = np.pad(store.array("valid/optical")[:], reach, mode="reflect")
    assert (valid == mask[cut].astype(bool)).all()


def test_a_write_that_is_not_whole_shards_is_refused(store: PatchStore) -> None:
    target = storage.Recorder.at(store.url)
    for window in (Window(0, 0, 100, 64), Window(64, 0, 86, COLUMNS)):
        with pytest.raises(ValueError, match="not a whole shard"):
            ShardWriter(target).write(window, {"labels": np.zeros((window.height, window.width), np.uint8)})
    assert target.written == {}


def test_a_store_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `mibf prepare` first"):
        PatchStore(str(tmp_path / "none.zarr"))


def samples(store: PatchStore, subset: str) -> np.ndarray:
    """Where the samples of a subset are, from the plain arrays."""
    return (
        (store.array("labels")[:] != UNLABELLED)
        & (store.array("split")[:] == CODES[subset])  # type: ignore[index]  # a subset by name
        & store.array("valid/optical")[:].astype(bool)
    )


def test_samples_are_counted_by_subset_and_class(prepared: Prepared, store: PatchStore) -> None:
    split = storage.read_json(prepared[1].split)
    for subset in ("train", "validation", "test"):
        chosen = samples(store, subset)
        assert sum(n.sum() for _, n in store.windows_with_samples(subset)) == chosen.sum()
        for c in store.classes:
            assert split["counts"][subset][c.name] == (chosen & (store.array("labels")[:] == c.id)).sum() > 0
    assert split["overlap"] == {"small": 0.0}


def test_limits_are_quantiles_of_training_pixels_alone(store: PatchStore, scaling: Scaling) -> None:
    chosen = samples(store, "train")
    for name, error in (("optical", 0), ("radar", 2**-14)):
        valid = store.array(f"valid/{name}")[:].astype(bool) & chosen
        values = store.array(f"sources/{name}")[:][:, valid]
        for found, q in ((scaling[name].low, LOW), (scaling[name].high, HIGH), (scaling[name].fill, 0.5)):
            wanted = np.quantile(values, q, axis=1, method="inverted_cdf")
            assert (np.abs(found - wanted) <= error * np.abs(wanted)).all()


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_scaled_values_lie_in_the_unit_interval_and_gaps_take_the_fill(seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.normal(0, 1000, (3, 5, 4))
    values[0] = np.nan
    valid = generator.random((5, 4)) < 0.5
    bands = BandScaling(
        low=np.array([0, -500, 7], np.float32),
        high=np.array([0, 500, 9], np.float32),
        fill=np.array([0, 250, 8], np.float32),
    )
    scaled = bands.apply(np.where(np.isnan(values), 0, values), valid)
    assert scaled.dtype == np.float32
    assert ((scaled >= 0) & (scaled <= 1)).all()
    assert (scaled[0] == 0).all(), "a constant band tells nothing"
    assert scaled[1][~valid] == pytest.approx(0.75)
    inside = valid & (np.abs(values[1]) < 500)
    assert scaled[1][inside] == pytest.approx((values[1][inside] + 500) / 1000, abs=1e-5)
    assert bands.constant.tolist() == [True, False, False]
