"""mibf bench prepare: prepare against a plain Dask copy of the same pixels into the same shards; speed, memory, size."""

from __future__ import annotations

import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import rioxarray
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from jobs.bench.memory import peak
from jobs.config import Config, load
from jobs.progress import bar
from jobs.scenes import open_scenes
from jobs.synth import synth
from mibf.errors import InputError
from pipeline.engine import Threads
from pipeline.estimate import SAMPLED
from pipeline.fill import OpenScene, fill, shard_arrays
from pipeline.grid import windows
from pipeline.store import CHUNK, COMPRESSOR, SHARDS
from pipeline.survey import survey

#: What is compared.
COPY, PREPARE = "plain Dask copy", "prepare"


@dataclass(frozen=True)
class Run:
    """One piece of work in a process of its own."""

    seconds: float
    peak_bytes: int  #: of the whole process, imports included
    stored_bytes: int  #: of the sources' pixels alone


@dataclass(frozen=True)
class Result:
    """What was seen of one scene."""

    scene: str
    shape: tuple[int, int]
    shard: int
    source_bytes: int  #: uncompressed
    copies: list[Run]
    prepares: list[Run]

    @property
    def ratio(self) -> float:
        """How fast prepare is beside the copy: the median over rounds, each in itself."""
        return statistics.median(c.seconds / p.seconds for c, p in zip(self.copies, self.prepares, strict=True))

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self) | {"ratio": self.ratio}


def bench_prepare(config: Config | None, *, sizes: Sequence[str], bands: str, rounds: int) -> list[Result]:
    """Measure a configuration's scenes, or synthetic ones of some sizes."""
    if config is not None:
        return [_measured(scene, rounds) for scene in _opened(config)]
    results = []
    with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
        for size in sizes:
            results += [_measured(scene, rounds) for scene in _opened(synthetic(folder, size=size, bands=bands))]
    return results


def synthetic(folder: str, *, size: str, bands: str) -> Config:
    """The configuration of a synthetic scene that is made in a folder."""
    made = synth(
        str(Path(folder) / f"{size}_{bands}"),
        size=size, bands=bands, labelled=0.05, nodata=0.0, blob=None, crs="EPSG:32633", seed=0, overwrite=False,
    )  # fmt: skip
    return load(str(made.config))


def _opened(config: Config) -> list[OpenScene]:
    return open_scenes(config, Threads())


def _measured(scene: OpenScene, rounds: int) -> Result:
    """Copy and prepare in turn, each time in a process of its own, after a round that is not counted."""
    _check_plain(scene)
    copies, prepares = [], []
    template = scene.template
    with bar(f"{scene.name}: {template.shape[0]} x {template.shape[1]}", rounds + 1, unit="rounds") as advance:
        for number in range(rounds + 1):
            with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
                pair = _alone(_copy, scene, folder), _alone(_prepare, scene, folder)
            if number:
                copies.append(pair[0])
                prepares.append(pair[1])
            advance(1)
    pixels = template.shape[0] * template.shape[1]
    size = sum(s.bands * s.dtype.itemsize * s.scale**2 for s in scene.sources) * pixels
    return Result(scene.name, template.shape, template.shard, size, copies, prepares)


def _check_plain(scene: OpenScene) -> None:
    """See that a plain copy of the scene's files holds the same pixels."""
    for source in scene.sources:
        declared = source.declared
        changed = declared.mask is not None or declared.gain != 1 or declared.offset != 0 or declared.scale != 1
        for layer in source.layers:
            part = layer[0]
            chosen = part.file.bands is not None or part.file.variable is not None or len(layer) > 1
            if changed or chosen or part.alignment.kind != "exact" or part.alignment.coarser != 1:
                raise InputError(
                    f"{part.file}: is not taken whole and pixel for pixel on the grid, so that no plain copy compares; give "
                    "a configuration whose sources are on one grid, or none for a synthetic scene."
                )


def _alone(work: Any, scene: OpenScene, folder: str) -> Run:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        run: Run = pool.apply(work, (scene, folder))
    return run


def _copy(scene: OpenScene, folder: str) -> Run:
    """What a person would write with rioxarray, Dask and Zarr: each source, chunk for shard, on as many threads."""
    os.environ.setdefault("GDAL_CACHEMAX", "128")
    started = time.monotonic()
    url = Path(folder) / "copy.zarr"
    group = zarr.open_group(str(url), mode="w")
    side = scene.template.shard
    stores = []
    for source in scene.sources:
        wide, chunk = side * source.scale, CHUNK * source.scale
        layers = [
            rioxarray.open_rasterio(part.file.url, chunks={"band": -1, "y": wide, "x": wide}, lock=False).data
            for part in source.parts
        ]
        values = da.concatenate(layers).rechunk({0: -1})
        target = group.create_array(
            source.declared.name, shape=values.shape, dtype=values.dtype, chunks=(len(values), chunk, chunk),
            shards=(len(values), wide, wide), compressors=[COMPRESSOR, Crc32cCodec()],
        )  # fmt: skip
        stores.append(da.store(values, target, lock=False, compute=False))
    dask.compute(*stores, scheduler="threads", num_workers=Threads().workers)
    return Run(time.monotonic() - started, peak(), _bytes_below(url))


def _prepare(scene: OpenScene, folder: str) -> Run:
    """All that prepare does once the split is decided: the store with validity, labels and split, and the look over it."""
    os.environ.setdefault("GDAL_CACHEMAX", "128")
    started = time.monotonic()
    url = Path(folder) / "prepare.zarr"
    records = fill(Threads(), scene, str(url), fingerprint="")
    survey(Threads(), str(url), patch=7, sketched=records.sketched)
    return Run(time.monotonic() - started, peak(), _bytes_below(url / "sources"))


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class CodecRow:
    """A compressor and a shard's side, on some shards of a scene."""

    name: str
    shard: int
    ratio: float  #: stored bytes to uncompressed ones
    write: float  #: MB of pixels a second, compressed and put to disk
    read: float  #: MB of pixels a second, chunk by chunk


CODECS: dict[str, Any] = {
    "none": (),
    "zstd 1": (ZstdCodec(level=1),),
    "zstd 3": (ZstdCodec(level=3),),
    "blosc zstd 1, shuffle": (BloscCodec(cname="zstd", clevel=1, shuffle="shuffle"),),
    "blosc zstd 1, bitshuffle": (BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"),),
    "blosc zstd 3, bitshuffle": (BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),),
    "blosc zstd 5, bitshuffle": (BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),),
    "blosc lz4 5, bitshuffle": (BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),),
}


def bench_codecs(config: Config) -> list[CodecRow]:
    """Write and read a few shards of a first scene by every compressor, then with the chosen one by every side."""
    scene = _opened(config)[0]
    rows = [_codec(scene, name, codecs, scene.template.shard) for name, codecs in CODECS.items()]
    chosen = next(name for name, codecs in CODECS.items() if codecs == (COMPRESSOR,))
    return rows + [_codec(scene, chosen, (COMPRESSOR,), side) for side in SHARDS]


def _codec(scene: OpenScene, name: str, codecs: tuple[Any, ...], side: int) -> CodecRow:
    places = windows(scene.template.shape, side)
    count = min(SAMPLED, len(places))
    held = [shard_arrays(scene, places[(2 * i + 1) * len(places) // (2 * count)])[0] for i in range(count)]
    arrays = [{k: v for k, v in part.items() if k.startswith("sources/")} for part in held]
    # A shard at the scene's edge is stored filled up to whole chunks.
    size = sum(
        len(v) * math.prod(-(-n // CHUNK) * CHUNK for n in v.shape[1:]) * v.itemsize for a in arrays for v in a.values()
    )
    with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
        group = zarr.open_group(folder, mode="w")
        targets = []
        for number, part in enumerate(arrays):
            for path, v in part.items():
                whole = (len(v), *(-(-n // CHUNK) * CHUNK for n in v.shape[1:]))
                target = group.create_array(
                    f"{number}/{path}", shape=v.shape, dtype=v.dtype, chunks=(len(v), CHUNK, CHUNK), shards=whole,
                    compressors=[*codecs, Crc32cCodec()],
                )  # fmt: skip
                targets.append((target, v))
        started = time.monotonic()
        for target, values in targets:
            target[...] = values
        between = time.monotonic()
        for target, values in targets:
            for window in windows(values.shape[1:], CHUNK):
                target[(slice(None), *window.slices)]
        ended = time.monotonic()
        stored = _bytes_below(Path(folder))
    return CodecRow(name, side, stored / size, size / 1e6 / (between - started), size / 1e6 / (ended - between))


def table(results: Sequence[Result]) -> str:
    """Results for a terminal."""
    lines = []
    for r in results:
        lines.append(f"{r.scene}: {r.shape[0]} x {r.shape[1]} pixels, {r.source_bytes / 1e9:.2f} GB, shards of {r.shard}")
        for name, runs in ((COPY, r.copies), (PREPARE, r.prepares)):
            seconds = statistics.median(run.seconds for run in runs)
            lines.append(
                f"  {name:<16} {seconds:7.1f} s {r.source_bytes / 1e6 / seconds:7.0f} MB/s, "
                f"peak memory {max(run.peak_bytes for run in runs) / 1e9:.2f} GB, "
                f"sources stored in {runs[0].stored_bytes / 1e6:,.1f} MB"
            )
        stored = r.prepares[0].stored_bytes / r.copies[0].stored_bytes
        lines.append(f"  {r.ratio:.2f} times as fast as the copy; sources take {stored:.3f} times its bytes")
    return "\n".join(lines)


def codec_table(rows: Sequence[CodecRow]) -> str:
    """Compressors for a terminal."""
    lines = [f"{'compressor':<26} {'shard':>6} {'size':>7} {'write MB/s':>11} {'read MB/s':>10}"]
    lines += [f"{r.name:<26} {r.shard:>6} {r.ratio:>7.1%} {r.write:>11,.0f} {r.read:>10,.0f}" for r in rows]
    return "\n".join(lines)
