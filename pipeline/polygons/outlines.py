"""Outlines and statistics of the regions of a class map, each as soon as it is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import shapes
from shapely.geometry.base import BaseGeometry

from pipeline.grid import Window, windows
from pipeline.polygons import WINDOW
from pipeline.polygons.grow import Connectivity
from pipeline.polygons.regions import SeamRegions, at_seams, label_window
from pipeline.polygons.scratch import Read

#: Reads a layer of whole numbers of a window, (height, width): areas, confidences, or 1 where there is a confidence.
ReadNumbers = Callable[[Window], NDArray[np.int64]]


@dataclass(frozen=True)
class Region:
    """A region of one class."""

    class_id: int
    #: In pixels (x, y) of the map: a valid polygon, with connectivity 8 possibly several. It is normalized, and has no
    #: points within straight sides, so that equal regions have equal outlines.
    outline: BaseGeometry
    pixels: int
    sums: tuple[int, ...]  #: of each layer, over its pixels


@dataclass(frozen=True)
class _Part:
    """What one window has of a region."""

    class_id: int
    polygons: list[shapely.Polygon]
    pixels: int
    sums: tuple[int, ...]


def regions(
    read: Read, shape_yx: tuple[int, int], layers: tuple[ReadNumbers, ...], connectivity: Connectivity, *, side: int = WINDOW
) -> Iterator[Region]:
    """Find the regions of a class map, row by row of its windows.

    In memory are the regions of one window and the parts of those that are cut by the last row of pixels visited. The
    regions, with all their values, do not depend on the windows; their order does.

    Args:
        read: reads class ids.
        shape_yx: rows and columns of the map.
        layers: what is summed over the pixels of each region; sums are exact below 2^53 in a window.
        connectivity: 4, or 8 where pixels that share a corner are connected, too.
        side: of the windows, in pixels.
    """
    seams = SeamRegions(shape_yx, connectivity)
    parts: dict[int, _Part] = {}
    for _, row in groupby(windows(shape_yx, side), key=lambda window: window.y):
        for window in row:
            labels, classes = label_window(read(window), connectivity)
            seam = at_seams(labels, window, shape_yx)
            found = _parts(labels, classes, window, layers)
            numbers = seams.add(window, labels, classes, seam)
            parts |= {number: found[label - 1] for number, label in zip(numbers, seam.tolist(), strict=True)}
            inner = np.ones(len(classes), bool)
            inner[0] = inner[seam] = False
            yield from (_joined([found[label - 1]]) for label in np.flatnonzero(inner).tolist())
        for members in seams.end_row():
            yield _joined([parts.pop(number) for number in members])


def _parts(
    labels: NDArray[np.int32], classes: NDArray[np.uint8], window: Window, layers: tuple[ReadNumbers, ...]
) -> list[_Part]:
    """What a window has of the region of each label, from label 1."""
    count, flat = len(classes), labels.ravel()
    pixels = np.bincount(flat, minlength=count)
    sums = [np.bincount(flat, layer(window).ravel(), count).astype(np.int64) for layer in layers]
    polygons: list[list[shapely.Polygon]] = [[] for _ in range(count)]
    placed = Affine.translation(window.x, window.y)
    # Labels have been given by connectivity; polygons of edge-connected pixels are valid.
    for shape, label in shapes(labels, mask=labels > 0, connectivity=4, transform=placed):
        outer, *holes = shape["coordinates"]
        polygons[int(label)].append(shapely.Polygon(outer, holes))
    return [
        _Part(int(classes[label]), polygons[label], int(pixels[label]), tuple(int(layer[label]) for layer in sums))
        for label in range(1, count)
    ]


def _joined(parts: list[_Part]) -> Region:
    """The region of its parts, which are from different windows."""
    polygons = [polygon for part in parts for polygon in part.polygons]
    sums = tuple(sum(column) for column in zip(*(part.sums for part in parts), strict=True))
    return Region(parts[0].class_id, _outline(polygons), sum(part.pixels for part in parts), sums)


def _outline(polygons: list[shapely.Polygon]) -> BaseGeometry:
    """The union of polygons along pixels' edges, in its one normal form."""
    if len(polygons) == 1:
        found: BaseGeometry = polygons[0]
        if not found.is_valid:  # an outline that touches itself at a corner
            found = shapely.make_valid(found, method="structure", keep_collapsed=False)
    else:
        found = shapely.union_all(polygons)
    # A normalized ring begins at its leftmost lowest point, which is a corner: no other point has to stay.
    return shapely.normalize(shapely.simplify(shapely.normalize(found), 0))
