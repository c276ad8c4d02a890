"""mibf bench publish: publishing of a finished map, by one worker and by more, and again after a change of one tile.

The baseline is what a script would do: GDAL's COG driver, once for each product, on a GeoTIFF written tile by tile from the
map store; it checks nothing. Publishing reads the same map store and, in addition, checks the checksum and the coverage of
every tile, decodes all that it has encoded, and writes the STAC item and the quicklook.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil

from jobs.bench.harness.processes import run_in_subprocess
from jobs.bench.harness.stub_workspace import stub_workspace
from jobs.bench.map import check_one_machine, check_side
from jobs.bench.map_memory import Larger, leave_ray
from jobs.bench.network import machine
from jobs.config.config import Config
from jobs.map.attempt import make_job
from jobs.map.publish import make_item, make_publication
from jobs.map.scene_map import SceneMap
from jobs.map.spec import MapSpec
from jobs.runtime.progress import info
from jobs.workflow.workspace import Workspace
from pipeline.geotiff.cog import rasterio_window
from pipeline.grid import Tile, windows
from pipeline.io import gdal, storage
from pipeline.io.lease import Lease
from pipeline.maps.ledger import LedgerEvent
from pipeline.maps.map_store import MapStore, result_digest
from pipeline.maps.predictor import TileResult
from pipeline.maps.tile_mapper import TileMapper
from pipeline.parallel.executor import Executor, ThreadExecutor
from pipeline.publishing.map_file import FileContent
from pipeline.publishing.map_part import SourceTile
from pipeline.publishing.publish_map import Publication, publish_map
from pipeline.publishing.stac_item import Asset

#: Side of the map's tiles in pixels.
TILE = 512
#: What publishes: one thread of this process; and Ray workers of one core each.
SCRIPT, THREAD, ONE, TWO = "GDAL script", "1 thread", "1 Ray worker", "2 Ray workers"
#: The rows of the table in which one tile has changed.
CHANGE = "one tile changed, {}"


@dataclass(frozen=True)
class Row:
    """Time of one way to publish the map."""

    how: str
    seconds: float  #: median over rounds
    ratio: float  #: to publishing all with one thread, median of the ratios within the rounds


@dataclass(frozen=True)
class PublishBench:
    """The times of all ways to publish a map."""

    side: int
    rounds: int
    rows: list[Row]

    def lines(self) -> list[str]:
        """Format the results as lines of text."""
        head = f"{self.side} x {self.side} pixels, class and confidence; medians of {self.rounds} rounds"
        rows = [f"{row.how:<36}{row.seconds:>10.2f} s{row.ratio:>10.3f}" for row in self.rows]
        return [machine(), head, f"{'':<36}{'seconds':>12}{'ratio':>10}", *rows, f"ratios are to `{THREAD}`"]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"machine": machine()} | asdict(self)


def bench_publishing(side: int, *, rounds: int, folder: str | None = None) -> PublishBench:
    """Map a scene of `side` x `side` pixels with a trivial predictor, and publish it repeatedly.

    Args:
        side: a multiple of 64.
        rounds: number of rounds.
        folder: URL of a folder for the published maps, for example in a bucket; default: a temporary one.

    Raises:
        InputError: the side is invalid, or `RAY_ADDRESS` names a cluster.
    """
    check_one_machine()
    check_side(side)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="mibf-bench-") as temporary:
        config = stub_workspace(Path(temporary), shape_yx=(side, side), tile=TILE, filled=True)
        run_in_subprocess(_map_tiles, config)
        for number in range(rounds):
            target = folder or storage.join(temporary, "published")
            for how in (SCRIPT, THREAD, ONE, TWO):
                info(f"round {number + 1} of {rounds}: {how}")
                for row, seconds in run_in_subprocess(_timed, config, how, target).items():
                    times.setdefault(row, []).append(seconds)
                storage.remove(storage.join(target, "map"))
    base = times[THREAD]
    rows = [
        Row(how, statistics.median(found), statistics.median(a / b for a, b in zip(found, base, strict=True)))
        for how, found in times.items()
    ]
    return PublishBench(side, rounds, rows)


def _scene(config: Config) -> SceneMap:
    workspace = Workspace.of(config)
    return SceneMap(MapSpec.of(config, workspace, predictor=Larger), workspace, config.scenes[0])


def _map_tiles(config: Config) -> None:
    """Map all tiles into the map store, and record them in the ledger."""
    scene = _scene(config)
    work = scene.open_work("bench", Lease())
    model = scene.spec.digest
    with scene.ledger.writing():
        for outcome in TileMapper(make_job(scene.spec, {scene.name: scene})).map(scene.tiles):
            fingerprint = scene.planned[outcome.tile.window]
            scene.ledger.append([LedgerEvent.of(outcome, fingerprint=fingerprint, model=model, run="bench", attempt=1)])
    assert work.url == scene.work_url


def _timed(config: Config, how: str, target: str) -> dict[str, float]:
    """Publish the map in one way; return the seconds, and those after a change of one tile."""
    scene = _scene(config)
    work = MapStore(scene.work_url, mode="r")
    if how == SCRIPT:
        return {how: _seconds(lambda: _script(scene, work))}
    publication = _elsewhere(make_publication(scene, work), storage.join(target, "map"))
    with _executor(how) as executor:
        assets: list[Asset] = []
        whole = _seconds(lambda: _publish(scene, work, publication, executor, assets))
        published = {asset.name: FileContent(asset.bytes, asset.sha256) for asset in assets}
        with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
            changed = replace(_changed(scene, work, publication, folder), published=published)
            return {how: whole, CHANGE.format(how): _seconds(lambda: _publish(scene, work, changed, executor, []))}


def _seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


@contextmanager
def _executor(how: str) -> Iterator[Executor]:
    if how == THREAD:
        yield ThreadExecutor(1)
        return
    import ray  # only where it is used

    from jobs.runtime.ray_executor import RayExecutor

    workers = 1 if how == ONE else 2
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # otherwise Ray warns
    ray.init(address="local", num_cpus=workers, include_dashboard=False, logging_level=logging.ERROR)
    executor = RayExecutor()
    try:
        executor.each(_idle, None, list(range(4 * workers)), lambda _: None)  # workers that have mapped are running already
        yield executor
    finally:
        leave_ray()


def _idle(_shared: None, _item: int) -> None:
    """Start a worker, and import what it needs."""
    time.sleep(0.2)


def _elsewhere(publication: Publication, folder: str) -> Publication:
    return replace(
        publication,
        source=replace(publication.source, published=folder),
        files=replace(publication.files, folder=folder),
        published={},
    )


def _publish(scene: SceneMap, work: MapStore, publication: Publication, executor: Executor, assets: list[Asset]) -> None:
    def describe(found: Any) -> dict[str, Any]:
        assets[:] = found
        return make_item(scene, work, found, "bench", "")

    @contextmanager
    def silent(_steps: int) -> Iterator[Callable[[int], object]]:
        yield lambda count: None

    damaged = publish_map(publication, executor, describe=describe, run="bench", lease=Lease(), progress=silent)
    if damaged:
        raise RuntimeError(f"{len(damaged)} tiles are damaged")


def _changed(scene: SceneMap, work: MapStore, publication: Publication, folder: str) -> Publication:
    """The map with another tile in its middle, which alone is in a new map store."""
    middle = publication.tiles[len(publication.tiles) // 2].window
    new = MapStore.create(storage.join(folder, "map.zarr"), store=scene.store, products=scene.spec.products, tile=TILE)
    result: TileResult = {p.name: np.asarray(work.array(p)[:, *middle.slices])[:, ::-1] for p in scene.spec.products}
    new.write(Tile(scene.name, middle), result)
    tiles = [
        SourceTile(tile.window, result_digest(result) if tile.window == middle else tile.checksum, tile.window != middle)
        for tile in publication.tiles
    ]
    return replace(publication, tiles=tiles, source=replace(publication.source, work=new.url))


def _script(scene: SceneMap, work: MapStore) -> None:
    """Write each product with GDAL's COG driver, as a script would."""
    gdal.configure_gdal()
    grid = scene.store.grid
    rows, columns = grid.shape
    for product in scene.spec.products:
        array = work.array(product)
        with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
            plain, path = Path(folder, "plain.tif"), Path(folder, "cog.tif")
            profile = {"driver": "GTiff", "height": rows, "width": columns, "count": array.shape[0], "dtype": product.dtype}
            profile |= {"nodata": product.nodata, "crs": grid.crs.to_wkt(), "transform": grid.affine, "tiled": True}
            with rasterio.open(
                plain, "w", **profile, blockxsize=TILE, blockysize=TILE, compress="deflate", zlevel=1
            ) as file:
                for window in windows((rows, columns), TILE):
                    file.write(np.asarray(array[:, *window.slices]), window=rasterio_window(window))
            options = {"compress": "deflate", "predictor": product.predictor, "blocksize": TILE, "num_threads": 1}
            rasterio.shutil.copy(plain, path, driver="COG", overview_resampling=product.overviews, **options)
