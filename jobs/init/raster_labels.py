"""Detect the classes of a label raster: count its values on the reference grid, window by window."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from odc.geo.geobox import GeoBox

from jobs.init.arguments import FileArgument
from jobs.init.class_table import MAX_CLASSES, MAX_ID, DetectedLabels, raster_classes
from jobs.init.inspect_files import choose_variable, opaque_bands
from jobs.init.legend import Legend, read_legend
from jobs.runtime.progress import progress_bar
from mibf.errors import InputError
from pipeline.grid import Window, windows
from pipeline.parallel.executor import Executor
from pipeline.rasters.header import Header, RasterFile
from pipeline.rasters.raster import header, stamped
from pipeline.rasters.resample import align
from pipeline.scenes.label_counts import SIDE
from pipeline.scenes.labels import Labels, RasterLabels

#: Maximum number of values listed in a message.
_MAX_LISTED = 8


def find_raster_classes(file: FileArgument, grid: GeoBox, executor: Executor) -> DetectedLabels:
    """Detect the classes of a label raster; memory is bounded by windows of the grid.

    Raises:
        InputError: it cannot be read, has several bands, does not overlap the grid, or its values are not class ids.
    """
    variable = choose_variable(file)
    bands = None if variable is not None else opaque_bands(file.url)
    band = bands[0] if bands is not None and len(bands) == 1 else None
    labels = Labels(file.url, variable=None if variable is None else variable.name, band=band)
    raster = stamped(RasterFile(labels.url, labels.variable, bands=bands))
    head = header(raster)
    if head.bands != 1:
        raise InputError(f"{file}: has {head.bands} bands; labels are a raster of one band, or a vector file.")
    counts = _count_values(raster, head, grid, executor)
    legend = Legend() if variable is not None else read_legend(file.url)
    classes, ignored = _divide(file, counts, head, legend)
    found = raster_classes({value: counts[value] for value in classes}, legend)
    notes = []
    if ignored:
        listed = ", ".join(f"{value} ({counts[value]:,} pixels)" for value in ignored)
        notes.append(f"values treated as unlabelled: {listed}; see `labels.ignore`")
    doubtful = [value for value in classes if legend.is_unlabelled(value) or (value == 0 and value not in legend.names)]
    if doubtful:
        notes.append(f"{doubtful[0]} is taken as a class; list it in `labels.ignore` if it means unlabelled")
    if not all(value in legend.names for value in classes):
        notes.append("the file does not name its classes; write their names under `classes`")
    return DetectedLabels(replace(labels, ignore=tuple(ignored)), file.url, found, tuple(notes))


def _count_values(raster: RasterFile, head: Header, grid: GeoBox, executor: Executor) -> dict[int, int]:
    """Count the values of a raster on a grid; fail as soon as they cannot be class ids."""
    opened = RasterLabels(raster, align(raster, head, grid, resampling="nearest"), grid, (), ())
    total = Counter[float]()
    rows, columns = grid.shape
    parts = windows((rows, columns), SIDE)
    with progress_bar("read label values", len(parts), unit="windows") as advance:

        def take(part: dict[float, int]) -> None:
            total.update(part)
            fractions = [value for value in part if not float(value).is_integer()]
            if fractions:
                raise InputError(
                    f"{raster}: holds {head.dtypes[0]} values such as {fractions[0]:g}, which are not class ids. Give a "
                    "raster of whole numbers from 0 to 254; convert a measured quantity to classes first."
                )
            if len(total) > 2 * MAX_CLASSES:
                _refuse_many(raster, total)
            advance(1)

        executor.each(_values, opened, parts, take)
    if not total:
        raise InputError(f"{raster}: no pixel of the reference grid has a label; check that this is the right file.")
    return {int(value): count for value, count in total.items()}


def _values(labels: RasterLabels, window: Window) -> dict[float, int]:
    return labels.unknown(window)  # all values, because no id is known yet


def _divide(file: FileArgument, counts: dict[int, int], head: Header, legend: Legend) -> tuple[list[int], list[int]]:
    """Divide values into class ids and values that mean "no label".

    Negative values and the largest value of the data type are fill values. So are values that the file names as
    unlabelled, and 0, unless the file names it or declares another nodata value; these are kept if they are needed for two
    classes, as in a mask.
    """
    kind = np.dtype(head.dtypes[0])
    filler = int(np.iinfo(kind).max) if kind.kind in "iu" else None
    ignored = [value for value in counts if value < 0 or value in (filler, MAX_ID + 1)]
    left = sorted(set(counts) - set(ignored))
    unlabelled = [
        value
        for value in left
        if legend.is_unlabelled(value) or (value == 0 and value not in legend.names and head.nodata[0] is None)
    ]
    if len(left) - len(unlabelled) >= 2:
        ignored += unlabelled
        left = [value for value in left if value not in unlabelled]
    beyond = [value for value in left if value > MAX_ID]
    if len(left) > MAX_CLASSES:
        _refuse_many(file, counts)
    if beyond:
        raise InputError(
            f"{file}: holds {', '.join(map(str, beyond[:_MAX_LISTED]))}; class ids are 0 to {MAX_ID}. Renumber the classes, "
            "for example with `gdal_calc.py`, or declare the value that means no data in the file."
        )
    if len(left) < 2:
        only = f" ({left[0]})" if left else ""
        raise InputError(
            f"{file}: holds {'one class' if left else 'no class'} only{only} on the reference grid; a map needs two or more."
        )
    return left, sorted(ignored)


def _refuse_many(file: object, counts: Counter[float] | dict[int, int]) -> None:
    listed = ", ".join(f"{value:g}" for value in sorted(counts)[:_MAX_LISTED])
    raise InputError(
        f"{file}: holds {len(counts)} or more distinct values ({listed}, ...), which look like measurements, not like "
        f"{MAX_CLASSES} classes at most. Give a raster of class ids; convert a measured quantity to classes first."
    )
