"""mibf bench polygons: time and peak memory of `mibf polygons` against the size of the map.

The baseline is what a script would do: read the whole map, rasterio's `sieve` and `shapes`, and geopandas to write the
polygons. It has neither areas on the ellipsoid nor confidences.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import geopandas
import rasterio
import shapely.geometry
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.features import shapes, sieve

from jobs.bench.harness.class_map import patchwork, random_codes, write_class_map
from jobs.bench.harness.processes import run_in_subprocess
from jobs.bench.map import check_side
from jobs.bench.network import machine
from jobs.runtime.memory import PeakMemory
from jobs.runtime.progress import info
from mibf.bundle.classes import ClassName
from pipeline.polygons.generalize import Rules
from pipeline.polygons.write import write_polygons
from pipeline.publishing.class_map import ClassMap

#: Sides of the maps in pixels, and the number of their classes.
SIDES, CLASSES = (2048, 4096, 8192), 8
#: Smallest number of pixels of a region.
SIEVE = 25
#: Seconds between memory samples.
INTERVAL = 0.1


@dataclass(frozen=True)
class Row:
    """One way to make the polygons of one map."""

    side: int  #: of the map, in pixels
    how: str
    polygons: int
    seconds: float
    bytes: int  #: peak memory of the process, with what its imports take
    begun: int  #: memory before the work


@dataclass(frozen=True)
class PolygonBench:
    """All rows."""

    rows: list[Row]

    def lines(self) -> list[str]:
        """Format the results as lines of text."""
        head = f"{'pixels':<16}{'':<10}{'polygons':>12}{'seconds':>10}{'ratio':>8}{'peak memory':>14}{'above start':>14}"
        plain = {row.side: row.seconds for row in self.rows if row.how == "script"}
        rows = [
            f"{f'{row.side} x {row.side}':<16}{row.how:<10}{row.polygons:>12,}{row.seconds:>10.1f}"
            f"{row.seconds / plain[row.side]:>8.2f}{row.bytes / 1e6:>11,.0f} MB{(row.bytes - row.begun) / 1e6:>11,.0f} MB"
            for row in self.rows
        ]
        rules = f"regions of fewer than {SIEVE} pixels are removed; ratios of times are to the script of the same size"
        return [machine(), "", head, *rows, rules]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"machine": machine(), "rows": [asdict(row) for row in self.rows]}


def bench_polygons(sides: Sequence[int]) -> PolygonBench:
    """Make the polygons of synthetic maps of these sides, each in a process of its own; uses temporary files.

    Raises:
        InputError: a side is not valid.
    """
    for side in sides:
        check_side(side)
    rows = []
    for side in sides:
        with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
            info(f"{side} x {side} pixels")
            grid = GeoBox((side, side), Affine(10, 0, 400_000, 0, -10, 5_800_000), "EPSG:32633")
            classes = [ClassName(number + 1, f"class {number + 1}", "#808080") for number in range(CLASSES)]
            confidence = random_codes(3000, 10_000)
            url = write_class_map(Path(folder) / "map", grid, classes, patchwork(CLASSES), confidence)
            for how, work in (("mibf", _ours), ("script", _script)):
                rows.append(run_in_subprocess(_measured, how, work, url, str(Path(folder) / f"{how}.gpkg"), side))
    return PolygonBench(rows)


def _measured(how: str, work: Callable[[str, str], int], url: str, output: str, side: int) -> Row:
    with PeakMemory(interval=INTERVAL) as before:
        pass
    started = time.monotonic()
    with PeakMemory(interval=INTERVAL) as peak:
        polygons = work(url, output)
    return Row(side, how, polygons, time.monotonic() - started, peak.bytes, before.bytes)


def _ours(url: str, output: str) -> int:
    totals = write_polygons(ClassMap.open(url), Rules(sieve=SIEVE), [output], facts={})
    return sum(totals.polygons.values())


def _script(url: str, output: str) -> int:
    with rasterio.open(f"{url}/class.tif") as dataset:
        classes, mask, transform, crs = dataset.read(1), dataset.read_masks(1), dataset.transform, dataset.crs
    found = list(shapes(sieve(classes, SIEVE, mask=mask), mask=mask > 0, transform=transform))
    outlines = [shapely.geometry.shape(shape) for shape, _ in found]
    frame = geopandas.GeoDataFrame({"class_id": [int(value) for _, value in found]}, geometry=outlines, crs=crs.to_wkt())
    frame.to_file(output, driver="GPKG", engine="pyogrio")
    return len(frame)
