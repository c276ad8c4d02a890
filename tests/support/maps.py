"""Patch stores of chosen sources, and maps of a store without a tile mapper."""

from __future__ import annotations

from pathlib import Path

from mibf.bundle.bundle import Bundle
from mibf.bundle.classes import ClassName
from pipeline.grid import tile_grid
from pipeline.maps.map_store import MapStore
from pipeline.maps.predictor import MissingDataPolicy, TilePredictor
from pipeline.maps.products import MAP_PRODUCTS, product
from pipeline.parallel.executor import ThreadExecutor
from pipeline.scenes.labels import NoLabels
from pipeline.scenes.reference_grid import reference_grid
from pipeline.scenes.source import Source, open_source
from pipeline.scenes.split import NoSplit
from pipeline.store.build import PreparedScene, build_store
from pipeline.store.patch_store import PatchStore

ALL_PRODUCTS = [product(name) for name in MAP_PRODUCTS]
#: Least probabilities of the three classes in prediction sets.
SET_THRESHOLDS = (0.3, 0.34, 0.25)


def build_small_store(folder: Path, sources: list[Source]) -> PatchStore:
    """Build the patch store of a scene with these sources and without labels."""
    grid = reference_grid(sources[0])
    classes = tuple(ClassName(i, name, "#000000") for i, name in ((1, "water"), (2, "forest"), (5, "town")))
    opened = tuple(open_source(source, grid) for source in sources)
    scene = PreparedScene("small", grid, opened, NoLabels(), NoSplit(), classes)
    build_store(ThreadExecutor(1), scene, str(folder / "s.zarr"), fingerprint="")
    return PatchStore(str(folder / "s.zarr"))


def write_map(
    store: PatchStore, bundle: Bundle, url: Path, side: int, *, missing: MissingDataPolicy = "declared"
) -> MapStore:
    """Map a store tile by tile with all products."""
    work = MapStore.create(str(url), store=store, products=ALL_PRODUCTS, tile=side)
    predictor = TilePredictor(
        bundle, products=ALL_PRODUCTS, precision="float32", missing=missing, set_thresholds=SET_THRESHOLDS
    )
    for tile in tile_grid("small", store.shape, side):
        work.write(tile, predictor.predict(store, tile))
    return work
