"""plan, the map: its tiles, bytes, memory and time, from the grid alone, or from what was prepared and mapped before.

All but the tiles and the bytes of pixels are estimates.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.config import Config
from jobs.scene_maps import Recipe, SceneMap
from jobs.stages import needs, read_manifest
from jobs.workspace import Workspace
from mibf.errors import InputError
from pipeline.fill import OpenScene
from pipeline.mapper import AHEAD
from pipeline.products import product
from pipeline.tiles import tiles

#: Bytes of a value that the network reads.
_FLOAT = 4
#: Results of tiles in memory at a time: the one in work, and the one before, which is written.
_RESULTS = 2


@dataclass(frozen=True)
class MapPlan:
    """What mapping one scene takes."""

    tiles: int
    states: dict[str, int] | None  #: tiles by state; None where nothing is prepared or there is no model yet
    product_bytes: dict[str, int]  #: of each product's pixels, uncompressed
    worker_bytes: int  #: of tiles in a worker's memory, about; what the network holds while it works comes on top
    pixels_due: int
    seconds: float | None  #: of what is due, at the rate of the last map, workers as then; None where that is not known


def plan_map(config: Config, workspace: Workspace, scene: OpenScene) -> MapPlan:
    """The plan of a scene's map; nothing of it is refused here that the map itself would refuse."""
    section, template = config.map, scene.template
    rows, columns = template.shape
    chosen = None if section.model is not None else config.model.sources
    taken = [source for source in template.sources if chosen is None or source.name in chosen]
    names = [source.name for source in taken]
    cut = tiles(scene.name, template.shape, section.tile)
    products = [product(name, section.dtype, sources=len(taken)) for name in section.products]
    pixel = {p.name: len(p.band_names(template.classes, names)) * np.dtype(p.dtype).itemsize for p in products}
    side = min(section.tile, max(rows, columns))
    read = sum(s.bands * ((side + 2 * (config.model.patch // 2)) * s.scale) ** 2 for s in taken) * _FLOAT
    found = _states(config, workspace, scene)
    due = [t.window for t in cut if found is None or found.get((t.window.y, t.window.x)) != "done"]
    pixels = sum(window.height * window.width for window in due)
    manifest = read_manifest(workspace, "map")
    rate = None if manifest is None else manifest.figures.get("pixels_per_second")
    return MapPlan(
        tiles=len(cut),
        states=None if found is None else dict(Counter(found.values())),
        product_bytes={name: size * rows * columns for name, size in pixel.items()},
        worker_bytes=read * (1 + AHEAD) + sum(pixel.values()) * side * side * _RESULTS,
        pixels_due=pixels,
        seconds=pixels / rate if rate else None,
    )


def _states(config: Config, workspace: Workspace, scene: OpenScene) -> dict[tuple[int, int], str] | None:
    """The states of a scene's tiles by their corners (y, x); None where its map could not be begun now."""
    if any(read_manifest(workspace, needed) is None for needed in needs(config, "map")):
        return None
    try:
        section = next(section for section in config.scenes if section.name == scene.name)
        prepared = SceneMap(Recipe.of(config, workspace), workspace, section)
        states = prepared.states()
    except InputError:  # `mibf map` tells why, and after `prepare` it may be otherwise
        return None
    if prepared.store.shape != scene.template.shape:  # of another grid than is configured now
        return None
    return {(window.y, window.x): state for window, state in states.items()}


def lines(found: dict[str, Any], duration: str) -> list[str]:
    """The plan of a map for a person, given how long it takes in words, or nothing."""
    states = "" if found["states"] is None else ": " + ", ".join(f"{n:,} {state}" for state, n in found["states"].items())
    products = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in found["product_bytes"].items())
    told = [
        f"  map: {found['tiles']:,} tiles{states}",
        f"    {products} uncompressed",
        f"    about {found['worker_bytes'] / 1e9:,.2f} GB of tiles in each worker's memory, beside the network's work",
    ]
    return told + ([f"    about {duration} for what is due, at the rate of the last map"] if duration else [])
