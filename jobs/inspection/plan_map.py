"""Plan of a map: tiles, bytes, memory and time, from the grid and, if available, the prepared store and previous map.

Tile counts and uncompressed sizes are exact; everything else is an estimate.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from jobs.config.config import Config
from jobs.map.scene_map import SceneMap
from jobs.map.spec import MapSpec
from jobs.models.auto import network_count
from jobs.models.pixelwise import trained_classifiers
from jobs.runtime.progress import pluralize
from jobs.workflow.fingerprint import fingerprint
from jobs.workflow.manifest import dependencies, read_manifest
from jobs.workflow.workspace import Workspace
from mibf.bundle.members import KIND_NAMES
from mibf.errors import InputError
from pipeline.grid import tile_grid
from pipeline.maps.products import product
from pipeline.maps.tile_threads import TileThreads
from pipeline.parallel.cpu_count import cpu_count
from pipeline.store.build import PreparedScene

#: Bytes per input value of the network (float32).
_FLOAT = 4


@dataclass(frozen=True)
class Members:
    """What a model consists of: mapping computes each member for every pixel."""

    networks: int
    others: tuple[str, ...]  #: the names of the others
    at_most: bool  #: whether the recipe `auto` may choose fewer

    @classmethod
    def of(cls, config: Config, workspace: Workspace) -> Members:
        """Count the members of the trained model, or those that training will make."""
        manifest = read_manifest(workspace, "train")
        if manifest is not None and manifest.fingerprint == fingerprint(config, "train"):
            try:
                bundle = workspace.read_bundle()
            except InputError:  # `mibf map` reports the cause
                pass
            else:
                return cls(len(bundle.networks), tuple(KIND_NAMES[m.kind] for m in bundle.pixelwise), at_most=False)
        train = config.train
        kinds = trained_classifiers(config)
        others = tuple(KIND_NAMES[kind] for kind in kinds)
        if config.model.kind != "mibf":
            return cls(0, others, at_most=False)
        if train.recipe == "auto":
            return cls(network_count(config), (KIND_NAMES["trees"], KIND_NAMES["linear"]), at_most=True)
        return cls(len(train.every_seed) if train.ensemble else 1, others, at_most=False)

    def lines(self) -> list[str]:
        """Say what several members cost; nothing of one."""
        if self.networks + len(self.others) < 2 or not self.networks:
            return []
        others = " and ".join(self.others)
        listed = pluralize(self.networks, "networks") + (f", {others}" if others else "")
        cost = f"{self.networks} times the time of one network" if self.networks > 1 else "the time of one network"
        also = f", and that of {others}" if others else ""
        most = " at most, as the recipe `auto` chooses" if self.at_most else ""
        return [f"    the model has {listed}{most}: mapping takes {cost}{also}"]


@dataclass(frozen=True)
class MapPlan:
    """Estimated cost of mapping one scene."""

    tiles: int  #: that have data, as far as is known
    states: dict[str, int] | None  #: tile counts by state; None without a prepared store or a model
    product_bytes: dict[str, int]  #: uncompressed size of each product
    worker_bytes: int  #: approximate tile memory per worker, excluding the network's own memory
    pixels_due: int
    seconds: float | None  #: for the tiles to map, at the throughput of the last map with its workers; None if unknown
    members: Members | None  #: of the model; None if it is given by `map.model`

    def lines(self) -> list[str]:
        """Format the plan as text lines."""
        states = "" if self.states is None else ": " + ", ".join(f"{n:,} {state}" for state, n in self.states.items())
        products = ", ".join(f"{name} {size / 1e6:,.1f} MB" for name, size in self.product_bytes.items())
        lines = [
            f"  map: {pluralize(self.tiles, 'tiles')}{states}",
            f"    {products} uncompressed",
            f"    about {self.worker_bytes / 1e9:,.2f} GB of tiles in memory per worker, in addition to the network",
        ]
        if self.pixels_due and self.seconds:
            lines.append(
                f"    about {format_duration(self.seconds)} for the tiles to map, at the throughput of the last map"
            )
        return lines if self.members is None else [*lines, *self.members.lines()]


@dataclass(frozen=True)
class MapSetting:
    """What the maps of all scenes share, read once."""

    spec: MapSpec | None  #: None if nothing can be mapped yet
    rate: float | None  #: pixels per second of the last map
    members: Members | None  #: of the model; None if it is given by `map.model`

    @classmethod
    def of(cls, config: Config, workspace: Workspace) -> MapSetting:
        """Read the model and the last map's figures."""
        spec = None
        if all(read_manifest(workspace, needed) is not None for needed in dependencies(config, "map")):
            with suppress(InputError):  # `mibf map` reports the cause, and `prepare` may resolve it
                spec = MapSpec.of(config, workspace)
        manifest = read_manifest(workspace, "map")
        rate = None if manifest is None else manifest.figures.get("pixels_per_second")
        return cls(spec, rate, None if config.map.model is not None else Members.of(config, workspace))


def plan_map(config: Config, workspace: Workspace, scene: PreparedScene, setting: MapSetting) -> MapPlan:
    """Plan a scene's map. Does not check what the map stage itself would refuse."""
    section, template = config.map, scene.template
    rows, columns = template.shape
    chosen = None if section.model is not None else config.model.sources
    taken = [source for source in template.sources if chosen is None or source.name in chosen]
    names = [source.name for source in taken]
    cut = tile_grid(scene.name, template.shape, section.tile_size)
    products = [product(name, section.dtype, sources=len(taken), classes=len(template.classes)) for name in section.products]
    pixel = {p.name: len(p.band_names(template.classes, names)) * np.dtype(p.dtype).itemsize for p in products}
    side = min(section.tile_size, max(rows, columns))
    threads, on_gpu = _threads(config)
    inputs = [s.bands * ((side + 2 * (config.model.patch // 2)) * s.scale) ** 2 * _FLOAT for s in taken]
    # Torch allocates pinned memory, from which a GPU copies, in powers of two.
    read = sum(1 << (size - 1).bit_length() if on_gpu else size for size in inputs)
    found = _states(config, workspace, scene, setting.spec)
    area = scene.area
    inside = {t.window: t.window.height * t.window.width if area is None else area.count(t.window) for t in cut}
    tasks = [w for w, count in inside.items() if (count if found is None else (w.y, w.x) in found)]
    due = [w for w in tasks if found is None or found[w.y, w.x] != "done"]
    rate = setting.rate
    return MapPlan(
        tiles=len(tasks),
        states=None if found is None else dict(Counter(found.values())),
        product_bytes={name: size * rows * columns for name, size in pixel.items()},
        worker_bytes=read * threads.inputs + sum(pixel.values()) * side * side * threads.results,
        pixels_due=sum(inside[w] for w in due),
        seconds=sum(inside[w] for w in due) / rate if rate else None,
        members=setting.members,
    )


def _threads(config: Config) -> tuple[TileThreads, bool]:
    """The threads of a worker, and whether it has a GPU: if this machine has one, or the configuration asks for one.

    The CPUs that the workers share are taken to be those of this machine.
    """
    on_gpu = config.resources.gpus is True or (config.resources.gpus == "auto" and torch.cuda.is_available())
    return TileThreads.of("cuda" if on_gpu else "cpu", max(1, cpu_count() // max(1, config.map.workers))), on_gpu


def _states(
    config: Config, workspace: Workspace, scene: PreparedScene, spec: MapSpec | None
) -> dict[tuple[int, int], str] | None:
    """Return tile states by upper-left corner (y, x); None if the scene cannot be mapped yet."""
    if spec is None:
        return None
    try:
        section = next(section for section in config.scenes if section.name == scene.name)
        prepared = SceneMap(spec, workspace, section)
        states = prepared.states()
    except InputError:  # `mibf map` reports the cause, and `prepare` may resolve it
        return None
    if prepared.store.shape != scene.template.shape:  # the store has a different grid than the configuration
        return None
    return {(window.y, window.x): state for window, state in states.items()}


def format_duration(seconds: float) -> str:
    """Format an estimated time in seconds, minutes or hours."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
