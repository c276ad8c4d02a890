"""mibf bench prepare --dates: a median of many dated files, against odc-stac's load and xarray's median; and peak memory.

The items are synthetic cloud-optimized GeoTIFFs in the form of Sentinel-2's: two overlapping tiles a date, two bands and a
scene classification of half the resolution, from which clouds are masked.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.io import MemoryFile

from jobs.bench.harness.processes import run_in_subprocess
from jobs.bench.harness.working_set import peak
from jobs.bench.network import machine
from jobs.config.resolve import sources
from jobs.config.scene import SceneSection
from jobs.runtime.progress import progress_bar
from mibf.bundle.classes import ClassName
from pipeline.grid import Window
from pipeline.parallel.cpu_count import cpu_count
from pipeline.parallel.executor import ThreadExecutor
from pipeline.scenes.labels import NoLabels
from pipeline.scenes.source import open_source
from pipeline.scenes.split import NoSplit
from pipeline.store.build import PreparedScene, build_store
from pipeline.store.estimate import memory

#: Side in pixels of the scene whose composite is timed, and the grid's origin.
SIDE, ORIGIN = 2048, Affine(10, 0, 500_000, 0, -10, 4_100_040)
#: Assets of each item: bands, and the scene classification with the class of clouds.
BANDS, CLASSIFICATION, CLEAR, CLOUD = ("red", "nir"), "scl", 4, 9
#: Share of the scene's columns that each of the two tiles of a date covers.
TILE = 9 / 16
#: Dates whose files have values of their own; those of further dates are links to them, which are files of their own.
WRITTEN = 20
#: Dates and sides whose peak memory is compared with that of the first.
MEMORY_CASES = ((10, 2048), (100, 2048), (10, 8192))


@dataclass(frozen=True)
class Run:
    """Measurements of one run in a separate process."""

    seconds: float
    cpu_seconds: float  #: of all threads, which other processes on the machine hardly affect
    peak_bytes: int  #: of the complete process, including imports
    checksum: int  #: of all values of the composite


@dataclass(frozen=True)
class Peak:
    """Memory of writing the store of one scene."""

    dates: int
    side: int  #: of the scene, in pixels
    planned_bytes: int
    bytes: int  #: peak of the complete process, including imports
    ratio: float  #: to the first scene
    seconds: float


@dataclass(frozen=True)
class CompositeBench:
    """The results for one number of dates."""

    dates: int
    own: list[Run]
    others: list[Run]  #: of odc-stac; empty if it is not installed

    @property
    def ratio(self) -> float | None:
        """Speed relative to odc-stac: the median over rounds of the ratio within each round."""
        if not self.others:
            return None
        return statistics.median(o.seconds / m.seconds for m, o in zip(self.own, self.others, strict=True))

    @property
    def cpu_ratio(self) -> float | None:
        """CPU time of odc-stac relative to that of mibf: the median over rounds."""
        if not self.others:
            return None
        return statistics.median(o.cpu_seconds / m.cpu_seconds for m, o in zip(self.own, self.others, strict=True))

    @property
    def equal(self) -> bool:
        """Whether all runs found the same values."""
        return len({run.checksum for run in (*self.own, *self.others)}) == 1

    def lines(self) -> list[str]:
        """Format the results as lines of text."""
        values = self.dates * SIDE**2 * len(BANDS) / 1e6
        found = [machine(), f"{SIDE} x {SIDE} pixels, {len(BANDS)} bands, {self.dates} dates of two tiles, clouds masked"]
        for name, runs in (("mibf", self.own), ("odc-stac", self.others)):
            if runs:
                seconds, cpu = np.median([(run.seconds, run.cpu_seconds) for run in runs], axis=0)
                most = max(run.peak_bytes for run in runs) / 1e6
                rate = f"{values / seconds:.1f} million values/s"
                found.append(f"  {name:<9} {seconds:6.1f} s, {cpu:6.1f} s of CPU, {rate}, peak memory {most:,.0f} MB")
        if self.ratio is None:
            found.append("  odc-stac is not installed, so there is no comparison; `pip install odc-stac` adds it")
        else:
            equal = "the same values" if self.equal else "OTHER values"
            found.append(f"  {self.ratio:.2f} times as fast as odc-stac (CPU time: {self.cpu_ratio:.2f}), {equal}")
        return found

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        ratios = {"ratio": self.ratio, "cpu_ratio": self.cpu_ratio, "equal": self.equal}
        return {"machine": machine()} | asdict(self) | ratios


@dataclass(frozen=True)
class CompositeMemory:
    """The peak memory of all cases."""

    peaks: list[Peak]

    def lines(self) -> list[str]:
        """Format the results as lines of text."""
        found = [machine(), f"{'dates':>5} {'pixels':>13} {'planned':>9} {'peak':>9} {'ratio':>6} {'seconds':>8}"]
        found += [
            f"{p.dates:>5} {f'{p.side} x {p.side}':>13} {p.planned_bytes / 1e6:>6,.0f} MB {p.bytes / 1e6:>6,.0f} MB "
            f"{p.ratio:>6.2f} {p.seconds:>8.1f}"
            for p in self.peaks
        ]
        return found

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"machine": machine(), "peaks": [asdict(p) for p in self.peaks]}


def bench_composites(dates: int, *, rounds: int) -> CompositeBench:
    """Measure mibf and odc-stac alternately, each in a separate process, after one warm-up round; uses temporary files."""
    there = importlib.util.find_spec("odc.stac") is not None
    own, others = list[Run](), list[Run]()
    with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
        items = write_items(Path(folder), dates, SIDE)
        with progress_bar(f"{dates} dates", rounds + 1, unit="rounds") as advance:
            for number in range(rounds + 1):
                found = run_in_subprocess(_with_mibf, items), run_in_subprocess(_with_odc, items) if there else None
                if number:
                    own.append(found[0])
                    others += [] if found[1] is None else [found[1]]
                advance(1)
    return CompositeBench(dates, own, others)


def bench_memory(cases: Sequence[tuple[int, int]] = MEMORY_CASES) -> CompositeMemory:
    """Write stores of scenes of so many dates and pixels, each in a separate process; uses temporary files."""
    peaks = list[Peak]()
    with progress_bar("memory", len(cases), unit="scenes") as advance:
        for dates, side in cases:
            with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
                items = write_items(Path(folder), dates, side)
                seconds, planned, most = run_in_subprocess(_write_store, items, side, folder)
            peaks.append(Peak(dates, side, planned, most, most / (peaks[0].bytes if peaks else most), seconds))
            advance(1)
    return CompositeMemory(peaks)


def write_items(folder: Path, dates: int, side: int) -> str:
    """Write the items of so many dates of a scene, with their files, into a folder; return the path of their collection."""
    generator = np.random.default_rng(0)
    wide = int(side * TILE) // 2 * 2
    noise = (500 + generator.normal(0, 100, (side + 10 * WRITTEN, side)).clip(-499, 2000)).astype(np.uint16)
    land = generator.integers(0, 3000, (-(-side // 64), -(-side // 64))).astype(np.uint16)
    land = land.repeat(64, axis=0).repeat(64, axis=1)[:side, :side]
    features = []
    for number in range(dates):
        drawn = number % WRITTEN
        if number < WRITTEN:
            cloudy = generator.random((-(-side // 128), -(-side // 128))) < 0.2
            clouds = np.where(cloudy, np.uint8(CLOUD), np.uint8(CLEAR))
            clouds = clouds.repeat(64, axis=0).repeat(64, axis=1)[: side // 2, : side // 2]
            values = {name: noise[10 * drawn + 5 * at :][:side] + land for at, name in enumerate(BANDS)}
        for tile, left in enumerate((0, side - wide)):
            assets = {}
            for name in (*BANDS, CLASSIFICATION):
                path = folder / f"{number}_{tile}_{name}.tif"
                if number >= WRITTEN:
                    path.hardlink_to(folder / f"{drawn}_{tile}_{name}.tif")
                elif name == CLASSIFICATION:
                    _write_cog(path, clouds[:, left // 2 : (left + wide) // 2], left // 2, 2)
                else:
                    _write_cog(path, values[name][:, left : left + wide], left, 1)
                assets[name] = {"href": str(path), "raster:bands": [{"nodata": 0}]}
            footprint = _grid(side)[:, left : left + wide].geographic_extent
            features.append(
                {
                    "type": "Feature", "stac_version": "1.0.0", "id": f"{number}_{tile}", "links": [], "assets": assets,
                    "geometry": footprint.json, "bbox": list(footprint.boundingbox),
                    "properties": {"datetime": f"{date(2024, 1, 1) + timedelta(number)}T18:00:{tile:02}Z"},
                }
            )  # fmt: skip  # values in rows that belong together
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return str(path)


def _grid(side: int) -> GeoBox:
    return GeoBox((side, side), ORIGIN, "EPSG:32612")


def _write_cog(path: Path, values: NDArray[Any], left: int, times: int) -> None:
    """Write values (y, x) from a column on, in pixels that are so many times as wide as the grid's."""
    rows, columns = values.shape
    profile = {"driver": "GTiff", "count": 1, "height": rows, "width": columns, "dtype": values.dtype.name, "nodata": 0}
    place = ORIGIN * Affine.scale(times) * Affine.translation(left, 0)
    with MemoryFile() as memory:
        with memory.open(**profile, crs="EPSG:32612", transform=place) as dataset:
            dataset.write(values, 1)
        rasterio.shutil.copy(
            memory.name, path, driver="COG", compress="deflate", predictor=2, blocksize=512, num_threads=cpu_count()
        )


def prepared(items: str, side: int) -> PreparedScene:
    """Open the items as the only source of a scene without labels."""
    mask = {"asset": CLASSIFICATION, "invalid": [CLOUD]}
    stac = {"url": items, "assets": list(BANDS), "mask": mask, "composite": "median"}
    section = SceneSection.model_validate({"name": "a", "grid": {"like": "s"}, "sources": {"s": {"stac": stac}}})
    source = open_source(sources(section)["s"], _grid(side))
    return PreparedScene("a", _grid(side), (source,), NoLabels(), NoSplit(), (ClassName(1, "any", "#000000"),))


def _with_mibf(items: str) -> Run:
    """Read the composite shard by shard, as `prepare` does."""
    started, cpu = time.perf_counter(), time.process_time()
    scene = prepared(items, SIDE)
    found = np.empty((len(BANDS), SIDE, SIDE), np.float32)

    def read(scene: PreparedScene, window: Window) -> None:
        found[:, *window.slices] = scene.sources[0].observe(window).values

    ThreadExecutor().each(read, scene, scene.shards, lambda _: None)
    return _run(started, cpu, found)


def _with_odc(items: str) -> Run:
    """Load with odc-stac in chunks of as many pixels as a shard, and take the median with xarray."""
    import dask
    import odc.stac
    import pystac

    side = prepared(items, SIDE).template.shard
    started, cpu = time.perf_counter(), time.process_time()
    loaded = odc.stac.load(
        list(pystac.ItemCollection.from_file(items)),
        bands=[*BANDS, CLASSIFICATION],
        geobox=_grid(SIDE),
        chunks={"x": side, "y": side},
        groupby="solar_day",
    )
    values = loaded[list(BANDS)]
    clear = (loaded[CLASSIFICATION] != CLOUD) & (values.to_array() > 0).all("variable")
    median = values.where(clear).astype("float32").chunk({"time": -1}).median("time")
    with dask.config.set(scheduler="threads", num_workers=ThreadExecutor().workers):
        computed = median.compute()
    found = np.nan_to_num(np.stack([computed[name].values for name in BANDS]))
    return _run(started, cpu, found.astype(np.float32))


def _run(started: float, cpu: float, found: NDArray[np.float32]) -> Run:
    return Run(time.perf_counter() - started, time.process_time() - cpu, peak(), zlib.crc32(found.tobytes()))


def _write_store(items: str, side: int, folder: str) -> tuple[float, int, int]:
    """Seconds, planned bytes and peak bytes of writing a scene's store."""
    scene, executor = prepared(items, side), ThreadExecutor()
    started = time.perf_counter()
    build_store(executor, scene, str(Path(folder) / "store.zarr"), fingerprint="")
    return time.perf_counter() - started, memory(scene, min(executor.workers, len(scene.shards))), peak()
