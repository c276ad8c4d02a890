"""map: whole scenes on Ray Data, tile by tile, into cloud-optimised GeoTIFFs.

Each tile is a row; the worker that maps it writes its shards and returns a small row that says so.
A tile that fails is a row too: the rest goes on.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import ray.data
import torch

from jobs import cluster
from jobs.config import Config
from jobs.progress import bar, say
from jobs.stages import Outcome, TilesFailedError, begin
from jobs.workspace import Workspace
from mibf import __version__
from mibf.products import check_products
from pipeline import cog, storage
from pipeline.grid import Window
from pipeline.maps import MapInWork, check_coverage
from pipeline.predict import TilePredictor, check_sources
from pipeline.products import Product, of_network, product
from pipeline.publish import publish
from pipeline.store import PatchStore
from pipeline.tiles import Tile, tiles

Rows = dict[str, np.ndarray[Any, Any]]


def map_scenes(config: Config, workspace: Workspace, fingerprint: str) -> Outcome:
    """Map every scene of a configuration and publish its products."""
    bundle = workspace.read_bundle()
    stores = {scene.name: PatchStore(workspace.store(scene.name)) for scene in config.scenes}
    for store in stores.values():
        check_sources(store, bundle)
    # Refused before anything is written:
    bundle.network(config.prediction.priors)
    names = [source.name for source in bundle.spec.sources]
    products = [product(name, config.map.dtype, sources=len(names)) for name in config.map.products]
    check_products(of_network(products), without=bundle.spec.without)
    cluster.ensure(workers=config.map.workers)
    begin(workspace, "map")
    works = {
        name: MapInWork.lay_down(
            storage.join(workspace.map_folder(name), "map.zarr"),
            store=store,
            products=products,
            tile=config.map.tile,
            sources=names,
        )
        for name, store in stores.items()
    }
    planned = [tile for name, store in stores.items() for tile in tiles(name, store.shape, config.map.tile)]
    started = time.monotonic()
    failed = _run_tiles(config, workspace, products, planned)
    seconds = time.monotonic() - started
    if failed:
        shown = "\n".join(f"  {key}: {cause}" for key, cause in sorted(failed.items())[:10])
        raise TilesFailedError(
            f"{len(failed)} of {len(planned)} tiles failed; nothing was published:\n{shown}\n"
            "Mend the cause and run `mibf map` again."
        )
    outputs, lines, mapped = [], [], 0
    for name, work in works.items():
        store = stores[name]
        pixels = check_coverage(work, store, products, tile=config.map.tile, missing=config.map.missing)
        rows, columns = store.shape
        mapped += pixels
        lines.append(
            f"{name}: {pixels:,} of {rows * columns:,} pixels mapped, {len(tiles(name, store.shape, config.map.tile))} tiles"
        )
        tags = {"mibf_version": __version__, "mibf_run": config.run, "mibf_fingerprint": fingerprint}
        tags |= {"mibf_priors": config.prediction.priors}
        block = cog.block_side(config.map.block, config.map.tile)
        parts = len(cog.pieces("", store.shape, block=block))
        with bar(f"{name}: publish", len(products) * (parts + (parts > 1)), unit="files") as advance:
            published = publish(
                partial(_reader, work),
                products,
                workspace.map_folder(name),
                grid=store.grid,
                classes=bundle.classes,
                names_of=work.band_names,
                tags=tags,
                block=block,
                each=lambda _: advance(1),
            )
        outputs += [file.url for file in published]
        storage.remove(work.url)
    lines.append(f"{mapped / seconds:,.0f} pixels a second with {config.map.workers} workers, their start included")
    figures = {"pixels": mapped, "tiles": len(planned), "tiles_seconds": round(seconds, 1)}
    return Outcome(figures | {"priors": config.prediction.priors}, lines, outputs)


def _reader(work: MapInWork, product: Product) -> cog.Read:
    """Reads a product's codes from a map in work."""
    array = work.array(product)
    return lambda window: np.asarray(array[:, *window.slices])


def _run_tiles(config: Config, workspace: Workspace, products: list[Product], planned: list[Tile]) -> dict[str, str]:
    """Map tiles on Ray Data; the causes of those that failed, by key."""
    workers = config.map.workers
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    share = cluster.share(workers)
    say(f"mapping on {share}, {config.map.precision}")
    rows = [
        {"scene": t.scene, "y": t.window.y, "x": t.window.x, "height": t.window.height, "width": t.window.width}
        for t in planned
    ]
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), 1000)).map_batches(
        _TileMapper,
        fn_constructor_kwargs={
            "workspace": workspace,
            "settings": config.map.model_dump(include={"precision", "draws", "seed", "missing"})
            | {"products": products, "priors": config.prediction.priors},
            "threads": share.cpus,
        },
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=share.cpus,
        num_gpus=share.gpus or None,
    )
    failed = {}
    with bar("map", len(planned), unit="tiles") as advance:
        for row in dataset.iter_rows():
            if row["cause"]:
                failed[row["key"]] = row["cause"]
            advance(1)
    return failed


class _TileMapper:
    """One worker: a model in memory, the stores and maps of the scenes that it meets."""

    def __init__(self, workspace: Workspace, settings: dict[str, Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self.workspace = workspace
        self.predictor = TilePredictor(workspace.read_bundle(), **settings)

    def __call__(self, rows: Rows) -> Rows:
        windows = zip(rows["y"], rows["x"], rows["height"], rows["width"], strict=True)
        planned = [Tile(str(s), Window(*(int(v) for v in w))) for s, w in zip(rows["scene"], windows, strict=True)]
        causes = [self._map(tile) for tile in planned]
        return {"key": np.array([tile.key for tile in planned]), "cause": np.array(causes)}

    def _map(self, tile: Tile) -> str:
        """Map and write a tile; the cause where it failed, empty where it did not."""
        try:
            store = PatchStore(self.workspace.store(tile.scene))
            work = MapInWork(storage.join(self.workspace.map_folder(tile.scene), "map.zarr"))
            work.write(tile, self.predictor.predict(store, tile))
        except Exception as error:  # a failed tile is a row, whatever the cause
            return f"{type(error).__name__}: {error}"
        return ""
