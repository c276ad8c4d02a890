"""What writing a scene's store will take, from a few of its shards written to memory; nothing reaches a disk."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from zarr.storage import MemoryStore

from pipeline import storage
from pipeline.fill import OpenScene, shard_arrays
from pipeline.scene import OpenSource, Part
from pipeline.store import ShardWriter, lay_down

#: Shards that are written to learn how small and how fast they are.
SAMPLED = 3
#: Copies of a shard's pixels that one task holds at the most: as read, as kept, as cut into chunks, as compressed.
COPIES = 4
#: Bytes that the process takes before it holds a pixel, with GDAL's cache of blocks.
PROCESS_BYTES = 450 << 20
#: Times that a file's pixels may be read again for the sake of others in their block before a person is told.
AMPLIFIED = 4
#: Of GDAL's cache of blocks, what one file may count on.
BLOCKS_BYTES = 64 << 20


@dataclass(frozen=True)
class Estimate:
    """What writing a store will take."""

    shape: tuple[int, int]
    shard: int
    shards: int
    objects: int
    uncompressed_bytes: int
    stored_bytes: int  #: about
    memory_bytes: int  #: at the most, about
    seconds: float  #: about


def memory(scene: OpenScene, workers: int) -> int:
    """Bytes of memory that so many tasks at a time take, about, with the process itself."""
    template = scene.template
    side = min(template.shard, max(template.shape))
    return PROCESS_BYTES + workers * COPIES * side * side * template.bytes_per_pixel


def estimate(scene: OpenScene, *, workers: int) -> Estimate:
    """Write a few shards to memory and scale up.

    Raises:
        InputError: a file cannot be read.
    """
    template, shards = scene.template, scene.shards
    target = storage.Recorder(MemoryStore())
    lay_down(target, template, fingerprint="")
    count = min(SAMPLED, len(shards))
    sampled = [shards[(2 * i + 1) * len(shards) // (2 * count)] for i in range(count)]
    writer, stored = ShardWriter(target), 0
    started = time.monotonic()
    for window in sampled:
        stored += sum(size for size, _ in writer.write(window, shard_arrays(scene, window)[0]).values())
    seconds = time.monotonic() - started
    rows, columns = template.shape
    share = rows * columns / sum(w.height * w.width for w in sampled)
    at_once = min(workers, len(shards))
    return Estimate(
        shape=template.shape,
        shard=template.shard,
        shards=len(shards),
        objects=len(shards) * (2 * len(template.sources) + 2) + 2 * len(template.sources) + 7,
        uncompressed_bytes=rows * columns * template.bytes_per_pixel,
        stored_bytes=round(share * stored),
        memory_bytes=memory(scene, at_once),
        seconds=seconds * share / at_once,
    )


def remarks(source: OpenSource, side: int) -> list[str]:
    """What of a source's files a person may want to change before it is read, shards being `side` pixels wide."""
    told = []
    for part in source.parts:
        grid, own = source.grid, part.header.grid
        if part.alignment.kind == "resampled" and grid.crs == own.crs:
            finer = abs(grid.resolution.x / own.resolution.x)
            if finer >= 1.99 and source.scale == 1:
                told.append(f"{part.file} is {finer:g} times as fine as the grid; `scale: 2` or `scale: 4` keeps its detail")
        if part.header.unscaled and not part.file.unscale:
            told.append(f"{part.file} carries a scale or offset, which `unscale: true` would apply")
        times = _amplification(part, side * source.scale)
        if times > AMPLIFIED:
            rows, columns = part.header.block
            told.append(
                f"{part.file} is stored in blocks of {rows} x {columns} pixels, so that {times:.0f} times as much is read "
                "as is needed; make it a tiled file first, for example with `rio cogeo create`"
            )
    return list(dict.fromkeys(told))


def _amplification(part: Part, side: int) -> float:
    """How many pixels of a file are read for each one of a shard that is wanted."""
    rows, columns = part.header.grid.shape
    pixel = sum(np.dtype(dtype).itemsize for dtype in part.header.dtypes)
    if side * columns * pixel <= BLOCKS_BYTES:
        return 1.0  # GDAL keeps the blocks of a row of shards until the last of them is done
    wanted = [max(1, min(side // part.alignment.coarser, size)) for size in (rows, columns)]
    read = [
        min(size, (want // block + 2) * block) if want % block else min(size, want)
        for want, block, size in zip(wanted, part.header.block, (rows, columns), strict=True)
    ]
    return float(read[0] * read[1] / (wanted[0] * wanted[1]))
