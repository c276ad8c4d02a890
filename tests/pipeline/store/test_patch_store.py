"""The patch store and the normalization fitted to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from mibf.normalization import BandScaling, Scaling, scaling_from_json
from pipeline.codes import CODES, UNLABELLED
from pipeline.grid import Window
from pipeline.io import storage, zarr_store
from pipeline.store.patch_store import PatchStore, SubsetHiddenError
from pipeline.store.quantiles import HIGH, LOW
from pipeline.store.shard_writer import ShardWriter
from tests.support.commands import run
from tests.support.scenes import COLUMNS, ROWS, SmallScene
from tests.support.stores import SHARDS

Prepared = tuple[SmallScene, Workspace]


@pytest.fixture
def store(prepared: Prepared) -> PatchStore:
    return PatchStore(prepared[1].store("small"))


@pytest.fixture
def scaling(prepared: Prepared) -> Scaling:
    return scaling_from_json(storage.read_json(prepared[1].scaling))


def test_store_contains_sources_validity_and_labels_of_scene(prepared: Prepared, store: PatchStore) -> None:
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


def test_store_opened_without_test_subset_hides_its_samples(store: PatchStore) -> None:
    """Neither their positions nor their classes are visible; everything else is unchanged."""
    closed, whole = PatchStore(store.url, without=("test",)), Window(0, 0, ROWS, COLUMNS)
    with pytest.raises(SubsetHiddenError, match="was opened without the test subset"):
        closed.windows_with_samples("test")
    assert set(closed.samples(whole)) == {"train", "validation"}
    ids, codes = store.labelled(whole)
    test = codes == CODES["test"]
    assert test.any()
    shown_ids, shown_codes = closed.labelled(whole)
    assert (shown_ids[test] == UNLABELLED).all()
    assert (shown_codes[test] == 0).all()
    for subset in ("train", "validation"):
        of_subset = codes == CODES[subset]
        assert (shown_ids[of_subset] == ids[of_subset]).all()
        assert (closed.samples(whole)[subset] == store.samples(whole)[subset]).all()


def test_xarray_opens_store(store: PatchStore) -> None:
    opened = xr.open_zarr(store.url, consolidated=False)
    assert opened["labels"].dims == ("y", "x")
    assert opened.attrs["proj:code"] == "EPSG:32633"
    sources = xr.open_zarr(store.url, group="sources", consolidated=False)
    assert sources["optical"].shape == (3, ROWS, COLUMNS)
    assert sources["radar"].shape == (1, ROWS, COLUMNS)


@given(st.integers(-20, ROWS - 1), st.integers(-20, COLUMNS - 1), st.integers(1, 40), st.integers(0, 7))
@settings(max_examples=40, deadline=None)
def test_window_equals_crop_of_mirrored_scene(prepared: Prepared, y: int, x: int, side: int, halo: int) -> None:
    store = PatchStore(prepared[1].store("small"))
    values, valid = store.read_source("optical", Window(y, x, side, side), halo=halo)
    reach = 70
    whole = np.pad(store.array("sources/optical")[:], ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    cut = np.s_[y - halo + reach : y + side + halo + reach, x - halo + reach : x + side + halo + reach]
    assert (values == whole[:, *cut]).all()
    mask = np.pad(store.array("valid/optical")[:], reach, mode="reflect")
    assert (valid == mask[cut].astype(bool)).all()


def test_write_that_is_not_shard_aligned_raises(store: PatchStore) -> None:
    target = zarr_store.ChecksumStore.at(store.url)
    for window in (Window(0, 0, 100, 64), Window(64, 0, 86, COLUMNS)):
        with pytest.raises(ValueError, match="not a whole shard"):
            ShardWriter(target).write(window, {"labels": np.zeros((window.height, window.width), np.uint8)})
    assert target.written == {}


def test_missing_store_raises(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `mibf prepare` first"):
        PatchStore(str(tmp_path / "none.zarr"))


def samples(store: PatchStore, subset: str) -> np.ndarray:
    """Return the mask of the samples of a subset, from the stored arrays."""
    return (
        (store.array("labels")[:] != UNLABELLED)
        & (store.array("split")[:] == CODES[subset])
        & store.array("valid/optical")[:].astype(bool)
    )


def test_sample_counts_match_arrays_by_subset_and_class(prepared: Prepared, store: PatchStore) -> None:
    split = storage.read_json(prepared[1].split)
    for subset in ("train", "validation", "test"):
        chosen = samples(store, subset)
        assert sum(n.sum() for _, n in store.windows_with_samples(subset)) == chosen.sum()
        for c in store.classes:
            assert split["counts"][subset][c.name] == (chosen & (store.array("labels")[:] == c.id)).sum() > 0
    assert split["overlap"] == {"small": 0.0}


def test_limits_are_quantiles_of_training_pixels_only(store: PatchStore, scaling: Scaling) -> None:
    chosen = samples(store, "train")
    for name, error in (("optical", 0), ("radar", 2**-14)):
        valid = store.array(f"valid/{name}")[:].astype(bool) & chosen
        values = store.array(f"sources/{name}")[:][:, valid]
        for found, q in ((scaling[name].low, LOW), (scaling[name].high, HIGH), (scaling[name].fill, 0.5)):
            wanted = np.quantile(values, q, axis=1, method="inverted_cdf")
            assert (np.abs(found - wanted) <= error * np.abs(wanted)).all()


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_scaled_values_are_in_unit_interval_and_gaps_get_fill(seed: int) -> None:
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
    assert (scaled[0] == 0).all(), "a constant band scales to zero"
    assert scaled[1][~valid] == pytest.approx(0.75)
    inside = valid & (np.abs(values[1]) < 500)
    assert scaled[1][inside] == pytest.approx((values[1][inside] + 500) / 1000, abs=1e-5)
    assert bands.constant.tolist() == [True, False, False]


def test_corrupt_chunk_raises_on_read(large: SmallScene) -> None:
    run(large, SHARDS)
    path = large.folder / "work/stores/small.zarr/sources/optical/c/0/0/0"
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(content)
    store = PatchStore(str(large.folder / "work/stores/small.zarr"))
    with pytest.raises(InputError, match="sources/optical/c/0/0/0: is damaged"):
        store.read_source("optical", Window(0, 0, 64, 64))


def test_missing_validity_shard_raises_instead_of_reading_as_nodata(large: SmallScene) -> None:
    run(large, SHARDS)
    (large.folder / "work/stores/small.zarr/valid/optical/c/1/1").unlink()
    store = PatchStore(str(large.folder / "work/stores/small.zarr"))
    with pytest.raises(InputError, match=r"valid/optical/c/1/1: is damaged \(shard .* is missing\)"):
        store.usable(Window(100, 100, 100, 100))
    assert store.usable(Window(0, 0, 100, 100)).all()


def test_store_with_another_format_version_is_refused(scene: SmallScene) -> None:
    run(scene)
    path = scene.folder / "work/stores/small.zarr/zarr.json"
    path.write_text(path.read_text().replace('"mibf:format": 2', '"mibf:format": 1'))
    with pytest.raises(InputError, match="store format 1, but this version reads 2; run `mibf prepare` again"):
        PatchStore(str(path.parent))
