"""The tile predictor: independence from the tile size, missing data, checks of the sources, and memory limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mibf.bundle.bundle import Bundle
from mibf.errors import InputError
from mibf.inference.dense import Dense
from mibf.network.spec import NetworkSpec, SourceSpec
from pipeline.codes import UNLABELLED
from pipeline.grid import Tile, Window, tile_grid
from pipeline.maps.predictor import RowMemoryError, TilePredictor, _mask, check_sources
from pipeline.maps.products import product
from pipeline.rasters.header import RasterFile
from pipeline.scenes.source import Source
from pipeline.scenes.split import dilate
from pipeline.store.patch_store import PatchStore, scaled_window
from pipeline.store.template import StoredSource
from tests.support.maps import ALL_PRODUCTS, SET_THRESHOLDS, build_small_store, write_map
from tests.support.scenes import COLUMNS, ROWS, write_raster

CLASS, CONFIDENCE = product("class"), product("confidence")


def test_map_bytes_do_not_depend_on_the_tile_size(store: PatchStore, bundle: Bundle, tmp_path: Path) -> None:
    one = write_map(store, bundle, tmp_path / "one.zarr", 64)
    for side in (128, 192):
        other = write_map(store, bundle, tmp_path / "other.zarr", side)
        for layer_product in ALL_PRODUCTS:
            assert one.array(layer_product)[:].tobytes() == other.array(layer_product)[:].tobytes()
    first, second = one.array(CLASS)[:], one.array(product("second_class"))[:]
    np.testing.assert_array_equal(first == UNLABELLED, second == UNLABELLED)
    assert ((first != second) | (first == UNLABELLED)).all()
    probabilities = one.array(product("probabilities"))[:].astype(int)
    ids = np.array([1, 2, 5])
    for layer, rank in ((first, 2), (second, 1)):
        chosen = (probabilities * (ids[:, None, None] == layer)).sum(axis=0)
        there = layer[0] != UNLABELLED
        np.testing.assert_array_equal(chosen[there], np.sort(probabilities, axis=0)[rank][there])
    assert (one.array(CONFIDENCE)[0] == np.where(there, probabilities.max(axis=0), 65535)).all()
    masks, sizes = one.array(product("prediction_set"))[0], one.array(product("set_size"))[0]
    np.testing.assert_array_equal(np.bitwise_count(masks), sizes)
    np.testing.assert_array_equal(sizes > 0, there)
    for bit, (least, layer) in enumerate(zip(SET_THRESHOLDS, probabilities / 1e4, strict=True)):
        inside = ((masks >> bit) & 1).astype(bool)
        assert inside[there & (layer > least + 1e-4)].all()
        top = first[0] == ids[bit]
        assert inside[there & top].all()
        assert not inside[there & ~top & (layer < least - 1e-4)].any()


@pytest.fixture
def gapped(tmp_path: Path) -> PatchStore:
    """A store whose first source has no data in a stripe across the common corner of four tiles."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    optical = np.random.default_rng(0).integers(100, 200, (3, ROWS, COLUMNS)).astype(np.uint16)
    optical[:, (abs(y - x) < 3) & (y > 50) & (y < 80)] = 0
    write_raster(tmp_path / "optical.tif", optical, nodata=0)
    write_raster(tmp_path / "radar.tif", optical[:1].astype(np.float32) / 7)
    declared = [Source(name, ((RasterFile(str(tmp_path / f"{name}.tif")),),)) for name in ("optical", "radar")]
    return build_small_store(tmp_path, declared)


def test_gap_across_tiles_does_not_change_pixels_around_it(gapped: PatchStore, bundle: Bundle) -> None:
    """Next to pixels without data, the map equals the network's output on patches cut as in training."""
    predictor = TilePredictor(bundle, products=[product("confidence", "float32")], precision="float32")
    one, many = np.empty((2, ROWS, COLUMNS), np.float32)
    for side, whole in ((256, one), (64, many)):
        for tile in tile_grid("small", gapped.shape, side):
            whole[tile.window.slices] = predictor.predict(gapped, tile)["confidence"][0]
    np.testing.assert_array_equal(one, many)
    everywhere, patch = Window(0, 0, ROWS, COLUMNS), bundle.spec.patch
    usable = gapped.usable(everywhere)
    rows, columns = np.nonzero(usable & dilate(np.pad(~usable, 2), 2))
    assert len(rows) > 100
    sources = scaled_window(gapped, everywhere, bundle.scaling, halo=bundle.spec.halo)
    corners = list(zip(rows, columns, strict=True))
    patches = [torch.from_numpy(np.stack([s[:, y : y + patch, x : x + patch] for y, x in corners])) for s in sources]
    with torch.inference_mode():
        wanted = bundle.network()(patches).logits.softmax(dim=1).amax(dim=1).numpy()
    np.testing.assert_allclose(one[rows, columns], wanted, atol=1e-5)
    assert np.isnan(one[~usable]).all()


def test_placed_tile_gives_the_same_products_and_holds_no_arrays(store: PatchStore, bundle: Bundle) -> None:
    predictor = TilePredictor(bundle, products=ALL_PRODUCTS, precision="float32", set_thresholds=SET_THRESHOLDS)
    content = predictor.read(store, tile_grid("small", store.shape, 64)[0])
    placed = predictor.place(content)
    assert placed.sources == ()
    expected, found = predictor.compute(content), predictor.compute(placed)
    for layer in ALL_PRODUCTS:
        assert found[layer.name].dtype == expected[layer.name].dtype == layer.dtype
        np.testing.assert_array_equal(found[layer.name], expected[layer.name])


def test_store_with_other_sources_than_the_model_is_refused(store: PatchStore, bundle: Bundle) -> None:
    spec = NetworkSpec((SourceSpec("optical", 4), SourceSpec("radar", 1)), classes=3, patch=5)
    other = Bundle.of_network(spec, {}, bundle.scaling, bundle.classes)
    with pytest.raises(InputError, match=r"optical \(3 bands\), radar.*trained on optical \(4 bands\)"):
        check_sources(store, other)
    check_sources(store, bundle)


def test_store_whose_bands_have_other_names_than_those_of_training_is_refused(
    store: PatchStore, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of bands are equal; only where both have names are they known to differ."""
    trained = replace(bundle, provenance={"band_names": {"optical": ["red", "green", "nir"]}})
    check_sources(store, trained)
    for names, message in {
        ("red", "green", "nir"): None,
        ("nir", "green", "red"): "source 'optical' has the bands nir, green, red; the model was trained on red, green, nir",
    }.items():
        named = tuple(replace(s, band_names=names) if s.name == "optical" else s for s in store.sources)
        monkeypatch.setattr(store, "sources", named)
        check_sources(store, bundle)
        check_sources(store, replace(bundle, provenance={"band_names": "red"}))
        if message is None:
            check_sources(store, trained)
        else:
            with pytest.raises(InputError, match=message):
                check_sources(store, trained)


def test_periods_may_be_of_another_year_but_not_of_another_season(
    store: PatchStore, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_bands(*names: str) -> None:
        monkeypatch.setattr(
            store, "sources", tuple(replace(s, band_names=names) if s.name == "optical" else s for s in store.sources)
        )

    trained = replace(bundle, provenance={"band_names": {"optical": ["red@2024-06", "red@2024-07", "nir@2024-JJA"]}})
    with_bands("red@2025-06", "red@2025-07", "nir@2025-JJA")
    check_sources(store, trained)
    with_bands("red@2025-05", "red@2025-06", "nir@2025-JJA")
    with pytest.raises(InputError, match=r"has the bands red@2025-05, .*; the model was trained on red@2024-06, "):
        check_sources(store, trained)


def test_reading_tiles_loads_no_network_on_any_device(
    quartered: PatchStore, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers are processes beside the workers; a network in each would take the workers' memory."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a network was placed on a device")

    monkeypatch.setattr("pipeline.maps.predictor.to_device", refuse)
    predictor = TilePredictor(bundle, products=ALL_PRODUCTS, precision="float32", set_thresholds=SET_THRESHOLDS)
    tile = predictor.read(quartered, Tile("small", Window(0, 0, 64, 64)))
    with pytest.raises(AssertionError, match="placed on a device"):
        predictor.compute(tile)


def test_source_mask_alone_does_not_run_the_network(
    quartered: PatchStore, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = TilePredictor(bundle, products=[product("sources")], precision="float32")
    monkeypatch.setattr(predictor, "dense", None)
    tile = Tile("small", Window(0, 0, 64, 64))
    found = predictor.compute(replace(predictor.read(quartered, tile), sources=()))
    assert list(found) == ["sources"]
    assert found["sources"].shape == (1, 64, 64)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"
        ),
        RuntimeError("not enough memory: you tried to allocate 9 bytes."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_permanently_halves_the_rows_computed_at_once(
    store: PatchStore, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tile = Tile("small", Window(0, 0, 64, 64))
    predictor = TilePredictor(bundle, products=ALL_PRODUCTS, precision="float32", set_thresholds=SET_THRESHOLDS)
    wanted, first = predictor.predict(store, tile), predictor.rows
    asked: list[int] = []
    enough = first // 4
    real = Dense.__call__

    def scarce(dense: Dense, *arguments: Any, **named: Any) -> Any:
        asked.append(dense.rows)
        if dense.rows > enough:
            raise error
        return real(dense, *arguments, **named)

    monkeypatch.setattr(Dense, "__call__", scarce)
    found = predictor.predict(store, tile)
    assert asked == [first, first // 2, enough]
    assert predictor.rows == enough
    np.testing.assert_array_equal(found["class"], wanted["class"])
    np.testing.assert_allclose(found["confidence"].astype(int), wanted["confidence"].astype(int), atol=1)
    predictor.predict(store, tile)
    assert asked[3:] == [enough]
    enough = 0
    with pytest.raises(RowMemoryError, match=r"^one row of pixels at a time does not fit into the memory of cpu \(.*; use"):
        predictor.predict(store, tile)
    assert predictor.rows == 1


def test_other_runtime_errors_are_not_treated_as_out_of_memory(
    store: PatchStore, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = TilePredictor(bundle, products=[CLASS], precision="float32")
    rows = predictor.rows

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(Dense, "__call__", fail)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        predictor.predict(store, Tile("small", Window(0, 0, 64, 64)))
    assert predictor.rows == rows


@pytest.mark.parametrize("count", [1, 8, 9, 12, 33, 64])
def test_mask_has_a_bit_for_each_source(count: int) -> None:
    generator = np.random.default_rng(0)
    there = {f"s{i}": generator.random((3, 4)) < 0.5 for i in range(count)}
    sources = [StoredSource(name, 1, "exclude") for name in there]
    mask = _mask(sources, there)
    assert mask.dtype == product("sources", sources=count).dtype
    for y, x in np.ndindex(3, 4):
        assert int(mask[y, x]) == sum(1 << i for i in range(count) if there[f"s{i}"][y, x])
