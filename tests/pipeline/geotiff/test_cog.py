"""Cloud-optimised GeoTIFFs: validity, scales, colours and names; blocks with a VRT equal a single file."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.warp import transform
from rio_cogeo.cogeo import cog_validate

from mibf.bundle.classes import ClassName
from pipeline.geotiff import cog, raster_file, tiff_header
from pipeline.geotiff.tile_codec import CogError
from pipeline.grid import Window
from pipeline.maps.products import MAP_PRODUCTS, Product, product
from tests.support.raster_files import build_raster
from tests.support.scenes import CRS, TRANSFORM

ROWS, COLUMNS, BLOCK = 1300, 1100, 1024
GRID = GeoBox((ROWS, COLUMNS), TRANSFORM, CRS)
CLASSES = (ClassName(1, "water", "#0000ff"), ClassName(2, "forest & <more>", "#00ff00"), ClassName(5, "town", "#ff0000"))
SOURCES = ["optical", "radar"]
TAGS = {"mibf_run": "x & y"}
ALL = [product(name) for name in MAP_PRODUCTS]


def codes_of(layer_product: Product) -> NDArray[Any]:
    """Codes of a product (band, y, x): random 7 x 7 pixel squares, nodata in one corner."""
    y, x = np.mgrid[:ROWS, :COLUMNS] // 7
    bands = len(layer_product.band_names(CLASSES, SOURCES))
    choice = np.random.default_rng(3).integers(0, 4, (bands, int(y.max()) + 1, int(x.max()) + 1))[:, y, x]
    if layer_product.name in ("class", "second_class"):
        values = np.array([1, 2, 5, 2])[choice]
    elif layer_product.name == "sources":
        values = choice % 3 + 1
    else:
        values = choice * 100 + 7
    codes = values.astype(layer_product.dtype)
    codes[:, :300, :200] = layer_product.nodata
    return np.asarray(codes)


def build(
    folder: Path,
    layer_product: Product,
    codes: NDArray[Any],
    *,
    block: int = BLOCK,
    grid: GeoBox = GRID,
) -> Path:
    """Build all files of a product; return the file that covers the full grid."""
    names = layer_product.band_names(CLASSES, SOURCES)
    return build_raster(folder, layer_product, codes, block=block, grid=grid, names=names, classes=CLASSES, tags=TAGS)


def test_pieces_are_one_file_or_one_per_block() -> None:
    assert cog.pieces("class", (1024, 700), block=1024) == [("class.tif", Window(0, 0, 1024, 700))]
    parts = cog.pieces("class", (1025, 700), block=1024)
    assert parts == [("class_y0_x0.tif", Window(0, 0, 1024, 700)), ("class_y1024_x0.tif", Window(1024, 0, 1, 700))]
    assert cog.pieces("kl", (600, 600), block=512)[3] == ("kl_y512_x512.tif", Window(512, 512, 88, 88))
    for wrong in (0, 500, 768):
        with pytest.raises(ValueError, match=f"must be a multiple of 512 pixels, got {wrong}"):
            cog.pieces("class", (600, 600), block=wrong)
    assert [cog.block_side(32768, tile) for tile in (512, 2048, 192)] == [32768, 32768, 33792]


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every product as one file."""
    folder = tmp_path_factory.mktemp("single_file")
    return {layer_product.name: build(folder, layer_product, codes_of(layer_product), block=2048) for layer_product in ALL}


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every product in four files and a VRT."""
    folder = tmp_path_factory.mktemp("blocks")
    return {layer_product.name: build(folder, layer_product, codes_of(layer_product)) for layer_product in ALL}


def piece_files(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}_y*.tif"))


@pytest.mark.parametrize("layer_product", ALL, ids=lambda p: p.name)
def test_single_file_and_blocks_with_vrt_are_the_same_raster(
    single_file: dict[str, Path], blocks: dict[str, Path], layer_product: Product
) -> None:
    codes, names = codes_of(layer_product), layer_product.band_names(CLASSES, SOURCES)
    assert single_file[layer_product.name].suffix == ".tif"
    assert blocks[layer_product.name].suffix == ".vrt"
    for path in (single_file[layer_product.name], blocks[layer_product.name]):
        with rasterio.open(path) as dataset:
            assert (dataset.crs, dataset.transform, dataset.shape) == (CRS, TRANSFORM, (ROWS, COLUMNS))
            assert set(dataset.dtypes) == {layer_product.dtype}
            np.testing.assert_array_equal(dataset.nodata, layer_product.nodata)
            assert set(dataset.scales) == {layer_product.scale}
            assert set(dataset.offsets) == {0.0}
            assert {unit or "" for unit in dataset.units} == {layer_product.unit}
            assert list(dataset.descriptions) == names
            assert dataset.tags()["mibf_run"] == "x & y"
            np.testing.assert_array_equal(dataset.read(), codes)
    pieces = piece_files(blocks[layer_product.name])
    assert len(pieces) == 4
    for path in [single_file[layer_product.name], *pieces]:
        assert cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(blocks[layer_product.name].parent / f"{layer_product.name}_y1024_x1024.tif") as dataset:
        assert dataset.transform == TRANSFORM * Affine.translation(1024, 1024)
        assert set(dataset.scales) == {layer_product.scale}


@pytest.mark.parametrize("name", ["class", "second_class"])
def test_class_colours_and_names_are_in_every_file_and_the_vrt(
    single_file: dict[str, Path], blocks: dict[str, Path], name: str, tmp_path: Path
) -> None:
    for path in (single_file[name], blocks[name], *piece_files(blocks[name])):
        with rasterio.open(path) as dataset:
            colors, tags = dataset.colormap(1), dataset.tags(1)
            assert dataset.colorinterp[0].name == "palette"
        for c in CLASSES:
            assert "#" + bytes(colors[c.id][:3]).hex() == c.color
            assert tags[f"class_{c.id}"] == c.name
        assert colors[255][3] == 0, "nodata is transparent"
        # GDAL copies category names into a VRT. Use a new path: overwriting a VRT would delete the files that it references.
        rasterio.shutil.copy(path, tmp_path / f"{path.name}.vrt", driver="VRT")
        categories = ElementTree.parse(tmp_path / f"{path.name}.vrt").findall(".//CategoryNames/Category")
        assert [category.text or "" for category in categories] == ["", "water", "forest & <more>", "", "", "town"]


def test_overviews_use_mode_for_classes_nearest_for_mask_mean_for_measures(tmp_path: Path) -> None:
    """Each overview pixel covers 2 x 2 pixels. A mask pixel is one of the four: a mix could show a source that none has."""
    quads = np.random.default_rng(0).integers(1, 4, (600, 600)).astype(np.uint16)
    for layer_product in (product("class"), product("sources"), product("confidence")):
        fine = quads.astype(layer_product.dtype)[None]
        path = build(tmp_path, layer_product, fine, grid=GeoBox((600, 600), TRANSFORM, CRS))
        with rasterio.open(path) as dataset:
            assert dataset.overviews(1) == [2]
        with rasterio.open(path, overview_level=0) as dataset:
            found = dataset.read(1)
        four = fine[0].reshape(300, 2, 300, 2).transpose(0, 2, 1, 3).reshape(300, 300, 4)
        counts = np.stack([(four == value).sum(axis=-1) for value in range(4)], axis=-1)
        if layer_product.name == "class":
            assert (np.take_along_axis(counts, found[..., None].astype(int), -1)[..., 0] == counts.max(axis=-1)).all()
        elif layer_product.name == "sources":
            assert (np.take_along_axis(counts, found[..., None].astype(int), -1) > 0).all()
        else:
            assert (np.abs(found - four.mean(axis=-1)) <= 0.5).all()


def test_decimated_read_of_a_vrt_uses_overviews_of_its_pieces(blocks: dict[str, Path]) -> None:
    layer_product = product("class")
    with rasterio.open(blocks["class"]) as dataset:
        thin = dataset.read(1, out_shape=(ROWS // 4, COLUMNS // 4))
    assert set(np.unique(thin)) == {1, 2, 5, 255}
    assert (thin[:74, :49] == layer_product.nodata).all()


@pytest.mark.parametrize(
    ("crs", "transform"),
    [("EPSG:4326", Affine(0.001, 0, 12.0, 0, -0.001, 52.0)), (None, Affine(2.0, 0.5, 3.0, 0.25, -2.0, 7.0))],
)
def test_vrt_keeps_geographic_rotated_and_missing_georeferencing(tmp_path: Path, crs: str | None, transform: Affine) -> None:
    layer_product = product("confidence", "float32")
    codes = np.random.default_rng(0).random((1, 520, 530)).astype(np.float32)
    codes[0, :5] = np.nan
    path = build(tmp_path, layer_product, codes, block=512, grid=GeoBox((520, 530), transform, crs))
    with rasterio.open(path) as dataset:
        assert dataset.crs == (crs and rasterio.CRS.from_string(crs))
        assert dataset.transform == transform
        assert np.isnan(dataset.nodata)
        np.testing.assert_array_equal(dataset.read(), codes)


@pytest.mark.parametrize(
    ("sources", "dtype"), [(9, "uint16"), (12, "uint16"), (17, "uint32"), (33, "uint64"), (64, "uint64")]
)
def test_mask_of_more_than_eight_sources_has_a_bit_for_each(tmp_path: Path, sources: int, dtype: str) -> None:
    layer_product = product("sources", sources=sources)
    assert layer_product.dtype == dtype
    codes = np.full((1, 20, 30), 1 << (sources - 1), dtype)
    with rasterio.open(build(tmp_path, layer_product, codes, grid=GeoBox((20, 30), TRANSFORM, CRS))) as dataset:
        assert dataset.dtypes == (dtype,)
        assert dataset.nodata == 0
        np.testing.assert_array_equal(dataset.read(), codes)


def test_invalid_cog_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster_file, "cog_validate", lambda *_, **__: (False, ["it is not tiled"], []))
    with pytest.raises(CogError, match=r"class\.tif: not a valid cloud-optimised GeoTIFF: it is not tiled"):
        build(tmp_path, product("class"), np.ones((1, 20, 30), np.uint8), grid=GeoBox((20, 30), TRANSFORM, CRS))


def test_tiles_that_gdal_does_not_find_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tiff_header.make_header

    def shifted(*arguments: Any) -> Any:
        header, offsets = real(*arguments)
        return header, [places + 8 for places in offsets]

    monkeypatch.setattr(tiff_header, "make_header", shifted)
    with pytest.raises(CogError, match=r"class\.tif: GDAL does not find the tiles of level 0"):
        build(tmp_path, product("class"), np.ones((1, 20, 30), np.uint8), grid=GeoBox((20, 30), TRANSFORM, CRS))


ROTATED_POLE = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +to_meter=0.0174532925199433 +type=crs"
AFFINE_ENGINEERING = (
    'ENGCRS["site",EDATUM["site datum"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'
)
GEOID_SHIFTED = "+proj=laea +lat_0=52 +lon_0=10 +ellps=bessel +towgs84=598.1,73.7,418.2,0.202,0.045,-2.455,6.7 +type=crs"


@pytest.mark.parametrize("name", ["class", "confidence"])
@pytest.mark.parametrize("crs", [ROTATED_POLE, AFFINE_ENGINEERING, GEOID_SHIFTED, "EPSG:4326", "EPSG:3035", CRS])
@pytest.mark.parametrize("block", [1024, 512])
def test_published_raster_has_the_crs_of_the_grid(tmp_path: Path, crs: str, name: str, block: int) -> None:
    layer_product = product(name)
    codes = codes_of(layer_product)[:, :520, :30]
    wanted = rasterio.CRS.from_user_input(crs)
    grid = GeoBox((520, 30), Affine(0.01, 0, -3, 0, -0.01, 2), wanted.to_wkt(version="WKT2_2019"))
    path = build(tmp_path, layer_product, codes, block=block, grid=grid)
    with rasterio.open(path) as dataset:
        assert dataset.crs == wanted
        found = dataset.read()
        if "proj" in crs or "EPSG" in crs:  # coordinates, too: the order of the axes is kept
            x, y = dataset.transform * (7.5, 9.5)
            there = transform(dataset.crs, "EPSG:4326", [x], [y])
            assert np.allclose(there, transform(crs, "EPSG:4326", [-3 + 0.075], [2 - 0.095]))
    np.testing.assert_array_equal(found, codes)
    if block == 1024 and name == "class":
        assert "forest &amp; &lt;more&gt;" in Path(f"{path}.aux.xml").read_text()
    if name == "confidence" and crs in ("EPSG:4326", "EPSG:3035", CRS):
        assert not list(tmp_path.glob("*.aux.xml")), "GeoTIFF holds it"
