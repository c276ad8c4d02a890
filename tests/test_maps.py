"""Maps: tiles in whole shards, coverage before publishing, valid COGs with their colours and names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rio_cogeo.cogeo import cog_validate

from jobs.workspace import Workspace
from mibf.bundle import Bundle, ClassName
from mibf.errors import InputError
from mibf.network import MIBFNet
from mibf.scaling import scaling_from_json
from mibf.spec import NARROW, NetworkSpec, SourceSpec
from pipeline import storage
from pipeline.batches import scaled_window
from pipeline.engine import Threads
from pipeline.fill import OpenScene, fill
from pipeline.grid import Window
from pipeline.labels import UNLABELLED, NoLabels
from pipeline.maps import CLASS, PRODUCTS, IncompleteMapError, MapInWork, check_coverage, publish_product
from pipeline.predict import TilePredictor, check_sources
from pipeline.raster import RasterFile
from pipeline.scene import Source, open_source, reference_grid
from pipeline.split import NoSplit, near_any
from pipeline.store import PatchStore
from pipeline.tiles import Tile, tiles
from tests.conftest import COLUMNS, CRS, ROWS, TRANSFORM, SmallScene, write_raster

CONFIDENCE = PRODUCTS["confidence"]
Prepared = tuple[SmallScene, Workspace]


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


def mapped(store: PatchStore, bundle: Bundle, url: Path, side: int) -> MapInWork:
    products = list(PRODUCTS.values())
    work = MapInWork.lay_down(str(url), store=store, products=products, tile=side)
    predictor = TilePredictor(bundle, products=[p.name for p in products], precision="float32")
    for tile in tiles("small", store.shape, side):
        work.write(tile, predictor.predict(store, tile))
    return work


def test_the_map_is_the_same_bytes_whatever_the_tile(store: PatchStore, bundle: Bundle, tmp_path: Path) -> None:
    one = mapped(store, bundle, tmp_path / "one.zarr", 64)
    for side in (128, 192):
        other = mapped(store, bundle, tmp_path / "other.zarr", side)
        for product in PRODUCTS.values():
            assert one.array(product)[:].tobytes() == other.array(product)[:].tobytes()


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
    predictor = TilePredictor(bundle, products=["confidence"], precision="float32")
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
    products = list(PRODUCTS.values())
    assert check_coverage(work, store, products, tile=64) == ROWS * COLUMNS - 24
    work.array(CONFIDENCE)[0, 70:72, 65] = np.nan
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


def test_another_scenes_sources_are_refused(store: PatchStore, bundle: Bundle) -> None:
    spec = NetworkSpec((SourceSpec("optical", 4), SourceSpec("radar", 1)), classes=3, patch=5)
    other = Bundle(spec, {}, bundle.scaling, bundle.classes)
    with pytest.raises(InputError, match=r"optical \(3 bands\), radar.*trained on optical \(4 bands\)"):
        check_sources(store, other)
    check_sources(store, bundle)


@pytest.fixture(scope="module")
def published(prepared: Prepared, bundle: Bundle, tmp_path_factory: Any) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    store = PatchStore(prepared[1].store("small"))
    work = mapped(store, bundle, folder / "map.zarr", 64)
    paths = {}
    for product in PRODUCTS.values():
        paths[product.name] = folder / "out" / f"{product.name}.tif"
        url = str(paths[product.name])
        publish_product(work, product, url, grid=store.grid, classes=store.classes, tags={"mibf_run": "x"})
    paths["work"] = folder / "map.zarr"
    return paths


def test_products_are_cogs_on_the_scenes_grid(published: dict[str, Path], store: PatchStore) -> None:
    work = MapInWork(str(published["work"]))
    for product in PRODUCTS.values():
        path = published[product.name]
        valid, errors, warnings = cog_validate(path, strict=True)
        assert (valid, errors, warnings) == (True, [], [])
        with rasterio.open(path) as dataset:
            assert dataset.crs == CRS
            assert dataset.transform == TRANSFORM
            assert dataset.shape == store.shape
            assert set(dataset.dtypes) == {product.dtype}
            assert dataset.tags()["mibf_run"] == "x"
            np.testing.assert_array_equal(dataset.read(), work.array(product)[:])


def test_the_class_map_has_colours_names_and_nodata(published: dict[str, Path], store: PatchStore) -> None:
    with rasterio.open(published["class"]) as dataset:
        assert dataset.nodata == UNLABELLED
        colors = dataset.colormap(1)
        for c in store.classes:
            assert "#" + bytes(colors[c.id][:3]).hex() == c.color
            assert dataset.tags(1)[f"class_{c.id}"] == c.name
        assert set(np.unique(dataset.read(1))) <= {1, 2, 5, UNLABELLED}
    beside = Path(f"{published['class']}.aux.xml").read_text()
    assert "<Category></Category><Category>water</Category><Category>forest</Category>" in beside


def test_confidence_is_a_probability_where_mapped(published: dict[str, Path]) -> None:
    with rasterio.open(published["confidence"]) as dataset:
        values = dataset.read(1)
    assert np.isnan(values[:4, :6]).all()
    mapped_values = values[np.isfinite(values)]
    assert len(mapped_values) == ROWS * COLUMNS - 24
    assert mapped_values.min() >= 1 / 3
    assert mapped_values.max() <= 1


def test_bands_are_named_by_class_and_source(published: dict[str, Path]) -> None:
    with rasterio.open(published["probabilities"]) as dataset:
        assert dataset.descriptions == ("water", "forest", "town")
        probabilities = dataset.read()
    with rasterio.open(published["class"]) as dataset:
        classes = dataset.read(1)
    chosen = classes != UNLABELLED
    np.testing.assert_allclose(probabilities[:, chosen].sum(axis=0), 1, atol=1e-5)
    assert (np.array([1, 2, 5])[probabilities[:, chosen].argmax(axis=0)] == classes[chosen]).all()
    with rasterio.open(published["gate"]) as dataset:
        assert dataset.descriptions == ("optical", "radar")
        np.testing.assert_allclose(np.nansum(dataset.read(), axis=0)[chosen], 1, atol=1e-5)
