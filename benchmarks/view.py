"""Measure the page of a large map: time to the first pixels, to the complete first view, and requests for ranges.

Run `PYTHONPATH=. python benchmarks/view.py [SIDE] [FOLDER]` (default 16384) with Chromium and selenium installed; a map
of SIDE x SIDE pixels is made in FOLDER, default a temporary one: fields of classes with ragged edges, and a confidence. The
page is opened from the server of `mibf view`, each time in a new browser with an empty cache. The baseline is the page of a
map of 1024 x 1024 pixels, in alternation: the first view should not depend on the size of the map.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from jobs.view.served_map import ServedMap
from jobs.view.server import MapServer
from mibf.bundle.classes import ClassName
from pipeline.io import checksums
from pipeline.maps.products import MapProductName, Product, product
from pipeline.publishing.stac_item import Asset, ModelLink, map_item
from tests.support.browser import Browser, chromium, served

CLASSES = tuple(ClassName(i, f"class {i}", color) for i, color in enumerate(("#466b9f", "#1c5f2c", "#dca53a", "#d1182c"), 1))
REPEATS, FIELD, SMALL = 3, 64, 1024
#: Deep links: the entire map, and a place at full resolution with its neighbours.
VIEWS = {"entire map": "", "entire map, confidence": "#layer=confidence", "1 : 1": "#center=505000,5795000&pixel=1"}


def write_map(folder: Path, side: int) -> None:
    """Write a map of fields and a confidence of noise, as `mibf map` publishes them, with GDAL's COG driver."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    fields = generator.choice([c.id for c in CLASSES], (side // FIELD + 2,) * 2).astype(np.uint8)
    noise = generator.normal(0.8, 0.05, (FIELD, side)).clip(0, 1)

    def classes(row: int) -> NDArray[np.uint8]:
        columns = (np.arange(side) + generator.integers(0, FIELD // 4, (FIELD, side))) // FIELD
        return fields[row // FIELD][columns]

    rows: dict[MapProductName, Callable[[int], NDArray[Any]]] = {
        "class": classes,
        "confidence": lambda row: product("confidence").encode(np.roll(noise, row * 7)),
    }
    assets = [_write(folder, product(name), side, read) for name, read in rows.items()]
    item = map_item(
        id="benchmark",
        grid=_grid(side),
        assets=assets,
        classes=CLASSES,
        created=datetime.now(UTC),
        datetime=None,
        model=ModelLink("model.json", "ab" * 32, "main"),
        inputs={},
        ledger="./ledger",
        version="1",
        fingerprint="",
        run="now",
        facts={"content": "one", "tile": 512, "missing": "declared", "pixels": side * side},
    )
    (folder / "item.json").write_text(json.dumps(item))


def _grid(side: int) -> GeoBox:
    return GeoBox((side, side), Affine(10, 0, 500_000, 0, -10, 5_800_000), "EPSG:32633")


def _write(folder: Path, layer: Product, side: int, read: Callable[[int], NDArray[Any]]) -> Asset:
    """Write a product `FIELD` rows at a time, and convert it."""
    plain, path = folder / "plain.tif", folder / f"{layer.name}.tif"
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 1, "dtype": layer.dtype, "nodata": layer.nodata}
    with rasterio.open(plain, "w", **profile, crs="EPSG:32633", transform=_grid(side).affine) as target:
        for row in range(0, side, FIELD):
            target.write(read(row)[None], window=rasterio.windows.Window(0, row, side, FIELD))
    options = {"compress": "deflate", "level": 1, "predictor": layer.predictor, "blocksize": 512, "num_threads": 2}
    rasterio.shutil.copy(plain, path, driver="COG", overview_resampling="nearest", **options)
    plain.unlink()
    size, sha256 = checksums.sha256(str(path))
    return Asset(layer.name, path.name, size, sha256, layer.dtype, layer.nodata, layer.scale, layer.unit, (layer.name,))


def pixels_shown(browser: Browser) -> bool:
    """Whether the map's canvas shows classes: another colour than its ground in the middle of the window."""
    screen = browser.screen()
    return len(np.unique(screen[300:500, 500:700].reshape(-1, 3), axis=0)) > 1


@dataclass(frozen=True)
class Opened:
    """What one opening of a page took."""

    first: float  #: seconds to the first pixels
    complete: float  #: seconds to the complete view
    ranges: int  #: requests for ranges
    requests: int  #: all requests
    megabytes: float  #: read by ranges, at most


def measure(folder: Path, fragment: str) -> Opened:
    """Open a page in a new browser."""
    server = MapServer([ServedMap("map", str(folder))])
    with served(server), tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        browser.driver.get("about:blank")
        server.log.clear()
        started = time.monotonic()
        browser.driver.get(server.url + fragment)
        while not pixels_shown(browser):
            time.sleep(0.02)
        first = time.monotonic() - started
        browser.drawn()
        complete = time.monotonic() - started
        assert browser.log() == []
        ends = [[int(end) for end in wanted.removeprefix("bytes=").split("-")] for *_, wanted in server.log if wanted]
        megabytes = sum(last + 1 - start for start, last in ends) / 1e6
        return Opened(first, complete, len(ends), len(server.log), megabytes)


def main() -> None:
    """Make the maps, open all views in alternation, and print medians."""
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 16384
    with tempfile.TemporaryDirectory(prefix="mibf-bench-") as temporary:
        root = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(temporary)
        folders = {each: root / str(each) for each in (SMALL, side)}
        for each, folder in folders.items():
            if not (folder / "item.json").exists():
                write_map(folder, each)
            print(each, {path.name: path.stat().st_size for path in folder.glob("*.tif")})
        found: dict[tuple[str, int], list[Opened]] = {}
        for _ in range(REPEATS):
            for name, fragment in VIEWS.items():
                for each, folder in folders.items():
                    found.setdefault((name, each), []).append(measure(folder, fragment))
    for (name, each), opened in found.items():
        median = {key: statistics.median(getattr(one, key) for one in opened) for key in vars(opened[0])}
        ratio = statistics.median(a.first / b.first for a, b in zip(opened, found[name, SMALL], strict=True))
        worst = max(one.first for one in opened)
        print(
            f"{name}, {each} pixels: first {median['first']:.2f} s (worst {worst:.2f}, {ratio:.2f} times {SMALL}), complete "
            f"{median['complete']:.2f} s, {median['ranges']:g} ranges of {median['requests']:g} requests, "
            f"{median['megabytes']:.1f} MB"
        )


if __name__ == "__main__":
    main()
