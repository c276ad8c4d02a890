"""Maps in work: how products are stored, tiles in whole shards, which pixels are mapped, coverage before publishing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from jobs.workspace import Workspace
from mibf.bundle import Bundle, ClassName
from mibf.dense import Dense
from mibf.errors import InputError
from mibf.network import MIBFNet
from mibf.scaling import BandScaling, scaling_from_json
from mibf.spec import NARROW, NetworkSpec, SourceSpec
from pipeline import storage
from pipeline.batches import scaled_window
from pipeline.engine import Threads
from pipeline.fill import OpenScene, fill
from pipeline.grid import Window
from pipeline.labels import UNLABELLED, NoLabels
from pipeline.maps import IncompleteMapError, MapInWork, check_coverage, digest
from pipeline.predict import MissingChoice, TilePredictor, check_sources
from pipeline.products import MAP_PRODUCTS, MapDtype, Product, product
from pipeline.raster import RasterFile
from pipeline.scene import Source, open_source, reference_grid
from pipeline.split import NoSplit, near_any
from pipeline.store import PatchStore
from pipeline.tiles import Tile, tiles
from tests.conftest import COLUMNS, ROWS, TRANSFORM, SmallScene, write_raster

CLASS, CONFIDENCE = product("class"), product("confidence")
ALL = [product(name) for name in MAP_PRODUCTS]
Prepared = tuple[SmallScene, Workspace]

#: Every way in which a measure is stored.
MEASURES = [
    product(name, dtype)
    for dtype in get_args(MapDtype)
    for name in ("confidence", "probabilities", "entropy", "information", "rate", "gate")
]


@given(st.sampled_from(MEASURES), st.lists(st.floats(0, 6.3) | st.just(float("nan")), min_size=1, max_size=20))
def test_a_stored_value_is_the_value_to_half_a_step_and_no_value_stays_none(shown: Product, values: list[float]) -> None:
    codes = shown.encode(values)
    assert codes.dtype == shown.dtype
    found, wanted = shown.decode(codes), np.array(values)
    nowhere = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(found), nowhere)
    np.testing.assert_array_equal(shown.present(codes), ~nowhere)
    step = np.float32(6.3) * 2**-23 if shown.dtype == "float32" else shown.scale
    last = np.inf if shown.dtype == "float32" else (shown.nodata - 1) * shown.scale
    within = ~nowhere & (wanted <= last)
    assert (np.abs(found - wanted)[within] <= step / 2 + 1e-12).all()
    np.testing.assert_array_equal(shown.encode(found), codes)


@given(st.sampled_from(MEASURES), st.floats(0, 1e6), st.floats(0, 1e6))
def test_larger_values_are_never_stored_as_smaller_and_none_as_nodata(shown: Product, one: float, other: float) -> None:
    codes = shown.encode(sorted([one, other]))
    assert codes[0] <= codes[1]
    assert shown.present(codes).all()


def test_halves_are_rounded_to_even_and_the_forms_are_those_told() -> None:
    np.testing.assert_array_equal(product("rate").encode([0.25, 0.75, 1.25, np.inf, -1.0]), [2, 8, 12, 65534, 0])
    for name, dtype, wanted in [
        ("confidence", "uint16", ("uint16", 65535, 1e-4, "")),
        ("gate", "uint8", ("uint8", 255, 0.004, "")),
        ("entropy", "uint8", ("uint8", 255, 0.025, "nat")),
        ("information", "uint16", ("uint16", 65535, 1e-4, "nat")),
        ("rate", "uint16", ("uint16", 65535, 0.1, "nat")),
        ("class", "float32", ("uint8", 255, 1.0, "")),
        ("second", "uint16", ("uint8", 255, 1.0, "")),
    ]:
        shown = product(name, dtype)  # type: ignore[arg-type]  # each is one of the literals
        assert (shown.dtype, shown.nodata, shown.scale, shown.unit) == wanted
    assert product("rate", "uint8") == product("rate", "float32")
    assert [product("sources", sources=n).dtype for n in (2, 8, 9, 16)] == ["uint8", "uint8", "uint16", "uint16"]


@pytest.fixture(scope="module")
def bundle(prepared: Prepared) -> Bundle:
    """An untrained network with the scene's scaling."""
    torch.manual_seed(0)
    store = PatchStore(prepared[1].store("small"))
    spec = NetworkSpec((SourceSpec("optical", 3), SourceSpec("radar", 1, NARROW)), classes=3, patch=5)
    scaling = scaling_from_json(storage.read_json(prepared[1].scaling))
    return Bundle(spec, MIBFNet(spec).state_dict(), scaling, store.classes)


@pytest.fixture
def store(prepared: Prepared) -> PatchStore:
    return PatchStore(prepared[1].store("small"))


def mapped(store: PatchStore, bundle: Bundle, url: Path, side: int, *, missing: MissingChoice = "declared") -> MapInWork:
    work = MapInWork.lay_down(str(url), store=store, products=ALL, tile=side)
    predictor = TilePredictor(bundle, products=ALL, precision="float32", missing=missing)
    for tile in tiles("small", store.shape, side):
        work.write(tile, predictor.predict(store, tile))
    return work


def test_the_map_is_the_same_bytes_whatever_the_tile(store: PatchStore, bundle: Bundle, tmp_path: Path) -> None:
    one = mapped(store, bundle, tmp_path / "one.zarr", 64)
    for side in (128, 192):
        other = mapped(store, bundle, tmp_path / "other.zarr", side)
        for shown in ALL:
            assert one.array(shown)[:].tobytes() == other.array(shown)[:].tobytes()
    first, second = one.array(CLASS)[:], one.array(product("second"))[:]
    np.testing.assert_array_equal(first == UNLABELLED, second == UNLABELLED)
    assert ((first != second) | (first == UNLABELLED)).all()
    probabilities = one.array(product("probabilities"))[:].astype(int)
    ids = np.array([1, 2, 5])
    for layer, rank in ((first, 2), (second, 1)):
        chosen = (probabilities * (ids[:, None, None] == layer)).sum(axis=0)
        there = layer[0] != UNLABELLED
        np.testing.assert_array_equal(chosen[there], np.sort(probabilities, axis=0)[rank][there])
    assert (one.array(CONFIDENCE)[0] == np.where(there, probabilities.max(axis=0), 65535)).all()


@pytest.fixture
def gapped(tmp_path: Path) -> PatchStore:
    """A store whose first source has no data in a stripe across the corner of four tiles."""
    y, x = np.mgrid[:ROWS, :COLUMNS]
    optical = np.random.default_rng(0).integers(100, 200, (3, ROWS, COLUMNS)).astype(np.uint16)
    optical[:, (abs(y - x) < 3) & (y > 50) & (y < 80)] = 0
    write_raster(tmp_path / "optical.tif", optical, nodata=0)
    write_raster(tmp_path / "radar.tif", optical[:1].astype(np.float32) / 7)
    declared = [Source(name, ((RasterFile(str(tmp_path / f"{name}.tif")),),)) for name in ("optical", "radar")]
    grid = reference_grid(declared[0])
    classes = tuple(ClassName(i, name, "#000000") for i, name in ((1, "water"), (2, "forest"), (5, "town")))
    opened = tuple(open_source(source, grid) for source in declared)
    scene = OpenScene("small", grid, opened, NoLabels(), NoSplit(), classes)
    fill(Threads(1), scene, str(tmp_path / "s.zarr"), fingerprint="")
    return PatchStore(str(tmp_path / "s.zarr"))


def test_a_gap_across_tiles_changes_nothing_around_it(gapped: PatchStore, bundle: Bundle) -> None:
    """Beside pixels without data, a map has what the network says of the patches that training would have cut."""
    predictor = TilePredictor(bundle, products=[product("confidence", "float32")], precision="float32")
    one, many = np.empty((2, ROWS, COLUMNS), np.float32)
    for side, whole in ((256, one), (64, many)):
        for tile in tiles("small", gapped.shape, side):
            whole[tile.window.slices] = predictor.predict(gapped, tile)["confidence"][0]
    np.testing.assert_array_equal(one, many)
    everywhere, patch = Window(0, 0, ROWS, COLUMNS), bundle.spec.patch
    usable = gapped.usable(everywhere)
    rows, columns = np.nonzero(usable & near_any(np.pad(~usable, 2), 2))
    assert len(rows) > 100
    sources = scaled_window(gapped, everywhere, bundle.scaling, halo=bundle.spec.halo)
    corners = list(zip(rows, columns, strict=True))
    patches = [torch.from_numpy(np.stack([s[:, y : y + patch, x : x + patch] for y, x in corners])) for s in sources]
    with torch.inference_mode():
        wanted = bundle.network()(patches).logits.softmax(dim=1).amax(dim=1).numpy()
    np.testing.assert_allclose(one[rows, columns], wanted, atol=1e-5)
    assert np.isnan(one[~usable]).all()


def test_coverage_is_just_the_usable_pixels(store: PatchStore, bundle: Bundle, tmp_path: Path) -> None:
    work = mapped(store, bundle, tmp_path / "map.zarr", 64)
    products = ALL
    assert check_coverage(work, store, products, tile=64) == ROWS * COLUMNS - 24
    work.array(CONFIDENCE)[0, 70:72, 65] = CONFIDENCE.nodata
    with pytest.raises(IncompleteMapError, match="2 pixels of confidence in the tile at y 64, x 64"):
        check_coverage(work, store, products, tile=64)
    work.array(CLASS)[0, 0, 0] = 1  # where there is no data
    with pytest.raises(IncompleteMapError, match="1 pixels of class in the tile at y 0, x 0"):
        check_coverage(work, store, products, tile=64)


def test_a_tile_that_is_not_a_whole_shard_is_refused(store: PatchStore, tmp_path: Path) -> None:
    work = MapInWork.lay_down(str(tmp_path / "map.zarr"), store=store, products=[CLASS], tile=128)
    for window in (Window(0, 0, 64, 64), Window(64, 0, 86, 128)):
        result = {"class": np.zeros((1, window.height, window.width), np.uint8)}
        with pytest.raises(ValueError, match="not a whole shard"):
            work.write(Tile("small", window), result)
    with pytest.raises(ValueError, match="class of tile small/y0_x0 is float32; the map was laid down for uint8"):
        work.write(Tile("small", Window(0, 0, 128, 128)), {"class": np.zeros((1, 128, 128), np.float32)})


def test_another_scenes_sources_are_refused(store: PatchStore, bundle: Bundle) -> None:
    spec = NetworkSpec((SourceSpec("optical", 4), SourceSpec("radar", 1)), classes=3, patch=5)
    other = Bundle(spec, {}, bundle.scaling, bundle.classes)
    with pytest.raises(InputError, match=r"optical \(3 bands\), radar.*trained on optical \(4 bands\)"):
        check_sources(store, other)
    check_sources(store, bundle)


#: By policy, whether a pixel is mapped that the first source has data at, and the second: (both, first, second, none).
MAPPED: dict[MissingChoice, tuple[bool, bool, bool, bool]] = {
    "declared": (True, True, False, False),  # the first is to be excluded where it has none, the second filled
    "nodata": (True, False, False, False),
    "map": (True, True, True, False),
}


@pytest.fixture
def quartered(tmp_path: Path) -> PatchStore:
    """A store whose optical source has data above, whose radar, twice as fine, has data on the left; 80 x 70 pixels."""
    rows, columns = 80, 70
    optical = np.random.default_rng(0).integers(100, 200, (3, rows, columns)).astype(np.uint16)
    radar = np.random.default_rng(1).random((1, 2 * rows, 2 * columns)).astype(np.float32)
    optical[:, 40:] = 0
    radar[:, :, 61:] = np.nan  # from the middle of reference column 30 on
    write_raster(tmp_path / "optical.tif", optical, nodata=0)
    write_raster(tmp_path / "radar.tif", radar, transform=TRANSFORM @ Affine.scale(0.5), nodata=np.nan)
    files = [((RasterFile(str(tmp_path / f"{name}.tif")),),) for name in ("optical", "radar")]
    declared = [Source("optical", files[0]), Source("radar", files[1], missing="fill", scale=2)]
    grid = reference_grid(declared[0])
    classes = tuple(ClassName(i, name, "#000000") for i, name in ((1, "water"), (2, "forest"), (5, "town")))
    opened = tuple(open_source(source, grid) for source in declared)
    fill(
        Threads(1),
        OpenScene("small", grid, opened, NoLabels(), NoSplit(), classes),
        str(tmp_path / "s.zarr"),
        fingerprint="",
    )
    return PatchStore(str(tmp_path / "s.zarr"))


@pytest.mark.parametrize("missing", MAPPED)
def test_which_pixels_are_mapped_and_the_mask_of_sources(
    quartered: PatchStore, tmp_path: Path, missing: MissingChoice
) -> None:
    torch.manual_seed(0)
    spec = NetworkSpec((SourceSpec("optical", 3), SourceSpec("radar", 1, NARROW, scale=2)), classes=3, patch=5)
    scaling = {
        "optical": BandScaling(np.full(3, 100.0), np.full(3, 200.0), np.full(3, 0.5)),
        "radar": BandScaling(np.zeros(1), np.ones(1), np.full(1, 0.5)),
    }
    bundle = Bundle(spec, MIBFNet(spec).state_dict(), scaling, quartered.classes)
    work = mapped(quartered, bundle, tmp_path / "map.zarr", 64, missing=missing)
    y, x = np.mgrid[:80, :70]
    optical, radar = y < 40, x < 30
    mask = work.array(product("sources"))[0]
    np.testing.assert_array_equal(mask, optical + 2 * radar)
    there = work.array(CLASS)[0] != UNLABELLED
    for case, at in zip(
        MAPPED[missing], (optical & radar, optical & ~radar, ~optical & radar, ~optical & ~radar), strict=True
    ):
        assert (there[at] == case).all()
    assert check_coverage(work, quartered, ALL, tile=64, missing=missing) == there.sum()
    for other in MAPPED.keys() - {missing}:
        with pytest.raises(IncompleteMapError):
            check_coverage(work, quartered, ALL, tile=64, missing=other)
    work.array(product("sources"))[0, 50, 50] = 1
    with pytest.raises(IncompleteMapError, match="1 pixels of sources in the tile at y 0, x 0"):
        check_coverage(work, quartered, ALL, tile=64, missing=missing)


def test_the_mask_alone_needs_no_network(quartered: PatchStore, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = TilePredictor(bundle, products=[product("sources")], precision="float32")
    monkeypatch.setattr(predictor, "dense", None)
    tile = Tile("small", Window(0, 0, 64, 64))
    found = predictor.compute(replace(predictor.read(quartered, tile), sources=()))
    assert list(found) == ["sources"]
    assert found["sources"].shape == (1, 64, 64)


def test_the_checksum_of_a_tile_is_of_names_types_shapes_and_pixels() -> None:
    layer = np.arange(12, dtype=np.uint16).reshape(1, 3, 4)
    assert digest({"class": layer}) == digest({"class": np.asfortranarray(layer.astype(">u2"))})
    others: list[dict[str, NDArray[np.generic]]] = [
        {"second": layer},
        {"class": layer.astype(np.uint8)},
        {"class": layer.reshape(1, 4, 3)},
        {"class": layer + np.uint16(1)},
        {"class": layer, "second": layer},
        {"second": layer, "class": layer},
    ]
    assert len({digest({"class": layer}), *map(digest, others)}) == 1 + len(others)


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
def test_without_memory_fewer_rows_are_in_work_and_stay_as_few(
    store: PatchStore, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tile = Tile("small", Window(0, 0, 64, 64))
    predictor = TilePredictor(bundle, products=ALL, precision="float32")
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
    with pytest.raises(type(error)):
        predictor.predict(store, tile)
    assert predictor.rows == 1


def test_another_failure_is_not_taken_for_a_lack_of_memory(
    store: PatchStore, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = TilePredictor(bundle, products=[CLASS], precision="float32")
    rows = predictor.rows

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(Dense, "__call__", broken)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        predictor.predict(store, Tile("small", Window(0, 0, 64, 64)))
    assert predictor.rows == rows
