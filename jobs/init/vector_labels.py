"""Detect the classes of a vector file: the column that names them, its values and their number of features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import geopandas
import pyogrio
import pyproj
from odc.geo.geobox import GeoBox

from jobs.init.arguments import FileArgument
from jobs.init.class_table import MAX_CLASSES, MAX_ID, DetectedLabels, vector_classes
from jobs.init.legend import means_unlabelled
from mibf.errors import InputError
from pipeline.io import gdal, storage
from pipeline.rasters.longitude import engineering_name
from pipeline.rasters.untrusted import check_vector_driver
from pipeline.scenes.geometries import search_box
from pipeline.scenes.labels import PARQUET, VECTORS, Labels

#: Maximum number of values of a column listed in a message.
_MAX_LISTED = 4


def is_vector(file: FileArgument, attribute: str | None) -> bool:
    """Whether labels are a vector file, by their name or because an attribute is given."""
    return attribute is not None or file.url.lower().endswith(VECTORS)


def find_vector_classes(file: FileArgument, grid: GeoBox, attribute: str | None) -> DetectedLabels:
    """Detect the classes of the features near a grid; geometries are not read.

    Raises:
        InputError: the file cannot be read, has no feature on the grid, or the class column is ambiguous.
    """
    frame, layer = _read_attributes(file, grid)
    columns = {str(name): frame[name].dropna().tolist() for name in frame.columns}
    if attribute is not None and attribute not in columns:
        raise InputError(f"{file}: has no attribute {attribute!r}; it has {', '.join(columns) or 'none'}.")
    counts = {name: Counter(map(_as_text, values)) for name, values in columns.items() if _are_scalars(values)}
    attribute = attribute or _only_candidate(file, list(columns), counts)
    if attribute not in counts:
        raise InputError(f"{file}: attribute {attribute!r} contains neither text nor numbers; choose one that does.")
    ignored = tuple(value for value in counts[attribute] if means_unlabelled(value))
    if len(counts[attribute]) - len(ignored) < 2:  # as in a mask of "background" and another class
        ignored = tuple(value for value in ignored if not value.strip())
    found = Counter({value: count for value, count in counts[attribute].items() if value not in ignored})
    _check_values(file, attribute, found)
    notes = []
    if absent := len(frame) - sum(counts[attribute].values()) + sum(counts[attribute][v] for v in ignored if not v.strip()):
        notes.append(f"{absent:,} features without a value of {attribute!r} are skipped")
    if named := [value for value in ignored if value.strip()]:
        listed = ", ".join(f"{value} ({counts[attribute][value]:,} features)" for value in named)
        notes.append(f"values treated as unlabelled: {listed}; see `labels.ignore`")
    labels = Labels(file.url, attribute=attribute, layer=layer, ignore=ignored)
    return DetectedLabels(labels, file.url, vector_classes(list(found), found), tuple(notes))


def _read_attributes(file: FileArgument, grid: GeoBox) -> tuple[Any, str | None]:
    """Read the attributes of the features near a grid, as a pandas frame, and the layer if it had to be named."""
    gdal.configure_gdal()
    path = gdal.gdal_path(file.url)
    gdal.drop_cached(path, "pyogrio")
    try:
        if file.url.lower().endswith(PARQUET):
            filesystem, fs_path = storage.open_url(file.url)
            with filesystem.open(fs_path) as handle:
                features = geopandas.read_parquet(handle)
            # Positions are checked when the features are rasterized: a GeoParquet file may have no bounds to filter by.
            return features.drop(columns=features.geometry.name), None
        layer = _layer(file, path)
        info = pyogrio.read_info(path, layer=layer, force_total_bounds=True)
        check_vector_driver(file.url, info["driver"])
        frame = pyogrio.read_dataframe(path, layer=layer, read_geometry=False, bbox=_bounds(path, layer, grid, info["crs"]))
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{file}: cannot be read as a vector file ({error}). If it is a raster of class ids, omit --attribute."
        ) from error
    if not len(frame):
        extent, bounds = grid.extent.boundingbox, info["total_bounds"]
        theirs = "has no features" if bounds is None else f"spans {_span(*bounds)} in {info['crs'] or 'no CRS'}"
        raise InputError(
            f"{file}: no feature is on the reference grid. The file {theirs}; the grid spans {_span(*extent)} in "
            f"{'no CRS' if grid.crs is None else f'EPSG:{grid.crs.to_epsg()}'}."
        )
    return frame, file.part


def _span(left: float, bottom: float, right: float, top: float) -> str:
    return f"x {left:.6g} to {right:.6g}, y {bottom:.6g} to {top:.6g}"


def _layer(file: FileArgument, path: str) -> str | None:
    """Return the layer to read: the named one, else the only one with geometries."""
    layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind is not None]
    if file.part is not None and file.part not in layers:
        raise InputError(f"{file}: has no layer {file.part!r}; it has {', '.join(layers) or 'none'}.")
    if file.part is None and len(layers) > 1:
        raise InputError(f"{file}: has several layers: {', '.join(layers)}. Name one, as in {file}#{layers[0]}.")
    if not layers:
        raise InputError(f"{file}: has no geometries.")
    return file.part or layers[0]


def _bounds(path: str, layer: str | None, grid: GeoBox, crs: str | None) -> tuple[float, float, float, float] | None:
    """Return the bounds of a grid in the CRS of a file, at any turn where longitudes wrap; None if either has no CRS."""
    if grid.crs is None or crs is None:
        return None
    own = pyproj.CRS.from_user_input(crs).to_wkt()
    if engineering_name(own) is not None or engineering_name(grid.crs.to_wkt()) is not None:
        return None
    box = search_box(path, layer, grid, own)
    if box is None:
        left, bottom, right, top = grid.extent.to_crs(crs, resolution="auto").boundingbox
        box = left, bottom, right, top
    return box


def _are_scalars(values: Sequence[Any]) -> bool:
    """Whether all values are text or numbers, as class names and ids must be."""
    return all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in values)


def _as_text(value: str | float) -> str:
    """Return a value as text; integral floats as integers, because a column of integers with gaps is read as floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _only_candidate(file: FileArgument, columns: Sequence[str], counts: dict[str, Counter[str]]) -> str:
    """Return the only column that can contain classes: 2 to 100 values shared by features; numbers must be valid ids."""
    candidates = [
        name
        for name, found in counts.items()
        if 2 <= len(found) <= MAX_CLASSES
        and (len(found) < sum(found.values()) or len(columns) == 1)
        and all(_is_id(value) for value in found if _is_number(value))
    ]
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        sizes = {name: f" ({len(counts[name]):,} values)" if name in counts else "" for name in columns}
        listed = ", ".join(name + size for name, size in sizes.items())
        raise InputError(
            f"{file}: no attribute looks like classes (2 to {MAX_CLASSES} values that several features share). Its "
            f"attributes are {listed or 'none'}; name the one with the classes with --attribute."
        )
    listed = "; ".join(
        f"{name}, {len(counts[name])} values: {', '.join(v for v, _ in counts[name].most_common(_MAX_LISTED))}"
        + (", ..." if len(counts[name]) > _MAX_LISTED else "")
        for name in candidates
    )
    raise InputError(f"{file}: several attributes may contain the classes; name one with --attribute. Candidates: {listed}.")


def _check_values(file: FileArgument, attribute: str, found: Counter[str]) -> None:
    """Check that the values of a column can be classes.

    Raises:
        InputError: there are too few or too many, or a number is not a valid id.
    """
    where = f"{file}: attribute {attribute!r}"
    if len(found) < 2:
        only = f"one value ({next(iter(found))})" if found else "no value"
        raise InputError(f"{where} has {only} on the reference grid; a map needs two classes or more.")
    if len(found) > MAX_CLASSES:
        raise InputError(
            f"{where} has {len(found):,} values; {MAX_CLASSES} classes are the maximum. Choose another attribute."
        )
    invalid = [value for value in found if _is_number(value) and not _is_id(value)]
    if invalid:
        raise InputError(
            f"{where} holds the number {invalid[0]}; class ids are whole numbers from 0 to {MAX_ID}. Choose an attribute of "
            "names, or renumber the classes."
        )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_id(text: str) -> bool:
    return text.isdecimal() and int(text) <= MAX_ID
