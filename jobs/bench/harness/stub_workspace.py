"""Stub workspace without input files: a store with two single-band sources, with or without pixels, and a model for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

from jobs.config.config import Config
from jobs.config.resolve import class_names
from jobs.workflow.workspace import Workspace
from mibf.bundle.bundle import Bundle
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NARROW, WIDE, NetworkSpec, SourceSpec
from mibf.normalization import BandScaling
from pipeline.grid import Window, windows
from pipeline.io import zarr_store
from pipeline.io.lease import Lease
from pipeline.store.records import ShardRecord, StoreRecords
from pipeline.store.shard_writer import ShardWriter
from pipeline.store.template import StoredSource, Template, create_store

#: Names of the sources, each with one 8-bit band.
SOURCES = ("one", "two")
SHARD = 1024
#: Side in pixels of the squares of equal values, and the range of the noise added to them.
FIELD, NOISE = 16, 8


def stub_workspace(folder: Path, *, shape_yx: tuple[int, int], tile: int, filled: bool) -> Config:
    """Create a prepared scene of this shape and a model with random weights in a folder; map tiles are `tile` pixels wide.

    With `filled` every pixel is stored: squares of random values plus noise, the same in every shard. Without it, no
    pixel is stored, and the records list shards that do not exist: enough to plan a map of any size.
    """
    config = _config(folder, tile)
    workspace = Workspace.of(config)
    stored = tuple(StoredSource(name, 1, "exclude") for name in SOURCES)
    grid = GeoBox(shape_yx, Affine(10.0, 0.0, 400000.0, 0.0, -10.0, 5800000.0), "EPSG:32633")
    template = Template(grid, stored, (np.dtype(np.uint8),) * len(stored), class_names(config), SHARD)
    recorder = zarr_store.ChecksumStore.at(workspace.store("bare"))
    create_store(recorder, template, fingerprint="")
    described = recorder.written.copy()
    shards = windows(shape_yx, SHARD)
    records = _filled(recorder, shards) if filled else [_unwritten(window) for window in shards]
    StoreRecords("", described, records).write(workspace.records("bare"))
    _write_model(workspace, config)
    return config


def _config(folder: Path, tile: int) -> Config:
    input_file = folder / "made"
    input_file.write_text("This scene has no input files.", "utf-8")
    return Config.model_validate(
        {
            "name": "bare",
            "workspace": str(folder / "work"),
            "scenes": [
                {
                    "name": "bare",
                    "grid": {"like": SOURCES[0]},
                    "sources": {name: {"url": str(input_file)} for name in SOURCES},
                }
            ],
            "classes": [{"id": number, "name": f"class {number}"} for number in (1, 2)],
            "map": {"tile_size": tile, "attempts": 1, "page": False},  # the store has no labels to show
        }
    )


def _filled(recorder: zarr_store.ChecksumStore, shards: list[Window]) -> list[ShardRecord]:
    writer = ShardWriter(recorder)
    generator = np.random.default_rng(0)
    side = SHARD // FIELD
    fields = generator.integers(0, 256 - NOISE, (len(SOURCES), side, side), np.uint8)
    values = fields.repeat(FIELD, axis=1).repeat(FIELD, axis=2)
    values += generator.integers(0, NOISE, values.shape, np.uint8)
    records = []
    for window in shards:
        size = window.height, window.width
        arrays = {f"sources/{name}": band[None, : size[0], : size[1]] for name, band in zip(SOURCES, values, strict=True)}
        arrays |= {f"valid/{name}": np.ones(size, np.uint8) for name in SOURCES}
        pixels = dict.fromkeys(SOURCES, window.height * window.width)
        records.append(ShardRecord(window, writer.write(window, arrays), pixels))
    return records


def _unwritten(window: Window) -> ShardRecord:
    position = f"{window.y // SHARD}/{window.x // SHARD}"
    keys = [key for name in SOURCES for key in (f"sources/{name}/c/0/{position}", f"valid/{name}/c/{position}")]
    objects = {key: (0, hashlib.sha256(key.encode()).hexdigest()) for key in keys}
    return ShardRecord(window, objects, dict.fromkeys(SOURCES, window.height * window.width))


def _write_model(workspace: Workspace, config: Config) -> None:
    spec = NetworkSpec(tuple(SourceSpec(name, 1, NARROW if i else WIDE) for i, name in enumerate(SOURCES)), classes=2)
    low, fill, high = (np.full(1, value, np.float32) for value in (0, 127, 255))
    torch.manual_seed(0)
    scaling = {name: BandScaling(low=low, high=high, fill=fill) for name in SOURCES}
    workspace.write_bundle(Bundle.of_network(spec, MIBFNet(spec).state_dict(), scaling, class_names(config)), Lease())
