"""The patch store, the scaling fitted to it, and the batches cut from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.workspace import Workspace
from mibf.bundle import MODEL, WEIGHTS, Bundle
from mibf.errors import InputError
from mibf.network import MIBFNet
from mibf.scaling import BandScaling, Scaling, scaling_from_json, scaling_to_json
from mibf.spec import NetworkSpec, SourceSpec
from pipeline import storage
from pipeline.batches import Sampler, scaled_window
from pipeline.fit import HIGH, LOW
from pipeline.grid import Window
from pipeline.labels import UNLABELLED
from pipeline.split import CODES
from pipeline.store import PatchStore, ShardWriter
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


def sampler(store: PatchStore, scaling: Scaling, subset: Any = "train", **more: int) -> Sampler:
    return Sampler([store], scaling, 5, subset, **more)


def test_patches_are_cuts_of_the_scaled_scene_with_their_labels(store: PatchStore, scaling: Scaling) -> None:
    whole = scaled_window(store, Window(0, 0, ROWS, COLUMNS), scaling, halo=2)
    rows, columns = np.nonzero(samples(store, "validation"))
    wanted = {}
    for y, x in zip(rows, columns, strict=True):
        patch = whole[0][:, y : y + 5, x : x + 5]
        wanted[patch.tobytes()] = (whole[1][:, y : y + 5, x : x + 5], store.array("labels")[y, x])
    seen = 0
    ids = [c.id for c in store.classes]
    for batch in sampler(store, scaling, "validation").in_order(batch=37):
        for optical, radar, label in zip(*batch.sources, batch.labels, strict=True):
            expected, class_id = wanted[np.ascontiguousarray(optical).tobytes()]
            assert (radar == expected).all()
            assert ids[label] == class_id
            seen += 1
    assert seen == len(rows)


def test_an_epoch_is_a_function_of_seed_epoch_and_rank(store: PatchStore, scaling: Scaling) -> None:
    def labels(epoch: int, rank: int = 0, seed: int = 0) -> list[int]:
        part = sampler(store, scaling, rank=rank, workers=2)
        return [int(n) for b in part.shuffled(batch=32, seed=seed, epoch=epoch) for n in b.labels]

    assert labels(0) == labels(0)
    assert labels(0) != labels(1)
    assert labels(0) != labels(0, rank=1)
    assert labels(0) != labels(0, seed=1)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_worker_takes_equally_many_full_batches(store: PatchStore, scaling: Scaling, workers: int) -> None:
    total = int(samples(store, "train").sum())
    for rank in range(workers):
        part = sampler(store, scaling, rank=rank, workers=workers)
        sizes = [len(b.labels) for b in part.shuffled(batch=40, seed=0, epoch=0)]
        assert sizes == [40] * part.steps(40) == [40] * (total // (40 * workers))


def test_one_workers_epoch_repeats_no_sample(store: PatchStore, scaling: Scaling) -> None:
    seen = [
        patch.tobytes()
        for b in sampler(store, scaling).shuffled(batch=64, seed=0, epoch=0)
        for patch in np.ascontiguousarray(b.sources[0])
    ]
    assert len(seen) == len(set(seen))


def test_validation_is_dealt_to_workers_without_loss_or_overlap(store: PatchStore, scaling: Scaling) -> None:
    counts = [
        sum(len(b.labels) for b in sampler(store, scaling, "validation", rank=r, workers=3).in_order(batch=50))
        for r in range(3)
    ]
    assert sum(counts) == samples(store, "validation").sum()


def test_a_bundle_survives_its_files(scaling: Scaling, store: PatchStore) -> None:
    spec = NetworkSpec((SourceSpec("optical", 3), SourceSpec("radar", 1, (16, 32))), classes=3, patch=5)
    bundle = Bundle(spec, MIBFNet(spec).state_dict(), scaling, store.classes, {"run": "x"})
    again = Bundle.from_files(bundle.to_files())
    assert again.spec == spec
    assert again.classes == store.classes
    assert scaling_to_json(again.scaling) == scaling_to_json(scaling)
    for a, b in zip(again.network().state_dict().values(), bundle.network().state_dict().values(), strict=True):
        assert (a == b).all()
    for broken in ({WEIGHTS: b"x"}, {MODEL: b"{}"}, {MODEL: b"not json"}):
        with pytest.raises(InputError, match="damaged"):
            Bundle.from_files({**bundle.to_files(), **broken})
