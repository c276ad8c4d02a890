"""What reading a file of the corpus must give: pixels at their place on the ground, found by numpy and pyproj alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pyproj
from affine import Affine
from odc.geo.geobox import GeoBox

from pipeline.grid import Window
from pipeline.rasters.header import RasterFile
from pipeline.rasters.raster import header, open_raster
from pipeline.rasters.resample import Alignment, read_aligned
from tests.corpus.case import COLUMNS, ROWS, Case, Truth

EVERYTHING = Window(0, 0, ROWS, COLUMNS)
PART = Window(1, 2, 3, 4)


def check(case: Case, file: RasterFile, truth: Truth) -> None:
    """Compare header, values, validity, place and nearest resampling of a file with what is known of it."""
    head = header(file)
    with open_raster(file) as raster:
        assert repr(raster.header) == repr(head)  # NaN is not equal to itself
        values, valid = raster.read(EVERYTHING)
        part, part_valid = raster.read(PART)
        shifted = _shifted(head.grid)
        warped, there = (
            (None, None)
            if head.grid.crs is None
            else read_aligned(raster, Alignment("resampled", resampling="nearest"), shifted, EVERYTHING)
        )
    assert head.bands == case.bands == len(values)
    assert {np.dtype(dtype) for dtype in head.dtypes} == {truth.values.dtype}
    assert values.dtype == truth.values.dtype
    np.testing.assert_array_equal(part, values[:, *PART.slices])
    np.testing.assert_array_equal(part_valid, valid[PART.slices])
    check_place(case, head.grid)
    found = north_up(values, valid, head.grid.affine)
    wanted = north_up(truth.values, truth.valid, case.affine)
    np.testing.assert_allclose(np.array(found[2]), np.array(wanted[2]), rtol=0, atol=1e-6 * abs(case.affine.a))
    np.testing.assert_array_equal(found[1], wanted[1], "validity")
    same_values(found[0][:, wanted[1]], wanted[0][:, wanted[1]], exact=case.scaling != "unscale")
    if warped is not None:
        near, near_valid = nearest(truth, case.affine, shifted)
        np.testing.assert_array_equal(there, near_valid, "validity of resampled pixels")
        same_values(warped[:, near_valid], near[:, near_valid], exact=False)


def same_values(found: np.ndarray, wanted: np.ndarray, *, exact: bool) -> None:
    """Compare pixels: bit by bit, or within the precision of float32."""
    if exact:
        np.testing.assert_array_equal(found, wanted)
    else:
        np.testing.assert_allclose(found.astype(np.float64), wanted.astype(np.float64), rtol=1e-6, atol=1e-6)


def check_place(case: Case, grid: GeoBox) -> None:
    """Check that a CRS puts the corners of a case where its own does, to a ten-millionth of a degree."""
    if case.wkt is None:
        assert grid.crs is None
        return
    assert grid.crs is not None
    corners = [case.affine * corner for corner in ((0, 0), (COLUMNS, 0), (0, ROWS))]
    x, y = zip(*corners, strict=True)
    wanted, found = (_to_degrees(crs).transform(x, y) for crs in (case.wkt, grid.crs.to_wkt()))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-7)


@cache
def _to_degrees(crs: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(pyproj.CRS(crs).to_2d(), "EPSG:4326", always_xy=True)


def north_up(values: np.ndarray, valid: np.ndarray, affine: Affine) -> tuple[np.ndarray, np.ndarray, Any]:
    """The same pixels with rows to the south and columns to the east, unless they are rotated; and their transform."""
    if affine.b or affine.d:
        return values, valid, tuple(affine)
    if affine == Affine.identity():  # an image without georeferencing: the first row is the top one
        return values, valid, tuple(affine)
    rows, columns = valid.shape
    if affine.e > 0:
        values, valid, affine = values[:, ::-1], valid[::-1], affine * Affine.translation(0, rows) * Affine.scale(1, -1)
    if affine.a < 0:
        values, valid = values[..., ::-1], valid[:, ::-1]
        affine = affine * Affine.translation(columns, 0) * Affine.scale(-1, 1)
    return values, valid, tuple(affine)


def _shifted(grid: GeoBox) -> GeoBox:
    """A grid of the same size that is shifted by parts of a pixel, whose first row and column are outside the raster."""
    return GeoBox(grid.shape, grid.affine * Affine.translation(-0.75, -0.6), grid.crs)


def nearest(truth: Truth, affine: Affine, target: GeoBox) -> tuple[np.ndarray, np.ndarray]:
    """Values and validity of the pixel that holds each centre of the target's pixels."""
    rows, columns = np.mgrid[: target.shape[0], : target.shape[1]] + 0.5
    x, y = target.affine * (columns, rows)
    at_x, at_y = (np.floor(v).astype(int) for v in ~affine * (x, y))
    inside = (at_x >= 0) & (at_x < COLUMNS) & (at_y >= 0) & (at_y < ROWS)
    at_y, at_x = np.where(inside, at_y, 0), np.where(inside, at_x, 0)
    return truth.values[:, at_y, at_x], truth.valid[at_y, at_x] & inside
