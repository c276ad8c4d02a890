"""Estimate the cost of writing a scene's store from a few shards written to memory; nothing is written to disk."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from zarr.storage import MemoryStore

from pipeline.io import zarr_store
from pipeline.scenes.source import AlignedFile, AlignedSource
from pipeline.store.build import PreparedScene, shard_arrays
from pipeline.store.shard_writer import ShardWriter
from pipeline.store.template import create_store

#: Shards written to measure their size and speed.
SAMPLED = 3
#: Maximum copies of a shard's pixels that one task holds: as read, as kept, as cut into chunks, as compressed.
COPIES = 4
#: Memory of the process before it holds a pixel, including GDAL's block cache.
PROCESS_BYTES = 450 << 20
#: Read amplification (pixels read per pixel needed, as files are read in blocks) above which the user is warned.
AMPLIFIED = 4
#: The part of GDAL's block cache that one file can count on.
BLOCKS_BYTES = 64 << 20


@dataclass(frozen=True)
class Estimate:
    """What writing a store will take."""

    shape: tuple[int, int]
    shard: int
    shards: int
    objects: int
    uncompressed_bytes: int
    stored_bytes: int  #: approximate
    memory_bytes: int  #: approximate maximum
    seconds: float  #: approximate


def memory(scene: PreparedScene, workers: int) -> int:
    """Approximate memory in bytes of this many concurrent tasks, including the process itself."""
    template = scene.template
    side = min(template.shard, max(template.shape))
    return PROCESS_BYTES + workers * COPIES * side * side * template.bytes_per_pixel


def estimate(scene: PreparedScene, *, workers: int) -> Estimate:
    """Write a few shards to memory and extrapolate.

    Raises:
        InputError: a file cannot be read.
    """
    template, shards = scene.template, scene.shards
    target = zarr_store.ChecksumStore(MemoryStore())
    create_store(target, template, fingerprint="")
    count = min(SAMPLED, len(shards))
    sampled = [shards[(2 * i + 1) * len(shards) // (2 * count)] for i in range(count)]
    writer, stored = ShardWriter(target), 0
    started = time.monotonic()
    for window in sampled:
        stored += sum(size for size, _ in writer.write(window, shard_arrays(scene, window)[0]).values())
    seconds = time.monotonic() - started
    rows, columns = template.shape
    share = rows * columns / sum(w.height * w.width for w in sampled)
    concurrent = min(workers, len(shards))
    return Estimate(
        shape=template.shape,
        shard=template.shard,
        shards=len(shards),
        objects=len(shards) * (2 * len(template.sources) + 2) + 2 * len(template.sources) + 7,
        uncompressed_bytes=rows * columns * template.bytes_per_pixel,
        stored_bytes=round(share * stored),
        memory_bytes=memory(scene, concurrent),
        seconds=seconds * share / concurrent,
    )


def remarks(source: AlignedSource, side: int) -> list[str]:
    """What the user may want to change in a source's files before they are read, for shards `side` pixels wide."""
    found = []
    for part in source.parts:
        grid, own = source.grid, part.header.grid
        if part.alignment.kind == "resampled" and grid.crs == own.crs:
            finer = abs(grid.resolution.x / own.resolution.x)
            if finer >= 1.99 and source.scale == 1:
                found.append(
                    f"{part.file} has {finer:g} times the grid's resolution; `scale: 2` or `scale: 4` keeps its detail"
                )
        if part.header.unscaled and not part.file.unscale:
            found.append(f"{part.file} has a scale or offset; set `unscale: true` to apply it")
        times = _amplification(part, side * source.scale)
        if times > AMPLIFIED:
            rows, columns = part.header.block
            found.append(
                f"{part.file} is stored in blocks of {rows} x {columns} pixels, so {times:.0f} times as much data is read "
                "as needed; convert it to a tiled file first, for example with `rio cogeo create`"
            )
    return list(dict.fromkeys(found))


def _amplification(part: AlignedFile, side: int) -> float:
    """Pixels of a file that are read per pixel needed by a shard."""
    rows, columns = part.header.grid.shape
    pixel = sum(np.dtype(dtype).itemsize for dtype in part.header.dtypes)
    if side * columns * pixel <= BLOCKS_BYTES:
        return 1.0  # GDAL caches the blocks of a row of shards until the last of them is done
    wanted = [max(1, min(side // part.alignment.coarser, size)) for size in (rows, columns)]
    read = [
        min(size, (want // block + 2) * block) if want % block else min(size, want)
        for want, block, size in zip(wanted, part.header.block, (rows, columns), strict=True)
    ]
    return float(read[0] * read[1] / (wanted[0] * wanted[1]))
