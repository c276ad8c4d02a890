"""Estimate what `prepare` and `map` would write, and their memory and time. Reads headers, labels and a few shards."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from jobs.config.config import Config
from jobs.config.resolve import input_urls
from jobs.inspection.plan_map import MapPlan, MapSetting, format_duration, plan_map
from jobs.prepare.engine import make_executor
from jobs.prepare.preflight import check_data, check_free_space, check_memory, file_remarks, name_bands
from jobs.prepare.scenes import open_scenes
from jobs.runtime.progress import pluralize, progress_bar
from jobs.search.coverage import report_items
from jobs.search.frozen import with_found_items
from jobs.workflow.workspace import Workspace
from mibf.network.spec import ONE_SOURCE
from pipeline.io import storage
from pipeline.parallel.executor import ThreadExecutor
from pipeline.store.estimate import Estimate, estimate


@dataclass(frozen=True)
class ScenePlan:
    """Estimated cost of preparing and mapping one scene."""

    store: Estimate
    sources: dict[str, list[str]]  #: how the files of each source are aligned to the reference grid
    bands: dict[str, list[str]]  #: the names of each source's bands; none if they have none
    remarks: list[str]  #: about the scene's files
    map: MapPlan
    items: dict[str, list[dict[str, Any]]]  #: of each source from STAC items, by period

    def lines(self, name: str, workers: int) -> list[str]:
        """Format the plan of the scene with this name as text lines."""
        store, (rows, columns) = self.store, self.store.shape
        area = f", of which {store.pixels:,} in the area" if store.pixels < rows * columns else ""
        read = f" ({store.shards_read:,} in the area)" if store.shards_read < store.shards else ""
        shards = f"{pluralize(store.shards, 'shards')} of {store.shard} x {store.shard} pixels{read}"
        return [
            f"{name}: {rows:,} x {columns:,} pixels{area}",
            *(f"  {source}: {self._named(source)}{' and '.join(how)}" for source, how in self.sources.items()),
            f"  {shards}, {store.objects:,} objects",
            f"  {store.uncompressed_bytes / 1e9:,.2f} GB uncompressed, about {store.stored_bytes / 1e9:,.2f} GB stored",
            f"  about {store.memory_bytes / 1e9:,.1f} GB of memory and {format_duration(store.seconds)}, "
            f"{workers} concurrent shards",
            *(f"  note: {remark}" for remark in self.remarks),
            *self.map.lines(),
        ]

    def _named(self, source: str) -> str:
        names = self.bands[source]
        return f"{name_bands(len(names), names)}; " if names else ""

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        described = {"sources": self.sources, "bands": self.bands, "remarks": self.remarks, "map": asdict(self.map)}
        described |= {"items": self.items} if self.items else {}
        return asdict(self.store) | described


@dataclass(frozen=True)
class Plan:
    """Estimates and file remarks of all scenes."""

    scenes: dict[str, ScenePlan]
    workers: int  #: shards that are written concurrently
    free_bytes: int | None  #: at the workspace; None if unknown
    workspace: str
    notes: tuple[str, ...] = ()  #: about the model

    def lines(self) -> list[str]:
        """Format the plan as text lines."""
        lines = [line for name, scene in self.scenes.items() for line in scene.lines(name, self.workers)]
        free = "" if self.free_bytes is None else f": {self.free_bytes / 1e9:,.1f} GB free"
        return [*lines, *(f"note: {note}" for note in self.notes), f"workspace {self.workspace}{free}"]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return vars(self) | {"scenes": {name: scene.to_json() for name, scene in self.scenes.items()}}


def plan(config: Config, *, any_size: bool = False) -> Plan:
    """Return the estimates and file remarks of every scene; of areas that are very large only with `any_size`.

    Raises:
        InputError: the scenes cannot be prepared as configured, or they do not fit on the disk.
    """
    workspace = Workspace.of(config)
    with ExitStack() as stack:
        read = stack.enter_context(with_found_items(config))
        items = report_items(read)  # before any file is opened
        workers = stack.enter_context(make_executor(config.prepare, files=input_urls(read)))
        scenes = open_scenes(read, workers, any_size=any_size)
        if isinstance(workers, ThreadExecutor):
            check_memory(scenes, workers.workers)
        check_data(scenes, workers)
        found, setting = {}, MapSetting.of(config, workspace)
        with progress_bar("write sample shards to memory", len(scenes), unit="scenes") as advance:
            for scene in scenes:
                found[scene.name] = ScenePlan(
                    estimate(scene, workers=workers.workers),
                    {s.declared.name: s.how for s in scene.sources},
                    {s.declared.name: list(s.declared.kept) for s in scene.sources},
                    file_remarks(scene),
                    plan_map(config, workspace, scene, setting),
                    items.get(scene.name, {}),
                )
                advance(1)
    free = storage.free_bytes(workspace.url)
    check_free_space(workspace.url, sum(planned.store.stored_bytes for planned in found.values()), free)
    alone = config.model.kind == "mibf" and config.map.model is None and len(config.model_sources) == 1
    return Plan(found, workers.workers, free, workspace.url, (ONE_SOURCE,) if alone else ())
