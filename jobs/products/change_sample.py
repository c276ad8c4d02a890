"""Labelled points of a sample of change: read, and placed on the two maps."""

from __future__ import annotations

from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyproj
from numpy.typing import NDArray

from mibf.errors import InputError
from pipeline.areas.pixel_area import PixelArea
from pipeline.assessment.points import read_table
from pipeline.codes import UNLABELLED
from pipeline.grid import Window, windows
from pipeline.io import storage
from pipeline.publishing.class_map import ClassMap
from pipeline.transitions.count import WINDOW, Transitions
from pipeline.transitions.estimate import LabelledTransitions

#: Columns with the labels at the two dates.
LABELS = ("before", "after")
#: Points that a message lists, by their row.
LISTED = 5


def read_change_sample(url: str, first: ClassMap, second: ClassMap, found: Transitions) -> LabelledTransitions:
    """Read labelled points: a vector file of points, or CSV with `x` and `y` in the maps' CRS; labels are names or ids.

    Raises:
        InputError: columns are missing, labels are missing or unknown, or points are outside the maps, where a map has no
            class, or in the same pixel.
    """
    table, source = read_table(url), storage.redact_url(url)
    missing = [name for name in LABELS if name not in table.columns]
    if missing or not len(table):
        lack = f"no column {', '.join(map(repr, missing))}" if missing else "no points"
        raise InputError(f"{source}: has {lack}; it needs points with the labels of both dates, `before` and `after`.")
    rows, columns = _pixels(table, source, first)
    _refuse(source, np.flatnonzero(~_first_of_each(rows, columns)), "another point is in the same pixel", "remove one")
    codes = _classes_at(first, second, rows, columns)
    _refuse(source, np.flatnonzero((codes == UNLABELLED).any(axis=0)), "a map has no class there", "remove these points")
    before, after = (
        np.array([found.classes.index(each.name_of(code)) for code in own.tolist()], np.int64)
        for each, own in zip((first, second), codes, strict=True)
    )
    labels = [_labels(table, name, source, each, found) for name, each in zip(LABELS, (first, second), strict=True)]
    areas = None if np.isnan(found.hectares).any() else PixelArea.of(first.grid)
    return LabelledTransitions(before, after, labels[0], labels[1], None if areas is None else areas.at(rows, columns))


def _pixels(table: pd.DataFrame, source: str, on: ClassMap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    crs = getattr(table, "crs", None)
    if isinstance(table, geopandas.GeoDataFrame):
        _refuse(
            source, np.flatnonzero((table.geometry.geom_type != "Point").to_numpy()), "not a point", "give one point each"
        )
        x, y = table.geometry.x.to_numpy(), table.geometry.y.to_numpy()
    elif {"x", "y"} <= set(table.columns):
        x, y = (pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64) for name in ("x", "y"))
    else:
        raise InputError(f"{source}: has neither points nor the columns `x` and `y` in the CRS of the maps.")
    if crs is not None and on.grid.crs is not None:
        x, y = pyproj.Transformer.from_crs(crs, on.grid.crs.to_wkt(), always_xy=True).transform(x, y)
    columns, rows = ~on.grid.affine * (np.asarray(x), np.asarray(y))
    inside = (rows >= 0) & (columns >= 0) & (rows < on.shape[0]) & (columns < on.shape[1])
    _refuse(source, np.flatnonzero(~inside), "outside the maps", "check the file and its CRS")
    return np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)


def _first_of_each(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    found = np.zeros(len(rows), bool)
    found[np.unique(np.stack([rows, columns]), axis=1, return_index=True)[1]] = True
    return found


def _classes_at(first: ClassMap, second: ClassMap, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Class ids of both maps at pixels, (2, n); reads the windows that have points."""
    codes = np.full((2, len(rows)), UNLABELLED, np.uint8)
    for window in windows(first.shape, WINDOW):
        own = np.flatnonzero((rows // WINDOW == window.y // WINDOW) & (columns // WINDOW == window.x // WINDOW))
        if len(own):
            top, left = int(rows[own].min()), int(columns[own].min())
            part = Window(top, left, int(rows[own].max()) - top + 1, int(columns[own].max()) - left + 1)
            for number, each in enumerate((first, second)):
                codes[number, own] = each.read_classes(part)[rows[own] - top, columns[own] - left]
    return codes


def _labels(table: pd.DataFrame, column: str, source: str, on: ClassMap, found: Transitions) -> NDArray[np.int64]:
    """Positions of labels among the classes of both maps; ids are those of the map of that date."""
    by_id = {str(c.id): c.name for c in on.classes}
    texts = [_text(value) for value in table[column].tolist()]
    _refuse(source, np.flatnonzero([not text for text in texts]), f"no label in `{column}`", "label all points")
    named = [text if text in found.classes else by_id.get(text) for text in texts]
    unknown = np.flatnonzero([name is None for name in named])
    listed = ", ".join(found.classes)
    _refuse(source, unknown, f"`{column}` is no class of the maps", f"use a name of {listed}, or an id of that map")
    return np.array([found.classes.index(name) for name in named if name is not None], np.int64)


def _text(value: Any) -> str:
    """A label as text; a whole number that was read as 3.0 is 3."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value).strip()


def _refuse(source: str, rows: NDArray[np.int64], problem: str, remedy: str) -> None:
    """Raise if points, given by their row in the file from 0, have a problem."""
    if len(rows):
        more = f" and {len(rows) - LISTED:,} more" if len(rows) > LISTED else ""
        listed = ", ".join(str(row + 1) for row in rows[:LISTED].tolist())
        raise InputError(f"{source}: row {listed}{more}: {problem}; {remedy}.")
