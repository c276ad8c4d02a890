"""Verify published maps: check them against their STAC item, the ledger, and the current scene and model.

A map is read as its item describes it, so it can be checked even if the configuration has changed since. Anything that
differs from what was published is corrupt; anything that would merely come out differently today is a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.config.config import Config
from jobs.config.scene import SceneSection
from jobs.inspection.verify_sample import Sampled, recompute_tiles, sample_tiles
from jobs.map.scene_map import SceneMap
from jobs.map.spec import MapSpec
from jobs.runtime.progress import progress_bar
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.grid import Tile, Window, windows
from pipeline.io import checksums, storage
from pipeline.io.retry import call_with_retry
from pipeline.maps.fingerprints import difference
from pipeline.maps.ledger import Ledger, TileVersion
from pipeline.maps.map_store import count_coverage_errors, result_digest
from pipeline.maps.predictor import TileResult, mappable_pixels
from pipeline.maps.products import Product
from pipeline.publishing.published_map import ITEM, PublishedMap
from pipeline.publishing.stac_item import InvalidItemError, check_item, matches_grid
from pipeline.publishing.stac_item_reader import ItemFile, PublishedItem, read_item

#: The end of the names of files that programs which read a map may write to; no pixels depend on them.
SIDECAR = ".aux.xml"
#: What to do about a map that is out of date.
TILES_TO_MAP = "run `mibf map`"
#: Maximum number of corrupt items of a map that are listed by name.
NAMED = 50


@dataclass
class CheckedMap:
    """The result of checking the map of one scene."""

    scene: str
    folder: str
    published: str | None = None  #: when the map was made; None if none is published
    files: int = 0
    bytes: int = 0
    tiles: int = 0
    sampled: int = 0  #: number of tiles that were recomputed
    broken: list[str] = field(default_factory=list)  #: one line per corrupt file or tile, or for the item
    notes: list[str] = field(default_factory=list)  #: findings that are not corruption

    def lines(self) -> list[str]:
        """Format the findings for a person, with at most `NAMED` corrupt items by name."""
        title = f"{self.scene}: map"
        if self.published is None and not self.broken:
            return [f"{title}: not published"]
        state = "intact" if not self.broken else f"{len(self.broken):,} corrupt"
        again = f", {self.sampled:,} of them recomputed" if self.sampled else ""
        lines = [f"{title}: {self.files:,} files, {self.bytes / 1e6:,.1f} MB, {self.tiles:,} tiles{again}, {state}"]
        lines += [f"  {line}" for line in self.broken[:NAMED]]
        if len(self.broken) > NAMED:
            lines.append(f"  and {len(self.broken) - NAMED:,} more; --json lists them all")
        return lines + [f"  note: {note}" for note in self.notes]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values; `intact` is None if no map is published."""
        return vars(self) | {"intact": not self.broken if self.published or self.broken else None}


@dataclass(frozen=True)
class Sample:
    """Number and random seed of the tiles of each map that are recomputed."""

    tiles: int = 0
    seed: int = 0


def check_maps(config: Config, workspace: Workspace, *, sample: Sample, unusable: set[str]) -> list[CheckedMap]:
    """Check the map of every scene; scenes without a published map are listed too.

    `unusable` are the scenes whose stores are corrupt: their maps are not compared with them.
    """
    spec: MapSpec | InputError | None = None
    found = []
    for scene in config.scenes:
        checked = CheckedMap(scene.name, workspace.map_folder(scene.name))
        found.append(checked)
        try:
            described = read_item(checked.folder)
        except InvalidItemError as error:
            checked.broken.append(f"{ITEM}: {error}")
            continue
        if described is None:
            continue
        if spec is None:  # a workspace without a map needs no model
            spec = _map_spec(config, workspace)
        now = InputError("its store is corrupt") if scene.name in unusable else _current_map(spec, workspace, scene)
        _Check(checked, described, now, sample).all()
    return found


def _map_spec(config: Config, workspace: Workspace) -> MapSpec | InputError:
    try:
        return MapSpec.of(config, workspace)
    except InputError as error:
        return error


def _current_map(spec: MapSpec | InputError, workspace: Workspace, scene: SceneSection) -> SceneMap | InputError:
    """A scene's map as it would be made now, or the error that prevents it."""
    if isinstance(spec, InputError):
        return spec
    try:
        found = SceneMap(spec, workspace, scene)
        _ = found.planned, found.ledger
    except InputError as error:
        return error
    return found


class _Check:
    """The check of one published map; findings are added to `checked`."""

    def __init__(self, checked: CheckedMap, described: PublishedItem, now: SceneMap | InputError, sample: Sample) -> None:
        self.checked, self.described, self.sample = checked, described, sample
        self.now = now if isinstance(now, SceneMap) else None
        if isinstance(now, InputError):
            checked.notes.append(f"not compared with the current scene and model: {now}")
        checked.published = described.created
        self.versions: dict[Window, list[TileVersion]] | None = None  #: from the ledger; None if it cannot be read
        self.missing: set[str] = set()  #: names of missing files
        self.tiles = windows(described.shape_yx, described.tile)
        self.grid_is_same = self.now is not None and matches_grid(described.item, self.now.store.grid)
        self.is_current = self.now is not None and self.now.is_published()
        self.stale: dict[str, list[str]] = {}  #: tile keys, by what changed
        self.elsewhere = 0  #: number of stale tiles whose coverage differs from where the scene now has data
        self.mapped_again = 0  #: number of tiles that were mapped again but are not yet published

    def all(self) -> None:
        """Run all checks."""
        try:
            check_item(self.described.item)
        except InvalidItemError as error:
            self.checked.broken.append(f"{ITEM}: {error}")
        self._compare_configuration()
        self._check_files()
        try:
            self.versions = Ledger.open(storage.join(self.checked.folder, "ledger")).versions()
        except InputError as error:
            self.checked.broken.append(f"ledger: {error}")
        self._check_tiles()
        if self.sample.tiles:
            self._check_sample()

    def _compare_configuration(self) -> None:
        """Note which properties of the map differ from the current configuration."""
        if self.now is None:
            return
        spec, item = self.now.spec, self.described
        section, properties = spec.config.map, item.item["properties"]
        pairs: dict[str, tuple[Any, Any]] = {
            "the products": (_list_products(item.products), _list_products(spec.products)),
            "map.tile_size": (item.tile, section.tile_size),
            "map.missing": (item.missing, section.missing),
            "map.precision": (properties.get("mibf:precision"), section.precision),
            "prediction.priors": (properties.get("mibf:priors"), spec.config.prediction.priors),
            "the model": (item.model[:12], spec.digest[:12]),
        }
        changed = [f"{name} (was {before}, is {now})" for name, (before, now) in pairs.items() if before != now]
        if not self.grid_is_same:
            changed.append("the scene's grid")
        if changed:
            self.checked.notes.append(f"changed since the map was made: {'; '.join(changed)}; {TILES_TO_MAP}")

    def _check_files(self) -> None:
        files = self.described.files
        with progress_bar(f"{self.checked.scene}: verify the map's files", len(files), unit="files") as advance:
            for file in files:
                fault = self._file_fault(file)
                if fault and file.name.endswith(SIDECAR) and file.name not in self.missing:
                    self.checked.notes.append(f"{file.name}: {fault}; GDAL and QGIS add statistics to this file")
                elif fault:
                    self.checked.broken.append(f"{file.name}: {fault}")
                self.checked.files += 1
                self.checked.bytes += file.bytes
                advance(1)

    def _file_fault(self, file: ItemFile) -> str:
        """Describe what is wrong with a file; empty if nothing is."""
        url = storage.join(self.checked.folder, file.name)
        try:
            size, sha256 = call_with_retry(url, lambda: checksums.sha256(url))
        except FileNotFoundError:
            self.missing.add(file.name)
            return "is missing"
        except OSError as error:
            return f"cannot be read ({error})"
        if size != file.bytes:
            return f"has {size:,} bytes instead of {file.bytes:,}"
        return "" if sha256 == file.sha256 else "its checksum differs from the one recorded when it was published"

    def _check_tiles(self) -> None:
        """Check the coverage of every tile, and its checksum against the ledger."""
        products = self.described.products
        missing = [p.name for p in products if not set(self.described.rasters(p)) - self.missing]
        readable = [p for p in products if p.name not in missing]
        if missing:
            self.checked.notes.append(
                f"{', '.join(missing)} missing: tile checksums cannot be computed, because they cover all products; "
                "for the other products only the coverage was checked"
            )
        published = PublishedMap(self.checked.folder)
        with progress_bar(f"{self.checked.scene}: verify the map's tiles", len(self.tiles), unit="tiles") as advance:
            for window in self.tiles:
                try:
                    layers: TileResult = {p.name: published.read(p, window) for p in readable}
                except Exception as error:  # GDAL raises many kinds; the other tiles are still checked
                    faults = [f"cannot be read ({_describe_error(error)})"]
                else:
                    stale = self._is_stale(window)
                    faults = [] if missing else self._checksum_faults(window, result_digest(layers))
                    faults += self._coverage_faults(window, layers, stale=stale)
                if faults:
                    self.checked.broken.append(f"{Tile(self.checked.scene, window).key}: {'; '.join(faults)}")
                self.checked.tiles += 1
                advance(1)
        self._note_tiles()

    def _last(self, window: Window) -> TileVersion | None:
        """The latest version of a tile in the ledger."""
        return (self.versions or {}).get(window, [None])[-1]

    def _is_stale(self, window: Window) -> bool:
        """Whether a tile is stale, that is, would be mapped differently now; records the cause."""
        last = self._last(window)
        if self.now is None or last is None:
            return False
        fingerprint = self.now.planned.get(window)
        if last.fingerprint == fingerprint:
            return False
        cause = "the tiles" if fingerprint is None else difference(last.fingerprint, fingerprint)
        self.stale.setdefault(cause, []).append(Tile(self.checked.scene, window).key)
        return True

    def _checksum_faults(self, window: Window, checksum: str) -> list[str]:
        if self.versions is None:
            return []
        versions = self.versions.get(window)
        if versions is None:
            return ["is not in the ledger, so its pixels cannot be checked"]
        if checksum == versions[-1].checksum:
            return []
        # Until all tiles of a later run are done, the published map is that of the previous run.
        if not self.is_current and checksum in {one.checksum for one in versions}:
            self.mapped_again += 1
            return []
        return ["its pixels do not match the checksum in the ledger"]

    def _coverage_faults(self, window: Window, layers: TileResult, *, stale: bool) -> list[str]:
        if self.now is None or not self.grid_is_same:
            return []
        wanted, mask = mappable_pixels(self.now.store, window, sources=self.now.spec.sources, missing=self.described.missing)
        wrong = {
            p.name: count_coverage_errors(p, layers[p.name], wanted=wanted, mask=mask)
            for p in self.described.products
            if p.name in layers
        }
        if stale:  # where the scene had data when the tile was mapped is no longer known
            self.elsewhere += any(wrong.values())
            return []
        return [f"{count:,} pixels of {name} are missing or should be empty" for name, count in wrong.items() if count]

    def _note_tiles(self) -> None:
        count, notes = len(self.tiles), self.checked.notes
        for cause, keys in self.stale.items():
            notes.append(
                f"{len(keys):,} of {count:,} tiles are stale: {cause} changed ({_join_first(keys)}); {TILES_TO_MAP}"
            )
        if self.elsewhere:
            notes.append(f"in {self.elsewhere:,} of the stale tiles, coverage differs from where the scene now has data")
        if self.mapped_again:
            notes.append(
                f"{self.mapped_again:,} of {count:,} tiles were mapped again but are not yet published; {TILES_TO_MAP}"
            )

    def _check_sample(self) -> None:
        """Recompute a sample of the tiles that are done and not stale."""
        now, notes = self.now, self.checked.notes
        planned = {} if now is None else now.planned
        done = {w: last for w in self.tiles if (last := self._last(w)) is not None and planned.get(w) == last.fingerprint}
        chosen = sample_tiles(done, count=self.sample.tiles, seed=self.sample.seed)
        if now is None or not chosen:
            notes.append("no tile can be recomputed: none was made with the current scene, model and settings")
            return
        try:
            with progress_bar(f"{self.checked.scene}: recompute tiles", len(chosen), unit="tiles") as advance:
                for sampled in recompute_tiles(now, {window: done[window] for window in chosen}):
                    self._take_sample(sampled)
                    advance(1)
        except InputError as error:
            notes.append(f"tiles cannot be recomputed here: {error}")

    def _take_sample(self, sampled: Sampled) -> None:
        self.checked.sampled += 1
        if sampled.difference:
            line = f"{sampled.tile.key}: recomputed, {sampled.difference}"
            (self.checked.notes if sampled.excused else self.checked.broken).append(line)


def _list_products(products: Sequence[Product]) -> str:
    return ", ".join(f"{product.name} {product.dtype}" for product in products)


def _join_first(keys: list[str], most: int = 3) -> str:
    more = f" and {len(keys) - most:,} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def _describe_error(error: Exception) -> str:
    """Why a tile cannot be read: the cause of a GDAL error says more than the error itself."""
    return storage.without_queries(str(error.__cause__ or error))
