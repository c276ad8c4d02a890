"""Drift: distances do not depend on units, invalid pixels are ignored, and a few windows represent a scene."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jobs.workflow.workspace import Workspace
from mibf.normalization import BandScaling, Scaling, scaling_from_json
from pipeline.grid import Window
from pipeline.io import storage
from pipeline.maps.drift import BandDrift, describe_drift, list_bands, measure_drift
from pipeline.store.patch_store import PatchStore
from pipeline.store.quantiles import QuantileSketch
from pipeline.store.scene_quantiles import spread_windows
from pipeline.store.template import CHUNK, StoredSource
from tests.support.scenes import SmallScene

#: Bands of small integers, so that the transformations below stay within 16 bits.
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
BANDS = arrays.arrays(np.int16, SHAPES, elements=st.integers(0, 99))


class MemoryStore:
    """An in-memory store of sources, (bands, y, x) by name, that counts reads. It has no quantiles, like earlier stores."""

    spread_quantiles = None

    def __init__(self, shape: tuple[int, int], values: dict[str, np.ndarray], **valid: np.ndarray) -> None:
        self.shape, self.values = shape, values
        self.valid = {name: np.ones(v.shape[1:], bool) for name, v in values.items()} | valid
        self.sources = tuple(StoredSource(name, len(v), "exclude", v.shape[1] // shape[0]) for name, v in values.items())
        self.reads: Counter[tuple[str, Window]] = Counter()

    def array(self, name: str) -> Any:
        return SimpleNamespace(dtype=self.values[name.removeprefix("sources/")].dtype)

    def read_source(self, name: str, window: Window) -> tuple[np.ndarray, np.ndarray]:
        self.reads[name, window] += 1
        scale = next(s.scale for s in self.sources if s.name == name)
        y, x = (slice(part.start * scale, part.stop * scale) for part in window.slices)
        return self.values[name][:, y, x], self.valid[name][y, x]


def store_of(values: np.ndarray, valid: np.ndarray | None = None) -> Any:
    rows, columns = values.shape[1:]
    return MemoryStore((rows, columns), {"optical": values}, **({} if valid is None else {"optical": valid}))


def scaling_of(values: np.ndarray) -> Scaling:
    """Return the normalization fitted on all these pixels."""
    sketch = QuantileSketch(len(values), values.dtype)
    sketch.add(values, np.ones(values.shape[1:], bool))
    return {"optical": sketch.scaling()}


def scene(bands: int, *, side: int = 300, seed: int = 0) -> np.ndarray:
    """Return integer bands with well-separated values, (bands, side, side)."""
    generator = np.random.default_rng(seed)
    return np.stack([generator.normal(1000 + 400 * b, 100, (side, side)) for b in range(bands)]).astype(np.uint16)


def limits(low: float, high: float, fill: float, bands: int = 1) -> BandScaling:
    return BandScaling(*(np.full(bands, value, np.float32) for value in (low, high, fill)))


# ------------------------------------------------------------------------------------------------------------------ Distance


@given(BANDS | BANDS.map(lambda values: (values / 7).astype(np.float32)))
def test_scene_used_for_training_has_zero_drift(values: np.ndarray) -> None:
    found = measure_drift(store_of(values), scaling_of(values))
    assert [drift.distance for drift in found] == [0.0] * len(values)
    assert all(drift.scene == drift.training and drift.outside <= 0.01 for drift in found)
    assert describe_drift(found, 0.0) is None


@given(BANDS, st.integers(-3, 3))
def test_values_offset_by_k_training_ranges_have_distance_k(values: np.ndarray, k: int) -> None:
    scaling = scaling_of(values)
    span = (scaling["optical"].high - scaling["optical"].low).astype(np.int16)
    found = measure_drift(store_of(values + np.int16(k) * span[:, None, None]), scaling)
    assert [drift.distance for drift in found] == pytest.approx(np.where(span > 0, abs(k), 0))
    if abs(k) > 1:
        assert all(drift.outside == 1 for drift, wide in zip(found, span, strict=True) if wide)


@given(BANDS, BANDS, st.integers(1, 50), st.integers(-500, 500))
def test_drift_is_invariant_to_gain_and_offset(trained: np.ndarray, mapped: np.ndarray, gain: int, offset: int) -> None:
    mapped = np.resize(mapped, (len(trained), *mapped.shape[1:]))
    plain = measure_drift(store_of(mapped), scaling_of(trained))
    trained, mapped = (values * np.int16(gain) + np.int16(offset) for values in (trained, mapped))
    changed = measure_drift(store_of(mapped), scaling_of(trained))
    assert [d.distance for d in changed] == pytest.approx([d.distance for d in plain], rel=1e-5)
    assert [d.outside for d in changed] == [d.outside for d in plain]


def test_swapped_bands_are_reported_by_source_and_band_number() -> None:
    values = scene(3)
    found = measure_drift(store_of(values[[1, 0, 2]]), scaling_of(values))
    assert [(d.source, d.band, d.distance > 0.5) for d in found] == [
        ("optical", 1, True),
        ("optical", 2, True),
        ("optical", 3, False),
    ]
    assert found[2].distance == 0
    line = describe_drift(found, 0.5)
    assert line is not None
    assert line.startswith("optical bands 1-2: band ")
    assert "offset" not in line
    assert "factor" not in line


def test_drift_holds_scene_quantiles_and_share_out_of_range() -> None:
    values = np.arange(1000, dtype=np.uint16).reshape(1, 20, 50)
    (drift,) = measure_drift(store_of(values), {"optical": limits(99.5, 899.5, 500)})
    assert (drift.scene, drift.training) == ((4.0, 499.0, 994.0), (99.5, 500.0, 899.5))
    assert drift.distance == pytest.approx(95.5 / 800)
    assert drift.outside == 0.2


def test_floats_in_the_histogram_bins_of_the_limits_are_in_range() -> None:
    values = np.full((1, 30, 30), 0.1, np.float32)
    values[:, ::2] += np.float32(1e-6)
    values[0, 0, :9] = -5.0
    (drift,) = measure_drift(store_of(values), {"optical": limits(0.1, 0.1, 0.1)})
    assert drift.outside == 0.01


def test_constant_training_band_has_zero_or_infinite_drift() -> None:
    scaling = {"optical": limits(7, 7, 7)}
    same, other = (measure_drift(store_of(np.full((1, 9, 9), value, np.uint8)), scaling)[0] for value in (7, 8))
    assert (same.distance, same.outside) == (0, 0)
    assert (other.distance, other.outside) == (math.inf, 1)
    assert describe_drift([same, other], 0.3) == (
        "optical band 1: was constant (7) in training, here 8 / 8 / 8 (0.5 / 50 / 99.5 %)"
    )


# -------------------------------------------------------------------------------------------------------------- Invalid data


@given(BANDS, st.integers(0, 2**32 - 1))
def test_invalid_pixels_do_not_affect_drift(values: np.ndarray, seed: int) -> None:
    generator = np.random.default_rng(seed)
    valid = generator.random(values.shape[1:]) < 0.7
    valid.flat[0] = True
    scaling = scaling_of(np.append(values, values + np.int16(3), axis=2))
    garbled = np.where(valid, values, generator.integers(-30000, 30000, values.shape, np.int16))
    kept = values[:, valid][:, None]  # as a single row
    assert measure_drift(store_of(garbled, valid), scaling) == measure_drift(store_of(kept), scaling)


def test_source_without_data_has_infinite_drift_and_is_reported_first() -> None:
    values = scene(2)
    store = store_of(values, np.zeros(values.shape[1:], bool))
    found = measure_drift(store, scaling_of(values))
    assert all(drift.distance == math.inf and math.isnan(drift.outside) for drift in found)
    assert all(all(map(math.isnan, drift.scene)) for drift in found)
    assert describe_drift(found, 1e9) == "optical bands 1-2 have no data"


def test_sources_not_used_by_the_model_are_not_read() -> None:
    values = scene(1)
    store: Any = MemoryStore((300, 300), {"radar": values, "optical": values})
    assert {drift.source for drift in measure_drift(store, scaling_of(values))} == {"optical"}
    assert {name for name, _ in store.reads} == {"optical"}


# ------------------------------------------------------------------------------------------------------------------- Windows


@pytest.mark.parametrize("scale", [1, 2])
def test_every_pixel_of_a_finer_source_is_counted(scale: int) -> None:
    values = scene(2, side=300 * scale)
    store: Any = MemoryStore((300, 300), {"optical": values})
    assert [drift.distance for drift in measure_drift(store, scaling_of(values))] == [0, 0]
    assert store.reads.total() == 9
    half = values.copy()
    half[:, :, 1::2] += np.uint16(5000)  # every second pixel of the source
    (first, _) = measure_drift(MemoryStore((300, 300), {"optical": half}), scaling_of(values))
    assert first.distance > 1
    assert first.outside == pytest.approx(0.505, abs=0.003)


def test_at_most_the_requested_windows_are_read_and_always_the_same() -> None:
    values = np.resize(scene(1, side=CHUNK), (1, 20 * CHUNK - 5, 9 * CHUNK - 40))
    store = store_of(values)
    first = measure_drift(store, scaling_of(values), windows=25)
    assert 13 <= store.reads.total() <= 25
    assert set(store.reads.values()) == {1}
    before = set(store.reads)
    assert measure_drift(store, scaling_of(values), windows=25) == first
    assert set(store.reads) == before
    assert 0 <= first[0].distance < 0.1, "a few windows represent the scene"


@given(st.integers(1, 300 * CHUNK), st.integers(1, 300 * CHUNK), st.integers(1, 300))
def test_windows_are_spread_evenly_over_the_scene(rows: int, columns: int, most: int) -> None:
    high, wide = -(-rows // CHUNK), -(-columns // CHUNK)
    found = spread_windows((rows, columns), most)
    assert len(set(found)) == len(found) <= most
    assert 2 * len(found) >= min(most, high * wide)
    if high * wide <= most:
        assert len(found) == high * wide
    for size, starts in ((high, {w.y for w in found}), (wide, {w.x for w in found})):
        places = [start // CHUNK for start in sorted(starts)]
        gaps = {after - before for before, after in pairwise(places)}
        assert not gaps or max(gaps) - min(gaps) <= 1
        assert places[0] <= size / len(places)
        assert size - 1 - places[-1] <= size / len(places)
    assert len(found) == len({w.y for w in found}) * len({w.x for w in found})


def test_prepared_store_has_low_drift_from_its_own_normalization_only(
    prepared: tuple[SmallScene, Workspace],
) -> None:
    store = PatchStore(prepared[1].store("small"))
    scaling = scaling_from_json(storage.read_json(prepared[1].scaling))
    found = measure_drift(store, scaling)
    assert [(drift.source, drift.band) for drift in found] == [("optical", 1), ("optical", 2), ("optical", 3), ("radar", 1)]
    assert describe_drift(found, 0.1) is None
    tenfold = {name: BandScaling(b.low * 10, b.high * 10, b.fill * 10) for name, b in scaling.items()}
    assert all(drift.distance > 0.3 for drift in measure_drift(store, tenfold))


# ------------------------------------------------------------------------------------------------------------------ Messages


def drifts(source: str, scene: np.ndarray, training: np.ndarray) -> list[BandDrift]:
    """The drift of bands with these quantiles, (band, 3)."""
    span = training[:, 2] - training[:, 0]
    distances = abs(scene - training).max(axis=1) / span
    rows = zip(distances, scene.tolist(), training.tolist(), strict=True)
    return [BandDrift(source, n, d, 0.25, tuple(s), tuple(t)) for n, (d, s, t) in enumerate(rows, 1)]


def test_worst_sources_and_bands_are_described_first_and_the_rest_counted() -> None:
    training = np.tile([0.0, 0.5, 1.0], (12, 1))
    scene = training.copy()
    scene[8:, 1:] += np.array([[1.0, 2.0], [9.0, 9.0], [3.0, 4.0], [0.2, 0.4]])
    radar = drifts("radar", scene, training)
    line = describe_drift(radar, 0.3)
    assert line == (
        "radar bands 9-12: band 10 is 9.00 training ranges off, 0 / 9.5 / 10 (0.5 / 50 / 99.5 %), trained on 0 / 0.5 / 1"
    )
    others = [drift for name in ("b", "c", "d") for drift in drifts(name, scene[8:9], training[8:9])]
    assert describe_drift([*others, *radar], 0.3, length=150) == f"{line}; 3 more sources"
    assert describe_drift(radar, 9.0) is None, "a band exactly at the threshold is not reported"
    scattered = drifts("radar", np.where(np.arange(12)[:, None] % 2, training, scene[9]), training)
    assert (describe_drift(scattered, 0.3) or "").startswith("radar in 6 bands: band 1 is 9.00")


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([3], "band 3"), ([7, 2, 1, 3], "bands 1-3, 7"), (range(1, 401), "bands 1-400"), (range(1, 401, 2), "200 bands")],
)
def test_bands_are_named_in_runs_or_counted(numbers: Sequence[int], text: str) -> None:
    assert list_bands(numbers) == text


@pytest.mark.parametrize("bands", [1, 4, 13])
@pytest.mark.parametrize("seed", range(3))
def test_constant_offset_and_factor_are_named_although_the_ground_differs(bands: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    training = np.sort(generator.uniform(200, 3000, (bands, 3)), axis=1) + np.array([0.0, 200.0, 400.0])
    ground = training * generator.uniform(0.95, 1.05, (bands, 3))
    offset = describe_drift(drifts("sentinel2", ground + 1000, training), 0.2) or ""
    (found,) = re.findall(r"constant offset of about \+([\d,.]+); check `offset`", offset)
    assert float(found.replace(",", "")) == pytest.approx(1000, abs=150)
    factor = describe_drift(drifts("sentinel2", ground / 1e4, training), 0.2) or ""
    (found,) = re.findall(r"constant factor of about ([\d,.e-]+); check `gain`", factor)
    assert float(found.replace(",", "")) == pytest.approx(1e-4, rel=0.1)
    assert len(offset) < 120
    assert len(factor) < 120


def test_exact_offset_of_a_scene_is_named() -> None:
    values = scene(3)
    line = describe_drift(measure_drift(store_of(values + np.uint16(1000)), scaling_of(values)), 0.3)
    assert line == "optical bands 1-3: constant offset of about +1,000; check `offset`"
    lower = describe_drift(measure_drift(store_of(values), scaling_of(values + np.uint16(1000))), 0.3)
    assert lower == "optical bands 1-3: constant offset of about -1,000; check `offset`"


def test_description_stays_within_its_length() -> None:
    generator = np.random.default_rng(1)
    training = np.sort(generator.uniform(-1e5, 1e5, (30, 3)), axis=1)
    mapped = np.sort(generator.uniform(-1e9, 1e9, (30, 3)), axis=1)
    found = [drift for i in range(9) for drift in drifts(f"source_{i}", mapped, training)]
    assert len(describe_drift(found, 0.3, length=190) or "") <= 190


# ------------------------------------------------------------------------------------------------------- Quantiles in stores


def test_quantiles_of_prepare_give_the_drift_of_the_pixels(
    prepared: tuple[SmallScene, Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the fraction outside the limits differs, which lies between quantiles that are at most 1/32 apart."""
    store = PatchStore(prepared[1].store("small"))
    scaling = scaling_from_json(storage.read_json(prepared[1].scaling))
    other = {name: replace(bands, low=bands.low + 3, high=bands.high - 2) for name, bands in scaling.items()}
    read = PatchStore(store.url)
    monkeypatch.setitem(vars(read), "spread_quantiles", None)
    for model in (scaling, other):
        from_pixels = measure_drift(read, model)
        with monkeypatch.context() as patch:
            patch.setattr(PatchStore, "read_source", None)
            found = measure_drift(store, model)
        assert [replace(drift, outside=0) for drift in found] == [replace(drift, outside=0) for drift in from_pixels]
        assert [drift.outside for drift in found] == pytest.approx([drift.outside for drift in from_pixels], abs=1 / 16)
