"""Measure a median of masked dates: speed, and peak memory against the number of dates.

Run `python benchmarks/composite.py [FOLDER]`; files of up to 1 GB are written there, by default to a temporary folder. The
baselines are numpy's `nanmedian` of the same files in memory, and, where odc-stac is installed, its load and xarray's
median. Each measurement is a process of its own with two threads.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from jobs.config.resolve import sources
from jobs.config.scene import SceneSection
from pipeline.grid import windows
from pipeline.scenes.source import open_source

SIDE, SHARD, DATES, REPEATS, CLOUD = 1024, 256, (10, 100), 3, 9
GRID = GeoBox((SIDE, SIDE), Affine(10, 0, 500_000, 0, -10, 4_100_000), "EPSG:32612")
NAMES = ("red", "nir", "scl")


def write_items(folder: Path) -> None:
    """Write items of two bands and a scene classification, a tenth of it cloudy."""
    generator = np.random.default_rng(0)
    noise = generator.integers(1, 3000, (SIDE + 100, SIDE)).astype(np.uint16)
    profile = {
        "driver": "GTiff", "count": 1, "height": SIDE, "width": SIDE, "crs": "EPSG:32612", "transform": GRID.affine,
        "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "nodata": 0,
    }  # fmt: skip  # values in rows that belong together
    footprint = GRID.geographic_extent
    for dates in DATES:
        features = []
        for number in range(dates):
            clouds = np.where(generator.random((SIDE // 16, SIDE // 16)) < 0.1, CLOUD, 4).astype(np.uint8)
            values = {"red": noise[number:][:SIDE], "nir": noise[100 - number :][:SIDE]}
            values["scl"] = clouds.repeat(16, axis=0).repeat(16, axis=1)
            for name, own in values.items():
                path = folder / f"{number}_{name}.tif"
                if not path.exists():
                    with rasterio.open(path, "w", dtype=own.dtype.name, **profile) as dataset:
                        dataset.write(own, 1)
            assets = {
                name: {"href": str(folder / f"{number}_{name}.tif"), "raster:bands": [{"nodata": 0}]} for name in NAMES
            }
            features.append(
                {
                    "type": "Feature", "stac_version": "1.0.0", "id": str(number), "links": [], "assets": assets,
                    "geometry": footprint.json, "bbox": list(footprint.boundingbox),
                    "properties": {"datetime": f"{2024 + number // 28}-06-{1 + number % 28:02}T18:00:00Z"},
                }
            )  # fmt: skip  # values in rows that belong together
        (folder / f"{dates}.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def with_mibf(url: str) -> np.ndarray:
    """Read the composite shard by shard, as `prepare` does."""
    stac = {
        "url": url,
        "assets": ["red", "nir"],
        "mask": {"asset": "scl", "invalid": [CLOUD]},
        "composite": "median",
    }
    scene = SceneSection.model_validate({"name": "a", "grid": {"like": "s"}, "sources": {"s": {"stac": stac}}})
    source = open_source(sources(scene)["s"], GRID)
    found = np.empty((2, SIDE, SIDE), np.float32)

    def read(window: Any) -> None:
        found[:, *window.slices] = source.read(window)[0]

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(read, windows((SIDE, SIDE), SHARD)))
    return found


def with_numpy(url: str) -> np.ndarray:
    """Read all files with rasterio, and take the median with numpy."""
    items = json.loads(Path(url).read_text())["features"]

    def read(item: dict[str, Any]) -> np.ndarray:
        parts = []
        for name in NAMES:
            with rasterio.open(item["assets"][name]["href"]) as dataset:
                parts.append(dataset.read(1))
        return np.where(parts[2] == CLOUD, np.nan, np.stack(parts[:2]).astype(np.float32))

    with ThreadPoolExecutor(2) as threads:
        return np.nan_to_num(np.nanmedian(np.stack(list(threads.map(read, items))), axis=0))


def with_odc(url: str) -> np.ndarray:
    """Load with odc-stac in chunks of a shard, and take the median with xarray."""
    import dask
    import odc.stac

    items = list(pystac.ItemCollection.from_file(url))
    chunks = {"x": SHARD, "y": SHARD}
    loaded = odc.stac.load(items, bands=list(NAMES), geobox=GRID, chunks=chunks, groupby="solar_day")
    clear = loaded[["red", "nir"]].where((loaded.scl != CLOUD) & (loaded.red > 0)).astype("float32")
    with dask.config.set(scheduler="threads", num_workers=2):
        found = clear.chunk({"time": -1}).median("time").compute()
    return np.nan_to_num(np.stack([found.red.values, found.nir.values]))


def measure(way: str, url: str) -> None:
    """Print seconds, peak memory in MB and a checksum of a way."""
    started = time.perf_counter()
    found = {"mibf": with_mibf, "numpy": with_numpy, "odc-stac": with_odc}[way](url)
    seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([seconds, peak, float(found.sum(dtype=np.float64))]))


def main(folder: Path) -> None:
    """Print medians of each way and number of dates."""
    write_items(folder)
    print(f"{SIDE} x {SIDE} pixels, 2 bands, a mask; shards of {SHARD}; medians of {REPEATS} processes")
    for dates in DATES:
        for way in ("mibf", "numpy", "odc-stac"):
            runs = []
            for _ in range(REPEATS):
                command = [sys.executable, __file__, way, str(folder / f"{dates}.json")]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    print(f"{dates:4} dates  {way:9} failed: {(done.stderr.strip().splitlines() or [''])[-1]}")
                    break
                runs.append(json.loads(done.stdout))
            else:
                seconds, peak, total = np.median(runs, axis=0)
                rate = dates * SIDE * SIDE / seconds / 1e6
                print(f"{dates:4} dates  {way:9} {seconds:7.1f} s  {rate:6.1f} Mpx/s  peak {peak:6,.0f} MB  sum {total:.6g}")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], sys.argv[2])
    elif len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory(prefix="mibf-composite-") as temporary:
            main(Path(temporary))
