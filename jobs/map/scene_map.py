"""The map of each scene of a configuration: planned tiles, ledger, map store and published files.

`map` fills these maps, `status` reports on them, `verify` checks them. Only `SceneMap` methods that say so write anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, cast

import numpy as np

from jobs.config.scene import SceneSection
from jobs.map.request import TileRequest
from jobs.map.spec import MapSpec
from jobs.runtime.progress import info, pluralize
from jobs.runtime.version import library_versions, version_changes
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from mibf.normalization import scaling_to_json
from pipeline.grid import Tile, Window, grid_to_json, tile_grid
from pipeline.io import checksums, storage
from pipeline.io.lease import Lease
from pipeline.maps.fingerprints import difference, fingerprints, tiles_without_data
from pipeline.maps.ledger import Ledger, LedgerEvent, State, TileState
from pipeline.maps.map_store import MapStore, result_digest
from pipeline.maps.predictor import TileResult, check_sources
from pipeline.maps.tile_checksums import tile_checksums, tiles_done_since
from pipeline.maps.tile_selection import TileSelection, classify, select_tiles
from pipeline.publishing.map_part import SourceTile
from pipeline.publishing.publish import finish_interrupted
from pipeline.publishing.published_map import ITEM, file_urls, files_exist
from pipeline.store.patch_store import PatchStore, check_matching
from pipeline.store.records import StoreRecords

LAYOUT = "mibf:layout"  #: attribute of a map store: digest of its layout
#: Properties of an item: the ledger's number of events when the map was published, and the digest of its tiles.
LEDGER_EVENTS, TILES_DIGEST = "mibf:ledger_events", "mibf:tiles_digest"
#: Attribute of a map store and property of an item: the versions of the libraries that made its tiles, oldest first.
VERSIONS = "mibf:versions"


class SceneMap:
    """The map of one scene."""

    def __init__(self, spec: MapSpec, workspace: Workspace, scene: SceneSection) -> None:
        """Open a scene.

        Raises:
            InputError: the scene is not prepared, or does not have the model's sources.
        """
        self.spec, self.scene, self.name = spec, scene, scene.name
        self.folder = workspace.map_folder(scene.name)
        self.work_url = storage.join(self.folder, "map.zarr")
        self.ledger_url = storage.join(self.folder, "ledger")
        self.store = PatchStore(workspace.store(scene.name))
        check_sources(self.store, spec.bundle)
        check_matching(self.store, spec.bundle.scaling)
        self._records, self._scaling = workspace.records(scene.name), workspace.scaling
        self._emptied: list[Window] = []  #: tiles without data of which the ledger has another state

    @property
    def tile_size(self) -> int:
        """Side of its tiles, in pixels."""
        return self.spec.config.map.tile_size

    @cached_property
    def _shards(self) -> StoreRecords:
        try:
            return StoreRecords.read(self._records)
        except FileNotFoundError as error:
            raise InputError(f"{self._records}: is missing; run `mibf prepare` again.") from error

    @property
    def _sources(self) -> set[str]:
        """The sources that decide which pixels are mapped."""
        declared = self.spec.config.map.missing == "declared"
        return {source.name for source in self.store.sources} if declared else set(self.spec.sources)

    @cached_property
    def planned(self) -> dict[Window, str]:
        """The tiles, row by row, each with its current fingerprint.

        Raises:
            InputError: the records of the scene's store are missing.
        """
        spec = self.spec
        return fingerprints(
            [tile.window for tile in self.tiles],
            self._shards,
            model=spec.digest,
            settings=spec.settings(self.store),
            sources=self._sources,
            halo=spec.bundle.spec.halo,
            side=self.store.shard,
        )

    @cached_property
    def empty(self) -> frozenset[Window]:
        """The tiles without data, as outside the scene's area. Nothing is computed for them, so they are not tasks."""
        return tiles_without_data(list(self.planned), self._shards, sources=self._sources, side=self.store.shard)

    @cached_property
    def tasks(self) -> dict[Window, str]:
        """The planned tiles with data."""
        return {window: fingerprint for window, fingerprint in self.planned.items() if window not in self.empty}

    @property
    def is_training_data(self) -> bool:
        """Whether the model's normalization was fitted on this scene's store: it has training pixels, and equal limits."""
        try:
            fitted = storage.read_json(self._scaling)
        except FileNotFoundError:
            return False
        trained = scaling_to_json(self.spec.bundle.scaling)
        same = all(fitted.get(name) == limits for name, limits in trained.items())
        return same and bool(self.store.windows_with_samples("train"))

    @property
    def input_bytes(self) -> int:
        """Size of a full tile's input, in bytes."""
        spec = self.spec.bundle.spec
        side = self.tile_size + 2 * spec.halo
        return sum(4 * source.bands * (side * source.scale) ** 2 for source in spec.sources) + 3 * self.tile_size**2

    @property
    def tiles(self) -> list[Tile]:
        """The tiles, row by row."""
        return tile_grid(self.name, self.store.shape, self.tile_size)

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger as it was at first access, plus the events appended since.

        Raises:
            InputError: it is damaged, or a file exists in place of its folder.
        """
        try:
            return Ledger.open(self.ledger_url)
        except NotADirectoryError as error:
            raise InputError(
                f"{self.ledger_url}: a file is in place of this folder or its parent; move it away, or choose another run "
                "name (`run`)."
            ) from error

    def states(self) -> dict[Window, State]:
        """The state of every planned tile with data."""
        return classify(self.tasks, self.ledger.last())

    def causes(self) -> list[tuple[str, list[str]]]:
        """Why tiles failed or are stale: each cause with its tile keys, most tiles first."""
        last, found = self.ledger.last(), dict[str, list[str]]()
        for window, state in self.states().items():
            if state not in ("failed", "stale"):
                continue
            before, now = last[window], self.planned[window]
            changed = state == "stale" and before.fingerprint != now
            cause = f"{difference(before.fingerprint, now)} changed" if changed else before.cause
            found.setdefault(cause, []).append(Tile(self.name, window).key)
        return sorted(found.items(), key=lambda pair: -len(pair[1]))

    def tiles_of_other_models(self) -> list[TileState]:
        """Tiles mapped by another model; empty if the published map was made by this one."""
        if self.spec.digest in [link.get("mibf:digest") for link in (self.item() or {}).get("links", [])]:
            return []  # the ledger may still have tiles of another size
        return [s for s in self.ledger.last().values() if s.state == "done" and s.model != self.spec.digest]

    def content(self) -> str:
        """Digest of the map that the finished tiles form; while tiles are missing it matches no map."""
        return self._content({window: state.checksum for window, state in self.ledger.last().items()})

    def _content(self, found: Mapping[Window, str]) -> str:
        """Digest of a map whose tiles have these checksums."""
        return checksums.digest([[asdict(window), found.get(window)] for window in self.planned])

    @cached_property
    def published_checksums(self) -> Mapping[Window, str]:
        """The checksums of the published map's tiles; empty if none is published, or has other tiles or lacks files.

        They are in the ledger, of which the item says how many events preceded the map.
        """
        item = self.item()
        if item is None or not files_exist(self.folder, item, role="data"):
            return {}
        properties = item["properties"]
        found = tile_checksums(self.ledger, properties.get(LEDGER_EVENTS))
        content = self._content(found)
        # Items of earlier versions have only the digest that includes the configuration.
        known = [properties.get(TILES_DIGEST), properties.get("mibf:content")]
        return found if content == known[0] or self._published_content(content) == known[1] else {}

    def source_tiles(self) -> list[SourceTile]:
        """All tiles of the finished map: those that were not mapped since it was published are in the published map."""
        last, published = self.ledger.last(), self.published_checksums
        events = (self.item() or {}).get("properties", {}).get(LEDGER_EVENTS)
        newer = frozenset() if events is None else tiles_done_since(self.ledger, events)
        found = {window: last[window].checksum for window in self.planned}
        return [SourceTile(w, sha256, w not in newer and published.get(w) == sha256) for w, sha256 in found.items()]

    def item(self) -> dict[str, Any] | None:
        """The item of the published map; None if no map is published."""
        try:
            found = storage.read_json(storage.join(self.folder, ITEM))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def is_published(self) -> bool:
        """Whether the published map consists of the ledger's tiles, in the configured files."""
        item = self.item()
        if item is None or item.get("properties", {}).get("mibf:content") != self.published_content():
            return False
        return files_exist(self.folder, item)

    def published_content(self) -> str:
        """Digest of the map to publish: its tiles, block size and acquisition time."""
        return self._published_content(self.content())

    def _published_content(self, content: str) -> str:
        return checksums.digest([content, self.spec.config.map.block, self.scene.datetime])

    def pixels(self) -> int:
        """Number of mapped pixels."""
        last = self.ledger.last()
        return sum(last[window].pixels for window in self.planned)

    def published_files(self) -> list[str]:
        """URLs of the files of the published map without those that other files need beside them, the item last."""
        item = self.item() or {}
        beside = file_urls(self.folder, item, role="metadata")
        return [*(url for url in file_urls(self.folder, item) if url not in beside), storage.join(self.folder, ITEM)]

    def check_replaced(self, request: TileRequest) -> None:
        """Check that no other model's map would be replaced unless that is requested.

        Raises:
            InputError: it would be.
        """
        others = self.tiles_of_other_models()
        if others and not request.replace:
            raise InputError(
                f"{self.folder}: contains a map made by another model ({pluralize(len(others), 'tiles')}). Pass `--replace` "
                "to replace it, or choose another run name (`run`)."
            )

    def record_pending(self, run: str, *, restart: bool) -> None:
        """Record in the ledger which tiles are pending or stale now, and why."""
        last = self.ledger.last()
        for window, state in self.states().items():
            if restart or (state == "pending" and window not in last):
                self._record(window, "pending", run, cause="requested again" if window in last else "")
            elif state == "stale" and last[window].fingerprint != self.planned[window]:
                cause = f"{difference(last[window].fingerprint, self.planned[window])} changed"
                self._record(window, "stale", run, cause=cause)

    def record_empty(self, run: str) -> None:
        """Record in the ledger that the tiles without data are done, so that it accounts for every tile of the map."""
        last = self.ledger.last()
        for window in (window for window in self.planned if window in self.empty):
            before = last.get(window)
            if before is None or before.state != "done" or before.fingerprint != self.planned[window]:
                checksum = result_digest(self._without_values(window))
                self._record(window, "done", run, cause="", checksum=checksum)
                self._emptied += [] if before is None else [window]

    def _without_values(self, window: Window) -> TileResult:
        """The products of a tile without data."""
        names = {p.name: p.band_names(self.store.classes, self.spec.sources) for p in self.spec.products}
        shape = window.height, window.width
        return {p.name: np.full((len(names[p.name]), *shape), p.nodata, p.dtype) for p in self.spec.products}

    def select(self, request: TileRequest, only: dict[str, list[Window]] | None) -> TileSelection:
        """Select the tiles to map now; `only` holds the requested tiles by scene, None for all."""
        return select_tiles(
            self.tasks,
            self.ledger.last(),
            states=request.states,
            only=None if only is None else only[self.name],
            max_attempts=request.max_attempts,
            backoff_seconds=request.backoff,
            now=time.time(),
        )

    def retry_selection(self, tiles: Sequence[Tile]) -> TileSelection:
        """Select those of the tried tiles that are not done."""
        only = [tile.window for tile in tiles if tile.scene == self.name]
        return select_tiles(self.tasks, self.ledger.last(), only=only, now=time.time())

    def open_work(self, run: str, lease: Lease) -> MapStore:
        """Open or create the map store; tiles that cannot be restored into it become pending.

        Raises:
            LeaseLostError: the workspace lease was lost.
        """
        lease.check()
        lost: list[Window] = []
        work = self.work(lost=lost.append)
        for window in self._emptied:  # an earlier run may have written there
            work.write(Tile(self.name, window), self._without_values(window))
        for window in lost:
            self._record(window, "pending", run, cause="its pixels are neither in the map store nor in the published map")
        self._record_versions(work)
        return work

    def _record_versions(self, work: MapStore) -> None:
        """Add the versions of the libraries to those that made the map's tiles; say if finished tiles had others."""
        now, done = library_versions(), sum(state == "done" for state in self.states().values())
        before = cast(list[dict[str, str]], work.group.attrs.get(VERSIONS, [])) if done else []
        changed = [text for versions in before if (text := version_changes(versions, now))]
        if changed:
            info(
                f"{self.name}: {pluralize(done, 'tiles')} finished with {changed[-1]} are kept, so the map mixes versions; "
                "`mibf map --restart` maps all again, and `stale_on_upgrade: true` does so after each upgrade"
            )
        work.group.attrs[VERSIONS] = [*(versions for versions in before if versions != now), now]

    def requeue_damaged(self, tiles: Sequence[Window], run: str) -> None:
        """Mark tiles as pending whose stored pixels differ from those written, for example after a disk error."""
        for window in tiles:
            self._record(window, "pending", run, cause="stored pixels differ from those written")

    def finish_publication(self, lease: Lease) -> None:
        """Complete the replacement of a published map that was interrupted.

        Raises:
            LeaseLostError: the workspace lease was lost.
        """
        if storage.exists(self.folder) and finish_interrupted(self.folder, lease):
            info(f"{self.name}: completed a publication that was interrupted")

    def _record(self, window: Window, state: State, run: str, *, cause: str, checksum: str = "") -> None:
        """Append an event without an attempt to the ledger."""
        event = LedgerEvent(
            tile=Tile(self.name, window),
            state=state,
            fingerprint=self.planned[window],
            model=self.spec.digest,
            run=run,
            cause=cause,
            checksum=checksum,
        )
        self.ledger.append([event])

    def work(self, *, lost: Callable[[Window], None]) -> MapStore:
        """Open the map store that an interrupted run left, or create an empty one.

        It has the tiles that were mapped since the map was published. The others stay in the published map, and are read
        there when the next map is published.

        Args:
            lost: called with each finished tile whose pixels are in neither; it must be mapped again.
        """
        layout = checksums.digest([asdict(p) for p in self.spec.products] + [self.tile_size, grid_to_json(self.store.grid)])
        reusable = self._reusable_store(layout)
        if reusable is not None:
            return reusable
        work = MapStore.create(
            self.work_url,
            store=self.store,
            products=self.spec.products,
            tile=self.tile_size,
            sources=self.spec.sources,
        )
        last, published = self.ledger.last(), self.published_checksums
        for window, state in self.states().items():
            if state == "done" and published.get(window) != last[window].checksum:
                lost(window)
        item = self.item()
        versions = [] if item is None else item["properties"].get(VERSIONS, [])
        work.group.attrs.update({VERSIONS: versions, LAYOUT: layout})
        return work

    def remove_work(self, lease: Lease) -> None:
        """Remove the map store if it exists. If interrupted, the rest is no longer recognised as a map store.

        Raises:
            LeaseLostError: the workspace lease was lost.
        """
        lease.check()
        storage.remove(storage.join(self.work_url, "zarr.json"))
        lease.check()
        storage.remove(self.work_url)

    def _reusable_store(self, layout: str) -> MapStore | None:
        if not storage.exists(storage.join(self.work_url, "zarr.json")):
            return None
        try:
            work = MapStore(self.work_url)
            attributes = dict(work.group.attrs)
        except Exception:  # an interrupted run may have left anything
            return None
        return work if attributes.get(LAYOUT) == layout else None
