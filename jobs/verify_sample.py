"""verify, the sample: some tiles of a published map are computed again, and compared bit for bit with what the ledger has.

Where a tile was mapped by other means than those at hand, the last bits of measures may be others, and now and then a
class. That is told, and is no fault.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from dask.system import CPU_COUNT

from jobs.scene_maps import SceneMap
from mibf.precision import best_device
from pipeline.grid import Window
from pipeline.ledger import Made
from pipeline.maps import digest
from pipeline.predict import TileResult
from pipeline.products import CLASS_PRODUCTS
from pipeline.publish import PublishedMap
from pipeline.tiles import Tile

#: Share of a tile's pixels whose class may be another where a machine, a device or rows in work are: last bits decide
#: where two classes are all but alike, and no more than that.
OTHER_CLASSES = 0.01


@dataclass(frozen=True)
class Sampled:
    """A tile that was computed again."""

    tile: Tile
    difference: str = ""  #: to what the ledger has, in words; empty where there is none
    excused: bool = False  #: whether it was mapped by other means, which explains it


def drawn(done: Collection[Window], *, count: int, seed: int) -> list[Window]:
    """So many of the tiles, or all: the same ones for the same seed, and a larger sample holds the smaller one."""

    def rank(window: Window) -> bytes:
        return hashlib.sha256(f"{seed} {window.y} {window.x}".encode()).digest()

    return sorted(done, key=rank)[:count]


def compute_again(scene: SceneMap, made: Mapping[Window, Made]) -> Iterator[Sampled]:
    """Compute tiles in this process, on all its cores or its GPU, and compare each with what was made of it.

    Raises:
        InputError: the model was changed, or the store is damaged.
    """
    torch.set_num_threads(CPU_COUNT)
    predictor = scene.recipe.job({scene.name: scene}).make_predictor()
    published = PublishedMap(scene.folder)
    for window, before in made.items():
        tile = Tile(scene.name, window)
        content = predictor.read(scene.store, tile)
        result = predictor.compute(content)
        if digest(result) == before.checksum:
            yield Sampled(tile)
            continue
        others = _others(result, scene, published, window)
        means = _other_means(before, predictor.rows)
        limit = OTHER_CLASSES * int(content.wanted.sum())
        classes = max((count for name, count in (others or {}).items() if name in CLASS_PRODUCTS), default=0)
        yield Sampled(tile, _told(others, means), excused=bool(means) and others is not None and classes <= limit)


def _others(result: TileResult, scene: SceneMap, published: PublishedMap, window: Window) -> dict[str, int] | None:
    """In how many pixels each product differs from the published one; None where that cannot be read."""
    found: dict[str, int] = {}
    for product in scene.recipe.products:
        try:
            before = published.read(product, window)
        except Exception:  # of GDAL's many kinds; it was told of when all tiles were read
            return None
        bits = f"u{before.dtype.itemsize}"  # two NaN are alike
        now = np.ascontiguousarray(result[product.name])
        found[product.name] = int((now.view(bits) != np.ascontiguousarray(before).view(bits)).any(axis=0).sum())
    return found


def _other_means(before: Made, rows: int) -> str:
    """What a tile was mapped by that is not at hand, in words; empty where all is the same."""
    host, _, rest = before.worker.partition("/")
    device, here = rest.rpartition("/")[2], best_device().type
    if device != here:
        return f"it was mapped on {device}, and this is {here}"
    if before.rows != rows:
        return f"it was mapped with {before.rows} rows in work, and now with {rows}: memory did not suffice for more"
    if host != socket.gethostname():
        return f"it was mapped on another machine, {host}"
    return ""


def _told(others: dict[str, int] | None, means: str) -> str:
    if others is None:
        told = "it is not what the ledger has the checksum of"
    elif any(others.values()):
        differing = [f"{name} differs in {count:,} pixels" for name, count in others.items() if count]
        told = ", ".join(differing) + " from what is published"
    else:
        told = "it is what is published, and not what the ledger has the checksum of"
    return f"{told} ({means})" if means else told
