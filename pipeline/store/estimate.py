"""Estimate the cost of writing a scene's store from a few shards written to memory; nothing is written to disk."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
from zarr.storage import MemoryStore

from pipeline.decoding.encodings import INT8_ENCODINGS
from pipeline.io import zarr_store
from pipeline.rasters.raster import AlignedFile
from pipeline.scenes.source import AlignedSource
from pipeline.store.build import PreparedScene, shard_arrays
from pipeline.store.shard_writer import ShardWriter
from pipeline.store.template import create_store

#: Shards written to measure their size and speed.
SAMPLED = 3
#: Maximum copies of a shard's pixels that one task holds: as read, as kept, as cut into chunks, as compressed.
COPIES = 4
#: Memory of the process before it holds a pixel, including GDAL's block cache.
PROCESS_BYTES = 450 << 20
#: Of each file that is read, for what is kept of its header: measured with 60 and 600 files.
FILE_BYTES = 150_000
#: Read amplification (pixels read per pixel needed, as files are read in blocks) above which the user is warned.
AMPLIFIED = 4
#: The part of GDAL's block cache that one file can count on.
BLOCKS_BYTES = 64 << 20


@dataclass(frozen=True)
class Estimate:
    """What writing a store will take."""

    shape: tuple[int, int]
    pixels: int  #: in the scene's area, or all
    shard: int
    shards: int
    shards_read: int  #: those that the area touches; the others take almost no space or time
    objects: int
    uncompressed_bytes: int  #: of the shards that are read
    stored_bytes: int  #: approximate
    memory_bytes: int  #: approximate maximum
    seconds: float  #: approximate


def memory(scene: PreparedScene, workers: int) -> int:
    """Approximate memory in bytes of this many concurrent tasks, including the process itself."""
    template = scene.template
    side = min(template.shard, max(template.shape))
    read = sum(source.bytes_per_pixel for source in scene.sources)  # more than is stored if bands are not kept
    dates = max((source.dates_bytes for source in scene.sources), default=0)
    files = FILE_BYTES * len(scene.files)
    return PROCESS_BYTES + files + workers * (COPIES * side * side * max(template.bytes_per_pixel, read) + dates)


def estimate(scene: PreparedScene, *, workers: int) -> Estimate:
    """Write a few shards to memory and extrapolate.

    Raises:
        InputError: a file cannot be read.
    """
    template, shards = scene.template, scene.shards_read
    target = zarr_store.ChecksumStore(MemoryStore())
    create_store(target, template, fingerprint="")
    count = min(SAMPLED, len(shards))
    sampled = [shards[(2 * i + 1) * len(shards) // (2 * count)] for i in range(count)]
    writer, stored = ShardWriter(target), 0
    started = time.monotonic()
    for window in sampled:
        stored += sum(size for size, _ in writer.write(window, shard_arrays(scene, window)[0]).values())
    seconds = time.monotonic() - started
    area = scene.area
    share = scene.pixels / max(1, sum(w.height * w.width if area is None else area.count(w) for w in sampled))
    concurrent = min(workers, len(shards))
    counted = sum(bool(source.periods) for source in template.sources)
    described = counted + bool(counted)  # arrays of counts, and their group
    return Estimate(
        shape=template.shape,
        pixels=scene.pixels,
        shard=template.shard,
        shards=len(scene.shards),
        shards_read=len(shards),
        objects=len(scene.shards) * (2 * len(template.sources) + counted + 2) + 2 * len(template.sources) + described + 7,
        uncompressed_bytes=scene.uncompressed_bytes,
        stored_bytes=round(share * stored),
        memory_bytes=memory(scene, concurrent),
        seconds=seconds * share / concurrent,
    )


def remarks(source: AlignedSource, side: int) -> list[str]:
    """What the user may want to change in a source's files before they are read, for shards `side` pixels wide.

    One remark for all files that it applies to, with the largest figure among them.
    """
    grid = source.grid
    finer, unscaled, amplified = {}, {}, {}
    for part in source.parts:
        name, own = str(part.file), part.header.grid
        if part.alignment.kind == "resampled" and grid.crs == own.crs and source.scale == 1:
            finer[name] = abs(grid.resolution.x / own.resolution.x)
        # Embeddings have their own rule, which `unscale` would contradict.
        unscaled[name] = part.header.unscaled and not part.file.unscale and part.file.decode not in INT8_ENCODINGS
        amplified[name] = _amplification(part, side * source.scale), part.header.block
    found = []
    if files := [name for name, times in finer.items() if times >= 1.99]:
        times = max(finer[name] for name in files)
        found.append(f"{_listed(files, 'has')} {times:g} times the grid's resolution; `scale: 2` or `scale: 4` keeps detail")
    if files := [name for name, declared in unscaled.items() if declared]:
        found.append(f"{_listed(files, 'has')} a scale or offset; set `unscale: true` to apply it")
    if files := [name for name, (times, _) in amplified.items() if times > AMPLIFIED]:
        times, (rows, columns) = max(amplified[name] for name in files)
        found.append(
            f"{_listed(files, 'is')} stored in blocks of {rows} x {columns} pixels, so {times:.0f} times as much data is "
            "read as needed; convert to tiled files first, for example with `rio cogeo create`"
        )
    return found


def _listed(files: list[str], verb: Literal["has", "is"]) -> str:
    """The first file and the number of others, with a verb."""
    if len(files) == 1:
        return f"{files[0]} {verb}"
    others = "1 other file" if len(files) == 2 else f"{len(files) - 1} other files"
    return f"{files[0]} and {others} {'have' if verb == 'has' else 'are'}"


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
