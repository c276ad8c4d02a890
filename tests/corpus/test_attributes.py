"""Attributes of CF that limit or reinterpret values mean the same in NetCDF and Zarr files and in any order of axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.rasters.header import RasterFile
from pipeline.rasters.raster import header, open_raster
from tests.corpus.array_files import write_netcdf, write_zarr
from tests.corpus.case import Case, Truth
from tests.corpus.oracle import EVERYTHING

#: Type of the values, attributes, and what they mean: values and validity of the pixels 1, 2, ... of the first band.
LIMITS: dict[str, tuple[str, dict[str, Any]]] = {
    "range": ("int16", {"valid_range": np.array([3, 60], np.int16)}),
    "range and fill": ("int16", {"valid_range": np.array([3, 60], np.int16), "_FillValue": np.int16(9)}),
    "least": ("int32", {"valid_min": np.int32(12)}),
    "most": ("float32", {"valid_max": np.float32(40)}),
    "NaN without fill": ("float32", {}),
    "NaN with fill": ("float64", {"_FillValue": np.float64(-9)}),
}


def meaning(pixels: np.ndarray, attributes: dict[str, Any]) -> np.ndarray:
    """Where all bands are valid by the attributes, as CF section 2.5.1 defines them."""
    least, most = attributes.get("valid_range", (attributes.get("valid_min", -np.inf), attributes.get("valid_max", np.inf)))
    valid = (pixels >= least) & (pixels <= most) & np.isfinite(pixels)
    return np.asarray((valid & (pixels != attributes.get("_FillValue", np.nan))).all(axis=0))


def written(folder: Path, container: str, order: str, truth: Truth, attributes: dict[str, Any]) -> RasterFile:
    """Write a picture with attributes as NetCDF 4 or Zarr 2."""
    write = {"netcdf": write_netcdf, "zarr": write_zarr}[container]
    case = Case(container, order if container == "netcdf" else f"v2-{order}", truth.case.dtype)
    return write(folder, case, truth, attributes)


@pytest.mark.parametrize("order", ["byx", "yxb"])
@pytest.mark.parametrize("container", ["netcdf", "zarr"])
@pytest.mark.parametrize("name", LIMITS)
def test_values_outside_the_valid_range_and_nan_are_not_data(name: str, container: str, order: str, tmp_path: Path) -> None:
    dtype, attributes = LIMITS[name]
    truth = Truth(Case(container, order, dtype))
    if dtype.startswith("float"):
        truth.raw[0, 1, 1] = np.nan
    file = written(tmp_path, container, order, truth, attributes)
    header(file)
    with open_raster(file) as raster:
        values, valid = raster.read(EVERYTHING)
    wanted = meaning(truth.raw, attributes)
    np.testing.assert_array_equal(valid, wanted)
    np.testing.assert_array_equal(values[:, valid], truth.raw[:, valid])


@pytest.mark.parametrize("order", ["byx", "yxb"])
@pytest.mark.parametrize("container", ["netcdf", "zarr"])
def test_unsigned_bytes_that_are_stored_as_signed_are_read_as_unsigned(container: str, order: str, tmp_path: Path) -> None:
    truth = Truth(Case(container, order, "int8"))
    bits = (np.arange(70).reshape(2, 5, 7) * 3 + 40).astype(np.uint8)
    truth.raw = bits.view(np.int8)
    file = written(tmp_path, container, order, truth, {"_Unsigned": "true", "_FillValue": np.int8(-6)})  # 250 as unsigned
    header(file)
    with open_raster(file) as raster:
        values, valid = raster.read(EVERYTHING)
    assert values.dtype == np.uint8
    np.testing.assert_array_equal(valid, (bits != 250).all(axis=0))
    np.testing.assert_array_equal(values[:, valid], bits[:, valid])
