"""Files that hold arrays by name: Zarr, NetCDF, HDF5 and MATLAB, each with its axes in several orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import pyproj
import rioxarray  # noqa: F401  # registers `rio`
import scipy.io
import xarray as xr
import zarr
from affine import Affine

from pipeline.rasters.header import RasterFile
from tests.corpus.case import COLUMNS, ROWS, Case, Truth
from tests.corpus.gdal_files import ALL

AXES = {"b": "band", "y": "y", "x": "x"}
FILLS = ("none", "in-range", "lowest", "highest", "beyond-53-bits", "unmatched", "rounded", "nan", "undeclared-nan", "user")
CRSS = ("utm", "degrees", "mercator", "south", "custom", "none")
PLACED = ("north-up", "south-up", "mirrored")
NO_ATTRIBUTES: Mapping[str, Any] = {}
ORDERS = ("byx", "yxb", "xyb")


@dataclass(frozen=True)
class ArrayFormat:
    """What a format of arrays can store; a layout is a variant and an order of axes."""

    write: Callable[[Path, Case, Truth], RasterFile]
    layouts: tuple[str, ...]
    dtypes: tuple[str, ...] = ALL
    nodata: tuple[str, ...] = FILLS
    orientations: tuple[str, ...] = PLACED
    crss: tuple[str, ...] = CRSS
    scalings: tuple[str, ...] = ("plain", "kept", "unscale")
    bands: int = 2


def _order(case: Case) -> tuple[Any, ...]:
    return tuple(AXES[letter] for letter in case.layout.rpartition("-")[2])


def _arranged(case: Case, truth: Truth) -> np.ndarray:
    """The pixels with their axes in the order of the layout."""
    return np.ascontiguousarray(truth.raw.transpose([("band", "y", "x").index(axis) for axis in _order(case)]))


def _coordinates(case: Case) -> dict[str, np.ndarray]:
    """Centres of pixels along y and x; none for an image without a CRS."""
    if case.crs == "none":
        return {}
    affine = case.affine
    return {"y": affine.f + affine.e * (np.arange(ROWS) + 0.5), "x": affine.c + affine.a * (np.arange(COLUMNS) + 0.5)}


def _attributes(case: Case, truth: Truth) -> dict[str, Any]:
    """The fill value and scale as attributes, in the type of the values as CF requires."""
    found: dict[str, Any] = {}
    if truth.declared[0] is not None:
        found["_FillValue"] = truth.dtype.type(truth.declared[0])
    if case.scaling != "plain":
        found |= {"scale_factor": case.gains[0], "add_offset": case.offsets[0]}
    return found


def _file(path: Path, case: Case, truth: Truth, variable: str, axes: tuple[Any, ...] | None = None) -> RasterFile:
    return RasterFile(str(path), variable, axes, nodata=truth.user, unscale=case.scaling == "unscale")


def write_zarr(folder: Path, case: Case, truth: Truth, more: Mapping[str, Any] = NO_ATTRIBUTES) -> RasterFile:
    """Write a Zarr group as xarray does, in format 2 or 3, sharded or not, with `more` attributes of the array."""
    version, path = case.layout[1], folder / "a.zarr"
    order = _order(case)
    attributes = _attributes(case, truth) | {k: np.asarray(v).tolist() for k, v in more.items()}
    fill = attributes.pop("_FillValue", None)
    array = xr.DataArray(_arranged(case, truth), dims=order, coords=_coordinates(case), attrs=attributes)
    dataset = xr.Dataset({"picture": array})
    if case.wkt is not None:
        dataset = dataset.rio.write_crs(case.wkt)
    chunks = tuple({"band": case.bands, "y": 3, "x": 4}[axis] for axis in order)
    encoding: dict[str, Any] = {"_FillValue": fill, "chunks": chunks}
    if "sharded" in case.layout:
        encoding["shards"] = tuple(2 * size for size in chunks)
    dataset["picture"].encoding |= encoding  # beside the name of the grid mapping
    dataset.to_zarr(path, zarr_format=cast(Any, int(version)), consolidated=version == "2")
    return _file(path, case, truth, "picture")


def write_geozarr(folder: Path, case: Case, truth: Truth) -> RasterFile:
    """Write a Zarr group by the GeoZarr conventions `proj:` and `spatial:`, on the group or on the array.

    The CRS is stated as WKT, as a code or as PROJJSON; the transform is that of pixels' corners or, for `node`, centres.
    """
    path, order = folder / "a.zarr", _order(case)
    root = zarr.create_group(path, zarr_format=3)
    pixels = _arranged(case, truth)
    array = root.create_array("picture", shape=pixels.shape, dtype=pixels.dtype, chunks=pixels.shape, dimension_names=order)
    array[:] = pixels
    place: dict[str, Any] = {"spatial:dimensions": ["y", "x"]}
    if case.crs != "none":
        crs = pyproj.CRS(case.wkt)
        code = crs.to_epsg()
        node = "node" in case.layout
        affine = case.affine * Affine.translation(0.5, 0.5) if node else case.affine
        place |= {"spatial:transform": list(affine)[:6], "spatial:shape": [ROWS, COLUMNS]}
        place |= {"spatial:registration": "node"} if node else {}
        if "code" in case.layout and code:
            place |= {"proj:code": f"EPSG:{code}"}
        elif "projjson" in case.layout:
            place |= {"proj:projjson": crs.to_json_dict()}
        else:
            place |= {"proj:wkt2": crs.to_wkt()}
    (array if "array" in case.layout else root).attrs.update(place)
    return _file(path, case, truth, "picture")


def write_netcdf(folder: Path, case: Case, truth: Truth, more: Mapping[str, Any] = NO_ATTRIBUTES) -> RasterFile:
    """Write a NetCDF 4 file: HDF5 with dimension scales and a grid mapping, by h5py; with `more` attributes of the array."""
    path, order = folder / "a.nc", _order(case)
    with h5py.File(path, "w") as file:
        picture = file.create_dataset("picture", data=_arranged(case, truth))
        for name, value in (_attributes(case, truth) | dict(more)).items():
            picture.attrs[name] = np.bytes_(value) if isinstance(value, str) else np.atleast_1d(value)
        coordinates: dict[str, np.ndarray] = {"band": np.arange(case.bands), **_coordinates(case)}
        for number, axis in enumerate(order):
            values = coordinates.get(axis, np.arange(picture.shape[number]) if axis == "band" else None)
            scale = file.create_dataset(axis, data=np.zeros(picture.shape[number], "f4") if values is None else values)
            scale.make_scale(
                axis if values is not None else f"This is a netCDF dimension but not a netCDF variable.{len(scale):10d}"
            )
            picture.dims[number].attach_scale(scale)
        if case.wkt is not None:
            crs = pyproj.CRS(case.wkt)
            for axis, described in zip(("x", "y"), crs.cs_to_cf(), strict=True):
                file[axis].attrs.update({k: np.bytes_(v) for k, v in described.items() if k != "axis"})
            mapping = file.create_dataset("spatial_ref", data=np.int32(0))
            for name, value in crs.to_cf().items():
                mapping.attrs[name] = np.bytes_(value) if isinstance(value, str) else value
            picture.attrs["grid_mapping"] = np.bytes_("spatial_ref")
    return _file(path, case, truth, "picture", None if order == ("band", "y", "x") else order)


def write_netcdf3(folder: Path, case: Case, truth: Truth) -> RasterFile:
    """Write a NetCDF file of version 3, by xarray."""
    path, order = folder / "a.nc", _order(case)
    attributes = _attributes(case, truth)
    fill = attributes.pop("_FillValue", None)
    dataset = xr.Dataset(
        {"picture": xr.DataArray(_arranged(case, truth), dims=order, coords=_coordinates(case), attrs=attributes)}
    )
    if case.wkt is not None:
        dataset = dataset.rio.write_crs(case.wkt).rio.write_coordinate_system()
    dataset["picture"].encoding |= {"_FillValue": fill}
    dataset.to_netcdf(path, engine="scipy", format="NETCDF3_CLASSIC")
    return _file(path, case, truth, "picture", None if order == ("band", "y", "x") else order)


def write_hdf5(folder: Path, case: Case, truth: Truth) -> RasterFile:
    """Write an HDF5 file with one dataset in a group and nothing else."""
    path, order = folder / "a.h5", _order(case)
    with h5py.File(path, "w") as file:
        file.create_dataset("group/picture", data=_arranged(case, truth))
        file.create_dataset("group/other", data=np.zeros((3, 3)))
    return _file(path, case, truth, "group/picture", None if order == ("band", "y", "x") else order)


def write_matlab(folder: Path, case: Case, truth: Truth) -> RasterFile:
    """Write a MATLAB file: version 5, or version 7.3, which is HDF5 with the axes reversed after a block of text."""
    path, order = folder / "a.mat", _order(case)
    pixels = _arranged(case, truth)
    if case.layout.startswith("v5"):
        scipy.io.savemat(path, {"picture": pixels, "other": np.zeros((2, 2))}, do_compression="packed" in case.layout)
    else:
        with h5py.File(path, "w", userblock_size=512) as file:
            file.create_dataset("picture", data=pixels.T, chunks=pixels.T.shape)
        with path.open("r+b") as raw:
            raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    return _file(path, case, truth, "picture", order)


UNPLACED = ("none", "user", "unmatched", "undeclared-nan")
ARRAY_FORMATS = {
    "zarr": ArrayFormat(write_zarr, ("v2-byx", "v2-xyb", "v3-byx", "v3-yxb", "v3-sharded-yxb", "v3-sharded-xyb")),
    "geozarr": ArrayFormat(
        write_geozarr,
        ("group-byx", "array-byx", "group-yxb", "group-node-byx", "array-code-byx", "group-projjson-xyb"),
        nodata=("none", "user", "unmatched", "undeclared-nan"),
        orientations=(*PLACED, "rotated"),
        scalings=("plain",),
    ),
    "netcdf": ArrayFormat(write_netcdf, ORDERS, nodata=tuple(kind for kind in FILLS if kind != "nan")),
    "netcdf3": ArrayFormat(
        write_netcdf3,
        ORDERS,
        ("int8", "int16", "int32", "float32", "float64"),
        ("none", "in-range", "lowest", "user", "unmatched", "undeclared-nan"),
        crss=("utm", "degrees", "none"),
    ),
    "hdf5": ArrayFormat(write_hdf5, ORDERS, ALL, UNPLACED, ("north-up",), ("none",), ("plain",)),
    "matlab": ArrayFormat(
        write_matlab,
        tuple(f"{v}-{o}" for v in ("v5", "v5-packed", "v7.3") for o in ORDERS),
        ALL,
        UNPLACED,
        ("north-up",),
        ("none",),
        ("plain",),
    ),
}
