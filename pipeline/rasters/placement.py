"""Where the pixels of an array are: axis order, orientation, registration and CRS. The one rule of all array readers.

Axis order is that of the configuration, else what the file states: `spatial:dimensions`, names of dimensions, CF
attributes of coordinates. Never the order in which the axes are stored, except where nothing is named at all.

The position is stated, in this order, by `spatial:transform` (for `spatial:registration: node` it is that of pixel centers,
otherwise of their corners), by coordinates along y and x (which are always pixel centers), by `proj:transform` or by
GDAL's `GeoTransform`. An array without any of them is an image: its rows are in stored order, the first one on top.

Rows run north to south and columns west to east: an array stored the other way round is turned, if its axes are known to
be a northing and an easting, because it has a CRS or its coordinates say so. Otherwise it stays as stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rasterio.crs
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS
from pyproj.exceptions import CRSError

from mibf.errors import InputError
from pipeline.rasters.header import RasterFile, with_crs

#: Dimension names that identify an axis, and those that are bands where others could be, too.
AXIS_NAMES = {
    **dict.fromkeys(("y", "lat", "latitude", "northing", "row", "rows", "line", "lines", "projection_y_coordinate"), "y"),
    **dict.fromkeys(("x", "lon", "longitude", "easting", "column", "columns", "col", "cols", "sample", "samples"), "x"),
    "projection_x_coordinate": "x",
    **dict.fromkeys(("band", "bands", "channel", "channels", "wavelength"), "band"),
}
#: Names and CF standard names of coordinates that are known to grow to the north or east.
DIRECTED = {
    "lat", "latitude", "northing", "projection_y_coordinate", "lon", "longitude", "easting", "projection_x_coordinate",
}  # fmt: skip  # a list of names
#: CF's unit of coordinates that are not in meters although their CRS is.
KILOMETERS = {"km", "kilometer", "kilometers", "kilometre", "kilometres"}
#: Coordinates are evenly spaced if none is further than this share of a pixel from its place, plus their own rounding.
EVEN = 0.1


@dataclass(frozen=True)
class Coordinate:
    """The values along a dimension, with their attributes."""

    values: NDArray[Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NamedArray:
    """An array of a file, indexed like a numpy array, with what the file says about it."""

    values: Any
    dims: tuple[str | None, ...]  #: names of the dimensions, None where there is none
    coordinates: Mapping[str, Coordinate] = field(default_factory=dict)  #: by dimension
    attributes: tuple[Mapping[str, Any], ...] = ({},)  #: its own, then those of its groups, from the inside out
    grid_mapping: Mapping[str, Any] = field(default_factory=dict)  #: CF's variable with the CRS
    block: tuple[int, ...] = ()  #: shape of what is read at once, () if unknown
    image_order: bool = False  #: whether dimensions without names are (band, y, x)
    unwritten: float | None = None  #: what its format has where nothing was written, unless attributes state another value


@dataclass(frozen=True)
class Placement:
    """How an array becomes a raster (band, y, x)."""

    axes: tuple[str | int, ...]  #: of each dimension: `band`, `y`, `x`, or the one position that is read
    grid: GeoBox  #: of the raster, after turning
    turned: tuple[bool, bool] = (False, False)  #: whether rows and columns are read in reverse order


def place(file: RasterFile, array: NamedArray) -> Placement:
    """Determine axis order, position and orientation of an array.

    Raises:
        InputError: the file does not state one of them, states it in two ways, or coordinates are not evenly spaced.
    """
    axes = _axes(file, array)
    rows, columns = (int(array.values.shape[axes.index(axis)]) for axis in ("y", "x"))
    dims = {axis: array.dims[axes.index(axis)] for axis in ("y", "x")}
    crs = _crs(file, array)
    affine = _affine(file, array, (rows, columns), dims, crs)
    wkt = None if crs is None else rasterio.crs.CRS.from_wkt(crs.to_wkt()).to_wkt()  # GDAL's text, as of other formats
    grid = with_crs(file, GeoBox((rows, columns), affine, wkt))
    if affine.b or affine.d:
        return Placement(axes, grid)
    directed = {axis: grid.crs is not None or _is_directed(array, dims[axis]) for axis in ("y", "x")}
    north, east = (affine.e > 0 and affine != Affine.identity() and directed["y"], affine.a < 0 and directed["x"])
    if north:
        grid = GeoBox(grid.shape, grid.affine * Affine(1, 0, 0, 0, -1, rows), grid.crs)
    if east:
        grid = GeoBox(grid.shape, grid.affine * Affine(-1, 0, columns, 0, 1, 0), grid.crs)
    return Placement(axes, grid, (north, east))


def _is_directed(array: NamedArray, dim: str | None) -> bool:
    known = array.coordinates.get(dim or "")
    if known is None:
        return False
    words = (str(dim).lower(), known.attributes.get("standard_name"), known.attributes.get("long_name"))
    return any(word in DIRECTED for word in words) or str(known.attributes.get("units")).startswith("degree")


# --- axes ---


def _axes(file: RasterFile, array: NamedArray) -> tuple[str | int, ...]:
    shape = tuple(array.values.shape)
    names = list(file.axes or named_axes(array))
    if file.axes is not None and (len(names) != len(shape) or len(set(names)) != len(names) or not {"y", "x"} <= {*names}):
        raise InputError(
            f"{file}: `axes` {names} does not match the array's {len(shape)} axes ({_size(shape)}); list each axis once."
        )
    axes: list[str | int | None] = [name if name in ("y", "x", "band") else None for name in names]
    for chosen, wanted in file.select:
        at = next((i for i, own in enumerate(array.dims) if chosen in (own, names[i]) and names[i] not in ("y", "x")), None)
        if at is None:
            others = ", ".join(str(n) for n in names if n not in ("y", "x")) or "none"
            raise InputError(f"{file}: `select` names {chosen!r}, which is no axis to choose from; there are: {others}.")
        axes[at] = _position(file, chosen, wanted, array.coordinates.get(array.dims[at] or ""), shape[at])
    left = [i for i, axis in enumerate(axes) if axis is None]
    if len(left) > ("band" not in axes):
        for i in [i for i in left if shape[i] == 1]:
            axes[i] = 0
        left = [i for i in left if shape[i] > 1]
    if len(left) == 1 and "band" not in axes and file.axes is None:
        axes[left[0]] = "band"
        left = []
    if "y" not in axes or "x" not in axes:
        raise InputError(
            f"{file}: the axis order of this {_size(shape)} array is unknown; set it, for example `axes: [y, x, band]`."
        )
    if left:
        raise InputError(_too_many_axes(file, array, [(str(names[i] or f"axis {i + 1}"), i) for i in left]))
    return tuple(axis for axis in axes if axis is not None)


def named_axes(array: NamedArray) -> tuple[str | None, ...]:
    """The axis of each dimension as the file names it: y, x, band, another name, or None where there is none."""
    stated = next((a["spatial:dimensions"] for a in array.attributes if "spatial:dimensions" in a), ())
    spatial = dict(zip([str(name) for name in stated][-2:], ("y", "x"), strict=False))
    names: list[str | None] = []
    for dim in array.dims:
        known = array.coordinates.get(dim or "")
        words = () if known is None else (known.attributes.get("standard_name"), known.attributes.get("axis"))
        found = [AXIS_NAMES.get(str(word).lower()) for word in (dim, *words)]
        names.append(spatial.get(dim or "") or next((axis for axis in found if axis is not None), dim))
    for axis in ("y", "x", "band"):  # the same name twice says nothing
        if names.count(axis) > 1:
            names = [None if name == axis else name for name in names]
    unplaced = not {"y", "x"} & {*names}
    if unplaced and (array.image_order or (len(names) == 2 and not any(names))) and len(names) in (2, 3):
        return ("band", "y", "x")[-len(names) :]
    return tuple(names)


def _too_many_axes(file: RasterFile, array: NamedArray, left: Sequence[tuple[str, int]]) -> str:
    listed = []
    for name, i in left:
        known = array.coordinates.get(array.dims[i] or "")
        values = "" if known is None else f": {_listed(_decoded(known, name))}"
        listed.append(f"{name} ({array.values.shape[i]}{values})")
    return (
        f"{file}: is a {_size(array.values.shape)} array; a raster has only bands, rows and columns. Choose one value along "
        f"{' and '.join(listed)}, for example `select: {{{left[0][0]}: VALUE}}`; or name the bands with `axes`."
    )


def _position(file: RasterFile, name: str, wanted: Any, known: Coordinate | None, size: int) -> int:
    """The index along an axis of a wanted value of its coordinate; without coordinate, of a position from 1."""
    if known is None:
        if isinstance(wanted, int) and 1 <= wanted <= size:
            return wanted - 1
        raise InputError(f"{file}: `select` {name}: {wanted}: the axis has no coordinate; give a position from 1 to {size}.")
    values = _decoded(known, name)
    try:
        if values.dtype.kind == "M":
            time = np.datetime64(str(wanted).removesuffix("Z"))
            hits = values.astype(time.dtype) == time
        elif values.dtype.kind in "iufb":
            number = wanted if isinstance(wanted, int) else float(wanted)
            hits = values == np.asarray(number).astype(values.dtype)
        else:
            hits = values.astype(str) == str(wanted)
    except (TypeError, ValueError):
        hits = np.zeros(size, bool)
    found = np.flatnonzero(hits)
    if len(found) != 1:
        how = "is not among" if len(found) == 0 else f"matches {len(found)} of"
        raise InputError(f"{file}: `select` {name}: {wanted} {how} its {size} values: {_listed(values)}.")
    return int(found[0])


def _decoded(known: Coordinate, name: str) -> NDArray[Any]:
    """The values of a coordinate, as times where CF attributes say that they are."""
    try:
        variable = xr.Variable((name,), known.values, dict(known.attributes))
        return np.asarray(xr.conventions.decode_cf_variable(name, variable).values)
    except Exception:  # xarray raises many types for attributes that it cannot decode: the values are then what is stored
        return known.values


def _listed(values: NDArray[Any]) -> str:
    shown = [str(v).removesuffix(".000000000").removesuffix("T00:00:00") for v in values[:5]]
    return ", ".join(shown) + (", ..." if len(values) > 5 else "")


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


# --- position ---


def _affine(
    file: RasterFile, array: NamedArray, shape: tuple[int, int], dims: Mapping[str, str | None], crs: CRS | None
) -> Affine:
    """From the array's pixel corners, as stored, to its CRS; identity for an image."""
    stated = _stated_affine(file, array, shape)
    if stated is not None:
        return stated
    lines = [
        _line(file, axis, array.coordinates.get(dims[axis] or ""), size) for axis, size in zip("yx", shape, strict=True)
    ]
    if lines[0] is not None and lines[1] is not None:
        (top, down), (left, right) = lines[0], lines[1]
        units = {str(array.coordinates[str(dims[axis])].attributes.get("units")).lower() for axis in "yx"}
        meters = crs is not None and crs.axis_info and crs.axis_info[0].unit_name == "metre"
        scale = 1000 if meters and units <= KILOMETERS else 1
        return Affine.scale(scale) * Affine(right, 0, left - right / 2, 0, down, top - down / 2)
    for attributes in array.attributes:
        if "proj:transform" in attributes and _fits(attributes.get("proj:shape"), shape):
            return _numbers(file, "proj:transform", attributes["proj:transform"])
    if "GeoTransform" in array.grid_mapping:
        text = str(array.grid_mapping["GeoTransform"]).split()
        c, a, b, f, d, e = (_numbers(file, "GeoTransform", text))[:6]
        return Affine(a, b, c, d, e, f)
    return Affine.identity()


def _stated_affine(file: RasterFile, array: NamedArray, shape: tuple[int, int]) -> Affine | None:
    for attributes in array.attributes:
        if "spatial:transform" not in attributes:
            continue
        if not _fits(attributes.get("spatial:shape"), shape):
            continue  # of another array of the group
        kind = attributes.get("spatial:transform_type", "affine")
        registration = attributes.get("spatial:registration", "pixel")
        if kind != "affine" or registration not in ("pixel", "node"):
            raise InputError(
                f"{file}: spatial:transform_type {kind!r} with spatial:registration {registration!r} is not supported; only "
                "an affine transform of pixels or nodes is."
            )
        affine = _numbers(file, "spatial:transform", attributes["spatial:transform"])
        return affine if registration == "pixel" else affine * Affine.translation(-0.5, -0.5)
    return None


def _fits(stated: Any, shape: tuple[int, int]) -> bool:
    """Whether the shape that attributes state, if any, is that of the array."""
    return stated is None or tuple(stated)[-2:] == shape


def _numbers(file: RasterFile, name: str, value: Any) -> Affine:
    try:
        numbers = [float(v) for v in value]
        return Affine(*numbers[:6])
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: its attribute {name} is {value!r}, not six numbers; fix the attribute.") from error


def _line(file: RasterFile, axis: str, known: Coordinate | None, size: int) -> tuple[float, float] | None:
    """The first coordinate along an axis and the step between pixels; None if it has no usable coordinate."""
    if known is None or known.values.shape != (size,) or known.values.dtype.kind not in "iuf":
        return None
    stored = known.values
    values = stored.astype(np.float64)
    if size == 1:
        return None
    first, step = float(values[0]), float((values[-1] - values[0]) / (size - 1))
    index = np.arange(size)
    off = float(np.abs(values - (first + step * index)).max())
    rounding = float(np.spacing(np.abs(stored).max())) if stored.dtype.kind == "f" else 0.0
    if not off <= EVEN * abs(step) + 2 * rounding or step == 0:
        raise InputError(f"{file}: its coordinates along {axis} are not evenly spaced; resample to a regular grid first.")
    if off > 1e-6 * abs(step):  # rounded: the line through all of them is closer than that through the ends
        step, first = (float(v) for v in np.polyfit(index, values - values[0], 1))
        first += float(values[0])
    return first, step


# --- CRS ---


def _crs(file: RasterFile, array: NamedArray) -> CRS | None:
    """The CRS that the file states nearest to the array; None if it states none.

    Raises:
        InputError: it states two that differ, or one that cannot be read.
    """
    for attributes in (array.attributes[0], array.grid_mapping, *array.attributes[1:]):
        found: list[tuple[str, CRS]] = []
        for name, value in _stated_crs(attributes):
            try:
                found.append((name, CRS.from_cf(dict(value)) if name == "grid_mapping" else CRS.from_user_input(value)))
            except (CRSError, TypeError, ValueError) as error:
                raise InputError(f"{file}: its CRS, {name}, cannot be read ({error}); fix the attribute.") from error
        for name, crs in found[1:]:
            if not crs.equals(found[0][1], ignore_axis_order=True):
                first, other = found[0]
                raise InputError(
                    f"{file}: states two CRSs, {first} ({other.name}) and {name} ({crs.name}); remove the wrong one."
                )
        if found:
            return found[0][1]
    return None


def _stated_crs(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The CRSs in attributes, by the name of the attribute."""
    for name in ("crs_wkt", "spatial_ref", "proj:wkt2", "proj:projjson", "proj:code", "proj:epsg"):
        value = attributes.get(name)
        if value:
            yield name, int(value) if name == "proj:epsg" else value
    gdal = attributes.get("_CRS")
    if isinstance(gdal, Mapping):
        value = gdal.get("wkt") or gdal.get("projjson") or str(gdal.get("url", "")).rpartition("/")[2] or None
        if value:
            yield "_CRS", f"EPSG:{value}" if str(value).isdecimal() else value
    if "grid_mapping_name" in attributes and not attributes.get("crs_wkt") and not attributes.get("spatial_ref"):
        yield "grid_mapping", attributes
