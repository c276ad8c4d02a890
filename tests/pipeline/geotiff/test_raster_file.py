"""Files assembled from encoded tiles: GDAL's pixels and overviews, whatever the parts; an update equals a new file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rio_cogeo.cogeo import cog_validate

from mibf.bundle.classes import ClassName
from pipeline.geotiff import tiff_header
from pipeline.geotiff.raster_file import RasterFile, assemble
from pipeline.geotiff.tile_codec import CogError
from pipeline.geotiff.tile_pyramid import TileKey, TileTree
from pipeline.maps.products import Product, product
from tests.support.raster_files import encode_parts, overview, whole
from tests.support.scenes import CRS, TRANSFORM

CLASSES = (ClassName(1, "water", "#0000ff"), ClassName(2, "forest", "#00ff00"), ClassName(5, "town", "#ff0000"))
PRODUCTS = [product("class"), product("confidence"), product("probabilities", "uint8"), product("kl", "float32")]


def describe(layer_product: Product, codes: NDArray[Any], **tags: str) -> RasterFile:
    grid = GeoBox(codes.shape[1:], TRANSFORM, CRS)
    return RasterFile(layer_product, whole(codes), grid, tuple(layer_product.band_names(CLASSES, [])), CLASSES, tags)


def random_codes(layer_product: Product, rows: int, columns: int, seed: int = 0) -> NDArray[Any]:
    """Codes in patches of 5 x 5 pixels, a fifth of them without a value."""
    generator = np.random.default_rng(seed)
    bands = len(layer_product.band_names(CLASSES, []))
    values = generator.integers(1, 6, (bands, -(-rows // 5), -(-columns // 5))).repeat(5, 1).repeat(5, 2)
    codes = values[:, :rows, :columns].astype(layer_product.dtype)
    codes[:, generator.random((rows, columns)) < 0.2] = layer_product.nodata
    return np.asarray(codes)


def write(path: Path, raster: RasterFile, codes: NDArray[Any], *, level: int) -> bytes:
    assemble(raster, 0, encode_parts(raster, codes, path.parent, level=level), path)
    return path.read_bytes()


@pytest.mark.parametrize("layer_product", PRODUCTS, ids=lambda p: p.name)
def test_pixels_and_overviews_are_those_of_the_cog_driver(tmp_path: Path, layer_product: Product) -> None:
    """Where each side is a multiple of the overviews' factors; for other sizes GDAL drops odd rows and columns."""
    codes = random_codes(layer_product, 1536, 1100)
    write(tmp_path / "ours.tif", describe(layer_product, codes), codes, level=1)
    with rasterio.open(tmp_path / "ours.tif") as dataset:
        profile = {**dataset.profile, "driver": "GTiff"}
        assert dataset.interleaving.name == ("band" if dataset.count > 1 else dataset.interleaving.name)
        factors = dataset.overviews(1)
    with rasterio.open(tmp_path / "plain.tif", "w", **profile) as dataset:
        dataset.write(codes)
    rasterio.shutil.copy(
        tmp_path / "plain.tif",
        tmp_path / "theirs.tif",
        driver="COG",
        overview_resampling=layer_product.overviews,
        blocksize=512,
    )
    with rasterio.open(tmp_path / "theirs.tif") as dataset:
        assert dataset.overviews(1) == factors == [2, 4]
    for level in (None, 0, 1):
        options = {} if level is None else {"overview_level": level}
        with (
            rasterio.open(tmp_path / "ours.tif", **options) as ours,
            rasterio.open(tmp_path / "theirs.tif", **options) as theirs,
        ):
            np.testing.assert_array_equal(ours.read(), theirs.read())


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 1700), st.integers(1, 1300), st.sampled_from(PRODUCTS[:2]))
@example(513, 1, PRODUCTS[0])
@example(1700, 3, PRODUCTS[0])
@example(5, 1300, PRODUCTS[1])
def test_overviews_halve_the_level_below_and_the_bytes_do_not_depend_on_parts(
    tmp_path: Path, rows: int, columns: int, layer_product: Product
) -> None:
    codes = random_codes(layer_product, rows, columns)
    raster = describe(layer_product, codes)
    content = write(tmp_path / "whole.tif", raster, codes, level=4)
    assert all(write(tmp_path / "parts.tif", raster, codes, level=level) == content for level in (0, 1))
    shapes = raster.tree.shapes
    assert max(shapes[-1]) <= 512
    assert len(shapes) == 1 or max(shapes[-2]) > 512
    for level, shape in enumerate(shapes):
        with rasterio.open(tmp_path / "whole.tif", **({"overview_level": level - 1} if level else {})) as dataset:
            assert dataset.shape == shape
            np.testing.assert_array_equal(dataset.read(), overview(codes, layer_product, level))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_updated_file_has_the_bytes_of_a_new_one(tmp_path: Path, data: st.DataObject) -> None:
    layer_product = data.draw(st.sampled_from(PRODUCTS[:3]))
    before = random_codes(layer_product, 1100, 1600)
    raster = describe(layer_product, before)
    write(tmp_path / "before.tif", raster, before, level=1)
    changed = data.draw(st.sets(st.sampled_from(raster.tree.tiles(0)), min_size=1, max_size=3))
    codes = before.copy()
    for key in changed:
        y, x = raster.tree.window(key).slices
        codes[:, y, x] = random_codes(layer_product, *codes[0, y, x].shape, seed=1)
    level = data.draw(st.integers(0, 2))
    parts = encode_parts(raster, codes, tmp_path, level=level, changed=changed, before=before)
    assert sum(len(part.keys) for part in parts) < sum(np.prod(raster.tree.tile_counts(level)) for level in range(3))
    assemble(raster, 0, parts, tmp_path / "after.tif", published=tmp_path / "before.tif")
    assert (tmp_path / "after.tif").read_bytes() == write(tmp_path / "new.tif", raster, codes, level=2)


def test_tiles_are_kept_only_of_a_file_with_the_same_description(tmp_path: Path) -> None:
    codes = random_codes(PRODUCTS[0], 600, 700)
    write(tmp_path / "a.tif", describe(PRODUCTS[0], codes, model="one"), codes, level=0)

    def matches(raster: RasterFile, path: Path = tmp_path / "a.tif") -> bool:
        with path.open("rb") as file:
            return raster.is_described_by(file)

    assert matches(describe(PRODUCTS[0], codes, model="one"))
    assert not matches(describe(PRODUCTS[0], codes, model="two"))
    assert not matches(describe(PRODUCTS[0], codes[:, 1:], model="one"))
    assert not matches(describe(PRODUCTS[1], codes, model="one"))
    (tmp_path / "cut.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:300])
    (tmp_path / "text.tif").write_text("not a TIFF at all")
    assert not any(matches(describe(PRODUCTS[0], codes, model="one"), tmp_path / name) for name in ("cut.tif", "text.tif"))


def test_large_files_have_64_bit_offsets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = random_codes(PRODUCTS[1], 700, 600)
    raster = describe(PRODUCTS[1], codes)
    classic = write(tmp_path / "classic.tif", raster, codes, level=0)
    monkeypatch.setattr(tiff_header, "_CLASSIC_BYTES", len(classic) - 1)
    big = write(tmp_path / "big.tif", raster, codes, level=0)
    assert [struct.unpack_from("<H", content, 2)[0] for content in (classic, big)] == [42, 43]
    assert cog_validate(tmp_path / "big.tif", strict=True) == (True, [], [])
    with rasterio.open(tmp_path / "big.tif") as dataset, rasterio.open(tmp_path / "classic.tif") as other:
        np.testing.assert_array_equal(dataset.read(), codes)
        assert dataset.tags() == other.tags()
        assert dataset.profile == other.profile
    changed = [TileKey(0, 1, 1)]
    parts = encode_parts(raster, codes, tmp_path, level=0, changed=changed, before=codes)
    assemble(raster, 0, parts, tmp_path / "again.tif", published=tmp_path / "big.tif")
    assert (tmp_path / "again.tif").read_bytes() == big


def test_bands_of_a_tile_follow_each_other_so_that_one_request_reads_them(tmp_path: Path) -> None:
    codes = random_codes(PRODUCTS[2], 600, 600)
    raster = describe(PRODUCTS[2], codes)
    write(tmp_path / "a.tif", raster, codes, level=0)
    with (tmp_path / "a.tif").open("rb") as file:
        _, offsets, sizes = tiff_header.tiles_of(tiff_header.read_directories(file)[0], len(CLASSES))
    assert (np.diff(offsets, axis=-1) == sizes[..., :-1] + tiff_header.LEADER + tiff_header.TRAILER).all()
    assert (np.diff(offsets.ravel()) > 0).all(), "row by row"


def test_missing_tile_is_an_error(tmp_path: Path) -> None:
    codes = random_codes(PRODUCTS[0], 600, 1200)
    raster = describe(PRODUCTS[0], codes)
    parts = encode_parts(raster, codes, tmp_path, level=0)
    with pytest.raises(CogError, match="was not built"):
        assemble(raster, 0, parts[:-1], tmp_path / "a.tif")


def test_tree_covers_each_level_and_every_tile_has_one_parent() -> None:
    tree = TileTree((1300, 2100))
    assert tree.shapes == [(1300, 2100), (650, 1050), (325, 525), (163, 263)]
    for level in range(1, 4):
        children = [child for key in tree.tiles(level) for child in tree.children(key)]
        assert sorted(children) == tree.tiles(level - 1)
        assert all(child.parent == key for key in tree.tiles(level) for child in tree.children(key))
    assert tree.with_ancestors([TileKey(0, 2, 4)]) == {
        TileKey(0, 2, 4),
        TileKey(1, 1, 2),
        TileKey(2, 0, 1),
        TileKey(3, 0, 0),
    }
