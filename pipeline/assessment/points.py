"""Points of a sample as GeoPackage and CSV, and labelled points read back and checked against their design."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyproj
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.assessment.design import Design
from pipeline.assessment.selection import DrawnPoints, SceneFrame
from pipeline.io import gdal, storage
from pipeline.rasters.untrusted import check_vector_driver

#: Decimal places of degrees; about a millimetre.
DECIMALS = 8
LAYER = "points"
#: Columns that a labelled sample must have.
NEEDED = ("point", "stratum", "label")
#: Distance of a point from the centre of its pixel, in pixels, above which it was moved.
MOVED = 0.5 + 1e-6
#: Problems of a kind that a message lists.
LISTED = 5


def point_table(
    drawn: DrawnPoints, scenes: Sequence[SceneFrame], design: Design, stratum: NDArray[np.int64]
) -> pd.DataFrame:
    """The table of a sample: a row for each point, with an empty label.

    Args:
        drawn: the points.
        scenes: of the frame.
        design: of the sample.
        stratum: position of each point's stratum (n,).
    """
    x, y, longitude, latitude = (np.full(len(drawn), np.nan) for _ in range(4))
    for number, scene in enumerate(scenes):
        own = drawn.scenes == number
        x[own], y[own] = pixel_centres(scene.grid, drawn.rows[own], drawn.columns[own])
        if scene.grid.crs is not None:
            longitude[own], latitude[own] = _degrees(scene.grid, x[own], y[own])
    probability = np.array([each.inclusion_probability for each in design.strata])[stratum]
    return pd.DataFrame(
        {
            "sample": design.id,
            "point": np.arange(1, len(drawn) + 1),
            "stratum": np.array([each.number for each in design.strata])[stratum],
            "scene": np.array([scene.name for scene in scenes], object)[drawn.scenes],
            "row": drawn.rows,
            "column": drawn.columns,
            "x": x,
            "y": y,
            "lon": np.round(longitude, DECIMALS),
            "lat": np.round(latitude, DECIMALS),
            "inclusion_probability": probability,
            "weight": 1 / probability,
            "label": pd.array([None] * len(drawn), "string"),
        }
    )


def pixel_centres(grid: GeoBox, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> tuple[Any, Any]:
    """Coordinates of pixel centres in a grid's CRS."""
    a, b, c, d, e, f = tuple(grid.affine)[:6]
    x, y = columns + 0.5, rows + 0.5
    return a * x + b * y + c, d * x + e * y + f


def _degrees(grid: GeoBox, x: Any, y: Any) -> tuple[Any, Any]:
    """Longitudes and latitudes in WGS 84; NaN where the grid's CRS is not on the Earth."""
    try:
        transformer = pyproj.Transformer.from_crs(grid.crs.to_wkt(), "EPSG:4326", always_xy=True)
        longitude, latitude = transformer.transform(x, y)
    except pyproj.exceptions.ProjError:
        return np.full(len(x), np.nan), np.full(len(x), np.nan)
    return (np.where(np.isfinite(each), each, np.nan) for each in (longitude, latitude))  # type: ignore[return-value]  # two


def csv_bytes(table: pd.DataFrame) -> bytes:
    """A table as CSV."""
    return table.to_csv(index=False, lineterminator="\n").encode()


def write_geopackage(path: Path, table: pd.DataFrame, scenes: Sequence[SceneFrame]) -> None:
    """Write points as a GeoPackage: in the scenes' CRS if they have the same, otherwise in WGS 84."""
    systems = {None if scene.grid.crs is None else scene.grid.crs.to_wkt() for scene in scenes}
    if len(systems) == 1:
        crs, columns = systems.pop(), ("x", "y")
    else:
        crs, columns = "EPSG:4326", ("lon", "lat")
    geometry = shapely.points(*(table[name].to_numpy() for name in columns))
    frame = geopandas.GeoDataFrame(table, geometry=geometry, crs=crs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")  # scenes without a CRS are supported
        frame.to_file(path, layer=LAYER, driver="GPKG", engine="pyogrio")


def _read_csv(content: bytes) -> pd.DataFrame:
    """Read a table, also as spreadsheets write it where the decimal separator is a comma: with semicolons."""
    head = content.partition(b"\n")[0]
    separator, point = (";", ",") if b";" in head and b"," not in head else (",", ".")
    return pd.read_csv(
        io.BytesIO(content),
        dtype={"label": "string", "scene": "string"},
        encoding="utf-8-sig",
        sep=separator,
        decimal=point,
    )


@dataclass(frozen=True)
class LabelledPoints:
    """The points of a sample, with labels as positions of classes, -1 where there is none: (n,) each."""

    points: NDArray[np.int64]  #: their ids
    strata: NDArray[np.int64]  #: positions among the design's strata
    scenes: NDArray[np.int64]
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    labels: NDArray[np.int64]

    def at(self, chosen: NDArray[np.bool_]) -> LabelledPoints:
        """Some of the points."""
        return LabelledPoints(*(each[chosen] for each in vars(self).values()))


def read_table(url: str) -> pd.DataFrame:
    """Read a labelled sample: CSV, or any vector file of points, with its geometry.

    Raises:
        InputError: it does not exist, or cannot be read.
    """
    if not storage.exists(url):
        raise InputError(f"{storage.redact_url(url)}: no such file; give the labelled sample of `mibf sample`.")
    try:
        if url.lower().endswith(".csv"):
            with storage.as_input_errors(url):
                content = storage.read_at_most(url, 2**30)
            return _read_csv(content)
        import pyogrio  # only for vector files: it loads a GDAL of its own

        gdal.configure_gdal()
        path = gdal.gdal_path(url)
        gdal.drop_cached(path, "pyogrio")
        layers = [str(name) for name in pyogrio.list_layers(path)[:, 0]]
        if len(layers) > 1 and LAYER not in layers:
            raise InputError(
                f"{storage.redact_url(url)}: has several layers ({', '.join(layers)}); name that of the points {LAYER!r}."
            )
        layer = LAYER if LAYER in layers else None
        check_vector_driver(url, pyogrio.read_info(path, layer=layer)["driver"])
        frame: pd.DataFrame = geopandas.read_file(path, engine="pyogrio", layer=layer)
        return frame
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{storage.redact_url(url)}: cannot be read as points ({error}); use GeoPackage or CSV.") from error


def labelled_points(
    table: pd.DataFrame, source: str, design: Design, grids: Mapping[str, GeoBox], classes: Mapping[int, str]
) -> LabelledPoints:
    """Check the table of a labelled sample against its design.

    Args:
        table: of the file `source`.
        source: named in messages.
        design: of the sample.
        grids: of the map's scenes, in their order.
        classes: names of the map's classes by id, in their order.

    Raises:
        InputError: columns are missing, points are duplicated, outside the map or were moved, or labels or strata are
            unknown.
    """
    missing = [name for name in NEEDED if name not in table.columns]
    if missing or not len(table):
        lack = f"has no column {', '.join(map(repr, missing))}" if missing else "has no points"
        raise InputError(f"{source}: {lack}; give the file of `mibf sample` with its column `label` filled in.")
    ids = _whole_numbers(table, "point", source)
    if "sample" in table.columns:
        other = (table["sample"].astype("string").fillna("") != design.id).to_numpy(bool)
        _refuse(
            source, ids[other], f"not of the sample {design.id} of the design", "give the design of these points as --design"
        )
    _refuse(source, ids[pd.Series(ids).duplicated().to_numpy()], "more than once", "remove the duplicates")
    strata = _whole_numbers(table, "stratum", source)
    numbers = {stratum.number: position for position, stratum in enumerate(design.strata)}
    of_design = np.isin(strata, list(numbers))
    listed = ", ".join(map(str, numbers))
    _refuse(source, ids[~of_design], f"in a stratum that the design does not have ({listed})", "use the sample's design")
    scenes = _scenes(table, source, ids, list(grids))
    rows, columns = _pixels(table, source, ids, scenes, list(grids.values()))
    _refuse_duplicated_pixels(source, ids, scenes, rows, columns)
    positions = np.array([numbers[each] for each in strata.tolist()], np.int64)
    return LabelledPoints(ids, positions, scenes, rows, columns, _labels(table, source, ids, classes))


def _refuse(source: str, ids: NDArray[np.int64], problem: str, remedy: str) -> None:
    """Raise if there are points with a problem."""
    if len(ids):
        found = list(dict.fromkeys(ids.tolist()))
        more = f" and {len(found) - LISTED:,} more" if len(found) > LISTED else ""
        named = f"point{'' if len(found) == 1 else 's'} {', '.join(map(str, found[:LISTED]))}{more}"
        raise InputError(f"{source}: {named}: {problem}; {remedy}.")


def _whole_numbers(table: pd.DataFrame, name: str, source: str) -> NDArray[np.int64]:
    values = pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64)
    if not (np.isfinite(values) & (values == np.floor(values))).all():
        bad = int(np.flatnonzero(~np.isfinite(values) | (values != np.floor(values)))[0])
        raise InputError(f"{source}: row {bad + 1} has {table[name].iloc[bad]!r} as `{name}`; it must be a whole number.")
    return values.astype(np.int64)


def _scenes(table: pd.DataFrame, source: str, ids: NDArray[np.int64], names: list[str]) -> NDArray[np.int64]:
    if "scene" not in table.columns:
        if len(names) > 1:
            raise InputError(f"{source}: has no column 'scene', but the map has {len(names)} scenes: {', '.join(names)}.")
        return np.zeros(len(table), np.int64)
    given = table["scene"].astype("string").fillna("").tolist()
    known = np.array([name in names for name in given])
    _refuse(source, ids[~known], f"in a scene that was not sampled from this map ({', '.join(names)})", "check the file")
    return np.array([names.index(name) for name in given], np.int64)


def _pixels(
    table: pd.DataFrame, source: str, ids: NDArray[np.int64], scenes: NDArray[np.int64], grids: list[GeoBox]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pixel of each point: that of its geometry, or of `x` and `y`, which must be in its `row` and `column`."""
    places = _places(table, source, ids, scenes, grids)
    given = {"row", "column"} <= set(table.columns)
    if places is None and not given:
        raise InputError(f"{source}: has neither points nor the columns `row` and `column`; give the file of `mibf sample`.")
    if given:
        rows, columns = (_whole_numbers(table, name, source) for name in ("row", "column"))
    else:
        assert places is not None
        rows, columns = (np.floor(each).astype(np.int64) for each in places)
    shapes = np.array([grid.shape for grid in grids])[scenes]
    inside = (rows >= 0) & (columns >= 0) & (rows < shapes[:, 0]) & (columns < shapes[:, 1])
    _refuse(source, ids[~inside], "outside the map", "check the file and its CRS")
    if places is not None and given:
        away = np.maximum(abs(places[0] - rows - 0.5), abs(places[1] - columns - 0.5))
        moved = ~(away <= MOVED)
        _refuse(source, ids[moved], "not in the pixel of their `row` and `column`: they were moved", "label points in place")
    return rows, columns


def _places(
    table: pd.DataFrame, source: str, ids: NDArray[np.int64], scenes: NDArray[np.int64], grids: list[GeoBox]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Rows and columns of points, with fractions, from their geometry or coordinates; None without any."""
    crs = getattr(table, "crs", None)
    if isinstance(table, geopandas.GeoDataFrame):
        geometry = table.geometry
        is_point = (geometry.geom_type == "Point").to_numpy()
        _refuse(source, ids[~is_point], "not a point", "give one point each")
        x, y = geometry.x.to_numpy(), geometry.y.to_numpy()
    elif {"x", "y"} <= set(table.columns):
        x, y = (pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64) for name in ("x", "y"))
    else:
        return None
    rows, columns = np.full(len(table), np.nan), np.full(len(table), np.nan)
    for number, grid in enumerate(grids):
        own = scenes == number
        east, north = x[own], y[own]
        if crs is not None and grid.crs is not None and crs != pyproj.CRS.from_wkt(grid.crs.to_wkt()):
            transformer = pyproj.Transformer.from_crs(crs, grid.crs.to_wkt(), always_xy=True)
            east, north = transformer.transform(east, north)
        columns[own], rows[own] = ~grid.affine * (np.asarray(east), np.asarray(north))
    return rows, columns


def _refuse_duplicated_pixels(source: str, ids: NDArray[np.int64], *place: NDArray[np.int64]) -> None:
    _, first, counts = np.unique(np.stack(place), axis=1, return_index=True, return_counts=True)
    twice = np.sort(ids[first[counts > 1]])
    _refuse(source, twice, "another point is in the same pixel", "a pixel is drawn at most once; remove the copies")


def _labels(table: pd.DataFrame, source: str, ids: NDArray[np.int64], classes: Mapping[int, str]) -> NDArray[np.int64]:
    """Positions of the labels' classes, given by name or id; -1 for an empty label."""
    position = {name: number for number, name in enumerate(classes.values())}
    by_id = {str(id): number for number, id in enumerate(classes)}
    given = [_text(value) for value in table["label"].tolist()]
    unknown = np.array([bool(value) and value not in position and value not in by_id for value in given])
    if unknown.any():
        named = ", ".join(dict.fromkeys(repr(value) for value, bad in zip(given, unknown, strict=True) if bad))
        listed = ", ".join(f"{name} ({id})" for id, name in classes.items())
        _refuse(source, ids[unknown], f"labelled {named}, which is no class of the map", f"use a name or id of {listed}")
    return np.array([position.get(value, by_id.get(value, -1)) if value else -1 for value in given], np.int64)


def _text(value: Any) -> str:
    """A label as text; a whole number that was read as 3.0 is 3."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value).strip()
