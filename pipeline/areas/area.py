"""An area: the polygons of a vector file, or a box in longitude and latitude, in one piece wherever it lies.

Sides are straight in the area's own CRS: those of a box and of GeoJSON are straight in longitude and latitude (RFC 7946).
They become curves in another CRS, so they get more points before they are transformed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import geopandas
import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from shapely.geometry.base import BaseGeometry

from mibf.errors import InputError
from pipeline.io import storage
from pipeline.rasters.longitude import Cycle, Extent, cycle, engineering_name, may_overlap
from pipeline.scenes.geometries import AreaMask, copies_on_grid, to_grid_crs, without_collections
from pipeline.scenes.labels import read_vector

_DEGREES = "EPSG:4326"
#: Maximum distance of the points of a side, in degrees and meters: a side is then off by at most 0.06 m in another CRS.
STEP_DEGREES, STEP_METERS = 0.02, 2000.0


@dataclass(frozen=True, eq=False)
class Area:
    """The ground that a scene is limited to."""

    name: str  #: its file or box, for messages
    geometry: BaseGeometry  #: valid polygons; where longitudes wrap, in one piece and possibly beyond the ends of the axis
    crs: pyproj.CRS
    notes: tuple[str, ...] = ()

    @cached_property
    def extent(self) -> Extent:
        """Its extent in degrees; beyond 180 if it crosses the antimeridian.

        Raises:
            InputError: it cannot be expressed in degrees, or extends beyond a pole.
        """
        if any(self._poles):
            to_degrees = pyproj.Transformer.from_crs(self.crs, _DEGREES, always_xy=True).transform
            latitudes = to_degrees(*shapely.get_coordinates(self._densified.geometry.to_numpy()).T)[1]
            bottom, top = (
                pole if inside else edge
                for pole, inside, edge in zip(
                    (-90.0, 90.0), self._poles, (float(latitudes.min()), float(latitudes.max())), strict=True
                )
            )
            found = Extent(-180.0, bottom, 180.0, top)
        else:
            found = Extent(*self.transformed(_DEGREES).bounds)
        if found.bottom < -90 - 1e-9 or found.top > 90 + 1e-9:
            raise InputError(
                f"area {self.name}: spans latitude {found.bottom:.6g} to {found.top:.6g}, beyond a pole; its coordinates "
                "must be longitude and latitude in degrees, in this order, or have another CRS."
            )
        return found

    @cached_property
    def _poles(self) -> tuple[bool, bool]:
        """Whether the South and the North Pole are inside an outline that goes around them, which is none in degrees."""
        if cycle(self.crs.to_wkt()) is not None:
            return False, False
        to_area = pyproj.Transformer.from_crs(_DEGREES, self.crs, always_xy=True).transform
        south, north = (bool(shapely.intersects_xy(self.geometry, *to_area(0.0, pole))) for pole in (-90.0, 90.0))
        return south, north

    def describe(self) -> str:
        """Its extent in degrees, for messages."""
        return describe_degrees([self.extent])

    def on(self, grid: GeoBox) -> BaseGeometry:
        """Its polygons in the CRS of a grid, in one piece; far from the grid they may be cut.

        Raises:
            InputError: it cannot be transformed to that CRS.
        """
        target = pyproj.CRS.from_wkt(grid.crs.to_wkt())
        if engineering_name(target.to_wkt()) is not None or (any(self._poles) and cycle(target.to_wkt()) is not None):
            raise self._not_defined(target)
        return self._finite(to_grid_crs(self._densified, grid), target)

    def transformed(self, crs: str) -> BaseGeometry:
        """Its polygons in another CRS, in one piece.

        Raises:
            InputError: it cannot be transformed to that CRS.
        """
        target = pyproj.CRS.from_user_input(crs)
        if cycle(target.to_wkt()) is None and engineering_name(target.to_wkt()) is None:
            return self._finite(self._densified.to_crs(target), target)
        return self.on(GeoBox((1, 1), Affine.identity(), target.to_wkt()))

    @cached_property
    def _densified(self) -> geopandas.GeoDataFrame:
        unit = self.crs.axis_info[0].unit_conversion_factor
        step = np.radians(STEP_DEGREES) / unit if self.crs.is_geographic else STEP_METERS / unit
        return geopandas.GeoDataFrame(geometry=[shapely.segmentize(self.geometry, step)], crs=self.crs)

    def _finite(self, frame: geopandas.GeoDataFrame, crs: pyproj.CRS) -> BaseGeometry:
        found: BaseGeometry = frame.geometry.iloc[0]
        if not np.isfinite(shapely.get_coordinates(found)).all():
            raise self._not_defined(crs)
        # A side along the antimeridian is two equal sides around a pole.
        if not found.is_valid:
            found = shapely.make_valid(found, method="structure", keep_collapsed=False)
        return found

    def _not_defined(self, crs: pyproj.CRS) -> InputError:
        place = "" if crs == pyproj.CRS(_DEGREES) else f"; it spans {self.describe()}"  # which need that transformation
        pole = "; it contains a pole" if any(self._poles) else ""
        return InputError(
            f"area {self.name}: cannot be transformed to {crs.name!r}, in which not all of it has a place{place}{pole}. "
            "Choose another `grid.crs`, or a smaller area."
        )

    def mask(self, grid: GeoBox) -> AreaMask:
        """The pixels of a grid that are inside.

        Raises:
            InputError: none can be.
        """
        polygons = shapely.get_parts(self.on(grid))
        frame = copies_on_grid(geopandas.GeoDataFrame(geometry=polygons, crs=grid.crs.to_wkt()), grid)
        if frame.empty:
            raise InputError(f"area {self.name}: does not overlap the reference grid; the area spans {self.describe()}.")
        return AreaMask(frame.geometry.to_numpy(), grid)

    def meets(self, places: list[Extent] | None) -> bool:
        """Whether it may overlap extents in degrees, at any turn; unknown ones (None) may."""
        return may_overlap([self.extent], places)


def describe_degrees(places: list[Extent]) -> str:
    """Extents in degrees, two if they are parts of one that crosses the antimeridian, for messages."""
    longitude = " and ".join(f"{place.left:.6g} to {place.right:.6g}" for place in places)
    bottom, top = min(place.bottom for place in places), max(place.top for place in places)
    return f"longitude {longitude}, latitude {bottom:.6g} to {top:.6g} degrees"


def box_area(bbox: tuple[float, float, float, float]) -> Area:
    """The area of a box [west, south, east, north] in degrees, across the antimeridian if west > east."""
    west, south, east, north = bbox
    name = f"[{', '.join(f'{value:g}' for value in bbox)}]"
    return Area(name, shapely.box(west, south, east if west < east else east + 360, north), pyproj.CRS(_DEGREES))


def area_of_option(path: str) -> Area:
    """Read the area that the option `--area` of a command names.

    Raises:
        InputError: as `read_area`; the message names the option.
    """
    try:
        return read_area(storage.absolute(path), choose="ogr2ogr NEW.gpkg FILE LAYER")
    except InputError as error:
        raise InputError(f"--area: {error}") from error


def read_area(url: str, layer: str | None = None, *, choose: str = "area.layer") -> Area:
    """Read the polygons of a vector file or of one of its layers as one area.

    Args:
        url: of the file.
        layer: its name; None for the only one.
        choose: how a user selects one of several layers, for messages.

    Raises:
        InputError: the file is missing or unreadable, has no CRS, no polygons, or a polygon that crosses itself.
    """
    frame = read_vector(url, layer, lambda path, name, _: geopandas.read_file(path, layer=name), key=choose)
    name = storage.redact_url(url)
    if frame.crs is None or engineering_name(frame.crs.to_wkt()) is not None:
        raise InputError(
            f"area {name}: has no CRS that refers to the Earth; assign one first, for example with `ogr2ogr -a_srs`."
        )
    frame = without_collections(frame[~(frame.geometry.isna() | frame.geometry.is_empty)])
    polygonal = frame.geometry.geom_type.isin(["Polygon", "MultiPolygon"]).to_numpy()
    polygons = shapely.get_parts(shapely.force_2d(frame.geometry.to_numpy()[polygonal]))
    if not len(polygons):
        kinds = ", ".join(sorted(set(frame.geometry.geom_type)))
        raise InputError(f"area {name}: has no polygon{f' ({kinds} only)' if kinds else ''}; an area needs at least one.")
    if not np.isfinite(shapely.bounds(polygons)).all():
        raise InputError(f"area {name}: has coordinates that are not finite; repair the file.")
    crossing = polygons[~shapely.is_valid(polygons)]
    if len(crossing):
        more = f" and {len(crossing) - 1} more" if len(crossing) > 1 else ""
        raise InputError(
            f"area {name}: an outline crosses itself ({shapely.is_valid_reason(crossing[0])}{more}), so that inside and "
            "outside are not certain; repair it, for example with `ogr2ogr -makevalid`."
        )
    around = cycle(frame.crs.to_wkt())
    merged = shapely.union_all(polygons if around is None else _in_one_piece(polygons, around))
    others = int((~polygonal).sum())
    notes = (f"area {name}: features that are not polygons, skipped: {others}",) if others else ()
    return Area(name, merged, frame.crs, notes)


def _in_one_piece(polygons: NDArray[np.object_], around: Cycle) -> NDArray[np.object_]:
    """Move polygons by full turns so that the widest gap between them is outside: those at 179 and -179 become neighbors."""
    left, _, right, _ = shapely.bounds(polygons).T
    period = around.period
    if right.max() - left.min() <= period / 2:
        return polygons
    start = np.mod(left, period)
    order = np.argsort(start)
    reach = np.maximum.accumulate((start + right - left)[order])
    gaps = np.append(start[order][1:], start[order][0] + period) - reach
    first = start[order][(int(np.argmax(gaps)) + 1) % len(order)]
    moved = start + np.where(start < first, period, 0.0)
    middle = (moved.min() + (moved + right - left).max()) / 2
    shift = moved - left + np.floor((around.low - middle) / period + 1) * period
    points, owner = shapely.get_coordinates(polygons, return_index=True)
    points[:, 0] += shift[owner]
    return np.asarray(shapely.set_coordinates(polygons.copy(), points))
