"""Write suggested places to a GeoPackage with an empty column of labels, and protect labels that one already has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import geopandas
import numpy as np
import shapely
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.io import storage
from pipeline.scenes.labels import read_vector

#: Column of the labels to fill in.
LABEL = "label"


@dataclass(frozen=True)
class Place:
    """A place to label, as a row of the file."""

    row: int  #: of the central pixel
    column: int
    predicted: str  #: name of the class on the map
    second: str | None
    score: float
    reason: str


def check_no_labels(url: str) -> None:
    """Check that no file with labels would be overwritten.

    Raises:
        InputError: the file has labels, or cannot be read, so that it is not known.
    """
    if not storage.exists(url):
        return
    frame = read_vector(url, None, lambda path, layer, crs: geopandas.read_file(path, layer=layer), key="layer")
    labels = frame[LABEL].dropna().astype(str).str.strip() if LABEL in frame.columns else frame.geometry[:0]
    given = int((labels != "").sum())
    if given:
        raise InputError(
            f"{storage.redact_url(url)}: has {given} labels, which would be overwritten. Copy it elsewhere and list the "
            "copy under `labels.also`, or write the suggestions to another folder with --output."
        )


def write_places(url: str, places: Sequence[Place], grid: GeoBox, *, side: int) -> None:
    """Write places as squares of `side` pixels in the CRS of the grid; a file of that name is replaced at once."""
    values: dict[str, Any] = {
        "place": np.arange(1, len(places) + 1),
        LABEL: [None] * len(places),
        "class": [place.predicted for place in places],
        "second_class": [place.second for place in places],
        "score": [round(place.score, 4) for place in places],
        "reason": [place.reason for place in places],
        "row": [place.row for place in places],
        "column": [place.column for place in places],
    }
    geometry = [_square(grid, place, side) for place in places]
    frame = geopandas.GeoDataFrame(values, geometry=geometry, crs=None if grid.crs is None else grid.crs.to_wkt())
    frame = frame.astype({LABEL: "string", "second_class": "string"})  # columns of text, even where all values are null
    with TemporaryDirectory(prefix="mibf-") as temporary:
        path = Path(temporary, url.rpartition("/")[2])  # the name of the layer, too, as most programs expect
        frame.to_file(path, layer=path.stem, driver="GPKG", engine="pyogrio")
        storage.publish(str(path), url)


def _square(grid: GeoBox, place: Place, side: int) -> shapely.Polygon:
    """The square around a pixel, also on a rotated grid."""
    y, x = place.row - side // 2, place.column - side // 2
    corners = [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]
    return shapely.Polygon([grid.affine * corner for corner in corners])
