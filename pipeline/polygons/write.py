"""From a published class map to vector files: generalize, outline, write, publish."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import shapely
from numpy.typing import NDArray

from mibf.errors import InputError
from pipeline.areas.pixel_area import PixelArea
from pipeline.grid import Window
from pipeline.io import storage
from pipeline.io.retry import call_with_retry
from pipeline.polygons import WINDOW
from pipeline.polygons.generalize import Rules, generalize
from pipeline.polygons.outlines import ReadNumbers, Region, regions
from pipeline.polygons.scratch import Read
from pipeline.polygons.vector_files import PolygonBatch, format_of
from pipeline.publishing.class_map import ClassMap

#: Polygons, and points of their outlines, that are written together.
BATCH, BATCH_POINTS = 1_000, 200_000
#: Confidence in float32 is summed in these steps, so that sums are exact.
FLOAT_STEP = 2.0**-24


@dataclass
class PolygonTotals:
    """Polygons, pixels and hectares by class id, as written."""

    polygons: dict[int, int] = field(default_factory=dict)
    pixels: dict[int, int] = field(default_factory=dict)
    hectares: dict[int, float] = field(default_factory=dict)

    def add(self, region: Region, hectares: float) -> None:
        """Count one polygon."""
        number = region.class_id
        self.polygons[number] = self.polygons.get(number, 0) + 1
        self.pixels[number] = self.pixels.get(number, 0) + region.pixels
        self.hectares[number] = self.hectares.get(number, 0.0) + hectares


def write_polygons(
    found: ClassMap,
    rules: Rules,
    outputs: Sequence[str],
    *,
    facts: Mapping[str, str],
    side: int = WINDOW,
    advance: Callable[[int], object] = lambda _: None,
) -> PolygonTotals:
    """Write the polygons of a map to files (URLs), which replace existing ones when all are complete.

    Args:
        found: the map.
        rules: how it is generalized first.
        outputs: their suffixes name the formats.
        facts: is written into the files as metadata; GDAL takes a colon in a name for the end of it.
        side: of the windows, in pixels; it does not affect the polygons.
        advance: is called with the number of pixels of each window whose regions were read.

    Raises:
        InputError: a suffix is unknown, or the rules need areas that the map's grid does not have.
        MapReplacedError: another map was published in the meantime; nothing was written.
    """
    formats = [format_of(url) for url in outputs]
    area = _pixel_area(found, rules)
    totals = PolygonTotals()
    with TemporaryDirectory(prefix="mibf-") as temporary:
        folder = Path(temporary)
        read = generalize(found.read_classes, found.shape, rules, area, folder, side=side)
        layers, step = _layers(found, area)
        crs = None if found.grid.crs is None else found.grid.crs.to_wkt()
        paths = [folder / f"polygons-{number}{Path(url).suffix.lower()}" for number, url in enumerate(outputs)]
        writers = [
            make(path, crs, several=rules.connectivity == 8, facts=facts) for make, path in zip(formats, paths, strict=True)
        ]
        outlined = regions(_counting(read, advance), found.shape, layers, rules.connectivity, side=side)
        for batch in _batches(outlined):
            frame = _frame(found, batch, area, step, totals)
            for writer in writers:
                writer.write(frame)
        if not totals.polygons:
            for writer in writers:  # a file without polygons still has its columns
                writer.write(_frame(found, [], area, step, totals))
        for writer in writers:
            writer.close()
        found.check_unchanged()
        for path, url in zip(paths, outputs, strict=True):
            call_with_retry(url, partial(storage.publish, str(path), url))
    return totals


def _pixel_area(found: ClassMap, rules: Rules) -> PixelArea | None:
    """The areas of a map's pixels; None where its grid has none and none are needed."""
    try:
        return PixelArea(found.grid)
    except InputError as error:
        if rules.minimum_hectares > 0:
            raise InputError(
                f"{storage.redact_url(found.folder)}: {error} Use --sieve with a number of pixels instead of --minimum."
            ) from error
        return None


def _counting(read: Read, advance: Callable[[int], object]) -> Read:
    def counted(window: Window) -> NDArray[np.uint8]:
        classes = read(window)
        advance(window.height * window.width)
        return classes

    return counted


def _layers(found: ClassMap, area: PixelArea | None) -> tuple[tuple[ReadNumbers, ...], float]:
    """What is summed for each region: area, confidence and the number of pixels that have one; and the confidence's step."""
    product = found.confidence

    def areas(window: Window) -> NDArray[np.int64]:
        assert area is not None
        return area.read(window)

    @lru_cache(maxsize=1)  # both layers of a window are read one after the other
    def codes(window: Window) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        assert product is not None
        read = found.read_confidence(window)
        present = product.present(read)
        values = np.rint(np.where(present, read, 0) / FLOAT_STEP) if read.dtype.kind == "f" else np.where(present, read, 0)
        return values.astype(np.int64), present.astype(np.int64)

    layers: list[ReadNumbers] = [areas] if area is not None else [_zeros]
    layers += [_zeros, _zeros] if product is None else [lambda window: codes(window)[0], lambda window: codes(window)[1]]
    step = 1.0 if product is None else FLOAT_STEP if product.dtype == "float32" else product.scale
    return tuple(layers), step


def _zeros(window: Window) -> NDArray[np.int64]:
    return np.zeros((window.height, window.width), np.int64)


def _batches(found: Iterator[Region]) -> Iterator[list[Region]]:
    """Group regions, so that a batch has a limited number of polygons and points."""
    batch: list[Region] = []
    points = 0
    for region in found:
        batch.append(region)
        points += int(shapely.get_num_coordinates(region.outline))
        if len(batch) == BATCH or points > BATCH_POINTS:
            yield batch
            batch, points = [], 0
    if batch:
        yield batch


def _frame(
    found: ClassMap, batch: Sequence[Region], area: PixelArea | None, step: float, totals: PolygonTotals
) -> PolygonBatch:
    """The polygons of regions in the map's CRS, with their attributes."""
    names = {c.id: c.name for c in found.classes}
    unit = np.nan if area is None else area.hectares
    hectares = np.array([region.sums[0] * unit for region in batch], np.float64)
    for region, size in zip(batch, hectares.tolist(), strict=True):
        totals.add(region, size)
    confidence = [region.sums[1] * step / region.sums[2] if region.sums[2] else np.nan for region in batch]
    a, b, c, d, e, f = list(found.grid.affine)[:6]
    outlines = np.array([region.outline for region in batch], object)
    placed = shapely.transform(outlines, lambda xy: xy @ np.array([[a, d], [b, e]]) + (c, f))
    return PolygonBatch(
        shapely.orient_polygons(placed),
        np.array([region.class_id for region in batch], np.uint8),
        [names.get(region.class_id, f"class {region.class_id}") for region in batch],
        hectares,
        np.array(confidence, np.float64),
        np.array([region.pixels for region in batch], np.int64),
    )
