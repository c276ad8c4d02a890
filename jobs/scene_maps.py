"""The map of each scene of a configuration: what is planned, what its ledger says, what is in work and what is published.

`map` fills these maps, `status` tells of them, `verify` checks them. Nothing here is written but by `SceneMap`'s methods
that say so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from textwrap import shorten
from typing import Any

import numpy as np

from jobs.config import Config, SceneSection
from jobs.declared import class_names
from jobs.progress import counted
from jobs.stages import code
from jobs.workspace import Workspace
from mibf.bundle import Bundle
from mibf.errors import InputError
from mibf.products import check_products
from pipeline import bundles, storage
from pipeline.due import classify
from pipeline.fill import Records
from pipeline.grid import Window, grid_to_json
from pipeline.ledger import Ledger, State, TileState
from pipeline.mapper import Job, Predictor
from pipeline.maps import MapInWork, digest
from pipeline.predict import TileResult, check_sources
from pipeline.products import Product, of_network, product
from pipeline.publish import ITEM, PublishedMap
from pipeline.store import PatchStore
from pipeline.tileprints import difference, fingerprints
from pipeline.tiles import Tile, tiles

#: Attributes of a map in work: what it was laid down for, and that tiles of an earlier map are all back in it.
LAYOUT, RESTORED = "mibf:layout", "mibf:restored"
#: Causes that people are shown, tiles of each, and characters of each.
CAUSES, TILES, LENGTH = 5, 3, 400


@dataclass(frozen=True)
class Recipe:
    """What the maps of all scenes of a configuration are made by."""

    config: Config
    model: str  #: URL of the bundle
    bundle: Bundle
    digest: str  #: of the bundle
    products: tuple[Product, ...]
    predictor: Callable[[Job], Predictor] | None = None  #: in the network's place, as of `Job`

    @classmethod
    def of(cls, config: Config, workspace: Workspace, *, predictor: Callable[[Job], Predictor] | None = None) -> Recipe:
        """The recipe of a configuration; `predictor` is as of `Job`.

        Raises:
            InputError: there is no model, it is damaged, or it cannot do what is asked of it.
        """
        if config.map.model is None:
            model, bundle = workspace.bundle, workspace.read_bundle()
        else:
            model = storage.absolute(config.map.model)
            bundle = bundles.read_bundle(model)
        bundle.network(config.prediction.priors)
        sources = len(bundle.spec.sources)
        products = tuple(product(name, config.map.dtype, sources=sources) for name in config.map.products)
        check_products(of_network(products), without=bundle.spec.without)
        _check_classes(config, bundle, model)
        if config.map.missing == "map" and not bundle.source_dropout:
            raise InputError(
                f"map.missing is `map`, and {storage.shown(model)} never lost a source in training: what it "
                "says where one has no data is worth nothing. Train with `train.source_dropout`, or take `nodata` or "
                "`declared`."
            )
        return cls(config, model, bundle, bundle.digest, products, predictor)

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources that the model takes."""
        return tuple(source.name for source in self.bundle.spec.sources)

    def job(self, maps: Mapping[str, SceneMap]) -> Job:
        """What workers need to know."""
        section = self.config.map
        return Job(
            model=self.model,
            digest=self.digest,
            stores={name: scene.store.url for name, scene in maps.items()},
            works={name: scene.work_url for name, scene in maps.items()},
            products=self.products,
            precision=section.precision,
            priors=self.config.prediction.priors,
            draws=section.draws,
            seed=section.seed,
            missing=section.missing,
            predictor=self.predictor,
        )

    def settings(self, store: PatchStore) -> str:
        """The digest of all that a tile's pixels depend on, but for the model and the input; of the tiles' layout, too."""
        section = self.config.map
        grid = grid_to_json(store.grid)
        rules = [[s.name, s.missing] for s in store.sources]
        asked = [
            section.precision,
            section.draws,
            section.seed,
            section.missing,
            section.tile,
            self.config.prediction.priors,
        ]
        return storage.digest([code("map"), grid, rules, asked, [asdict(p) for p in self.products]])


class SceneMap:
    """The map of one scene."""

    def __init__(self, recipe: Recipe, workspace: Workspace, scene: SceneSection) -> None:
        """Open a scene.

        Raises:
            InputError: it is not prepared, or has not the model's sources.
        """
        self.recipe, self.scene, self.name = recipe, scene, scene.name
        self.folder = workspace.map_folder(scene.name)
        self.work_url = storage.join(self.folder, "map.zarr")
        self.ledger_url = storage.join(self.folder, "ledger")
        self.store = PatchStore(workspace.store(scene.name))
        check_sources(self.store, recipe.bundle)
        self._records = workspace.records(scene.name)

    @property
    def side(self) -> int:
        """Of its tiles."""
        return self.recipe.config.map.tile

    @cached_property
    def planned(self) -> dict[Window, str]:
        """Its tiles, row by row, each with its fingerprint as of now.

        Raises:
            InputError: it is not known what was written of its store.
        """
        recipe = self.recipe
        try:
            records = Records.read(self._records)
        except FileNotFoundError as error:
            raise InputError(f"{self._records}: is missing; run `mibf prepare` again.") from error
        declared = {s.name for s in self.store.sources}
        return fingerprints(
            [tile.window for tile in self.tiles],
            records,
            model=recipe.digest,
            settings=recipe.settings(self.store),
            sources=declared if recipe.config.map.missing == "declared" else recipe.sources,
            halo=recipe.bundle.spec.halo,
            side=self.store.shard,
        )

    @property
    def input_bytes(self) -> int:
        """Bytes of what a whole tile is computed from."""
        spec = self.recipe.bundle.spec
        side = self.side + 2 * spec.halo
        return sum(4 * source.bands * (side * source.scale) ** 2 for source in spec.sources) + 3 * self.side**2

    @property
    def tiles(self) -> list[Tile]:
        """Its tiles, row by row."""
        return tiles(self.name, self.store.shape, self.side)

    @cached_property
    def ledger(self) -> Ledger:
        """Its ledger as it was when it was first asked for, and with what was appended since.

        Raises:
            InputError: it is damaged, or a file is in the place of its folder.
        """
        try:
            return Ledger.open(self.ledger_url)
        except NotADirectoryError as error:
            raise InputError(
                f"{self.ledger_url}: is no folder, or in none; move away what is there, or give another name to this run "
                "(`run`)."
            ) from error

    def states(self) -> dict[Window, State]:
        """The state of every planned tile."""
        return classify(self.planned, self.ledger.last())

    def causes(self) -> list[tuple[str, list[str]]]:
        """Why tiles failed or are stale, each cause with the keys of its tiles; that of most tiles first."""
        last, found = self.ledger.last(), dict[str, list[str]]()
        for window, state in self.states().items():
            if state not in ("failed", "stale"):
                continue
            before, now = last[window], self.planned[window]
            changed = state == "stale" and before.fingerprint != now
            cause = f"{difference(before.fingerprint, now)} changed" if changed else before.cause
            found.setdefault(cause, []).append(Tile(self.name, window).key)
        return sorted(found.items(), key=lambda pair: -len(pair[1]))

    def made_by_others(self) -> list[TileState]:
        """What was mapped by another model than this one; nothing where the published map is this one's."""
        if self.recipe.digest in [link.get("mibf:digest") for link in (self.item() or {}).get("links", [])]:
            return []  # tiles of another size may be left in the ledger
        return [s for s in self.ledger.last().values() if s.state == "done" and s.model != self.recipe.digest]

    def content(self) -> str:
        """The digest of the map that its finished tiles make; while some were never begun, that of no map."""
        last = self.ledger.last()
        checksums = [[asdict(window), last[window].checksum if window in last else None] for window in self.planned]
        return storage.digest(checksums)

    def item(self) -> dict[str, Any] | None:
        """The item of the map that is published; None where none is."""
        try:
            found = storage.read_json(storage.join(self.folder, ITEM))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def is_published(self) -> bool:
        """Whether the map that is published is that of the ledger's tiles, in the files that were asked for."""
        item = self.item()
        if item is None or item.get("properties", {}).get("mibf:content") != self.published_content():
            return False
        hrefs = [str(asset["href"]) for asset in item.get("assets", {}).values() if "file:size" in asset]
        return all(storage.exists(storage.join(self.folder, href.removeprefix("./"))) for href in hrefs)

    def published_content(self) -> str:
        """The digest of the map as it is to be published: its tiles, the sides of its files, when the scene was taken."""
        return storage.digest([self.content(), self.recipe.config.map.block, self.scene.datetime])

    def work(self, *, lost: Callable[[Window], None]) -> tuple[MapInWork, int]:
        """The map in work: what an interrupted run has left, or laid down with the finished tiles of the published map.

        Args:
            lost: is told of each finished tile whose pixels are not to be had any more; it is to be mapped again.

        Returns:
            The map, and how many tiles were brought back from the published one.
        """
        layout = storage.digest([asdict(p) for p in self.recipe.products] + [self.side, grid_to_json(self.store.grid)])
        found = self._left(layout)
        if found is not None:
            return found, 0
        work = MapInWork.lay_down(
            self.work_url,
            store=self.store,
            products=self.recipe.products,
            tile=self.side,
            sources=self.recipe.sources,
        )
        last = self.ledger.last()
        finished = [window for window, state in self.states().items() if state == "done"]
        published = None if self.item() is None else PublishedMap(self.folder)
        kept = 0
        for window in finished:
            try:
                if published is None:
                    raise InputError(f"{self.folder}: no map is published")
                result: TileResult = {p.name: published.read(p, window) for p in self.recipe.products}
                if digest(result) != last[window].checksum:
                    raise InputError(f"{self.folder}: the published map is not that of the ledger")
                work.write(Tile(self.name, window), result)
            except Exception:  # GDAL's and storages' own kinds; whatever it is, the tile is mapped again
                lost(window)
            else:
                kept += 1
        work.group.attrs.update({LAYOUT: layout, RESTORED: True})
        return work, kept

    def unlike(self, work: MapInWork) -> list[Window]:
        """The finished tiles whose pixels in work have not the checksums of the ledger, or cannot be read."""
        last = self.ledger.last()
        return [window for window in self.planned if _digest_in(work, self.recipe.products, window) != last[window].checksum]

    def remove_work(self) -> None:
        """Remove the map in work, if there is one: what is left where this is interrupted is no map in work any more."""
        storage.remove(storage.join(self.work_url, "zarr.json"))
        storage.remove(self.work_url)

    def _left(self, layout: str) -> MapInWork | None:
        if not storage.exists(storage.join(self.work_url, "zarr.json")):
            return None
        try:
            work = MapInWork(self.work_url)
            attributes = dict(work.group.attrs)
        except Exception:  # what an interrupted run has left may be anything
            return None
        return work if attributes.get(LAYOUT) == layout and attributes.get(RESTORED) else None


def _digest_in(work: MapInWork, products: Sequence[Product], window: Window) -> str | None:
    try:
        return digest({p.name: np.asarray(work.array(p)[:, *window.slices]) for p in products})
    except (ValueError, RuntimeError, OSError):  # a shard that is cut short
        return None


def told_causes(causes: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Causes for a person, one a line, with the first of their tiles."""
    told = []
    for cause, keys in causes[:CAUSES]:
        more = f" and {len(keys) - TILES:,} more" if len(keys) > TILES else ""
        told.append(f"  {', '.join(keys[:TILES])}{more}: {shorten(cause, LENGTH, placeholder=' ...')}")
    if len(causes) > CAUSES:
        told.append(f"  and {counted(len(causes) - CAUSES, 'other causes')}; `mibf status --json` tells all")
    return told


def _check_classes(config: Config, bundle: Bundle, model: str) -> None:
    """See that the configuration means the model's classes."""
    declared, known = ([(c.id, c.name) for c in classes] for classes in (class_names(config), bundle.classes))
    if declared != known:
        listed = [", ".join(f"{i} {name}" for i, name in classes) for classes in (declared, known)]
        raise InputError(
            f"{storage.shown(model)}: predicts the classes {listed[1]}; the configuration declares {listed[0]}. Declare the "
            "model's classes in its order, or map with another model (map.model)."
        )
