"""The interpretation sheet of a sample: a page with image chips of every point, on which it can be labelled.

The interpreter does not see the map's class unless it is asked for: who knows what the map says agrees with it too often.
The page is written point by point, so memory does not grow with the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from jobs.assess.run_map import MapClass
from jobs.report.pictures import display_bands, jpeg, png, stretched
from mibf.normalization import BandScaling, Scaling, scaling_from_json
from pipeline.grid import Window
from pipeline.io import storage
from pipeline.store.patch_store import PatchStore
from pipeline.store.template import StoredSource

#: Sides of the chips in pixels of the map, odd: the point's surroundings, and their context.
NEAR, WIDE = 33, 129
#: Shares of a chip's values that are shown as black and white where no normalization is known.
STRETCH = (0.02, 0.98)


@dataclass(frozen=True)
class Chip:
    """One picture of a point's surroundings."""

    caption: str
    url: str
    side: int  #: in pixels of the map
    wide: bool


def write_sheet(
    path: Path,
    *,
    title: str,
    table: pd.DataFrame,
    stores: Mapping[str, PatchStore],
    scaling: str,
    classes: Sequence[MapClass],
    shown: Sequence[str] | None,
    advance: Callable[[int], object],
) -> None:
    """Write the sheet of a sample.

    Args:
        path: of the page.
        title: of the page.
        table: of the points; see `pipeline.assessment.points.point_table`.
        stores: of the scenes.
        scaling: URL of the run's normalization, which need not exist.
        classes: to choose from.
        shown: the map's class of each point, to show it to the interpreter.
        advance: called with 1 after each point.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(files("jobs.assess").joinpath("sheet.html.jinja").read_text("utf-8"))
    rows = table.astype(object).where(table.notna(), "")
    # The values of each point travel with the page, so that what it saves is the complete labelled sample.
    stream = template.stream(
        title=title,
        number=len(table),
        columns=list(table.columns),
        rows=[[_plain(value) for value in row] for row in rows.to_numpy().tolist()],
        classes=classes,
        key=f"mibf-sample-{table['sample'].iloc[0]}",
        points=_points(table, stores, _read_scaling(scaling), shown, advance),
    )
    with path.open("w", encoding="utf-8") as file:
        file.writelines(stream)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _read_scaling(url: str) -> Scaling:
    try:
        return scaling_from_json(storage.read_json(url))
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _points(
    table: pd.DataFrame,
    stores: Mapping[str, PatchStore],
    scaling: Scaling,
    shown: Sequence[str] | None,
    advance: Callable[[int], object],
) -> Iterator[dict[str, Any]]:
    for position, point in enumerate(table.to_dict("records")):
        store = stores[point["scene"]]
        chips = [
            chip
            for source in store.sources
            for chip in _chips(store, source, int(point["row"]), int(point["column"]), scaling.get(source.name))
        ]
        place = "" if np.isnan(point["lat"]) else f"{point['lat']:.6f}, {point['lon']:.6f}"
        several = len(stores) > 1
        yield {
            "id": int(point["point"]),
            "place": place,
            "pixel": f"{point['scene'] + ', ' if several else ''}row {point['row']}, column {point['column']}",
            "chips": chips,
            "map": None if shown is None else shown[position],
        }
        advance(1)


def _chips(store: PatchStore, source: StoredSource, row: int, column: int, scaling: BandScaling | None) -> Iterator[Chip]:
    """The pictures of a source around a pixel: near, and wide."""
    half = WIDE // 2
    values, valid = store.read_source(source.name, Window(row - half, column - half, WIDE, WIDE))
    bands = display_bands(source.bands)
    inside = _inside(store, source, row - half, column - half)
    shown = inside & (valid if valid.ndim == 2 else np.logical_and.reduce(valid[bands]))
    own = _stretch_of(values, shown) if scaling is None else scaling
    picture = stretched(values[bands], shown, own, bands)
    inset = (WIDE - NEAR) // 2 * source.scale
    near = picture[inset : len(picture) - inset, inset : len(picture) - inset]
    yield Chip(source.name, png(np.ascontiguousarray(near)), NEAR, wide=False)
    yield Chip(f"{source.name}, wider", jpeg(picture), WIDE, wide=True)


def _inside(store: PatchStore, source: StoredSource, row: int, column: int) -> NDArray[np.bool_]:
    """The pixels of a chip that begins at a row and a column that are on the grid, beyond which a store is mirrored."""
    y, x = (
        np.repeat((line >= 0) & (line < size), source.scale)
        for line, size in zip((np.arange(WIDE) + start for start in (row, column)), store.shape, strict=True)
    )
    return np.logical_and.outer(y, x)


def _stretch_of(values: Any, valid: Any) -> BandScaling:
    """Limits from a chip's own values, where the run has no normalization of the source."""
    flat = values[:, valid].astype(np.float64)
    if not flat.size:
        flat = np.zeros((len(values), 1))
    low, high = np.quantile(flat, STRETCH, axis=1)
    return BandScaling(low=low, high=np.maximum(high, low + 1e-9), fill=low)
