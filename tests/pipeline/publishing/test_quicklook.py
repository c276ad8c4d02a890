"""Quicklooks have the colours of the classes and are read from overviews."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.io import MemoryFile

from pipeline.codes import UNLABELLED
from pipeline.grid import Window
from pipeline.publishing.quicklook import SIDE, quicklook, quicklook_shape
from tests.support.published_maps import CLASSES, make_grid, write_classes

pytestmark = pytest.mark.usefixtures("offline")


def draw(path: Path) -> bytes:
    """Draw the quicklook of a raster of one file."""
    with rasterio.open(path) as dataset:
        shape = dataset.shape
    return quicklook([(str(path), Window(0, 0, *shape))], shape, CLASSES)


def pixels(png: bytes) -> np.ndarray:
    """Decode a PNG to (y, x, 4): red, green, blue, alpha."""
    with MemoryFile(png) as file, file.open() as picture:
        assert picture.driver == "PNG"
        table = picture.colormap(1)
        ids = picture.read(1)
    return np.array([table.get(i, (0, 0, 0, 0)) for i in range(256)])[ids]


def test_quicklook_has_class_colours_and_transparent_nodata(tmp_path: Path) -> None:
    ids = np.full((1500, 2100), UNLABELLED, np.uint8)
    ids[:500], ids[500:1000, :1000] = 1, 5
    found = pixels(draw(write_classes(tmp_path / "class.tif", ids)))
    assert found.shape == (731, SIDE, 4)
    assert found[100, 500].tolist() == [0x46, 0x6B, 0x9F, 255]
    assert found[300, 100].tolist() == [0xD1, 0x18, 0x2C, 255]
    assert (found[300, 800, 3], found[700, 500, 3]) == (0, 0)
    assert len(np.unique(found.reshape(-1, 4), axis=0)) == 3, "classes are not blended"


def test_quicklook_of_a_small_map_is_not_enlarged(tmp_path: Path) -> None:
    ids = np.array([[1, 2], [5, UNLABELLED], [1, 1]], np.uint8)
    found = pixels(draw(write_classes(tmp_path / "class.tif", ids)))
    assert found.shape == (3, 2, 4)
    assert found[1, 0].tolist() == [0xD1, 0x18, 0x2C, 255]
    assert quicklook_shape((3, 2)) == (3, 2)


@pytest.mark.filterwarnings("error")
def test_map_without_georeferencing_has_a_quicklook(tmp_path: Path) -> None:
    place = make_grid(Affine.identity(), None, (4, 5))
    with warnings.catch_warnings(action="ignore"):
        path = write_classes(tmp_path / "class.tif", np.ones((4, 5), np.uint8), place)
    png = draw(path)
    assert png.startswith(b"\x89PNG")


def test_quicklook_is_read_from_overviews(tmp_path: Path) -> None:
    path = write_classes(tmp_path / "class.tif", np.full((4096, 4096), 1, np.uint8))
    with rasterio.open(path, "r+") as target:  # does not update the overviews
        target.write(np.full((4096, 4096), 2, np.uint8), 1)
    assert (pixels(draw(path))[..., :3] == CLASSES[0].rgb).all()


def test_equal_maps_have_equal_quicklooks(tmp_path: Path) -> None:
    paths = [write_classes(tmp_path / name, np.eye(64, dtype=np.uint8)) for name in ("first.tif", "second.tif")]
    first, second = (draw(path) for path in paths)
    assert first == second


def test_quicklook_of_blocks_is_that_of_one_file(tmp_path: Path) -> None:
    """Where the scale is a whole number; elsewhere the pixels beside the blocks' edges may be the next ones."""
    ids = np.random.default_rng(0).choice([1, 2, 5], (96, 96)).repeat(32, 0).repeat(32, 1).astype(np.uint8)
    parts = [(y, x) for y in (0, 1536) for x in (0, 1536)]
    files = []
    for y, x in parts:
        window = Window(y, x, 1536, 1536)
        files.append((str(write_classes(tmp_path / f"class_y{y}_x{x}.tif", ids[window.slices])), window))
    assert quicklook(files, (3072, 3072), CLASSES) == draw(write_classes(tmp_path / "class.tif", ids))
