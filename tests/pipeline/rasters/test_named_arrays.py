"""Arrays of Zarr, NetCDF and HDF5 files: axis order, orientation, position, CRS and no data, with asymmetric pictures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pyproj
import pytest
import rasterio
import rioxarray  # noqa: F401  # registers xarray's `rio` accessor
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.rasters.header import Header, RasterFile
from pipeline.rasters.raster import header, open_raster
from pipeline.scenes.source import Source, open_source
from pipeline.stac.masks import Mask
from tests.support.scenes import CRS, TRANSFORM, write_raster

BANDS, ROWS, COLUMNS = 3, 5, 7
#: No symmetry: a picture that is turned, mirrored or transposed differs everywhere.
VALUES = (np.arange(BANDS * ROWS * COLUMNS).reshape(BANDS, ROWS, COLUMNS) + 1).astype(np.int16)
Y = TRANSFORM.f + TRANSFORM.e * (np.arange(ROWS) + 0.5)
X = TRANSFORM.c + TRANSFORM.a * (np.arange(COLUMNS) + 0.5)
GRID = GeoBox((ROWS, COLUMNS), TRANSFORM, CRS)
EVERYWHERE = Window(0, 0, ROWS, COLUMNS)
PART = Window(1, 2, 3, 4)
IMAGE = Affine.identity()


def read(file: RasterFile, window: Window = EVERYWHERE) -> tuple[np.ndarray, np.ndarray, Header]:
    with open_raster(file) as raster:
        values, valid = raster.read(window)
        return values, valid, raster.header


def as_zarr(folder: Path, dataset: xr.Dataset, name: str = "a.zarr", *, version: int = 3, **options: Any) -> str:
    dataset.to_zarr(folder / name, consolidated=False, zarr_format=version, **options)
    return str(folder / name)


def as_netcdf3(folder: Path, dataset: xr.Dataset) -> str:
    dataset.to_netcdf(folder / "a.nc", engine="scipy")
    return str(folder / "a.nc")


def as_netcdf4(folder: Path, dataset: xr.Dataset, name: str = "b.nc") -> str:
    """Write what netCDF-4 writes: HDF5 with dimension scales."""
    with h5py.File(folder / name, "w") as file:
        for dim, size in dataset.sizes.items():
            known = dataset[dim].values if dim in dataset.coords else np.zeros(size, np.float32)
            file.create_dataset(str(dim), data=known)
            without = f"This is a netCDF dimension but not a netCDF variable.{size:10d}"
            file[str(dim)].make_scale(str(dim) if dim in dataset.coords else without)
            for key, value in (dataset[dim].attrs if dim in dataset.coords else {}).items():
                file[str(dim)].attrs[key] = value
        for key, array in dataset.variables.items():
            if key in dataset.sizes:
                continue
            written = file.create_dataset(str(key), data=array.values)
            for i, dim in enumerate(array.dims):
                written.dims[i].attach_scale(file[str(dim)])
            for name_, value in {**array.attrs, **array.encoding}.items():
                written.attrs[name_] = value
    return str(folder / name)


WRITERS = {"Zarr": as_zarr, "NetCDF-3": as_netcdf3, "NetCDF-4": as_netcdf4}
writers = pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)


def picture(values: np.ndarray = VALUES, dims: tuple[str, ...] = ("band", "y", "x"), **coords: Any) -> xr.Dataset:
    return xr.Dataset({"a": (dims, values)}, coords=coords)


@writers
@pytest.mark.parametrize("dims", [("band", "y", "x"), ("y", "x", "band"), ("x", "band", "y"), ("lat", "band", "lon")])
@pytest.mark.parametrize("coords", [False, True])
def test_arrays_without_crs_are_in_stored_order_with_the_axes_that_they_name(
    tmp_path: Path, writer: Any, dims: tuple[str, ...], coords: bool
) -> None:
    """The pictures that xarray reads, as a TIFF without CRS has them."""
    standard = ["y" if d == "lat" else "x" if d == "lon" else d for d in dims]
    stored = VALUES.transpose([("band", "y", "x").index(d) for d in standard])
    values = {"y": Y, "lat": Y, "x": X, "lon": X}
    dataset = picture(np.ascontiguousarray(stored), dims, **({d: values[d] for d in dims if d in values} if coords else {}))
    file = RasterFile(writer(tmp_path, dataset), "a")
    found, valid, head = read(file)
    assert (found == VALUES).all()
    assert valid.all()
    assert head.grid == GeoBox((ROWS, COLUMNS), TRANSFORM if coords else IMAGE, None)
    assert (read(file, PART)[0] == VALUES[:, *PART.slices]).all()


@writers
@pytest.mark.parametrize("named", [True, False], ids=["lat and lon", "y and x with a CRS"])
@pytest.mark.parametrize("upward", [True, False])
@pytest.mark.parametrize("leftward", [True, False])
def test_rows_run_to_the_south_and_columns_to_the_east(
    tmp_path: Path, writer: Any, named: bool, upward: bool, leftward: bool
) -> None:
    y, x = (Y[::-1] if upward else Y), (X[::-1] if leftward else X)
    values = VALUES[:, :: -1 if upward else 1, :: -1 if leftward else 1]
    if named:
        dataset = picture(values, ("band", "lat", "lon"), lat=y, lon=x)
    else:
        dataset = picture(values, y=y, x=x).rio.write_crs(CRS)
    file = RasterFile(writer(tmp_path, dataset), "a")
    found, _, head = read(file, PART)
    assert head.grid == GeoBox((ROWS, COLUMNS), TRANSFORM, None if named else CRS)
    assert (found == VALUES[:, *PART.slices]).all()


@writers
def test_rows_that_coordinates_only_count_stay_in_stored_order(tmp_path: Path, writer: Any) -> None:
    dataset = picture(y=np.arange(ROWS) + 0.5, x=np.arange(COLUMNS) + 0.5)
    assert (read(RasterFile(writer(tmp_path, dataset), "a"))[0] == VALUES).all()


@pytest.mark.parametrize("suffix", [".nc", ".h5"])
@pytest.mark.parametrize("axes", [("y", "x", "band"), ("x", "y", "band"), ("band", "x", "y")])
def test_configured_axes_of_a_cube_without_named_dimensions_are_used(
    tmp_path: Path, suffix: str, axes: tuple[str, ...]
) -> None:
    stored = np.ascontiguousarray(VALUES.transpose([("band", "y", "x").index(axis) for axis in axes]))
    path = tmp_path / f"a{suffix}"
    if suffix == ".nc":
        xr.Dataset({"a": (("one", "two", "three"), stored)}).to_netcdf(path, engine="scipy")
    else:
        with h5py.File(path, "w") as h5:
            h5["a"] = stored
    file = RasterFile(str(path), "a", axes=axes)
    assert (read(file, PART)[0] == VALUES[:, *PART.slices]).all()
    assert (read(RasterFile(str(path), "a"))[0].shape[0]) == stored.shape[0], "without `axes` the first one is the band"
    with pytest.raises(InputError, match="does not match the array's 3 axes"):
        read(RasterFile(str(path), "a", axes=("y", "x")))


def test_hdf5_array_of_four_axes_is_selected_from_instead_of_read_as_zeros(tmp_path: Path) -> None:
    times = np.stack([VALUES, VALUES + np.int16(500)])
    with h5py.File(tmp_path / "a.h5", "w") as h5:
        h5["a"] = times
    path = str(tmp_path / "a.h5")
    with pytest.raises(InputError, match=r"axis order of this 2 x 3 x 5 x 7 array is unknown"):
        read(RasterFile(path, "a"))
    axes = ("time", "band", "y", "x")
    with pytest.raises(InputError, match=r"Choose one value along time \(2\), for example `select: \{time: VALUE\}`"):
        read(RasterFile(path, "a", axes=axes))
    assert (read(RasterFile(path, "a", axes=axes, select=(("time", 2),)))[0] == times[1]).all()
    with pytest.raises(InputError, match="the axis has no coordinate; give a position from 1 to 2"):
        read(RasterFile(path, "a", axes=axes, select=(("time", 0),)))


# --- position and CRS of Zarr ---


def zarr_array(folder: Path, *, root: dict[str, Any] | None = None, own: dict[str, Any] | None = None) -> RasterFile:
    store = zarr.open_group(folder / "a.zarr", mode="w", attributes=root or {})
    group = store.create_group("inner")
    array = group.create_array("a", data=VALUES, dimension_names=("band", "y", "x"))
    array.attrs.update(own or {})
    return RasterFile(str(folder / "a.zarr"), "inner/a")


@pytest.mark.parametrize("registration", ["pixel", "node", None])
def test_spatial_transform_is_that_of_corners_or_of_nodes(tmp_path: Path, registration: str | None) -> None:
    center = TRANSFORM * Affine.translation(0.5, 0.5)
    stated: dict[str, Any] = {"spatial:transform": list(center if registration == "node" else TRANSFORM)[:6]}
    stated |= {"spatial:dimensions": ["y", "x"], "proj:code": str(CRS)}
    if registration is not None:
        stated["spatial:registration"] = registration
    assert header(zarr_array(tmp_path, own=stated)).grid == GRID


def test_unknown_registration_is_refused(tmp_path: Path) -> None:
    stated = {"spatial:transform": list(TRANSFORM)[:6], "spatial:registration": "edge"}
    with pytest.raises(InputError, match=r"a\.zarr \(inner/a\): spatial:transform_type 'affine' with .* 'edge'"):
        header(zarr_array(tmp_path, own=stated))


WKT = pyproj.CRS.from_user_input(CRS)
STATED_CRS: dict[str, dict[str, Any]] = {
    "proj:code": {"proj:code": str(CRS)},
    "proj:epsg": {"proj:epsg": WKT.to_epsg()},
    "proj:wkt2": {"proj:wkt2": WKT.to_wkt()},
    "proj:projjson": {"proj:projjson": WKT.to_json_dict()},
    "_CRS wkt": {"_CRS": {"wkt": WKT.to_wkt()}},
    "_CRS projjson": {"_CRS": {"projjson": WKT.to_json_dict()}},
    "_CRS url": {"_CRS": {"url": f"http://www.opengis.net/def/crs/EPSG/0/{WKT.to_epsg()}"}},
    "EOPF": {"stac_discovery": {"properties": {"proj:epsg": WKT.to_epsg()}}},
}


@pytest.mark.parametrize(
    ("name", "where"),
    [(name, where) for name in STATED_CRS for where in ("array", "root") if (name, where) != ("EOPF", "array")],
)
def test_crs_of_zarr_is_read_from_array_or_groups(tmp_path: Path, name: str, where: str) -> None:
    stated = STATED_CRS[name]
    place = {"proj:transform": [*list(TRANSFORM)[:6], 0, 0, 1], "proj:shape": [ROWS, COLUMNS]}
    file = zarr_array(tmp_path, own=stated | place) if where == "array" else zarr_array(tmp_path, root=stated, own=place)
    grid = header(file).grid
    assert grid.crs.to_epsg() == WKT.to_epsg()
    assert grid.affine == TRANSFORM


def test_two_crss_that_differ_and_unreadable_ones_are_refused(tmp_path: Path) -> None:
    both = {"proj:code": "EPSG:4326", "proj:wkt2": WKT.to_wkt(), "spatial:transform": list(TRANSFORM)[:6]}
    with pytest.raises(InputError, match=r"states two CRSs, proj:wkt2 .* and proj:code \(WGS 84\)"):
        header(zarr_array(tmp_path, own=both))
    with pytest.raises(InputError, match=r"its CRS, proj:code, cannot be read"):
        header(zarr_array(tmp_path, own={"proj:code": "EPSG:nowhere"}))


def test_stated_crs_places_coordinates_and_turns_them(tmp_path: Path) -> None:
    path = as_zarr(tmp_path, picture(VALUES[:, ::-1], y=Y[::-1], x=X))
    assert header(RasterFile(path, "a")).grid.crs is None
    found, _, head = read(RasterFile(path, "a", crs=str(CRS)))
    assert head.grid == GRID
    assert (found == VALUES).all()


def test_coordinates_that_are_even_within_their_own_precision_are_accepted(tmp_path: Path) -> None:
    step = 0.00008983
    lon, lat = 120.123456 + step * np.arange(COLUMNS), 48.5 - step * np.arange(ROWS)
    dataset = picture(y=lat.astype(np.float32), x=lon.astype(np.float32)).rio.write_crs(4326)
    steps = np.diff(dataset.x.values.astype(float))
    assert np.abs(steps - steps.mean()).max() > 0.01 * steps.mean(), "uneven by the precision of float32"
    affine = header(RasterFile(as_zarr(tmp_path, dataset), "a")).grid.affine
    assert abs(affine.c - (lon[0] - step / 2)) < 0.1 * step
    assert abs(affine.f - (lat[0] + step / 2)) < 0.1 * step
    assert affine.a == pytest.approx(step, rel=0.03)
    decimals = picture(y=np.round(0.0833 * np.arange(ROWS)[::-1], 2), x=np.round(0.0833 * np.arange(COLUMNS), 2))
    with_crs = as_zarr(tmp_path, decimals.rio.write_crs(4326), "b.zarr")
    assert header(RasterFile(with_crs, "a")).grid.affine.a == pytest.approx(0.0833, rel=0.02)


# --- what a store contains ---


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("unscale", [True, False])
def test_fill_values_of_packed_arrays_are_compared_as_stored(tmp_path: Path, version: int, unscale: bool) -> None:
    values = VALUES.copy()
    values[0, 1, 2] = -9999
    dataset = picture(values)
    dataset.a.encoding = {"_FillValue": np.int16(-9999)}
    dataset.a.attrs = {"scale_factor": 0.0001, "add_offset": -0.1, "missing_value": [-1, 4]}
    found, valid, _ = read(RasterFile(as_zarr(tmp_path, dataset, version=version), "a", unscale=unscale))
    assert np.argwhere(~valid).tolist() == [[0, 3], [1, 2]], "one pixel is -9999, another one 4"
    np.testing.assert_allclose(found, values * 0.0001 - 0.1 if unscale else values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("fill", [2**64 - 1, 2**53 + 1])
def test_large_fill_values_are_exact(tmp_path: Path, fill: int) -> None:
    values = VALUES[0].astype(np.uint64)
    values[1, 2], values[3, 3] = fill, fill - 1
    dataset = picture(values, ("y", "x"))
    dataset.a.encoding = {"_FillValue": np.uint64(fill)}
    for file in (RasterFile(as_zarr(tmp_path, dataset), "a"), RasterFile(as_netcdf4(tmp_path, dataset, "b.h5"), "a")):
        assert np.argwhere(~read(file)[1]).tolist() == [[1, 2]]


@writers
def test_several_fill_values_and_a_valid_range_limit_the_data(tmp_path: Path, writer: Any) -> None:
    dataset = picture(VALUES[0], ("y", "x"))
    dataset.a.attrs = {"missing_value": np.int16(3), "valid_range": np.array([2, 33], np.int16)}
    dataset.a.encoding = {"_FillValue": np.int16(5)}
    _, valid, _ = read(RasterFile(writer(tmp_path, dataset), "a"))
    assert VALUES[0][~valid].tolist() == [1, 3, 5, 34, 35]


def test_several_fill_values_of_a_netcdf_file_that_gdal_places(tmp_path: Path) -> None:
    dataset = picture(y=Y, x=X).rio.write_crs(CRS).rio.write_coordinate_system()
    dataset.a.attrs |= {"missing_value": np.int16(3)}
    dataset.a.encoding |= {"_FillValue": np.int16(5)}
    path = as_netcdf3(tmp_path, dataset)
    _, valid, head = read(RasterFile(path, "a", bands=(1,)))
    assert head.grid == GRID
    assert VALUES[0][~valid].tolist() == [3, 5]


@pytest.mark.parametrize("nodata", [None, 7])
def test_nan_in_netcdf_is_no_data_whatever_gdal_replaces_it_by(tmp_path: Path, nodata: float | None) -> None:
    values = VALUES.astype(np.float32)
    values[0, 3, 1] = np.nan
    dataset = picture(values, y=Y, x=X).rio.write_crs(CRS).rio.write_coordinate_system()
    if nodata is not None:
        dataset.a.encoding["_FillValue"] = np.float32(-1)  # what GDAL returns for NaN, and the configuration overrides
    file = RasterFile(as_netcdf4(tmp_path, dataset), "a", bands=(1,), nodata=nodata)
    _, valid, head = read(file)
    assert np.argwhere(~valid).tolist() == [[0, 6], [3, 1]][nodata is None :]
    assert head.grid == GRID


@writers
def test_coordinates_in_kilometers_are_those_of_a_crs_in_meters(tmp_path: Path, writer: Any) -> None:
    units = {"units": "km"}
    dataset = picture(y=("y", Y / 1000, units), x=("x", X / 1000, units)).rio.write_crs(CRS)
    affine = header(RasterFile(writer(tmp_path, dataset), "a")).grid.affine
    assert affine.almost_equals(TRANSFORM, 1e-6)


@pytest.mark.parametrize("version", [2, 3])
def test_chosen_fill_value_of_an_array_without_attributes_is_no_data(tmp_path: Path, version: int) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version)
    array = group.create_array("a", shape=(ROWS, COLUMNS), chunks=(ROWS, COLUMNS), dtype="int16", fill_value=-7)
    array.attrs["_ARRAY_DIMENSIONS"] = ["y", "x"]
    array[1:, :] = VALUES[0, 1:]
    _, valid, _ = read(RasterFile(str(tmp_path / "a.zarr"), "a"))
    assert np.argwhere(~valid).tolist() == [[0, x] for x in range(COLUMNS)]


@writers
def test_one_time_is_selected_by_its_coordinate(tmp_path: Path, writer: Any) -> None:
    days = np.array(["2021-06-01", "2021-06-11", "2021-07-01"], "datetime64[ns]")
    times = np.stack([VALUES + np.int16(200 * i) for i in range(3)])
    dataset = picture(times, ("time", "band", "y", "x"), time=[0, 10, 30], y=Y, x=X).rio.write_crs(CRS)
    dataset.time.attrs = {"units": "days since 2021-06-01"}
    path = writer(tmp_path, dataset)
    assert (xr.decode_cf(dataset).time.values == days).all()
    for wanted, index in (("2021-06-11", 1), ("2021-07", 2)):
        found, _, head = read(RasterFile(path, "a", select=(("time", wanted),)))
        assert (found == times[index]).all()
        assert head.grid == GRID
    with pytest.raises(
        InputError, match=r"`select` time: 2021-06 matches 2 of its 3 values: 2021-06-01, 2021-06-11, 2021-07"
    ):
        read(RasterFile(path, "a", select=(("time", "2021-06"),)))
    with pytest.raises(InputError, match=r"`select` time: 2020-01-01 is not among its 3 values"):
        read(RasterFile(path, "a", select=(("time", "2020-01-01"),)))
    with pytest.raises(InputError, match=r"`select` names 'level', which is no axis to choose from; there are: time, band"):
        read(RasterFile(path, "a", select=(("level", 1),)))
    if writer is as_zarr:
        with pytest.raises(InputError, match=r"Choose one value along time \(3: 2021-06-01, 2021-06-11, 2021-07-01\)"):
            read(RasterFile(path, "a"))


def test_selection_in_a_geotiff_is_refused(tmp_path: Path) -> None:
    path = str(write_raster(tmp_path / "a.tif", VALUES))
    with pytest.raises(InputError, match="`select` applies to arrays"):
        read(RasterFile(path, select=(("time", 1),)))


def test_arrays_of_other_sizes_in_one_group_are_read(tmp_path: Path) -> None:
    path = as_zarr(tmp_path, picture(y=Y, x=X).rio.write_crs(CRS))
    group = zarr.open_group(path, mode="a")
    group.create_array("coarse", data=VALUES[0, :2, :3], dimension_names=("y", "x"))
    assert header(RasterFile(path, "a")).grid == GRID
    assert header(RasterFile(path, "coarse")).grid.shape == (2, 3)
    assert header(RasterFile(path, "coarse")).grid.affine == IMAGE, "the coordinates are those of the other size"


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("remote", [True, False])
def test_zipped_store_and_store_of_any_name_are_read(tmp_path: Path, version: int, remote: bool) -> None:
    path = as_zarr(tmp_path, picture(y=Y, x=X).rio.write_crs(CRS), version=version)
    shutil.make_archive(path, "zip", path)
    shutil.move(path, tmp_path / "tile")
    urls = [f"{path}.zip", str(tmp_path / "tile")]
    if remote:
        memory = fsspec.filesystem("memory")
        name = tmp_path.name
        memory.put(urls[0], f"/{name}/a.zarr.zip")
        memory.put(urls[1], f"/{name}/tile", recursive=True)
        urls = [f"memory://{name}/a.zarr.zip", f"memory://{name}/tile"]
    for url in urls:
        found, _, head = read(RasterFile(url, "a"), PART)
        assert (found == VALUES[:, *PART.slices]).all()
        assert head.grid == GRID


def test_store_that_is_an_array_itself_needs_no_variable(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=VALUES, dimension_names=("band", "y", "x"))
    assert (read(RasterFile(str(tmp_path / "a.zarr")))[0] == VALUES).all()


@pytest.mark.parametrize("nested", [True, False])
def test_boolean_array_is_a_mask(tmp_path: Path, nested: bool) -> None:
    clear = np.zeros((ROWS, COLUMNS), bool)
    clear[1, 2:5] = True
    shift = 0 if nested else 2.0
    path = as_zarr(tmp_path, picture(clear, ("y", "x"), y=Y + shift, x=X).rio.write_crs(CRS))
    image = RasterFile(str(write_raster(tmp_path / "a.tif", VALUES)))
    mask = Mask(RasterFile(path, "a", bands=(1,), nodata=np.nan), valid=(1,))
    _, valid = open_source(Source("s", ((image,),), mask=mask), GRID).read(EVERYWHERE)
    if nested:
        assert (valid == clear).all()
    assert (valid[1:4] == clear[1:4]).all()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_gdal_reads_the_same_zarr_pixels_without_crs(tmp_path: Path) -> None:
    """GDAL's own reading of a classic NetCDF file in stored order is the independent picture."""
    path = as_netcdf3(tmp_path, picture())
    with rasterio.Env(GDAL_NETCDF_BOTTOMUP="NO"), rasterio.open(f'NETCDF:"{path}":a') as dataset:
        assert (dataset.read() == read(RasterFile(path, "a"))[0]).all()
