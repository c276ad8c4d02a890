"""Small tiles of one area: two sources, three classes, dense labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from affine import Affine
from numpy.typing import NDArray

from tests.support.scenes import CLASSES, TRANSFORM, write_raster

#: Rows and columns of a tile.
SIDE = 64
#: Training that takes seconds in this process.
QUICK = {"recipe": "standard", "epochs": 2, "batch_size": 32, "learning_rate": 3e-3, "workers": 0, "threads": 1}


def write_tile(folder: Path, name: str, *, place: int, gain: float = 1.0, offset: float = 0.0) -> dict[str, Any]:
    """Write a tile, `place` tiles to the east of the first, and return its section of a configuration.

    Forest differs only in the optical source, whose values are multiplied by `gain` and raised by `offset`; town only in
    the radar source.
    """
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(place)
    truth = tile_truth(place)
    optical = (generator.normal(0, 600, (2, SIDE, SIDE)) + 3000 + 500 * (truth == 2)) * gain + offset
    radar = generator.normal(0, 1.0, (1, SIDE, SIDE)) + (truth == 5)
    transform = TRANSFORM * Affine.translation(place * SIDE, 0)
    sources = {"optical": optical.round().astype(np.uint16), "radar": radar.astype(np.float32)}
    for source, values in sources.items():
        write_raster(folder / f"{name}_{source}.tif", values, transform=transform)
    write_raster(folder / f"{name}_labels.tif", truth[None], transform=transform)
    return {
        "name": name,
        "grid": {"like": "optical"},
        "sources": {source: {"url": str(folder / f"{name}_{source}.tif")} for source in sources},
        "labels": {"url": str(folder / f"{name}_labels.tif")},
    }


def tile_truth(place: int) -> NDArray[np.uint8]:
    """The class ids of a tile: every class on a third of it, in squares of 8 pixels."""
    squares = np.random.default_rng(100 + place).permutation(np.arange((SIDE // 8) ** 2) % 3).reshape(SIDE // 8, -1)
    return np.array([1, 2, 5], np.uint8)[np.kron(squares, np.ones((8, 8), int))]


def write_tiles_config(folder: Path, name: str, scenes: list[dict[str, Any]], **changes: Any) -> Path:
    """Write a configuration of tiles that trains in seconds in this process, and return its path."""
    values = {
        "name": name,
        "workspace": str(folder / f"work-{name}"),
        "scenes": scenes,
        "classes": CLASSES,
        "split": {"block": 16},
        "model": {"patch": 5},
        "train": QUICK,
        "map": {"tile_size": 64, "workers": 0, "attempts": 1, "backoff": 0},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return path
