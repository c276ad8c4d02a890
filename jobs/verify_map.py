"""verify, the maps: what is published against its own item, the ledger, and the scene and the model as they are now.

A map is read by what its item says, so that one can be checked whose configuration has changed since. What is not as it
was made is broken; what would only be made otherwise today is a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.config import Config, SceneSection
from jobs.progress import bar
from jobs.scene_maps import Recipe, SceneMap
from jobs.verify_sample import Sampled, compute_again, drawn
from jobs.workspace import Workspace
from mibf.errors import InputError
from pipeline import storage
from pipeline.described import Described, DescribedFile, read_described
from pipeline.grid import Window, windows
from pipeline.item import InvalidItemError, check_item, lies_on
from pipeline.ledger import Ledger, Made
from pipeline.maps import digest, misplaced
from pipeline.patience import patiently
from pipeline.predict import TileResult, to_map
from pipeline.products import Product
from pipeline.publish import ITEM, PublishedMap
from pipeline.tileprints import difference
from pipeline.tiles import Tile

#: What is to be done about a map of which something is told.
DUE = "`mibf map` is due"


@dataclass
class CheckedMap:
    """What verify found of the map of one scene."""

    scene: str
    folder: str
    published: str | None = None  #: when the map was made; None where none is published
    files: int = 0
    bytes: int = 0
    tiles: int = 0
    sampled: int = 0  #: tiles that were computed again
    broken: list[str] = field(default_factory=list)  #: a line for each file, each tile and the item
    notes: list[str] = field(default_factory=list)  #: what is not broken, and yet to be known

    def to_json(self) -> dict[str, Any]:
        """It as JSON values; whether a map is whole that is not there is not known."""
        return vars(self) | {"whole": not self.broken if self.published or self.broken else None}


@dataclass(frozen=True)
class Sample:
    """Which tiles of each map are computed again: so many, drawn by a seed."""

    tiles: int = 0
    seed: int = 0


def check_maps(config: Config, workspace: Workspace, *, sample: Sample, unusable: set[str]) -> list[CheckedMap]:
    """Check the map of every scene; those of which none is published are told of too.

    `unusable` are the scenes whose stores are broken: with these nothing is compared.
    """
    recipe: Recipe | InputError | None = None
    found = []
    for scene in config.scenes:
        checked = CheckedMap(scene.name, workspace.map_folder(scene.name))
        found.append(checked)
        try:
            described = read_described(checked.folder)
        except InvalidItemError as error:
            checked.broken.append(f"{ITEM}: {error}")
            continue
        if described is None:
            continue
        if recipe is None:  # a workspace without a map needs no model
            recipe = _recipe(config, workspace)
        now = InputError("its store is broken") if scene.name in unusable else _as_now(recipe, workspace, scene)
        _Check(checked, described, now, sample).all()
    return found


def _recipe(config: Config, workspace: Workspace) -> Recipe | InputError:
    try:
        return Recipe.of(config, workspace)
    except InputError as error:
        return error


def _as_now(recipe: Recipe | InputError, workspace: Workspace, scene: SceneSection) -> SceneMap | InputError:
    """A scene's map as it would be made now, or why it could not be."""
    if isinstance(recipe, InputError):
        return recipe
    try:
        found = SceneMap(recipe, workspace, scene)
        _ = found.planned, found.ledger
    except InputError as error:
        return error
    return found


class _Check:
    """The check of one published map; what it finds goes into `checked`."""

    def __init__(self, checked: CheckedMap, described: Described, now: SceneMap | InputError, sample: Sample) -> None:
        self.checked, self.described, self.sample = checked, described, sample
        self.now = now if isinstance(now, SceneMap) else None
        if isinstance(now, InputError):
            checked.notes.append(f"was not compared with the scene and the model as they are now: {now}")
        checked.published = described.created
        self.made: dict[Window, list[Made]] | None = None  #: by the ledger; None where that cannot be read
        self.missing: set[str] = set()  #: files
        self.tiles = windows(described.shape_yx, described.tile)
        self.grid_is_same = self.now is not None and lies_on(described.item, self.now.store.grid)
        self.is_current = self.now is not None and self.now.is_published()
        self.stale: dict[str, list[str]] = {}  #: keys of tiles, by what changed
        self.elsewhere = 0  #: stale tiles whose pixels are not just where the scene now has data
        self.mapped_again = 0  #: tiles that were, and are not published

    def all(self) -> None:
        """Check all of it."""
        try:
            check_item(self.described.item)
        except InvalidItemError as error:
            self.checked.broken.append(f"{ITEM}: {error}")
        self._compare_configuration()
        self._check_files()
        try:
            self.made = Ledger.open(storage.join(self.checked.folder, "ledger")).made()
        except InputError as error:
            self.checked.broken.append(f"ledger: {error}")
        self._check_tiles()
        if self.sample.tiles:
            self._check_sample()

    def _compare_configuration(self) -> None:
        """Note what of the map the configuration would have otherwise now."""
        if self.now is None:
            return
        recipe, item = self.now.recipe, self.described
        section, told = recipe.config.map, item.item["properties"]
        pairs: dict[str, tuple[Any, Any]] = {
            "the products": (_shown(item.products), _shown(recipe.products)),
            "map.tile": (item.tile, section.tile),
            "map.missing": (item.missing, section.missing),
            "map.precision": (told.get("mibf:precision"), section.precision),
            "prediction.priors": (told.get("mibf:priors"), recipe.config.prediction.priors),
            "the model": (item.model[:12], recipe.digest[:12]),
        }
        changed = [f"{name} (was {before}, is {now})" for name, (before, now) in pairs.items() if before != now]
        if not self.grid_is_same:
            changed.append("the scene's grid")
        if changed:
            self.checked.notes.append(f"changed since it was made: {'; '.join(changed)}; {DUE}")

    def _check_files(self) -> None:
        files = self.described.files
        with bar(f"{self.checked.scene}: verify the map's files", len(files), unit="files") as advance:
            for file in files:
                fault = self._fault_of(file)
                if fault:
                    self.checked.broken.append(f"{file.name}: {fault}")
                self.checked.files += 1
                self.checked.bytes += file.bytes
                advance(1)

    def _fault_of(self, file: DescribedFile) -> str:
        """What is wrong with a file; empty where nothing is."""
        url = storage.join(self.checked.folder, file.name)
        try:
            size, sha256 = patiently(url, lambda: storage.sha256(url))
        except FileNotFoundError:
            self.missing.add(file.name)
            return "is missing"
        except OSError as error:
            return f"cannot be read ({error})"
        if size != file.bytes:
            return f"has {size:,} bytes instead of {file.bytes:,}"
        return "" if sha256 == file.sha256 else "has another checksum than when it was published"

    def _check_tiles(self) -> None:
        """Check every tile's pixels: that they are where they should be, and the ones that were mapped."""
        products = self.described.products
        lost = [p.name for p in products if not set(self.described.rasters(p)) - self.missing]
        there = [p for p in products if p.name not in lost]
        if lost:
            self.checked.notes.append(
                f"without {', '.join(lost)} no tile's checksum can be computed: it is of all products; "
                "of the others it was seen where they have pixels"
            )
        published = PublishedMap(self.checked.folder)
        with bar(f"{self.checked.scene}: verify the map's tiles", len(self.tiles), unit="tiles") as advance:
            for window in self.tiles:
                try:
                    layers: TileResult = {p.name: published.read(p, window) for p in there}
                except Exception as error:  # of GDAL's many kinds; whatever it is, the other tiles are checked
                    faults = [f"cannot be read ({_told(error)})"]
                else:
                    stale = self._is_stale(window)
                    faults = [] if lost else self._faults_of_checksum(window, digest(layers))
                    faults += self._faults_of_coverage(window, layers, stale=stale)
                if faults:
                    self.checked.broken.append(f"{Tile(self.checked.scene, window).key}: {'; '.join(faults)}")
                self.checked.tiles += 1
                advance(1)
        self._note_tiles()

    def _last(self, window: Window) -> Made | None:
        """What the ledger says was made of a tile at last."""
        return (self.made or {}).get(window, [None])[-1]

    def _is_stale(self, window: Window) -> bool:
        """Whether a tile would be made otherwise now; takes down why."""
        last = self._last(window)
        if self.now is None or last is None:
            return False
        fingerprint = self.now.planned.get(window)
        if last.fingerprint == fingerprint:
            return False
        cause = "the tiles" if fingerprint is None else difference(last.fingerprint, fingerprint)
        self.stale.setdefault(cause, []).append(Tile(self.checked.scene, window).key)
        return True

    def _faults_of_checksum(self, window: Window, checksum: str) -> list[str]:
        if self.made is None:
            return []
        made = self.made.get(window)
        if made is None:
            return ["is not in the ledger, so that nothing says what its pixels should be"]
        if checksum == made[-1].checksum:
            return []
        # Until all of a later run's tiles are done, the map is that of the run before.
        if not self.is_current and checksum in {one.checksum for one in made}:
            self.mapped_again += 1
            return []
        return ["its pixels are not those that the ledger has the checksum of"]

    def _faults_of_coverage(self, window: Window, layers: TileResult, *, stale: bool) -> list[str]:
        if self.now is None or not self.grid_is_same:
            return []
        wanted, mask = to_map(self.now.store, window, sources=self.now.recipe.sources, missing=self.described.missing)
        wrong = {
            p.name: misplaced(p, layers[p.name], wanted=wanted, mask=mask)
            for p in self.described.products
            if p.name in layers
        }
        if stale:  # where the scene had data when it was mapped is not known any more
            self.elsewhere += any(wrong.values())
            return []
        return [f"{count:,} pixels of {name} are missing or should not be there" for name, count in wrong.items() if count]

    def _note_tiles(self) -> None:
        count, notes = len(self.tiles), self.checked.notes
        for cause, keys in self.stale.items():
            notes.append(f"{len(keys):,} of {count:,} tiles are stale, {cause} changed ({_some(keys)}); {DUE}")
        if self.elsewhere:
            notes.append(f"{self.elsewhere:,} of the stale tiles have not pixels just where the scene has data now")
        if self.mapped_again:
            notes.append(f"{self.mapped_again:,} of {count:,} tiles were mapped again since and are not published; {DUE}")

    def _check_sample(self) -> None:
        """Compute some of the tiles again that are done and not stale."""
        now, notes = self.now, self.checked.notes
        planned = {} if now is None else now.planned
        done = {w: last for w in self.tiles if (last := self._last(w)) is not None and planned.get(w) == last.fingerprint}
        chosen = drawn(done, count=self.sample.tiles, seed=self.sample.seed)
        if now is None or not chosen:
            notes.append("no tile can be computed again: none was done with the scene, model and settings as they are now")
            return
        try:
            with bar(f"{self.checked.scene}: compute tiles again", len(chosen), unit="tiles") as advance:
                for sampled in compute_again(now, {window: done[window] for window in chosen}):
                    self._take_sample(sampled)
                    advance(1)
        except InputError as error:
            notes.append(f"tiles cannot be computed again here: {error}")

    def _take_sample(self, sampled: Sampled) -> None:
        self.checked.sampled += 1
        if sampled.difference:
            line = f"{sampled.tile.key}: computed again, {sampled.difference}"
            (self.checked.notes if sampled.excused else self.checked.broken).append(line)


def _shown(products: Sequence[Product]) -> str:
    return ", ".join(f"{product.name} {product.dtype}" for product in products)


def _some(keys: list[str], most: int = 3) -> str:
    more = f" and {len(keys) - most:,} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def _told(error: Exception) -> str:
    """Why a tile cannot be read: of what GDAL raises, the cause says more than the error."""
    return storage.without_queries(str(error.__cause__ or error))


def lines(checked: CheckedMap, *, most: int) -> list[str]:
    """What was found, for a person: at the most so many broken things by name."""
    title = f"{checked.scene}: map"
    if checked.published is None and not checked.broken:
        return [f"{title}: none is published"]
    state = "whole" if not checked.broken else f"{len(checked.broken):,} broken"
    again = f", {checked.sampled:,} of them computed again" if checked.sampled else ""
    told = [f"{title}: {checked.files:,} files, {checked.bytes / 1e6:,.1f} MB, {checked.tiles:,} tiles{again}, {state}"]
    told += [f"  {line}" for line in checked.broken[:most]]
    if len(checked.broken) > most:
        told.append(f"  and {len(checked.broken) - most:,} more; --json names them all")
    return told + [f"  note: {note}" for note in checked.notes]
