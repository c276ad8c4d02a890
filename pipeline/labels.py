"""Labels as class ids on the reference grid, window by window, from a raster or from polygons and points.

geopandas reads vectors, rasterio burns them.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import geopandas
import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize

from mibf.bundle import ClassName
from mibf.errors import InputError
from pipeline import storage
from pipeline.align import Alignment, align, read_aligned
from pipeline.grid import Window
from pipeline.raster import Axis, RasterFile, header, open_raster
from pipeline.strangers import check_vector_driver

#: The id of a pixel without a label, in stores and maps alike.
UNLABELLED = 255
#: How the names of vector files end.
VECTORS = (".gpkg", ".geojson", ".json", ".shp", ".parquet", ".geoparquet", ".fgb", ".kml", ".gml")
PARQUET = (".parquet", ".geoparquet")


@dataclass(frozen=True)
class Labels:
    """Where labels come from. `attribute`: the column of a vector file that names the class.

    Where geometries overlap, those of a class that `priority` names earlier lie on top; the others lie below all of these,
    later ones in the file on earlier ones.
    """

    url: str
    attribute: str | None = None
    layer: str | None = None
    variable: str | None = None
    axes: tuple[Axis, ...] | None = None
    nodata: float | None = None
    ignore: tuple[int | str, ...] = ()
    all_touched: bool = False
    priority: tuple[int | str, ...] = ()


class OpenLabels(Protocol):
    """Labels on a grid; nothing of them is in memory but geometries. Values travel to other machines."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of how they were taken."""

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class ids (height, width) of a window, `UNLABELLED` where there is none."""

    def unknown(self, window: Window) -> dict[float, int]:
        """The labels of a window that are no class's and not ignored, with their number of pixels."""


@dataclass(frozen=True)
class NoLabels:
    """A scene without labels, only to be mapped."""

    notes: tuple[str, ...] = ()

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Nothing but `UNLABELLED`."""
        return np.full((window.height, window.width), UNLABELLED, np.uint8)

    def unknown(self, window: Window) -> dict[float, int]:
        """None."""
        del window
        return {}


@dataclass(frozen=True)
class RasterLabels:
    """Labels from a raster of class ids."""

    file: RasterFile
    alignment: Alignment
    grid: GeoBox
    ids: tuple[int, ...]
    ignore: tuple[int | str, ...]
    notes: tuple[str, ...] = ()

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class ids (height, width) of a window, `UNLABELLED` where there is none."""
        values, valid = self._values(window)
        return np.where(valid & np.isin(values, self.ids), values, UNLABELLED).astype(np.uint8)

    def unknown(self, window: Window) -> dict[float, int]:
        """The labels of a window that are no class's and not ignored, with their number of pixels."""
        values, valid = self._values(window)
        found, counts = np.unique(values[valid], return_counts=True)
        known = (*self.ids, *(float(i) for i in self.ignore if str(i).lstrip("-").isdecimal()))
        return {v: n for v, n in zip(found.tolist(), counts.tolist(), strict=True) if v not in known}

    def _values(self, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        with open_raster(self.file) as raster:
            values, valid = read_aligned(raster, self.alignment, self.grid, window)
        return np.where(valid, values[0], 0), valid


class VectorLabels:
    """Labels burnt from geometries, searchable by place; later ones lie on top."""

    def __init__(
        self,
        geometries: NDArray[np.object_],
        ids: NDArray[np.uint8],
        grid: GeoBox,
        *,
        all_touched: bool,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.geometries, self.ids, self.grid, self.all_touched, self.notes = geometries, ids, grid, all_touched, notes

    @cached_property
    def _tree(self) -> shapely.STRtree:
        return shapely.STRtree(self.geometries)

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class ids (height, width) of a window, `UNLABELLED` where there is none."""
        part = self.grid[window.slices]
        near = np.sort(self._tree.query(shapely.box(*part.extent.boundingbox)))
        if len(near) == 0:
            return np.full((window.height, window.width), UNLABELLED, np.uint8)
        burnt: NDArray[np.uint8] = rasterize(
            zip(self.geometries[near], self.ids[near], strict=True),
            out_shape=(window.height, window.width),
            fill=UNLABELLED,
            transform=part.affine,
            all_touched=self.all_touched,
            dtype=np.uint8,
        )
        return burnt

    def unknown(self, window: Window) -> dict[float, int]:
        """None: unknown names were refused when the file was read."""
        del window
        return {}


def open_labels(labels: Labels, grid: GeoBox, classes: tuple[ClassName, ...]) -> OpenLabels:
    """Open labels on the reference grid.

    Raises:
        InputError: the file is missing, unreadable or elsewhere; a geometry's label is declared by no class.
    """
    if labels.attribute is not None:
        return _open_vector(labels, labels.attribute, grid, classes)
    if labels.url.lower().endswith(VECTORS):
        raise InputError(f"{labels.url}: is a vector file; name the column that holds the class in `labels.attribute`.")
    if labels.priority or labels.all_touched:
        raise InputError(f"{labels.url}: `priority` and `all_touched` are for vector labels; this is a raster.")
    file = RasterFile(labels.url, labels.variable, labels.axes, nodata=labels.nodata)
    head = header(file)
    if head.bands != 1:
        raise InputError(f"{file}: has {head.bands} bands; labels are a raster of one band.")
    return RasterLabels(
        file, align(file, head, grid, resampling="nearest"), grid, tuple(c.id for c in classes), labels.ignore
    )


def refuse_unknown(url: str, unknown: dict[str, int], classes: tuple[ClassName, ...]) -> None:
    """Refuse labels, given with their number, that no class declares.

    Raises:
        InputError: there are any.
    """
    if unknown:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(unknown.items())[:10])
        known = ", ".join(f"{c.id} ({c.name})" for c in classes)
        raise InputError(
            f"{url}: labels that no class declares: {listed}. Declared are {known}. "
            "Add them under `classes`, or list them under `labels.ignore`."
        )


def _open_vector(labels: Labels, attribute: str, grid: GeoBox, classes: tuple[ClassName, ...]) -> VectorLabels:
    frame, notes = _mended(_read_vector(labels.url, labels.layer, grid), grid)
    if attribute not in frame.columns:
        columns = ", ".join(str(c) for c in frame.columns if c != frame.geometry.name)
        raise InputError(f"{labels.url}: has no attribute {attribute!r}; it has {columns}.")
    if frame[attribute].map(lambda value: isinstance(value, list | dict | np.ndarray)).any():
        raise InputError(f"{labels.url}: attribute {attribute!r} holds lists; a feature's class is one name or id.")
    unnamed = int(frame[attribute].isna().sum())
    if unnamed:
        notes.append(f"{unnamed} without a value of {attribute!r}, left out")
    frame = frame[frame[attribute].notna()]
    if frame.empty:
        raise InputError(f"{labels.url}: no feature with a class lies on the reference grid. {_places(labels.url, grid)}")
    ids = {str(c.id): c.id for c in classes} | {c.id: c.id for c in classes} | {c.name: c.id for c in classes}
    named = frame[attribute]
    ignored = {*labels.ignore, *map(str, labels.ignore)}
    unknown = Counter(str(v) for v in named if v not in ids and v not in ignored)
    refuse_unknown(labels.url, dict(unknown), classes)
    strangers = [str(v) for v in labels.priority if v not in ids]
    if strangers:
        raise InputError(f"{labels.url}: `labels.priority` names {', '.join(strangers)}, which no class is called.")
    declared = np.array([v in ids for v in named])
    if not declared.any():
        raise InputError(f"{labels.url}: every feature on the reference grid is ignored by `labels.ignore`.")
    burnt = np.array([ids[v] for v in named[declared]], np.uint8)
    rank = {ids[v]: position for position, v in reversed(list(enumerate(labels.priority)))}
    order = np.argsort([-rank.get(int(i), len(labels.priority)) for i in burnt], kind="stable")
    geometries = frame.geometry.to_numpy()[declared]
    told = tuple(f"{storage.shown(labels.url)}: features {note}" for note in notes)
    return VectorLabels(geometries[order], burnt[order], grid, all_touched=labels.all_touched, notes=told)


def _mended(frame: geopandas.GeoDataFrame, grid: GeoBox) -> tuple[geopandas.GeoDataFrame, list[str]]:
    """The features that can be burnt, on the grid, and notes of what was done to the others."""
    notes = []
    geometries = frame.geometry
    with np.errstate(invalid="ignore"):
        empty = geometries.isna() | geometries.is_empty | ~np.isfinite(geometries.bounds).all(axis=1)
    if empty.any():
        notes.append(f"{int(empty.sum())} without a geometry that can be placed, left out")
        frame = frame[~empty]
    lines = ~frame.geometry.geom_type.isin(["Point", "MultiPoint", "Polygon", "MultiPolygon"])
    if lines.any():
        kinds = ", ".join(sorted(set(frame.geometry.geom_type[lines])))
        notes.append(f"{int(lines.sum())} that are neither polygons nor points ({kinds}), left out")
        frame = frame[~lines]
    crossing = ~frame.geometry.is_valid
    if crossing.any():
        notes.append(f"{int(crossing.sum())} whose outline crosses itself, taken as the areas that it encloses")
        frame = frame.copy()
        # Of polygons only areas are left: what falls together to a line or a point labels nothing.
        mended = frame.geometry[crossing].make_valid(method="structure", keep_collapsed=False)
        frame.loc[crossing, frame.geometry.name] = mended
    return frame[frame.intersects(shapely.box(*grid.extent.boundingbox))], notes


def _read_vector(url: str, layer: str | None, grid: GeoBox) -> geopandas.GeoDataFrame:
    """The features of a vector file, or of a layer of it, near the grid and in its CRS."""
    storage.set_gdal_up()
    if storage.is_local(url) and not storage.exists(url):
        raise InputError(f"{url}: no such file; check the path in the configuration.")
    # With corners enough along its sides, for these are bent in another CRS.
    box = grid.extent.geom.segmentize(max(grid.extent.geom.length / 400, 1e-9))
    path = storage.gdal_path(url)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            if url.lower().endswith(PARQUET):
                filesystem, place = storage.open_url(url)
                with filesystem.open(place) as file:
                    frame = geopandas.read_parquet(file)
            else:
                layer = layer or _only_layer(url, path)
                near = None
                info = pyogrio.read_info(path, layer=layer)
                check_vector_driver(url, info["driver"])
                if grid.crs is not None and info["crs"] is not None:
                    near = geopandas.GeoSeries([box], crs=grid.crs.to_wkt())
                frame = geopandas.read_file(path, layer=layer, bbox=near)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{url}: cannot be read as a vector file ({error}).") from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise InputError(f"{url}: has no geometries.")
    if grid.crs is not None:
        if frame.crs is None:
            raise InputError(f"{url}: has no CRS; assign one first, for example with `ogr2ogr -a_srs`.")
        frame = frame.to_crs(grid.crs.to_wkt())
    return frame


def _only_layer(url: str, path: str) -> str:
    """The one layer of a vector file."""
    layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    if len(layers) > 1:
        raise InputError(f"{storage.shown(url)}: has several layers; name one with `labels.layer`: {', '.join(layers)}.")
    if not layers:
        raise InputError(f"{storage.shown(url)}: has no geometries.")
    return layers[0]


def _places(url: str, grid: GeoBox) -> str:
    """Where a vector file and the grid are, for a message."""
    extent = grid.extent.boundingbox
    ours = f"x {extent.left:.6g} to {extent.right:.6g}, y {extent.bottom:.6g} to {extent.top:.6g}"
    if url.lower().endswith(PARQUET):
        return f"The grid spans {ours}."
    info = pyogrio.read_info(storage.gdal_path(url), force_total_bounds=True)
    if info["total_bounds"] is None:
        return "The file has no features with a geometry."
    left, bottom, right, top = info["total_bounds"]
    theirs = f"x {left:.6g} to {right:.6g}, y {bottom:.6g} to {top:.6g}"
    crs = "no CRS" if grid.crs is None else f"EPSG:{grid.crs.to_epsg()}"
    return (
        f"The file says {info['crs'] or 'no CRS'} and spans {theirs}; the grid has {crs} and spans {ours}. "
        "GeoJSON is longitude and latitude unless it names another CRS."
    )
