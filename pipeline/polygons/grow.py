"""Fill holes of a class map from their edges inwards, layer by layer. Numpy only."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.polygons import NODATA

#: Which pixels are neighbours: those that share an edge, or also those that share a corner.
Connectivity = Literal[4, 8]


def grow(
    classes: NDArray[np.uint8], holes: NDArray[np.bool_], *, layers: int, connectivity: Connectivity
) -> NDArray[np.uint8]:
    """Fill up to `layers` layers of the holes of a map, whose pixels have no class; the pixels of a layer at once.

    A pixel at the edge of a hole takes the class of most of its neighbours, those that share an edge counting twice, those
    that share a corner once. With connectivity 4, only classes of neighbours that share an edge are candidates. Of several
    classes with as many votes, the one with the lowest id wins. So each filled pixel is connected to a pixel that had that
    class before. The result at a pixel depends on the pixels at most `layers` away from it alone.
    """
    padded = np.pad(classes, 1, constant_values=NODATA)
    flat, hole = padded.ravel(), np.pad(holes, 1).ravel()
    width = padded.shape[1]
    edges, corners = np.array([-width, -1, 1, width]), np.array([-width - 1, -width + 1, width - 1, width + 1])
    near = edges if connectivity == 4 else np.concatenate([edges, corners])
    candidates = np.flatnonzero(hole)
    for _ in range(layers):
        candidates = candidates[(flat[candidates[:, None] + near] != NODATA).any(axis=1)]
        if not len(candidates):
            break
        flat[candidates] = _elected(flat[candidates[:, None] + edges], flat[candidates[:, None] + corners], connectivity)
        hole[candidates] = False
        around = np.unique((candidates[:, None] + near).ravel())
        candidates = around[hole[around]]
    return padded[1:-1, 1:-1]


def _elected(edges: NDArray[np.uint8], corners: NDArray[np.uint8], connectivity: Connectivity) -> NDArray[np.uint8]:
    """The class that most neighbours of each pixel have, from those at its edges (pixel, 4) and corners (pixel, 4)."""
    found, most = np.full(len(edges), NODATA), np.zeros(len(edges), np.int8)
    for number in np.unique(np.concatenate([edges, corners], axis=1)):
        if number == NODATA:
            continue
        by_edge = (edges == number).sum(axis=1, dtype=np.int8)
        votes = 2 * by_edge + (corners == number).sum(axis=1, dtype=np.int8)
        if connectivity == 4:
            votes[by_edge == 0] = 0
        better = votes > most
        found[better], most[better] = number, votes[better]
    return found
