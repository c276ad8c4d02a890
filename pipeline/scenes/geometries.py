"""Geometries of a vector file on a grid: read near it, transformed, repeated where longitudes wrap, and rasterized."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property, partial

import geopandas
import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize

from pipeline.grid import Window, windows
from pipeline.rasters.longitude import Extent, cycle, engineering_name, extent_of, extents_in, shifts

#: Margin around a grid, as a share of its size, for what is near it.
MARGIN = 0.02
#: Share of the Earth's circumference above which a polygon is cut near the grid, because its corners may be where the
#: grid's CRS is not defined.
WIDE = 1 / 6
#: Side in pixels of the squares, anchored at the grid's origin, in which geometries are burnt: where an edge goes exactly
#: through a corner or center of a pixel, GDAL's rounding depends on the window.
BURNT = 256
#: Side of the windows in which the pixels of an area are counted.
COUNTED = 2048
#: Points of the polygons of an area above which they are cut into pieces.
POINTS = 512


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


class Burnt:
    """Geometries rasterized on a grid, window by window; later geometries overwrite earlier ones."""

    def __init__(
        self,
        geometries: NDArray[np.object_],
        values: NDArray[np.uint8],
        grid: GeoBox,
        *,
        fill: int,
        all_touched: bool = False,
    ) -> None:
        self.geometries, self.values, self.grid, self.fill, self.all_touched = geometries, values, grid, fill, all_touched

    @cached_property
    def tree(self) -> shapely.STRtree:
        """The spatial index of the geometries."""
        return shapely.STRtree(self.geometries)

    def read(self, window: Window) -> NDArray[np.uint8]:
        """The values (height, width) of a window, `fill` where there is no geometry; the same for any window."""
        found = np.full((window.height, window.width), self.fill, np.uint8)
        rows, columns = self.grid.shape
        for y in range(window.y // BURNT * BURNT, window.y + window.height, BURNT):
            for x in range(window.x // BURNT * BURNT, window.x + window.width, BURNT):
                square = Window(y, x, min(BURNT, rows - y), min(BURNT, columns - x))
                top, left = max(y, window.y), max(x, window.x)
                bottom = min(y + square.height, window.y + window.height)
                right = min(x + square.width, window.x + window.width)
                burnt = self.burn(square)[top - y : bottom - y, left - x : right - x]
                found[top - window.y : bottom - window.y, left - window.x : right - window.x] = burnt
        return found

    def burn(self, window: Window) -> NDArray[np.uint8]:
        """The values (height, width) of one square, in which all near geometries are rasterized at once."""
        part = self.grid[window.slices]
        near = np.sort(self.tree.query(shapely.box(*part.extent.boundingbox)))
        if len(near) == 0:
            return np.full((window.height, window.width), self.fill, np.uint8)
        burnt: NDArray[np.uint8] = rasterize(
            zip(self.geometries[near], self.values[near], strict=True),
            out_shape=(window.height, window.width),
            fill=self.fill,
            transform=part.affine,
            all_touched=self.all_touched,
            dtype=np.uint8,
        )
        return burnt


class AreaMask(Burnt):
    """The pixels of a grid whose centers are in an area. Only its polygons, in the grid's CRS, are in memory."""

    def __init__(self, polygons: NDArray[np.object_], grid: GeoBox) -> None:
        rows, columns = grid.shape
        pieces = np.array(list(_pieces(polygons, grid, Window(0, 0, rows, columns))), object)
        super().__init__(pieces, np.ones(len(pieces), np.uint8), grid, fill=0)

    def near(self, geometries: NDArray[np.object_]) -> NDArray[np.bool_]:
        """Which of these geometries touch the area."""
        found = np.zeros(len(geometries), bool)
        found[self.tree.query(geometries, predicate="intersects")[0]] = True
        return found

    def touches(self, window: Window) -> bool:
        """Whether the area touches a window; if not, none of its pixels is inside."""
        return len(self.tree.query(_box(self.grid, window), predicate="intersects")) > 0

    def inside(self, window: Window) -> NDArray[np.bool_]:
        """Where (height, width) the pixels of a window are inside."""
        if not self.touches(window):
            return np.zeros((window.height, window.width), bool)
        return self.read(window).view(np.bool_)

    def count(self, window: Window) -> int:
        """The number of pixels of a window that are inside."""
        return int(self.inside(window).sum())

    @cached_property
    def expected_pixels(self) -> float:
        """About how many pixels are inside, by the size of the polygons: at once, while `pixels` visits the whole grid."""
        return float(shapely.area(self.geometries).sum()) / abs(float(self.grid.affine.determinant))

    @cached_property
    def pixels(self) -> int:
        """The number of pixels of the grid that are inside."""
        rows, columns = self.grid.shape
        return sum(self.count(window) for window in windows((rows, columns), COUNTED))

    def burn(self, window: Window) -> NDArray[np.uint8]:
        """Whether (height, width) the pixels of one square are inside, as 0 and 1."""
        if len(self.tree.query(_box(self.grid, window), predicate="covered_by")):
            return np.ones((window.height, window.width), np.uint8)
        return super().burn(window)


def _box(grid: GeoBox, window: Window) -> shapely.Polygon:
    box: shapely.Polygon = shapely.box(*grid[window.slices].extent.boundingbox)
    return box


def _pieces(polygons: NDArray[np.object_], grid: GeoBox, window: Window) -> Iterator[shapely.Polygon]:
    """Cut polygons at the borders of squares until each piece has few points: the outline of a country has 100,000."""
    cut = shapely.get_parts(shapely.clip_by_rect(polygons, *_box(grid, window).bounds))
    cut = cut[(shapely.get_type_id(cut) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(cut)]
    if shapely.get_num_coordinates(cut).sum() <= POINTS or max(window.height, window.width) <= BURNT:
        yield from cut
        return
    side = BURNT * -(-max(window.height, window.width) // (2 * BURNT))
    for y in range(window.y, window.y + window.height, side):
        for x in range(window.x, window.x + window.width, side):
            height, width = min(side, window.y + window.height - y), min(side, window.x + window.width - x)
            yield from _pieces(cut, grid, Window(y, x, height, width))
