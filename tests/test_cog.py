"""Cloud-optimised GeoTIFFs: valid, with scales, colours and names; a block each with a VRT that reads as one file does."""

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
from rio_cogeo.cogeo import cog_validate

from mibf.bundle import ClassName
from pipeline import cog
from pipeline.grid import Window
from pipeline.products import MAP_PRODUCTS, Product, product
from tests.conftest import CRS, TRANSFORM

ROWS, COLUMNS, BLOCK = 1300, 1100, 1024
GRID = GeoBox((ROWS, COLUMNS), TRANSFORM, CRS)
CLASSES = (ClassName(1, "water", "#0000ff"), ClassName(2, "forest & <more>", "#00ff00"), ClassName(5, "town", "#ff0000"))
SOURCES = ["optical", "radar"]
TAGS = {"mibf_run": "x & y"}
ALL = [product(name) for name in MAP_PRODUCTS]


def codes_of(shown: Product) -> NDArray[Any]:
    """Codes of a product (band, y, x), in fields of 7 pixels, those of a corner with none."""
    y, x = np.mgrid[:ROWS, :COLUMNS] // 7
    bands = len(shown.band_names(CLASSES, SOURCES))
    draw = np.random.default_rng(3).integers(0, 4, (bands, int(y.max()) + 1, int(x.max()) + 1))[:, y, x]
    if shown.name in ("class", "second"):
        values = np.array([1, 2, 5, 2])[draw]
    elif shown.name == "sources":
        values = draw % 3 + 1
    else:
        values = draw * 100 + 7
    codes = values.astype(shown.dtype)
    codes[:, :300, :200] = shown.nodata
    return np.asarray(codes)


def build(
    folder: Path, shown: Product, codes: NDArray[Any], *, block: int = BLOCK, grid: GeoBox = GRID, name: str | None = None
) -> Path:
    """All files of a product; the one that is the whole."""
    shape: Any = codes.shape[1:]
    names = shown.band_names(CLASSES, SOURCES)
    named: dict[str, Any] = {"grid": grid, "names": names, "classes": CLASSES, "tags": TAGS}
    parts = cog.pieces(name or shown.name, shape, block=block)
    for file, window in parts:
        cog.build(lambda w: codes[:, *w.slices], shown, window, folder / file, **named)
    if len(parts) == 1:
        return folder / parts[0][0]
    path = folder / f"{name or shown.name}.vrt"
    path.write_text(cog.vrt(parts, shown, **named), "utf-8")
    return path


def test_one_file_or_one_a_block() -> None:
    assert cog.pieces("class", (1024, 700), block=1024) == [("class.tif", Window(0, 0, 1024, 700))]
    parts = cog.pieces("class", (1025, 700), block=1024)
    assert parts == [("class_y0_x0.tif", Window(0, 0, 1024, 700)), ("class_y1024_x0.tif", Window(1024, 0, 1, 700))]
    assert cog.pieces("rate", (600, 600), block=512)[3] == ("rate_y512_x512.tif", Window(512, 512, 88, 88))
    for wrong in (0, 500, 768):
        with pytest.raises(ValueError, match=f"blocks of {wrong} pixels; a multiple of 512"):
            cog.pieces("class", (600, 600), block=wrong)
    assert [cog.block_side(32768, tile) for tile in (512, 2048, 192)] == [32768, 32768, 33792]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every product as one file."""
    folder = tmp_path_factory.mktemp("whole")
    return {shown.name: build(folder, shown, codes_of(shown), block=2048) for shown in ALL}


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every product in four files and a VRT."""
    folder = tmp_path_factory.mktemp("blocks")
    return {shown.name: build(folder, shown, codes_of(shown)) for shown in ALL}


def pieces_beside(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}_y*.tif"))


@pytest.mark.parametrize("shown", ALL, ids=lambda p: p.name)
def test_one_file_and_its_blocks_are_the_same_raster(
    whole: dict[str, Path], blocks: dict[str, Path], shown: Product
) -> None:
    codes, names = codes_of(shown), shown.band_names(CLASSES, SOURCES)
    assert whole[shown.name].suffix == ".tif"
    assert blocks[shown.name].suffix == ".vrt"
    for path in (whole[shown.name], blocks[shown.name]):
        with rasterio.open(path) as dataset:
            assert (dataset.crs, dataset.transform, dataset.shape) == (CRS, TRANSFORM, (ROWS, COLUMNS))
            assert set(dataset.dtypes) == {shown.dtype}
            np.testing.assert_array_equal(dataset.nodata, shown.nodata)
            assert set(dataset.scales) == {shown.scale}
            assert set(dataset.offsets) == {0.0}
            assert {unit or "" for unit in dataset.units} == {shown.unit}
            assert list(dataset.descriptions) == names
            assert dataset.tags()["mibf_run"] == "x & y"
            np.testing.assert_array_equal(dataset.read(), codes)
    pieces = pieces_beside(blocks[shown.name])
    assert len(pieces) == 4
    for path in [whole[shown.name], *pieces]:
        assert cog_validate(path, strict=True) == (True, [], [])
    with rasterio.open(blocks[shown.name].parent / f"{shown.name}_y1024_x1024.tif") as dataset:
        assert dataset.transform == TRANSFORM * Affine.translation(1024, 1024)
        assert set(dataset.scales) == {shown.scale}
    assert not list(whole[shown.name].parent.glob("*plain*"))


@pytest.mark.parametrize("name", ["class", "second"])
def test_colours_and_names_of_classes_are_in_every_file_and_the_vrt(
    whole: dict[str, Path], blocks: dict[str, Path], name: str, tmp_path: Path
) -> None:
    for path in (whole[name], blocks[name], *pieces_beside(blocks[name])):
        with rasterio.open(path) as dataset:
            colors, tags = dataset.colormap(1), dataset.tags(1)
            assert dataset.colorinterp[0].name == "palette"
        for c in CLASSES:
            assert "#" + bytes(colors[c.id][:3]).hex() == c.color
            assert tags[f"class_{c.id}"] == c.name
        assert colors[255][3] == 0, "nothing is transparent"
        # GDAL writes what it knows into a VRT. A new one each time: it would remove an old one with all that it names.
        rasterio.shutil.copy(path, tmp_path / f"{path.name}.vrt", driver="VRT")
        told = ElementTree.parse(tmp_path / f"{path.name}.vrt").findall(".//CategoryNames/Category")
        assert [category.text or "" for category in told] == ["", "water", "forest & <more>", "", "", "town"]


def test_overviews_are_the_mode_of_classes_a_pixel_of_the_mask_and_the_mean_of_measures(tmp_path: Path) -> None:
    """Of 2 x 2 pixels each; the mask's are no mix of two, which could tell of a source that none of them has."""
    quads = np.random.default_rng(0).integers(1, 4, (600, 600)).astype(np.uint16)
    for shown in (product("class"), product("sources"), product("confidence")):
        fine = quads.astype(shown.dtype)[None]
        path = build(tmp_path, shown, fine, grid=GeoBox((600, 600), TRANSFORM, CRS))
        with rasterio.open(path) as dataset:
            assert dataset.overviews(1) == [2]
        with rasterio.open(path, overview_level=0) as dataset:
            found = dataset.read(1)
        four = fine[0].reshape(300, 2, 300, 2).transpose(0, 2, 1, 3).reshape(300, 300, 4)
        counts = np.stack([(four == value).sum(axis=-1) for value in range(4)], axis=-1)
        if shown.name == "class":
            assert (np.take_along_axis(counts, found[..., None].astype(int), -1)[..., 0] == counts.max(axis=-1)).all()
        elif shown.name == "sources":
            assert (np.take_along_axis(counts, found[..., None].astype(int), -1) > 0).all()
        else:
            assert (np.abs(found - four.mean(axis=-1)) <= 0.5).all()


def test_a_vrt_reads_thinned_out_from_the_overviews_of_its_pieces(blocks: dict[str, Path]) -> None:
    shown = product("class")
    with rasterio.open(blocks["class"]) as dataset:
        thin = dataset.read(1, out_shape=(ROWS // 4, COLUMNS // 4))
    assert set(np.unique(thin)) == {1, 2, 5, 255}
    assert (thin[:74, :49] == shown.nodata).all()


@pytest.mark.parametrize(
    ("crs", "transform"),
    [("EPSG:4326", Affine(0.001, 0, 12.0, 0, -0.001, 52.0)), (None, Affine(2.0, 0.5, 3.0, 0.25, -2.0, 7.0))],
)
def test_grids_in_degrees_turned_or_without_a_crs_come_through_a_vrt(
    tmp_path: Path, crs: str | None, transform: Affine
) -> None:
    shown = product("confidence", "float32")
    codes = np.random.default_rng(0).random((1, 520, 530)).astype(np.float32)
    codes[0, :5] = np.nan
    path = build(tmp_path, shown, codes, block=512, grid=GeoBox((520, 530), transform, crs))
    with rasterio.open(path) as dataset:
        assert dataset.crs == (crs and rasterio.CRS.from_string(crs))
        assert dataset.transform == transform
        assert np.isnan(dataset.nodata)
        np.testing.assert_array_equal(dataset.read(), codes)


def test_more_than_eight_sources_are_a_mask_of_sixteen_bits(tmp_path: Path) -> None:
    shown = product("sources", sources=9)
    codes = np.full((1, 20, 30), 256, np.uint16)
    with rasterio.open(build(tmp_path, shown, codes, grid=GeoBox((20, 30), TRANSFORM, CRS))) as dataset:
        assert dataset.nodata == 0
        assert (dataset.read() == 256).all()


def test_memory_is_that_of_a_square_whatever_the_window(tmp_path: Path) -> None:
    asked: list[Window] = []

    def read(window: Window) -> NDArray[Any]:
        asked.append(window)
        return np.ones((1, window.height, window.width), np.uint8)

    named: dict[str, Any] = {"grid": GRID, "names": ["class"], "classes": CLASSES, "tags": {}}
    cog.build(read, product("class"), Window(512, 0, 788, 1100), tmp_path / "a.tif", **named)
    assert len(asked) == 6
    assert all(max(w.height, w.width) <= cog.TILE for w in asked)
    assert min(w.y for w in asked) == 512


def test_what_is_not_valid_is_not_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cog, "cog_validate", lambda *_, **__: (False, ["it is not tiled"], []))
    with pytest.raises(cog.CogError, match=r"class\.tif: not a valid cloud-optimised GeoTIFF: it is not tiled"):
        build(tmp_path, product("class"), np.ones((1, 20, 30), np.uint8), grid=GeoBox((20, 30), TRANSFORM, CRS))


def test_a_file_that_holds_other_pixels_than_were_written_is_not_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rasterio.shutil.copy

    def copy(plain: Path, path: Path, **options: Any) -> None:
        with rasterio.open(plain, "r+") as dataset:
            dataset.write(np.full((1, 1, 1), 2, np.uint8), window=rasterio.windows.Window(599, 519, 1, 1))
        real(plain, path, **options)

    monkeypatch.setattr(rasterio.shutil, "copy", copy)
    with pytest.raises(cog.CogError, match=r"class\.tif: does not hold the pixels that were written"):
        build(tmp_path, product("class"), np.ones((1, 520, 600), np.uint8), grid=GeoBox((520, 600), TRANSFORM, CRS))
