"""map: whole scenes, tile by tile, into cloud-optimised GeoTIFFs; what failed is known, and only that is done again.

The driver alone writes the ledger. A tile that raises is tried again, then recorded with its cause, and the rest goes
on; one whose worker dies is recorded too. A scene is published when all its tiles are done under the current fingerprints.
"""

from __future__ import annotations

import posixpath
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
from dask.system import CPU_COUNT

from jobs.as_run import keep_map
from jobs.config import Config
from jobs.declared import scene_urls
from jobs.logs import event
from jobs.meters import map_meters
from jobs.progress import bar, counted, say, warn
from jobs.scene_maps import Recipe, SceneMap, told_causes
from jobs.stages import Outcome, TilesFailedError, begin
from jobs.workspace import Workspace
from mibf import __version__
from mibf.bundle import MODEL
from mibf.errors import InputError
from pipeline import bundles, cog, storage
from pipeline.drift import drifts, told
from pipeline.due import Due, due
from pipeline.grid import Window
from pipeline.item import Asset, ModelLink, check_item, map_item
from pipeline.lease import Lease
from pipeline.ledger import Entry, State
from pipeline.mapper import Done, Job, Mapper, Predictor
from pipeline.maps import MapInWork, check_coverage
from pipeline.products import CLASS_PRODUCTS, Product
from pipeline.publish import ITEM, Published, publish
from pipeline.quicklook import quicklook
from pipeline.tileprints import difference
from pipeline.tiles import Tile

#: The picture beside a map.
QUICKLOOK = "quicklook.png"
#: What is said of a tile that took its worker along.
DIED = "its worker died (out of memory, or killed), more often than it is tried"
_REMEDY = "Mend the causes, if any; then `mibf rerun` maps what is left, and nothing else."


@dataclass(frozen=True)
class Request:
    """Which tiles are to be mapped, and what may be given up for it."""

    states: tuple[State, ...] = ("pending", "failed", "stale")
    tiles: tuple[str, ...] | None = None  #: their keys; all unless given
    max_attempts: int | None = None  #: failed attempts after which a tile is left alone
    backoff: float = 0.0  #: seconds from a tile's first failure to its next attempt; doubled with each
    anew: bool = False  #: all tiles, those that are done too
    replace: bool = False  #: also what another model has mapped


@dataclass
class Spent:
    """Where the time of a map's workers went, in seconds, and what they did in it."""

    read: float = 0.0
    compute: float = 0.0
    write: float = 0.0
    pixels: int = 0
    tiles: int = 0
    rows: set[int] = field(default_factory=set)
    first: float = np.inf
    last: float = -np.inf
    publish: float = 0.0

    def add(self, done: Done) -> None:
        """Count a tile; of one that failed the time alone."""
        self.read, self.compute = self.read + done.read_seconds, self.compute + done.compute_seconds
        self.write = self.write + done.write_seconds
        if not done.cause:
            self.pixels, self.tiles = self.pixels + done.pixels, self.tiles + 1
        self.rows |= {done.rows} - {0}
        self.first, self.last = min(self.first, done.started), max(self.last, done.finished)

    def figures(self, workers: int) -> dict[str, Any]:
        """Shares of the time from the first tile's beginning to the last one's end, and of publishing after it.

        Reading, computing and writing overlap, and so may come to more than one.
        """
        span = max(self.last - self.first, 1e-9)
        if not self.tiles:
            return {"tiles_mapped": 0, "publish_seconds": round(self.publish, 2)}
        whole = span * max(1, workers)
        return {
            "tiles_mapped": self.tiles,
            "pixels_mapped": self.pixels,
            "tiles_seconds": round(span, 2),
            "pixels_per_second": round(self.pixels / span, 1),
            "reading": round(self.read / whole, 4),
            "computing": round(self.compute / whole, 4),
            "writing": round(self.write / whole, 4),
            "waiting": round(max(0.0, 1 - (self.read + self.compute + self.write) / whole), 4),
            "publish_seconds": round(self.publish, 2),
            "publishing": round(self.publish / (span + self.publish), 4),
            "rows_in_work": sorted(self.rows),
        }


def map_scenes(
    config: Config,
    workspace: Workspace,
    fingerprint: str,
    lease: Lease,
    *,
    request: Request | None = None,
    predictor: Callable[[Job], Predictor] | None = None,
) -> Outcome:
    """Map what is due of every scene of a configuration, and publish the scenes that are complete.

    `predictor` is as of `Job`.

    Raises:
        InputError: a scene and the model do not fit, or another model's map would be replaced.
        TilesFailedError: tiles failed, or were not asked for; scenes without such tiles are published.
    """
    asked = request or Request()
    recipe = Recipe.of(config, workspace, predictor=predictor)
    maps = {scene.name: SceneMap(recipe, workspace, scene) for scene in config.scenes}
    for scene in maps.values():
        _check_replaced(scene, asked)
        _check_drift(scene)
    wanted = _wanted(maps, asked.tiles)
    for scene in maps.values():
        _ = scene.planned  # what cannot be planned is refused before anything is written
    lease.check()
    keep_map(config, workspace)
    run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    lines: list[str] = []
    spent = Spent()
    with ExitStack() as ledgers:
        for scene in maps.values():
            ledgers.enter_context(scene.ledger.writing())
            _note(scene, run, anew=asked.anew)
        plans = {name: _due(scene, asked, wanted) for name, scene in maps.items()}
        if any(not scene.is_published() or plans[scene.name].tiles for scene in maps.values()):
            begin(workspace, "map", lease)
        works = {}
        for name, scene in maps.items():
            if scene.is_published():
                scene.remove_work()  # a run may have ended between publishing and this
            else:
                works[name] = _work(scene, run, lease)
        # What was lost of an earlier map is due as well.
        plans = {name: _due(scene, asked, wanted) for name, scene in maps.items()}
        for attempt in range(config.map.attempts):
            tiles = [Tile(name, window) for name, plan in plans.items() for window in plan.tiles]
            if not tiles:
                break
            if attempt:
                pause = config.map.backoff * 2 ** (attempt - 1)
                say(f"{counted(len(tiles), 'tiles')} failed; trying again" + (f" in {pause:g} s" if pause else ""))
                time.sleep(pause)
            _attempt(recipe, maps, tiles, run, lease, spent, alone=attempt > 0)
            plans = {name: _again(scene, tiles) for name, scene in maps.items()}
        outputs, complete = [], []
        for name, scene in maps.items():
            scene.ledger.flush()
            if all(state == "done" for state in scene.states().values()) and not _lost(scene, works.get(name), run):
                clock = time.monotonic()
                if name in works:
                    _publish(scene, works[name], run, fingerprint, lease)
                spent.publish += time.monotonic() - clock
                complete.append(scene)
                outputs += _files(scene)
    figures = spent.figures(config.map.workers)
    left = [scene for scene in maps.values() if scene not in complete]
    lines += [_line(scene) for scene in complete]
    if spent.tiles or not left:
        lines += _stalls(figures, config.map.workers, published=bool(works))
    if left:
        raise TilesFailedError("\n".join([*(line for scene in left for line in _shortfall(scene, asked)), *lines, _REMEDY]))
    planned = sum(len(scene.planned) for scene in maps.values())
    pixels = {scene.name: _pixels(scene) for scene in complete}
    summary = {"pixels": sum(pixels.values()), "tiles": planned, "scenes": pixels, "priors": config.prediction.priors}
    return Outcome(summary | figures | {"scenes_published": len(works)}, lines, outputs)


def check_tiles(config: Config, keys: Sequence[str]) -> None:
    """See that a configuration's scenes have tiles of these keys.

    Raises:
        InputError: one of them there is not; or as for `map_scenes`.
    """
    workspace = Workspace.of(config)
    recipe = Recipe.of(config, workspace)
    _wanted({scene.name: SceneMap(recipe, workspace, scene) for scene in config.scenes}, keys)


def _check_replaced(scene: SceneMap, asked: Request) -> None:
    others = scene.made_by_others()
    if others and not asked.replace:
        raise InputError(
            f"{scene.folder}: holds a map that another model has made ({counted(len(others), 'tiles')}). Give `--replace` "
            "to have this model's in its place, or another name to this run (`run`)."
        )


def _check_drift(scene: SceneMap) -> None:
    """Compare a scene's values with those of training, as far as that is asked for."""
    section = scene.recipe.config.map
    if section.drift == "ignore":
        return
    far = told(drifts(scene.store, scene.recipe.bundle.scaling), section.drift_distance)
    if far is None:
        return
    text = f"scene {scene.name!r} is not like what the model was trained on: {far}"
    if section.drift == "refuse":
        raise InputError(
            f"{text}. Check units, order of bands and nodata of its files; `map.drift: warn` maps it all the same."
        )
    warn(text)


def _wanted(maps: dict[str, SceneMap], keys: Sequence[str] | None) -> dict[str, list[Window]] | None:
    """The tiles of given keys, by scene; None for all."""
    if keys is None:
        return None
    known = {tile.key: tile for scene in maps.values() for tile in scene.tiles}
    if len(maps) == 1:  # its name need not be said
        known |= {tile.key.partition("/")[2]: tile for scene in maps.values() for tile in scene.tiles}
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise InputError(
            f"--tiles {unknown[0]}: no such tile; a tile goes by its scene and corner, such as {next(iter(known))}. "
            "`mibf status` names those that failed."
        )
    found: dict[str, list[Window]] = {name: [] for name in maps}
    for key in keys:
        found[known[key].scene].append(known[key].window)
    return found


def _note(scene: SceneMap, run: str, *, anew: bool) -> None:
    """Put down which tiles are pending or stale now, and why."""
    last = scene.ledger.last()
    model = scene.recipe.digest
    for window, state in scene.states().items():
        tile, fingerprint = Tile(scene.name, window), scene.planned[window]
        if anew or (state == "pending" and window not in last):
            cause = "asked for anew" if window in last else ""
            scene.ledger.append([Entry(tile, "pending", fingerprint, model, run, cause=cause)])
        elif state == "stale" and last[window].fingerprint != fingerprint:
            cause = f"{difference(last[window].fingerprint, fingerprint)} changed"
            scene.ledger.append([Entry(tile, "stale", fingerprint, model, run, cause=cause)])


def _due(scene: SceneMap, asked: Request, wanted: dict[str, list[Window]] | None) -> Due:
    return due(
        scene.planned,
        scene.ledger.last(),
        states=asked.states,
        only=None if wanted is None else wanted[scene.name],
        max_attempts=asked.max_attempts,
        backoff_seconds=asked.backoff,
        now=time.time(),
    )


def _again(scene: SceneMap, tried: Sequence[Tile]) -> Due:
    """The tiles among those tried that are not done."""
    only = [tile.window for tile in tried if tile.scene == scene.name]
    return due(scene.planned, scene.ledger.last(), only=only, now=time.time())


def _work(scene: SceneMap, run: str, lease: Lease) -> MapInWork:
    """A scene's map in work; what cannot be brought back into it is pending again."""
    lease.check()
    gone: list[Entry] = []

    def lost(window: Window) -> None:
        tile, fingerprint = Tile(scene.name, window), scene.planned[window]
        cause = "its pixels are not there any more"
        gone.append(Entry(tile, "pending", fingerprint, scene.recipe.digest, run, cause=cause))

    work, kept = scene.work(lost=lost)
    if kept:
        say(f"{scene.name}: {counted(kept, 'tiles')} taken over from the published map")
    scene.ledger.append(gone)
    return work


def _lost(scene: SceneMap, work: MapInWork | None, run: str) -> list[Window]:
    """Tiles whose pixels in work are not those that were written, a disk having lost them: they are pending again."""
    gone = [] if work is None else scene.unlike(work)
    for window in gone:
        cause = "its pixels in work were not those that were written"
        pending = Entry(Tile(scene.name, window), "pending", scene.planned[window], scene.recipe.digest, run, cause=cause)
        scene.ledger.append([pending])
    return gone


def _attempt(
    recipe: Recipe,
    maps: dict[str, SceneMap],
    tiles: Sequence[Tile],
    run: str,
    lease: Lease,
    spent: Spent,
    *,
    alone: bool,
) -> None:
    """Try tiles once and put down how they went; `alone` as for `map_on_ray`."""
    last = {name: scene.ledger.last() for name, scene in maps.items()}
    attempts = {tile: state.attempts if (state := last[tile.scene].get(tile.window)) else 0 for tile in tiles}
    open_ = set(tiles)
    crew = _crew(recipe, maps, alone=alone)
    meters = map_meters(recipe.config)
    with bar("map", len(tiles), unit="tiles") as advance:

        def take(done: Done) -> None:
            if done.tile not in open_:
                return  # told of before: its worker died before Ray knew that it was done
            open_.remove(done.tile)
            spent.add(done)
            scene = maps[done.tile.scene]
            lease.check()
            scene.ledger.append([_entry(done, scene, run, attempts[done.tile] + 1)])
            _log(done, attempts[done.tile] + 1)
            meters.tile(done, attempts[done.tile] + 1)
            advance(1)

        crew(tiles, take)
    for tile in [tile for tile in tiles if tile in open_]:
        scene = maps[tile.scene]
        lost = Done(tile, cause=DIED, finished=time.time())
        scene.ledger.append([_entry(lost, scene, run, attempts[tile] + 1)])
        _log(lost, attempts[tile] + 1)
        meters.tile(lost, attempts[tile] + 1)
    for scene in maps.values():
        scene.ledger.flush()


def _crew(
    recipe: Recipe, maps: dict[str, SceneMap], *, alone: bool
) -> Callable[[Sequence[Tile], Callable[[Done], None]], None]:
    """What maps tiles and tells of each: this process, or Ray's workers."""
    section, job = recipe.config.map, recipe.job(maps)
    if section.workers == 0:

        def here(tiles: Sequence[Tile], take: Callable[[Done], None]) -> None:
            for done in Mapper(job, threads=CPU_COUNT).map(tiles):
                take(done)

        who, crew = f"in this process on {counted(CPU_COUNT, 'cores')}", here
    else:
        from jobs import cluster  # Ray is imported where it is used
        from jobs.crew import map_on_ray, object_store, reading_cpus

        beside = reading_cpus(section.readers)
        room = object_store(max(scene.input_bytes for scene in maps.values()), section.workers, section.readers)
        cluster.ensure(workers=section.workers + beside, object_store=room)
        share = cluster.share(section.workers, beside=beside)

        def on_ray(tiles: Sequence[Tile], take: Callable[[Done], None]) -> None:
            map_on_ray(job, tiles, share, each=take, alone=alone, readers=section.readers)

        read_by = f", {counted(section.readers, 'readers')}" if section.readers else ""
        who, crew = f"on {share}{read_by}", on_ray
    if not alone:  # else it was said before
        say(f"mapping {who}, {section.precision}")
    return crew


def _log(done: Done, attempt: int) -> None:
    """Tell machines of a tile."""
    values: dict[str, Any] = {"scene": done.tile.scene, "tile": done.tile.key, "attempt": attempt, "pixels": done.pixels}
    values |= {name: round(getattr(done, name), 4) for name in ("read_seconds", "compute_seconds", "write_seconds")}
    if done.cause:
        event("tile failed", level="error", cause=done.cause, **values)
    else:
        event("tile done", **values)


def _entry(done: Done, scene: SceneMap, run: str, attempt: int) -> Entry:
    return Entry(
        done.tile,
        "failed" if done.cause else "done",
        scene.planned[done.tile.window],
        scene.recipe.digest,
        run,
        attempt,
        done.cause,
        done.worker,
        done.started or None,
        done.finished or None,
        done.read_seconds,
        done.compute_seconds,
        done.write_seconds,
        done.pixels,
        done.rows,
        done.checksum,
    )


def _publish(scene: SceneMap, work: MapInWork, run: str, fingerprint: str, lease: Lease) -> None:
    """Publish a scene's map, its item last; then the map in work goes."""
    config, recipe = scene.recipe.config, scene.recipe
    check_coverage(work, scene.store, recipe.products, tile=scene.side, missing=config.map.missing)
    # Nothing of how it was made: files are the same bytes whatever the tiles and the workers. The item tells the rest.
    tags = {"mibf_version": __version__, "mibf_run": config.run, "mibf_model": recipe.digest}
    tags |= {"mibf_priors": config.prediction.priors}
    block = cog.block_side(config.map.block, scene.side)
    parts = len(cog.pieces("", scene.store.shape, block=block))
    lease.check()
    with bar(f"{scene.name}: publish", len(recipe.products) * (parts + (parts > 1)), unit="files") as advance:
        published = publish(
            partial(_reader, work),
            recipe.products,
            scene.folder,
            grid=scene.store.grid,
            classes=recipe.bundle.classes,
            names_of=work.band_names,
            tags=tags,
            block=block,
            each=lambda _: advance(1),
        )
    assets = [_asset(file, work) for file in published]
    picture = _picture(scene, published)
    item = _item(scene, [*assets, *picture], run, fingerprint)
    lease.check()
    storage.write_json(storage.join(scene.folder, ITEM), item)
    scene.remove_work()


def _reader(work: MapInWork, product: Product) -> cog.Read:
    """Reads a product's codes from a map in work."""
    array = work.array(product)
    return lambda window: np.asarray(array[:, *window.slices])


def _asset(file: Published, work: MapInWork) -> Asset:
    product = file.product
    names = work.sources if product.name == "sources" else work.band_names(product)
    return Asset(
        product=product.name,
        name=file.name,
        bytes=file.bytes,
        sha256=file.sha256,
        dtype=product.dtype,
        nodata=product.nodata,
        scale=product.scale,
        unit=product.unit,
        bands=tuple(names),
        window=file.window,
    )


def _picture(scene: SceneMap, published: Sequence[Published]) -> list[Asset]:
    """Draw the map's picture beside it; none where no classes are published, and an earlier map's goes."""
    url = storage.join(scene.folder, QUICKLOOK)
    shown = [file for file in published if file.product.name in CLASS_PRODUCTS]
    if not shown:
        storage.remove(url)
        return []
    content = quicklook(
        [file for file in shown if file.product.name == shown[0].product.name][-1].url, scene.recipe.bundle.classes
    )
    storage.write_bytes(url, content)
    size, sha256 = storage.sha256(url)
    return [Asset("quicklook", QUICKLOOK, size, sha256, "uint8", None, 1.0, "", ())]


def _item(scene: SceneMap, assets: Sequence[Asset], run: str, fingerprint: str) -> dict[str, Any]:
    recipe = scene.recipe
    config, model = recipe.config, bundles.folder_of(recipe.model)
    facts = {
        "content": scene.published_content(),
        "tiles": len(scene.planned),
        "tile": scene.side,
        "pixels": _pixels(scene),
        "temperature": recipe.bundle.temperature,
        "priors": config.prediction.priors,
        "precision": config.map.precision,
        "missing": config.map.missing,
    }
    item = map_item(
        id=f"{config.name}-{scene.name}-{config.run}",
        grid=scene.store.grid,
        assets=assets,
        classes=recipe.bundle.classes,
        created=datetime.now(UTC),
        datetime=scene.scene.datetime,
        model=ModelLink(bundles.file_of(model, MODEL), recipe.digest, posixpath.basename(storage.shown(model))),
        inputs={url: _stamp(url) for url in scene_urls(scene.scene)},
        ledger="./ledger",
        version=__version__,
        fingerprint=fingerprint,
        run=run,
        facts=facts,
    )
    check_item(item)
    return item


def _stamp(url: str) -> str:
    """An input file's fingerprint; empty where it is not there any more: the map is of the store."""
    try:
        return storage.stamp(url)
    except InputError:
        return ""


def _files(scene: SceneMap) -> list[str]:
    """The files of a published map, the item last."""
    item = scene.item() or {}
    hrefs = [str(asset["href"]) for asset in item.get("assets", {}).values() if "file:size" in asset]
    return [storage.join(scene.folder, name.removeprefix("./")) for name in [*hrefs, ITEM]]


def _pixels(scene: SceneMap) -> int:
    last = scene.ledger.last()
    return sum(last[window].pixels for window in scene.planned)


def _line(scene: SceneMap) -> str:
    rows, columns = scene.store.shape
    return f"{scene.name}: {_pixels(scene):,} of {rows * columns:,} pixels mapped, {counted(len(scene.planned), 'tiles')}"


def _stalls(figures: dict[str, Any], workers: int, *, published: bool) -> list[str]:
    """Where the time went, for people."""
    if not figures["tiles_mapped"]:
        return ["no tile was to be mapped; " + ("the files were published anew" if published else "nothing was changed")]
    shares = ", ".join(f"{name} {100 * figures[name]:.1f} %" for name in ("reading", "computing", "writing", "waiting"))
    who = "in this process" if workers == 0 else f"by {counted(workers, 'workers')}, their start not counted"
    return [
        f"{counted(figures['tiles_mapped'], 'tiles')} mapped in {figures['tiles_seconds']:,.0f} s {who}: "
        f"{figures['pixels_per_second']:,.0f} pixels/s",
        f"shares of that time, which may overlap: {shares}; publishing came to {figures['publish_seconds']:,.1f} s more",
    ]


def _shortfall(scene: SceneMap, asked: Request) -> list[str]:
    """What a scene's map lacks, and why."""
    states = scene.states()
    counts = Counter(states.values())
    failed = [f"{counts['failed']:,} of {counted(len(states), 'tiles')} failed"] if counts["failed"] else []
    others = [f"{counts[state]:,} of {len(states):,} are {state}" for state in ("pending", "stale") if counts[state]]
    kept = "the earlier map is still there" if scene.item() is not None else "nothing was published"
    left = due(
        scene.planned, scene.ledger.last(), max_attempts=asked.max_attempts, backoff_seconds=asked.backoff, now=time.time()
    )
    lines = [f"{scene.name}: {' and '.join(failed + others)}; {kept}", *told_causes(scene.causes())]
    if left.dead:
        lines.append(
            f"  {len(left.dead):,} of the failed ones were tried {asked.max_attempts} times or more and are left alone; "
            "`mibf map` tries them again"
        )
    if left.until is not None:
        until = datetime.fromtimestamp(left.until, UTC)
        lines.append(f"  {len(left.waiting):,} of the failed ones are not tried again before {until:%Y-%m-%dT%H:%M:%SZ}")
    return lines
