"""Geometries of a vector file on a grid: read near it, transformed, and repeated where longitudes wrap."""

from __future__ import annotations

import math
from functools import partial

import geopandas
import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from pipeline.rasters.longitude import Extent, cycle, engineering_name, extent_of, extents_in, shifts

#: Margin around a grid, as a share of its size, for what is near it.
MARGIN = 0.02
#: Share of the Earth's circumference above which a polygon is cut near the grid, because its corners may be where the
#: grid's CRS is not defined.
WIDE = 1 / 6


def read_near(path: str, layer: str | None, grid: GeoBox, crs: str | None) -> geopandas.GeoDataFrame:
    """Read the features of a layer near a grid, in the file's order and CRS (`crs`); all if it or the grid has none.

    Where longitudes wrap, features near the grid are found at any full turn.
    """
    if grid.crs is None or crs is None:
        return geopandas.read_file(path, layer=layer)
    own = pyproj.CRS.from_user_input(crs).to_wkt()
    if engineering_name(own) is not None or engineering_name(grid.crs.to_wkt()) is not None:
        return geopandas.read_file(path, layer=layer)
    # Densified, because its straight sides are curves in another CRS.
    outline = grid.extent.geom.segmentize(max(grid.extent.geom.length / 400, 1e-9))
    near = geopandas.GeoSeries([outline], crs=grid.crs.to_wkt())
    box = search_box(path, layer, grid, own)
    return geopandas.read_file(path, layer=layer, bbox=near if box is None else box)


def search_box(path: str, layer: str | None, grid: GeoBox, crs: str) -> tuple[float, float, float, float] | None:
    """Bounds of all features near a grid in a file whose CRS (WKT) wraps; None if they are where the grid itself is."""
    import pyogrio  # only for vector files: it loads a GDAL of its own

    around = cycle(crs)
    places = None if around is None else extents_in(grid, crs)
    bounds = None if places is None else pyogrio.read_info(path, layer=layer, force_total_bounds=True)["total_bounds"]
    if places is None or bounds is None or not np.isfinite(bounds).all():
        return None
    places = [_enlarged(place) for place in places]
    found = [(place, shift) for place in places for shift in shifts(_enlarged(Extent(*bounds)), place, around)]
    if not found or (len(places) == 1 and all(shift == 0 for _, shift in found)):
        return None
    boxes = [place.shifted(-shift) for place, shift in found]
    left, bottom = min(box.left for box in boxes), min(box.bottom for box in boxes)
    return left, bottom, max(box.right for box in boxes), max(box.top for box in boxes)


def _enlarged(extent: Extent) -> Extent:
    x, y = (max(MARGIN * size, 1e-9) for size in (extent.right - extent.left, extent.top - extent.bottom))
    return Extent(extent.left - x, extent.bottom - y, extent.right + x, extent.top + y)


def to_grid_crs(frame: geopandas.GeoDataFrame, grid: GeoBox) -> geopandas.GeoDataFrame:
    """Transform features to the grid's CRS. A geometry that crosses the end of its x axis stays in one piece."""
    crs = grid.crs.to_wkt()
    if frame.crs == crs or engineering_name(crs) is not None:
        return frame.set_crs(crs, allow_override=True)
    around = cycle(crs)
    if around is None:
        return _wide_cut(frame, grid).to_crs(crs)
    moved = frame.to_crs(crs)
    geometries = moved.geometry.to_numpy()
    points, owner = shapely.get_coordinates(geometries, return_index=True)
    if not len(points):
        return moved
    own = cycle(frame.crs.to_wkt())
    if own is None:
        turns = _unrolled(points[:, 0] / around.period, owner)
    else:
        before = shapely.get_coordinates(frame.geometry.to_numpy())[:, 0]
        turns = _as_before(points[:, 0] / around.period, before / own.period, owner)
    crossing = np.unique(owner[turns != 0])
    if len(crossing):
        points[:, 0] += turns * around.period
        part = np.isin(owner, crossing)
        geometries = geometries.copy()
        geometries[crossing] = shapely.set_coordinates(shapely.force_2d(geometries[crossing]), points[part])
        moved = moved.set_geometry(geopandas.GeoSeries(geometries, index=moved.index, crs=moved.crs))
    return moved


def _wide_cut(frame: geopandas.GeoDataFrame, grid: GeoBox) -> geopandas.GeoDataFrame:
    """Features with polygons that are wider than `WIDE` cut near the grid."""
    own = cycle(frame.crs.to_wkt())
    if own is None or frame.empty:
        return frame
    bounds = frame.geometry.bounds
    wide = (bounds["maxx"] - bounds["minx"] > WIDE * own.period) & (frame.geometry.geom_type != "MultiPoint")
    places = extents_in(grid, frame.crs.to_wkt()) if wide.any() else None
    if places is None:
        return frame
    everything = _enlarged(Extent(*frame.geometry.total_bounds))
    near = [_enlarged(place) for place in places]
    boxes = [place.shifted(-shift) for place in near for shift in shifts(everything, place, own)]
    area = shapely.union_all([shapely.box(box.left, box.bottom, box.right, box.top) for box in boxes])
    step = max(near[0].right - near[0].left, near[0].top - near[0].bottom) / 64
    geometries = frame.geometry.to_numpy().copy()
    geometries[wide] = shapely.segmentize(shapely.intersection(shapely.make_valid(geometries[wide]), area), step)
    return frame.set_geometry(geopandas.GeoSeries(geometries, index=frame.index, crs=frame.crs))


def _unrolled(x: NDArray[np.float64], owner: NDArray[np.int64]) -> NDArray[np.float64]:
    """Whole turns that make consecutive points of each geometry neighbors; `x` in turns."""
    steps = -np.round(np.diff(np.nan_to_num(x, posinf=0, neginf=0)))
    steps[np.diff(owner) != 0] = 0
    turns = np.concatenate([[0.0], np.cumsum(steps)])
    first = np.searchsorted(owner, owner)  # the first point of each point's geometry
    return np.asarray(turns - turns[first])


def _as_before(x: NDArray[np.float64], before: NDArray[np.float64], owner: NDArray[np.int64]) -> NDArray[np.float64]:
    """Whole turns that keep the points of each geometry as far apart as they were; `x` and `before` in turns."""
    first = np.searchsorted(owner, owner)
    turns = np.round((before - before[first]) - (x - x[first]))
    return np.where(np.isfinite(turns), turns, 0.0)


def copies_on_grid(frame: geopandas.GeoDataFrame, grid: GeoBox) -> geopandas.GeoDataFrame:
    """The features on the grid, in order; where longitudes wrap, at any full turn."""
    box = shapely.box(*grid.extent.boundingbox)
    around = None if grid.crs is None else cycle(grid.crs.to_wkt())
    if around is None or frame.empty:
        return frame[frame.intersects(box)]
    left, _, right, _ = frame.total_bounds
    place = extent_of(grid)
    first, last = (math.floor(edge / around.period) for edge in (place.left - right, place.right - left))
    geometries = frame.geometry.to_numpy()
    copies, positions = [], []
    for turn in range(first, last + 1):
        shift = partial(np.add, (turn * around.period, 0.0))
        moved = shapely.transform(geometries, shift) if turn else geometries
        there = np.flatnonzero(shapely.intersects(moved, box))
        copies.append(moved[there])
        positions.append(there)
    return _rearranged(frame, copies, positions)


def without_collections(frame: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """The features in order, each member of a geometry collection as a feature of its own."""
    while (collections := (frame.geometry.geom_type == "GeometryCollection").to_numpy()).any():
        geometries = frame.geometry.to_numpy()
        others, several = np.flatnonzero(~collections), np.flatnonzero(collections)
        members, owner = shapely.get_parts(geometries[several], return_index=True)
        frame = _rearranged(frame, [geometries[others], members], [others, several[owner]])
    return frame


def _rearranged(
    frame: geopandas.GeoDataFrame, geometries: list[NDArray[np.object_]], positions: list[NDArray[np.int64]]
) -> geopandas.GeoDataFrame:
    """The rows at these positions, sorted, with these geometries in place of their own."""
    position = np.concatenate([np.zeros(0, np.int64), *positions])
    order = np.argsort(position, kind="stable")
    geometry = np.concatenate([np.zeros(0, object), *geometries])[order]
    rows = frame.iloc[position[order]].reset_index(drop=True)
    return rows.set_geometry(geopandas.GeoSeries(geometry, crs=frame.crs))
