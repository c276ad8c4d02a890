"""Files that cannot be read as a source are refused with the file's name and the reason; nothing else is raised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import scipy.io
import zarr

from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.rasters.header import RasterFile
from pipeline.rasters.raster import header, open_raster
from tests.corpus.case import COLUMNS, ROWS, Case, Truth
from tests.corpus.gdal_files import FORMATS, write_gdal
from tests.corpus.oracle import EVERYTHING

COMPLEX = np.arange(2 * ROWS * COLUMNS).reshape(2, ROWS, COLUMNS) * np.complex64(1 + 1j)


def alpha(container: str, dtype: str = "uint8") -> Callable[[Path], RasterFile]:
    """A file whose alpha band is among the selected bands, because all are."""

    def write(folder: Path) -> RasterFile:
        case = Case(container, next(iter(FORMATS[container].layouts)), dtype, "alpha", bands=FORMATS[container].bands)
        return dataclasses.replace(write_gdal(folder, case, Truth(case)), bands=None)

    return write


def complex_gdal(container: str) -> Callable[[Path], RasterFile]:
    """A file of complex numbers."""

    def write(folder: Path) -> RasterFile:
        case = Case(container, next(iter(FORMATS[container].layouts)), "float32")
        truth = Truth(case)
        truth.raw = COMPLEX
        return write_gdal(folder, dataclasses.replace(case, dtype="complex64"), truth)

    return write


def zarr_array(values: np.ndarray) -> Callable[[Path], RasterFile]:
    """A Zarr group with one array."""

    def write(folder: Path) -> RasterFile:
        root = zarr.create_group(folder / "a.zarr")
        array = root.create_array(
            "picture", shape=values.shape, dtype=values.dtype, dimension_names=("band", "y", "x")[-values.ndim :]
        )
        array[...] = values
        return RasterFile(str(folder / "a.zarr"), "picture")

    return write


def hdf5_complex(folder: Path) -> RasterFile:
    """An HDF5 file of complex numbers, which is a compound type."""
    with h5py.File(folder / "a.h5", "w") as file:
        file["picture"] = COMPLEX
        file["other"] = np.zeros((2, 2))
    return RasterFile(str(folder / "a.h5"), "picture")


def matlab(values: np.ndarray) -> Callable[[Path], RasterFile]:
    """A MATLAB file with one array."""

    def write(folder: Path) -> RasterFile:
        scipy.io.savemat(folder / "a.mat", {"picture": values})
        return RasterFile(str(folder / "a.mat"), "picture", ("y", "x", "band"))

    return write


def truncated(container: str, layout: str, keep: float) -> Callable[[Path], RasterFile]:
    """A file whose end is missing."""

    def write(folder: Path) -> RasterFile:
        chosen = FORMATS[container]
        case = Case(container, layout, "uint8" if "uint8" in chosen.dtypes else "float32", bands=chosen.bands)
        file = write_gdal(folder, case, Truth(case))
        pixels = Path(file.url.replace(".grd", ".gri"))
        content = pixels.read_bytes()
        pixels.write_bytes(content[: int(keep * len(content))])
        return file

    return write


def control_points(folder: Path) -> RasterFile:
    """A TIFF that only ground control points place."""
    points = [
        rasterio.control.GroundControlPoint(r, c, 13 + c / 10, 52 - r / 10) for r, c in ((0, 0), (0, 7), (5, 0), (5, 7))
    ]
    profile = {"driver": "GTiff", "count": 1, "height": ROWS, "width": COLUMNS, "dtype": "uint8"}
    with rasterio.open(folder / "a.tif", "w", **profile) as dataset:
        dataset.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
        dataset.write(np.ones((1, ROWS, COLUMNS), np.uint8))
    return RasterFile(str(folder / "a.tif"))


REFUSED: dict[str, tuple[Callable[[Path], RasterFile], str]] = {
    **{f"alpha taken as a band, {c}": (alpha(c), r"transparency \(alpha\)") for c in ("gtiff", "cog", "vrt", "png")},
    **{f"complex, {c}": (complex_gdal(c), "complex numbers") for c in ("gtiff", "cog", "vrt", "envi")},
    "complex, zarr": (zarr_array(COMPLEX), "complex"),
    "complex, matlab": (matlab(COMPLEX.transpose(1, 2, 0)), "complex"),
    "complex, hdf5": (hdf5_complex, "complex"),
    "text, zarr": (zarr_array(np.full((2, ROWS, COLUMNS), "a", "<U1")), "picture"),
    "dates, zarr": (zarr_array(np.zeros((2, ROWS, COLUMNS), "M8[s]")), "picture"),
    "one axis, zarr": (zarr_array(np.zeros(COLUMNS)), "axis|axes"),
    "no such axis order, matlab": (matlab(np.zeros((ROWS, COLUMNS, 2, 2))), "picture"),
    "ground control points": (control_points, "ground control points"),
    "truncated, envi": (truncated("envi", "bsq", 0.9), "truncated"),
    "truncated, gtiff": (truncated("gtiff", "strips", 0.5), "a.tif"),
    "truncated, png": (truncated("png", "png", 0.9), "truncated"),
    "truncated, jp2": (truncated("jp2", "jp2", 0.9), "truncated|code-stream"),
    "truncated, ehdr": (truncated("ehdr", "bil", 0.9), "truncated"),
    "truncated, rraster": (truncated("rraster", "bil", 0.9), "truncated"),
}


def read(file: RasterFile) -> np.ndarray:
    """Read a file as the product does: its header first."""
    header(file)
    with open_raster(file) as raster:
        return raster.read(EVERYTHING)[0]


@pytest.mark.filterwarnings("ignore:.*does not have a Zarr V3 specification")
@pytest.mark.parametrize("name", REFUSED)
def test_unusable_file_is_refused_with_its_name_and_the_reason(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    file = make(tmp_path)
    with pytest.raises(InputError, match=reason) as caught:
        read(file)
    assert Path(file.url).stem in str(caught.value)


def test_r_raster_larger_than_its_header_is_read(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 99, (1, 60, 70)).astype(np.uint8)
    profile = {"driver": "RRASTER", "count": 1, "height": 60, "width": 70, "dtype": "uint8", "crs": "EPSG:32633"}
    with rasterio.open(tmp_path / "a.grd", "w", **profile, transform=Case("rraster", "bil", "uint8").affine) as dataset:
        dataset.write(values)
    file = RasterFile(str(tmp_path / "a.grd"))
    header(file)
    with open_raster(file) as raster:
        np.testing.assert_array_equal(raster.read(Window(0, 0, 60, 70))[0], values)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_truncated_png_is_refused_and_bytes_after_its_end_are_not(tmp_path: Path, keep: float) -> None:
    values = np.random.default_rng(0).integers(0, 255, (3, 60, 70)).astype(np.uint8)
    with rasterio.open(tmp_path / "a.png", "w", driver="PNG", count=3, height=60, width=70, dtype="uint8") as dataset:
        dataset.write(values)
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: int(keep * len(content))])
    with pytest.raises(InputError, match=r"cut\.png: ends before its image does; it is truncated"):
        header(RasterFile(str(tmp_path / "cut.png")))
    (tmp_path / "more.png").write_bytes(content + bytes(100))
    header(RasterFile(str(tmp_path / "more.png")))
