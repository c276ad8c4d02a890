"""Labels as class ids on the reference grid, from a raster or from polygons. geopandas reads vectors."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass

import dask
import dask.array as da
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
from pipeline.grid import Window, same_grid
from pipeline.scene import check_placed, grid_of, open_lazily, open_raster, reading, warped

#: The id of a pixel without a label, in stores and maps alike.
UNLABELLED = 255
#: How the names of vector files end.
VECTORS = (".gpkg", ".geojson", ".json", ".shp", ".parquet", ".fgb", ".kml", ".gml")


@dataclass(frozen=True)
class Labels:
    """Where labels come from. `attribute`: the column of a vector file that names the class."""

    url: str
    attribute: str | None = None
    nodata: float | None = None
    ignore: tuple[int | str, ...] = ()
    all_touched: bool = False


def open_labels(labels: Labels, grid: GeoBox, classes: tuple[ClassName, ...], *, chunk: int) -> da.Array:
    """Class ids (y, x) uint8 on the grid, `UNLABELLED` where there is none; chunks of `chunk` pixels.

    Raises:
        InputError: the file is missing, unreadable or elsewhere; a label is declared by no class.
    """
    if labels.attribute is None:
        return _open_raster_labels(labels, grid, classes, chunk=chunk)
    return _open_vector_labels(labels, labels.attribute, grid, classes, chunk=chunk)


def _open_raster_labels(labels: Labels, grid: GeoBox, classes: tuple[ClassName, ...], *, chunk: int) -> da.Array:
    if labels.url.lower().endswith(VECTORS):
        raise InputError(f"{labels.url}: is a vector file; name the column that holds the class in `labels.attribute`.")
    with open_raster(labels.url) as dataset:
        check_placed(labels.url, dataset, grid)
        if grid.crs is None and same_grid(grid_of(dataset), grid):
            values = open_lazily(labels.url, chunk)
        else:
            with warped(dataset, grid, resampling="nearest", nodata=labels.nodata) as view:
                values = open_lazily(view, chunk)
    ids = values.isel(band=0).data
    if labels.nodata is not None:
        ids = da.where(ids == labels.nodata, np.nan, ids)
    known = {c.id for c in classes}
    found: Counter[float] = Counter()
    blocks = [dask.delayed(_count)(block) for block in ids.to_delayed().ravel()]
    with reading():
        for counts in dask.compute(*blocks):
            found.update(counts)
    unknown = {str(_number(i)): n for i, n in found.items() if i not in known and i not in labels.ignore}
    _refuse_unknown(labels.url, unknown, classes)
    return da.map_blocks(_to_ids, ids, ids=tuple(known), dtype=np.uint8)


def _count(values: NDArray[np.float32]) -> dict[float, int]:
    ids, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def _number(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _to_ids(values: NDArray[np.float32], *, ids: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.where(np.isin(values, ids), values, UNLABELLED).astype(np.uint8)


def _open_vector_labels(
    labels: Labels, attribute: str, grid: GeoBox, classes: tuple[ClassName, ...], *, chunk: int
) -> da.Array:
    frame = _read_vector(labels.url, grid)
    if attribute not in frame.columns:
        columns = ", ".join(str(c) for c in frame.columns if c != frame.geometry.name)
        raise InputError(f"{labels.url}: has no attribute {attribute!r}; it has {columns}.")
    frame = frame[frame.geometry.notna() & frame[attribute].notna()]
    if frame.empty:
        raise InputError(f"{labels.url}: no feature with a class lies on the reference grid. {_places(labels.url, grid)}")
    ids = {str(c.id): c.id for c in classes} | {c.id: c.id for c in classes} | {c.name: c.id for c in classes}
    named = frame[attribute]
    unknown = Counter(str(v) for v in named if v not in ids and v not in labels.ignore)
    _refuse_unknown(labels.url, dict(unknown), classes)
    declared = np.array([v in ids for v in named])
    if not declared.any():
        raise InputError(f"{labels.url}: every feature on the reference grid is ignored by `labels.ignore`.")
    burnt = np.array([ids[v] for v in named[declared]], np.uint8)
    frame = frame[declared]
    shapes = _Shapes(frame.geometry.to_numpy(), burnt, grid, labels.all_touched)
    rows, columns = grid.shape
    template = da.zeros((rows, columns), chunks=(chunk, chunk), dtype=np.uint8)
    return template.map_blocks(shapes.burn, dtype=np.uint8)


class _Shapes:
    """Geometries with their ids, searchable by place and burnt window by window; later ones lie on top."""

    def __init__(self, geometries: NDArray[np.object_], ids: NDArray[np.uint8], grid: GeoBox, all_touched: bool) -> None:
        self.geometries, self.ids, self.grid, self.all_touched = geometries, ids, grid, all_touched
        self.tree = shapely.STRtree(geometries)

    def burn(self, block: NDArray[np.uint8], block_info: dict[int, dict[str, list[tuple[int, int]]]]) -> NDArray[np.uint8]:
        (y, _), (x, _) = block_info[0]["array-location"]
        window = Window(y, x, *block.shape)
        part = self.grid[window.slices]
        near = np.sort(self.tree.query(shapely.box(*part.extent.boundingbox)))
        if len(near) == 0:
            return np.full(block.shape, UNLABELLED, np.uint8)
        burnt: NDArray[np.uint8] = rasterize(
            zip(self.geometries[near], self.ids[near], strict=True),
            out_shape=block.shape,
            fill=UNLABELLED,
            transform=part.affine,
            all_touched=self.all_touched,
            dtype=np.uint8,
        )
        return burnt


def _read_vector(url: str, grid: GeoBox) -> geopandas.GeoDataFrame:
    """The features of a vector file that lie on the grid, in its CRS."""
    if storage.is_local(url) and not storage.exists(url):
        raise InputError(f"{url}: no such file; check the path in the configuration.")
    box = shapely.box(*grid.extent.boundingbox)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            if url.endswith(".parquet"):
                frame = geopandas.read_parquet(url)
            elif grid.crs is None or pyogrio.read_info(url)["crs"] is None:
                frame = geopandas.read_file(url)
            else:
                frame = geopandas.read_file(url, bbox=geopandas.GeoSeries([box], crs=grid.crs.to_wkt()))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{url}: cannot be read as a vector file ({error}).") from error
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise InputError(f"{url}: has no geometries.")
    if grid.crs is not None:
        if frame.crs is None:
            raise InputError(f"{url}: has no CRS; assign one first, for example with `ogr2ogr -a_srs`.")
        frame = frame.to_crs(grid.crs.to_wkt())
    return frame[frame.intersects(box)]


def _places(url: str, grid: GeoBox) -> str:
    """Where a vector file and the grid are, for a message."""
    extent = grid.extent.boundingbox
    ours = f"x {extent.left:.6g} to {extent.right:.6g}, y {extent.bottom:.6g} to {extent.top:.6g}"
    if url.endswith(".parquet"):
        return f"The grid spans {ours}."
    info = pyogrio.read_info(url, force_total_bounds=True)
    left, bottom, right, top = info["total_bounds"]
    theirs = f"x {left:.6g} to {right:.6g}, y {bottom:.6g} to {top:.6g}"
    crs = "no CRS" if grid.crs is None else f"EPSG:{grid.crs.to_epsg()}"
    return (
        f"The file says {info['crs'] or 'no CRS'} and spans {theirs}; the grid has {crs} and spans {ours}. "
        "GeoJSON is longitude and latitude unless it names another CRS."
    )


def _refuse_unknown(url: str, unknown: dict[str, int], classes: tuple[ClassName, ...]) -> None:
    if unknown:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(unknown.items())[:10])
        known = ", ".join(f"{c.id} ({c.name})" for c in classes)
        raise InputError(
            f"{url}: labels that no class declares: {listed}. Declared are {known}. "
            "Add them under `classes`, or list them under `labels.ignore`."
        )
