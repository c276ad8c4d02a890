"""Verify a sample of tiles: recompute some tiles of a published map and compare them bit for bit with the ledger.

If a tile was mapped on another device or machine, or with another number of rows at a time, the last bits of continuous
products may differ, and occasionally a class. Such differences are reported but do not count as corruption.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from jobs.map.attempt import make_job
from jobs.map.scene_map import SceneMap
from mibf.device import best_device
from pipeline.grid import Tile, Window
from pipeline.maps.ledger import TileVersion
from pipeline.maps.map_store import result_digest
from pipeline.maps.predictor import TileResult
from pipeline.maps.products import CLASS_PRODUCTS
from pipeline.parallel.cpu_count import cpu_count
from pipeline.publishing.published_map import PublishedMap

#: Share of a tile's pixels whose class may differ on another machine or device or with another number of rows at a time:
#: the last bits decide only where two classes are nearly equally probable.
OTHER_CLASSES = 0.01


@dataclass(frozen=True)
class Sampled:
    """A tile that was recomputed."""

    tile: Tile
    difference: str = ""  #: from the ledger, in words; empty if equal
    excused: bool = False  #: whether another device, machine or number of rows at a time explains the difference


def sample_tiles(done: Collection[Window], *, count: int, seed: int) -> list[Window]:
    """Select `count` of the tiles, or all: the same for the same seed, and a larger sample contains the smaller one."""

    def rank(window: Window) -> bytes:
        return hashlib.sha256(f"{seed} {window.y} {window.x}".encode()).digest()

    return sorted(done, key=rank)[:count]


def recompute_tiles(scene: SceneMap, versions: Mapping[Window, TileVersion]) -> Iterator[Sampled]:
    """Compute tiles in this process, on all cores or the GPU, and compare each with its version in the ledger.

    Raises:
        InputError: the model has changed, or the store is damaged.
    """
    torch.set_num_threads(cpu_count())
    predictor = make_job(scene.spec, {scene.name: scene}).make_predictor()
    published = PublishedMap(scene.folder)
    for window, before in versions.items():
        tile = Tile(scene.name, window)
        content = predictor.read(scene.store, tile)
        result = predictor.compute(content)
        if result_digest(result) == before.checksum:
            yield Sampled(tile)
            continue
        others = _others(result, scene, published, window)
        means = _other_means(before, predictor.rows)
        limit = OTHER_CLASSES * int(content.wanted.sum())
        classes = max((count for name, count in (others or {}).items() if name in CLASS_PRODUCTS), default=0)
        yield Sampled(
            tile, _describe_differences(others, means), excused=bool(means) and others is not None and classes <= limit
        )


def _others(result: TileResult, scene: SceneMap, published: PublishedMap, window: Window) -> dict[str, int] | None:
    """The number of pixels in which each product differs from the published one; None if that cannot be read."""
    found: dict[str, int] = {}
    for product in scene.spec.products:
        try:
            before = published.read(product, window)
        except Exception:  # GDAL raises many kinds; already reported when all tiles were read
            return None
        bits = f"u{before.dtype.itemsize}"  # compares bits, so NaN equals NaN
        now = np.ascontiguousarray(result[product.name])
        found[product.name] = int((now.view(bits) != np.ascontiguousarray(before).view(bits)).any(axis=0).sum())
    return found


def _other_means(before: TileVersion, rows: int) -> str:
    """Which of device, number of rows at a time and machine differs from the original mapping, in words; empty if none."""
    host, _, rest = before.worker.partition("/")
    device, current = rest.rpartition("/")[2], best_device().type
    if device != current:
        return f"it was mapped on {device}, and recomputed on {current}"
    if before.rows != rows:
        return f"it was mapped with {before.rows} rows at a time, and recomputed with {rows}, limited by memory"
    if host != socket.gethostname():
        return f"it was mapped on another machine, {host}"
    return ""


def _describe_differences(others: dict[str, int] | None, means: str) -> str:
    if others is None:
        difference = "it does not match the checksum in the ledger"
    elif any(others.values()):
        differing = [f"{name} differs in {count:,} pixels" for name, count in others.items() if count]
        difference = ", ".join(differing) + " from the published map"
    else:
        difference = "it matches the published map, but not the checksum in the ledger"
    return f"{difference} ({means})" if means else difference
