"""mibf bench prepare: speed, memory and stored bytes against a plain Dask copy of the same pixels into the same shards."""

from __future__ import annotations

import math
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

from jobs.bench.harness.processes import run_in_subprocess
from jobs.bench.harness.working_set import peak
from jobs.config.config import Config
from jobs.config.loader import load
from jobs.prepare.scenes import open_scenes
from jobs.runtime.progress import progress_bar
from jobs.sample.synthetic import synth
from mibf.errors import InputError
from pipeline.grid import windows
from pipeline.parallel.executor import ThreadExecutor
from pipeline.store.build import PreparedScene, build_store, shard_arrays
from pipeline.store.estimate import SAMPLED
from pipeline.store.sample_statistics import collect_statistics
from pipeline.store.template import CHUNK, COMPRESSOR, SHARDS

#: The two ways that are compared.
COPY, PREPARE = "plain Dask copy", "prepare"


@dataclass(frozen=True)
class Run:
    """Measurements of one run in a separate process."""

    seconds: float
    peak_bytes: int  #: of the complete process, including imports
    stored_bytes: int  #: source pixels only


@dataclass(frozen=True)
class Result:
    """Result of the benchmark for one scene."""

    scene: str
    shape: tuple[int, int]
    shard: int
    source_bytes: int  #: uncompressed
    copies: list[Run]
    prepares: list[Run]

    @property
    def ratio(self) -> float:
        """Speed of prepare relative to the copy: the median over rounds of the ratio within each round."""
        return statistics.median(c.seconds / p.seconds for c, p in zip(self.copies, self.prepares, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return asdict(self) | {"ratio": self.ratio}


@dataclass(frozen=True)
class PrepareBench:
    """The results of all scenes."""

    results: list[Result]

    def lines(self) -> list[str]:
        """Format the results as lines of text."""
        return table(self.results).split("\n")

    def to_json(self) -> list[dict[str, Any]]:
        """Convert to JSON values."""
        return [result.to_json() for result in self.results]


def bench_prepare(config: Config | None, *, sizes: Sequence[str], bands: str, rounds: int) -> PrepareBench:
    """Benchmark a configuration's scenes or, without one, synthetic scenes of these sizes."""
    if config is not None:
        return PrepareBench([_measured(scene, rounds) for scene in _opened(config)])
    results = []
    with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
        for size in sizes:
            results += [_measured(scene, rounds) for scene in _opened(synthetic(folder, size=size, bands=bands))]
    return PrepareBench(results)


def synthetic(folder: str, *, size: str, bands: str) -> Config:
    """Generate a synthetic scene in a folder and return its configuration."""
    scene = synth(
        str(Path(folder) / f"{size}_{bands}"),
        size=size,
        bands=bands,
        labelled=0.05,
        nodata=0.0,
        blob=None,
        crs="EPSG:32633",
        seed=0,
        overwrite=False,
    )
    return load(str(scene.config))


def _opened(config: Config) -> list[PreparedScene]:
    return open_scenes(config, ThreadExecutor())


def _measured(scene: PreparedScene, rounds: int) -> Result:
    """Run copy and prepare alternately, each in a separate process, after one warm-up round."""
    _check_plain(scene)
    copies, prepares = [], []
    template = scene.template
    with progress_bar(f"{scene.name}: {template.shape[0]} x {template.shape[1]}", rounds + 1, unit="rounds") as advance:
        for number in range(rounds + 1):
            with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
                pair = run_in_subprocess(_copy, scene, folder), run_in_subprocess(_prepare, scene, folder)
            if number:
                copies.append(pair[0])
                prepares.append(pair[1])
            advance(1)
    pixels = template.shape[0] * template.shape[1]
    size = sum(s.bands * s.dtype.itemsize * s.scale**2 for s in scene.sources) * pixels
    return Result(scene.name, template.shape, template.shard, size, copies, prepares)


def _check_plain(scene: PreparedScene) -> None:
    """Check that a plain copy of the scene's files would hold the same pixels."""
    for source in scene.sources:
        declared = source.declared
        changed = declared.mask is not None or declared.gain != 1 or declared.offset != 0 or declared.scale != 1
        changed |= bool(declared.derive or declared.keep)
        for layer in source.layers:
            part = layer[0]
            chosen = part.file.bands is not None or part.file.variable is not None or len(layer) > 1
            chosen |= part.file.decode is not None
            if changed or chosen or part.alignment.kind != "exact" or part.alignment.coarser != 1:
                raise InputError(
                    f"{part.file}: is not read completely and pixel by pixel on the grid; a plain copy is not comparable; "
                    "use a configuration whose sources share one grid, or omit CONFIG to use a synthetic scene."
                )


def _copy(scene: PreparedScene, folder: str) -> Run:
    """Run the straightforward rioxarray, Dask and Zarr script: each source, one Dask chunk per shard, as many threads."""
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
            source.declared.name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(len(values), chunk, chunk),
            shards=(len(values), wide, wide),
            compressors=[COMPRESSOR, Crc32cCodec()],
        )
        stores.append(da.store(values, target, lock=False, compute=False))
    dask.compute(*stores, scheduler="threads", num_workers=ThreadExecutor().workers)
    return Run(time.monotonic() - started, peak(), _bytes_below(url))


def _prepare(scene: PreparedScene, folder: str) -> Run:
    """Run prepare after the split is known: write the store with validity, labels and split, and collect its statistics."""
    os.environ.setdefault("GDAL_CACHEMAX", "128")
    started = time.monotonic()
    url = Path(folder) / "prepare.zarr"
    records = build_store(ThreadExecutor(), scene, str(url), fingerprint="")
    collect_statistics(ThreadExecutor(), str(url), patch=7, sketched=records.sketched)
    return Run(time.monotonic() - started, peak(), _bytes_below(url / "sources"))


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class CodecRow:
    """Measurements of one compressor and shard side on a few shards of a scene."""

    name: str
    shard: int
    ratio: float  #: stored bytes relative to uncompressed bytes
    write: float  #: MB of pixels per second, including compression
    read: float  #: MB of pixels per second, chunk by chunk


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


@dataclass(frozen=True)
class CodecBench:
    """The results of all compressors and shard sizes."""

    rows: list[CodecRow]

    def lines(self) -> list[str]:
        """Format the results as lines of text."""
        return codec_table(self.rows).split("\n")

    def to_json(self) -> list[dict[str, Any]]:
        """Convert to JSON values."""
        return [asdict(row) for row in self.rows]


def bench_codecs(config: Config) -> CodecBench:
    """Write and read a few shards of the first scene with every compressor, then the default one with every shard side."""
    scene = _opened(config)[0]
    rows = [_codec(scene, name, codecs, scene.template.shard) for name, codecs in CODECS.items()]
    chosen = next(name for name, codecs in CODECS.items() if codecs == (COMPRESSOR,))
    return CodecBench(rows + [_codec(scene, chosen, (COMPRESSOR,), side) for side in SHARDS])


def _codec(scene: PreparedScene, name: str, codecs: tuple[Any, ...], side: int) -> CodecRow:
    places = windows(scene.template.shape, side)
    count = min(SAMPLED, len(places))
    shards = [shard_arrays(scene, places[(2 * i + 1) * len(places) // (2 * count)])[0] for i in range(count)]
    arrays = [{k: v for k, v in part.items() if k.startswith("sources/")} for part in shards]
    # A shard at the scene's edge is stored padded to complete chunks.
    size = sum(
        len(v) * math.prod(-(-n // CHUNK) * CHUNK for n in v.shape[1:]) * v.itemsize for a in arrays for v in a.values()
    )
    with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
        group = zarr.open_group(folder, mode="w")
        targets = []
        for number, part in enumerate(arrays):
            for path, v in part.items():
                shard = (len(v), *(-(-n // CHUNK) * CHUNK for n in v.shape[1:]))
                target = group.create_array(
                    f"{number}/{path}",
                    shape=v.shape,
                    dtype=v.dtype,
                    chunks=(len(v), CHUNK, CHUNK),
                    shards=shard,
                    compressors=[*codecs, Crc32cCodec()],
                )
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
    """Format the results as text."""
    lines = []
    for r in results:
        lines.append(f"{r.scene}: {r.shape[0]} x {r.shape[1]} pixels, {r.source_bytes / 1e9:.2f} GB, shards of {r.shard}")
        for name, runs in ((COPY, r.copies), (PREPARE, r.prepares)):
            seconds = statistics.median(run.seconds for run in runs)
            lines.append(
                f"  {name:<16} {seconds:7.1f} s {r.source_bytes / 1e6 / seconds:7.0f} MB/s, "
                f"peak memory {max(run.peak_bytes for run in runs) / 1e9:.2f} GB, "
                f"sources stored: {runs[0].stored_bytes / 1e6:,.1f} MB"
            )
        stored = r.prepares[0].stored_bytes / r.copies[0].stored_bytes
        lines.append(f"  {r.ratio:.2f} times as fast as the copy; sources take {stored:.3f} times the bytes of the copy")
    return "\n".join(lines)


def codec_table(rows: Sequence[CodecRow]) -> str:
    """Format the comparison of compressors as text."""
    lines = [f"{'compressor':<26} {'shard':>6} {'size':>7} {'write MB/s':>11} {'read MB/s':>10}"]
    lines += [f"{r.name:<26} {r.shard:>6} {r.ratio:>7.1%} {r.write:>11,.0f} {r.read:>10,.0f}" for r in rows]
    return "\n".join(lines)
