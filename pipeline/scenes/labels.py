"""Labels as class ids on the reference grid, read window by window from a raster or from polygons and points.

geopandas reads vector files, rasterio rasterizes them.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import geopandas
import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from mibf.bundle.classes import ClassName
from mibf.errors import InputError
from pipeline.codes import UNLABELLED
from pipeline.grid import Window
from pipeline.io import gdal, storage
from pipeline.rasters.header import Axis, RasterFile
from pipeline.rasters.longitude import engineering_name
from pipeline.rasters.raster import header, open_raster, stamped
from pipeline.rasters.resample import Alignment, align, read_aligned
from pipeline.rasters.untrusted import check_vector_driver
from pipeline.scenes.geometries import AreaMask, Burnt, copies_on_grid, read_near, to_grid_crs, without_collections

#: Extensions of vector files.
VECTORS = (".gpkg", ".geojson", ".json", ".shp", ".parquet", ".geoparquet", ".fgb", ".kml", ".gml")
PARQUET = (".parquet", ".geoparquet")


@dataclass(frozen=True)
class Labels:
    """Where labels come from. `attribute` is the column of a vector file that names the class.

    Where geometries overlap, classes listed earlier in `priority` win over later ones, and listed classes win over all
    others. Otherwise features later in the file win.
    """

    url: str
    attribute: str | None = None
    layer: str | None = None
    variable: str | None = None
    axes: tuple[Axis, ...] | None = None
    band: int | None = None  #: of a raster with several, numbered from 1
    nodata: float | None = None
    ignore: tuple[int | str, ...] = ()
    all_touched: bool = False
    priority: tuple[int | str, ...] = ()


class OpenLabels(Protocol):
    """Labels on a grid. Only geometries are in memory; instances can be sent to other machines."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user on how the labels were read."""

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class ids (height, width) of a window, `UNLABELLED` where there is no label."""

    def unknown(self, window: Window) -> dict[float, int]:
        """Labels of a window that are neither a declared class nor ignored, with their pixel counts."""


@dataclass(frozen=True)
class NoLabels:
    """A scene without labels, which can only be mapped."""

    notes: tuple[str, ...] = ()

    def read(self, window: Window) -> NDArray[np.uint8]:
        """All pixels are `UNLABELLED`."""
        return np.full((window.height, window.width), UNLABELLED, np.uint8)

    def unknown(self, window: Window) -> dict[float, int]:
        """Always empty."""
        del window
        return {}


@dataclass(frozen=True)
class RasterLabels:
    """Labels from a raster of class ids; outside the area, if there is one, there are none, and nothing is read."""

    file: RasterFile
    alignment: Alignment
    grid: GeoBox
    ids: tuple[int, ...]
    ignore: tuple[int | str, ...]
    notes: tuple[str, ...] = ()
    area: AreaMask | None = None

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class ids (height, width) of a window, `UNLABELLED` where there is no label."""
        values, valid = self._values(window)
        return np.where(valid & np.isin(values, self.ids), values, UNLABELLED).astype(np.uint8)

    def unknown(self, window: Window) -> dict[float, int]:
        """Labels of a window that are neither a declared class nor ignored, with their pixel counts."""
        values, valid = self._values(window)
        found, counts = np.unique(values[valid], return_counts=True)
        known = (*self.ids, *(float(i) for i in self.ignore if str(i).lstrip("-").isdecimal()))
        return {v: n for v, n in zip(found.tolist(), counts.tolist(), strict=True) if v not in known}

    def _values(self, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        inside = None if self.area is None else self.area.inside(window)
        if inside is not None and not inside.any():
            return np.zeros(inside.shape, np.uint8), inside
        with open_raster(self.file) as raster:
            values, valid = read_aligned(raster, self.alignment, self.grid, window)
        valid = valid if inside is None else valid & inside
        return np.where(valid, values[0], 0), valid


class VectorLabels:
    """Labels rasterized from spatially indexed geometries; later geometries overwrite earlier ones."""

    def __init__(self, burnt: Burnt, *, notes: tuple[str, ...] = (), area: AreaMask | None = None) -> None:
        self.burnt, self.notes, self.area = burnt, notes, area

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class ids (height, width) of a window, `UNLABELLED` where there is no label."""
        found = self.burnt.read(window)
        return found if self.area is None else np.where(self.area.inside(window), found, np.uint8(UNLABELLED))

    def unknown(self, window: Window) -> dict[float, int]:
        """Always empty: unknown names were rejected when the file was read."""
        del window
        return {}


def open_labels(
    labels: Labels,
    grid: GeoBox,
    classes: tuple[ClassName, ...],
    *,
    like: RasterFile | None = None,
    area: AreaMask | None = None,
) -> OpenLabels:
    """Open labels on the reference grid, which is that of the file `like`, if given; there are none outside the area.

    Raises:
        InputError: the file is missing, unreadable or outside the grid, a geometry has an undeclared label, or a class has
            the id that means no label.
    """
    if labels.attribute is not None:
        return _open_vector(labels, labels.attribute, grid, classes, area)
    if labels.url.lower().endswith(VECTORS):
        raise InputError(f"{labels.url}: is a vector file; set `labels.attribute` to the column with the class.")
    if labels.priority or labels.all_touched:
        raise InputError(f"{labels.url}: `priority` and `all_touched` apply only to vector labels; this is a raster.")
    bands = None if labels.band is None else (labels.band,)
    file = stamped(RasterFile(labels.url, labels.variable, labels.axes, bands=bands, nodata=labels.nodata))
    head = header(file)
    if head.bands != 1:
        raise InputError(f"{file}: has {head.bands} bands; select the one with the class ids with `labels.band`.")
    for declared in classes:
        if declared.id == head.nodata[0]:
            raise InputError(
                f"{file}: {declared.id} is both the id of class {declared.name} and the nodata value "
                f"{'of the file' if labels.nodata is None else 'in `labels.nodata`'}. If it is a class, set `labels.nodata` "
                "to a value that the file does not hold; if it means no label, remove the class."
            )
    alignment = align(file, head, grid, resampling="nearest", like=like)
    return RasterLabels(file, alignment, grid, tuple(c.id for c in classes), labels.ignore, area=area)


def refuse_unknown(url: str, unknown: dict[str, int], classes: tuple[ClassName, ...]) -> None:
    """Reject labels, given with their counts, that no class declares.

    Raises:
        InputError: there is at least one.
    """
    if unknown:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(unknown.items())[:10])
        known = ", ".join(f"{c.id} ({c.name})" for c in classes)
        raise InputError(
            f"{url}: labels that no class declares: {listed}. Declared classes: {known}. "
            "Add them under `classes`, or list them under `labels.ignore`."
        )


def _open_vector(
    labels: Labels, attribute: str, grid: GeoBox, classes: tuple[ClassName, ...], area: AreaMask | None
) -> VectorLabels:
    frame, notes = _repair_geometries(_read_near_grid(labels, grid), grid)
    if area is not None:
        frame = frame[area.near(frame.geometry.to_numpy())]
    if attribute not in frame.columns:
        columns = ", ".join(str(c) for c in frame.columns if c != frame.geometry.name)
        raise InputError(f"{labels.url}: has no attribute {attribute!r}; it has {columns}.")
    if frame[attribute].map(lambda value: isinstance(value, list | dict | np.ndarray)).any():
        raise InputError(
            f"{labels.url}: attribute {attribute!r} holds lists; each feature must have a single class name or id."
        )
    unnamed = frame[attribute].isna() | frame[attribute].map(lambda value: isinstance(value, str) and not value.strip())
    if unnamed.any():
        notes.append(f"without a value of {attribute!r}, skipped: {int(unnamed.sum())}")
    frame = frame[~unnamed]
    if frame.empty:
        raise InputError(
            f"{labels.url}: no feature with a class is on the reference grid. {_describe_extents(labels.url, grid)}"
        )
    ids = {str(c.id): c.id for c in classes} | {c.id: c.id for c in classes} | {c.name: c.id for c in classes}
    named = frame[attribute]
    ignored = {*labels.ignore, *map(str, labels.ignore)}
    unknown = Counter(str(v) for v in named if v not in ids and v not in ignored)
    refuse_unknown(labels.url, dict(unknown), classes)
    undeclared = [str(v) for v in labels.priority if v not in ids]
    if undeclared:
        raise InputError(f"{labels.url}: `labels.priority` lists undeclared classes: {', '.join(undeclared)}.")
    declared = np.array([v in ids for v in named])
    if not declared.any():
        raise InputError(f"{labels.url}: `labels.ignore` excludes every feature on the reference grid.")
    burnt = np.array([ids[v] for v in named[declared]], np.uint8)
    rank = {ids[v]: position for position, v in reversed(list(enumerate(labels.priority)))}
    order = np.argsort([-rank.get(int(i), len(labels.priority)) for i in burnt], kind="stable")
    geometries = frame.geometry.to_numpy()[declared]
    messages = tuple(f"{storage.redact_url(labels.url)}: features {note}" for note in notes)
    rasterized = Burnt(geometries[order], burnt[order], grid, fill=UNLABELLED, all_touched=labels.all_touched)
    return VectorLabels(rasterized, notes=messages, area=area)


def _repair_geometries(frame: geopandas.GeoDataFrame, grid: GeoBox) -> tuple[geopandas.GeoDataFrame, list[str]]:
    """The features on the grid that can be rasterized, and notes on those skipped or repaired."""
    notes = []
    geometries = frame.geometry
    with np.errstate(invalid="ignore"):
        empty = geometries.isna() | geometries.is_empty | ~np.isfinite(geometries.bounds).all(axis=1)
    if empty.any():
        notes.append(f"without a usable geometry, skipped: {int(empty.sum())}")
        frame = frame[~empty]
    frame = without_collections(frame)
    lines = ~frame.geometry.geom_type.isin(["Point", "MultiPoint", "Polygon", "MultiPolygon"])
    if lines.any():
        kinds = ", ".join(sorted(set(frame.geometry.geom_type[lines])))
        notes.append(f"that are neither polygons nor points ({kinds}), skipped: {int(lines.sum())}")
        frame = frame[~lines]
    crossing = ~frame.geometry.is_valid
    if crossing.any():
        notes.append(f"with a self-intersecting outline, converted to the areas that it encloses: {int(crossing.sum())}")
        frame = frame.copy()
        # Keep only areas: parts of a polygon that collapse to a line or a point are dropped.
        repaired = frame.geometry[crossing].make_valid(method="structure", keep_collapsed=False)
        frame.loc[crossing, frame.geometry.name] = repaired
    return copies_on_grid(frame, grid), notes


def _read_near_grid(labels: Labels, grid: GeoBox) -> geopandas.GeoDataFrame:
    """Read the features near the grid, in the grid's CRS."""
    url = labels.url
    frame = read_vector(url, labels.layer, lambda path, layer, crs: read_near(path, layer, grid, crs), key="labels.layer")
    if grid.crs is not None:
        if frame.crs is None:
            raise InputError(f"{url}: has no CRS; assign one first, for example with `ogr2ogr -a_srs`.")
        names = [engineering_name(crs.to_wkt()) for crs in (frame.crs, grid.crs)]
        if names[0] != names[1]:
            raise InputError(
                f"{url}: has the CRS {frame.crs.name!r}, which cannot be transformed to that of the reference grid, "
                f"{grid.crs.proj.name!r}: one is an engineering CRS. Assign its true CRS, for example with "
                "`ogr2ogr -a_srs` or `rio edit-info --crs`."
            )
        frame = to_grid_crs(frame, grid)
    return frame


def read_vector(
    url: str,
    layer: str | None,
    read: Callable[[str, str | None, str | None], geopandas.GeoDataFrame],
    *,
    key: str,
) -> geopandas.GeoDataFrame:
    """Read features of a vector file or of one of its layers.

    Args:
        url: of the file.
        layer: its name; None for the only one.
        read: reads features of a layer from a GDAL path, a layer and the layer's CRS; GeoParquet is read completely.
        key: of the configuration that selects the layer, for messages.

    Raises:
        InputError: the file is missing, unreadable, or holds several layers or no geometries.
    """
    import pyogrio  # only for vector files: it loads a GDAL of its own

    gdal.configure_gdal()
    if storage.is_local(url) and not storage.exists(url):
        raise InputError(f"{url}: no such file; check the path.")
    path = gdal.gdal_path(url)
    gdal.drop_cached(path, "pyogrio")  # a long-lived process may have read an earlier version
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            if url.lower().endswith(PARQUET):
                filesystem, fs_path = storage.open_url(url)
                with filesystem.open(fs_path) as file:
                    frame = geopandas.read_parquet(file)
            else:
                layer = layer or _only_layer(url, path, key)
                info = pyogrio.read_info(path, layer=layer)
                check_vector_driver(url, info["driver"])
                frame = read(path, layer, info["crs"])
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{url}: cannot be read as a vector file ({error}).") from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise InputError(f"{url}: has no geometries.")
    return frame


def _only_layer(url: str, path: str, key: str) -> str:
    """The name of a vector file's only layer."""
    import pyogrio

    layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    if len(layers) > 1:
        raise InputError(f"{storage.redact_url(url)}: has several layers; select one with `{key}`: {', '.join(layers)}.")
    if not layers:
        raise InputError(f"{storage.redact_url(url)}: has no geometries.")
    return layers[0]


def _describe_extents(url: str, grid: GeoBox) -> str:
    """The extents of a vector file and the grid, for a message."""
    extent = grid.extent.boundingbox
    ours = f"x {extent.left:.6g} to {extent.right:.6g}, y {extent.bottom:.6g} to {extent.top:.6g}"
    if url.lower().endswith(PARQUET):
        return f"The grid spans {ours}."
    import pyogrio

    info = pyogrio.read_info(gdal.gdal_path(url), force_total_bounds=True)
    if info["total_bounds"] is None:
        return "The file has no features with a geometry."
    left, bottom, right, top = info["total_bounds"]
    theirs = f"x {left:.6g} to {right:.6g}, y {bottom:.6g} to {top:.6g}"
    crs = "no CRS" if grid.crs is None else f"EPSG:{grid.crs.to_epsg()}"
    return (
        f"The file has {info['crs'] or 'no CRS'} and spans {theirs}; the grid has {crs} and spans {ours}. "
        "GeoJSON is in longitude and latitude unless it declares another CRS."
    )
