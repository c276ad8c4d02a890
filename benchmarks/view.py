"""Measure the page of a large map: time to the first pixels, to the complete first view, and requests for ranges.

Run `PYTHONPATH=. python benchmarks/view.py [SIDE] [FOLDER]` (default 16384) with Chromium and selenium installed; a map of
SIDE x SIDE pixels is made in FOLDER, default a temporary one, of fields of classes with noisy edges, and its confidence.
The page is opened repeatedly, each time in a new browser with an empty cache, from the server of `mibf view`. Baseline: the
quicklook alone in the same browser, which is what a map without a page has to show.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from jobs.view.served_map import ServedMap
from jobs.view.server import MapServer
from pipeline.maps.products import product
from tests.support.browser import Browser, chromium, served
from tests.support.page_maps import CLASSES, publish_page_map

REPEATS, FIELD = 3, 64
#: Deep links: the entire map, and a place at full resolution with its neighbours.
VIEWS = {"entire map": "", "entire map, confidence": "#layer=confidence", "1 : 1": "#center=570000,5730000&pixel=1"}


def write_map(folder: Path, side: int) -> Path:
    """Publish a map of fields, and a confidence that is low at their edges."""
    generator = np.random.default_rng(0)
    fields = generator.choice([c.id for c in CLASSES], (-(-side // FIELD) + 1,) * 2).astype(np.uint8)
    ids, confidence = np.empty((1, side, side), np.uint8), np.empty((1, side, side), np.uint16)
    for y in range(0, side, FIELD):
        shift = generator.integers(0, FIELD // 4, (FIELD, side + FIELD))
        columns = (np.arange(side) + shift[:, :side]) // FIELD
        ids[0, y : y + FIELD] = fields[y // FIELD][columns][: side - y]
        values = generator.normal(0.8, 0.05, (FIELD, side)).clip(0, 1)
        confidence[0, y : y + FIELD] = product("confidence").encode(values)[: side - y]
    grid = GeoBox((side, side), Affine(10, 0, 500_000, 0, -10, 5_800_000), "EPSG:32633")
    return publish_page_map(folder, grid, {"class": ids, "confidence": confidence}, block=32768, bands=1)


def pixels_shown(browser: Browser) -> bool:
    """Whether the map's canvas shows classes: another colour than its ground in the middle of the window."""
    screen = browser.screen()
    return len(np.unique(screen[300:500, 500:700].reshape(-1, 3), axis=0)) > 1


def measure(folder: Path, fragment: str) -> tuple[float, float, int, int]:
    """Seconds to the first pixels and to the complete view, number of ranges and of all requests, with an empty cache."""
    server = MapServer([ServedMap("map", str(folder))])
    with served(server), tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        browser.driver.get("about:blank")
        browser.driver.set_page_load_timeout(60)
        server.log.clear()
        started = time.monotonic()
        browser.driver.get(server.url + fragment)
        while not pixels_shown(browser):
            time.sleep(0.02)
        first = time.monotonic() - started
        browser.drawn()
        complete = time.monotonic() - started
        assert browser.log() == []
        return first, complete, sum(1 for *_, wanted in server.log if wanted), len(server.log)


def quicklook(folder: Path) -> float:
    """Seconds until the quicklook is shown."""
    server = MapServer([ServedMap("map", str(folder))])
    with served(server), tempfile.TemporaryDirectory() as profile, chromium(Path(profile)) as browser:
        browser.driver.get("about:blank")
        started = time.monotonic()
        browser.driver.get(server.url + "quicklook.png")
        while not pixels_shown(browser):
            time.sleep(0.02)
        return time.monotonic() - started


def main() -> None:
    """Make a map, measure all views in alternation, and print medians."""
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 16384
    with tempfile.TemporaryDirectory(prefix="mibf-bench-") as temporary:
        kept = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(temporary)
        folder = kept / "map"
        if not (folder / "item.json").exists():
            write_map(kept, side)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
        print(f"{side} x {side} pixels; bytes: {sizes}")
        rows: dict[str, list[Any]] = {name: [] for name in VIEWS}
        base = []
        for _ in range(REPEATS):
            base.append(quicklook(folder))
            for name, fragment in VIEWS.items():
                rows[name].append(measure(folder, fragment))
        print(f"quicklook alone: {statistics.median(base):.2f} s")
        for name, found in rows.items():
            first, complete, ranges, requests = (statistics.median(values) for values in zip(*found, strict=True))
            worst = max(found)[0]
            seconds = f"first pixels {first:.2f} s (worst {worst:.2f}), complete {complete:.2f} s"
            print(f"{name}: {seconds}, {ranges:g} ranges of {requests:g} requests")


if __name__ == "__main__":
    main()
