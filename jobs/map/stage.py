"""`mibf map`: map whole scenes tile by tile into cloud-optimised GeoTIFFs, and record failures for a rerun.

Only the driver writes the ledger. A tile that raises is retried, then recorded with its cause while the rest continue; a
tile whose worker dies is recorded too. A scene is published when all its tiles are done under the current fingerprints, in
the background while tiles of other scenes are mapped.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial

from jobs.config.config import Config
from jobs.config.map import MapSection
from jobs.config.scene import SceneSection
from jobs.map.attempt import Attempt, MapTimings, Workers, check_workers
from jobs.map.many_scenes import Publisher, each_scene
from jobs.map.publish import is_published, publish_scene
from jobs.map.request import TileRequest
from jobs.map.scene_map import SceneMap
from jobs.map.spec import MapSpec
from jobs.map.summary import REMEDY, incomplete_lines, published_line, timing_lines
from jobs.runtime.progress import info, pluralize, warn
from jobs.runtime.worker_resources import own_device
from jobs.workflow.errors import TilesFailedError
from jobs.workflow.manifest import StageResult, read_manifest
from jobs.workflow.runner import invalidate
from jobs.workflow.saved_config import save_map_config
from jobs.workflow.workspace import Workspace
from mibf.device import check_precision
from mibf.errors import InputError
from pipeline.grid import Tile, Window
from pipeline.io import storage
from pipeline.io.lease import Lease
from pipeline.maps.drift import describe_drift, matching_advice, measure_drift, unmatched
from pipeline.maps.map_store import MapStore
from pipeline.maps.tile_mapper import MapJob, Predictor
from pipeline.publishing.stac_catalog import CATALOG, update_catalog

#: Maximum length of a warning about drift, in characters.
LONGEST_WARNING = 250


def map_scenes(
    config: Config,
    workspace: Workspace,
    fingerprint: str,
    lease: Lease,
    *,
    request: TileRequest | None = None,
    predictor: Callable[[MapJob], Predictor] | None = None,
    workers: Workers | None = None,
) -> StageResult:
    """Map the selected tiles of every scene of a configuration, and publish the scenes that are complete.

    `predictor` is as for `MapJob`; `workers` as for `Attempt`.

    Raises:
        InputError: a scene and the model do not match, or another model's map would be replaced.
        TilesFailedError: tiles failed or were not requested; scenes without such tiles are published.
    """
    request = request or TileRequest()
    spec = MapSpec.of(config, workspace, predictor=predictor)
    maps, only = _open_scenes(config, workspace, spec, request)
    resources = None
    if any(scene.select(request, only).tiles for scene in maps.values()):
        resources = check_workers(spec, maps, shared=workers)
    lease.check()
    save_map_config(config, workspace)
    run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    timings = MapTimings()
    was_finished = read_manifest(workspace, "map") is not None  # otherwise a catalog may not have been written either
    each_scene(lambda scene: scene.finish_publication(lease), maps)
    with ExitStack() as ledgers:
        for scene in maps.values():
            ledgers.enter_context(scene.ledger.writing(lease))
            scene.record_pending(run, restart=request.restart)
            scene.record_empty(run)
        unpublished = [name for name, published in each_scene(is_published, maps).items() if not published]
        if unpublished or any(scene.select(request, only).tiles for scene in maps.values()):
            invalidate(workspace, "map", lease)
        map_stores = _open_map_stores(maps, unpublished, run, lease)
        # Selected only now: tiles of an earlier map that could not be restored must be mapped too.
        selected = [Tile(name, window) for name, scene in maps.items() for window in scene.select(request, only).tiles]
        with Publisher(partial(_publish, run=run, fingerprint=fingerprint, lease=lease)) as publisher:

            def publish(scene: SceneMap) -> None:
                publisher.submit(scene, map_stores.get(scene.name))

            for scene in maps.values():
                if _all_done(scene):
                    publish(scene)
            attempt = Attempt(spec, maps, run, lease, timings, done=publish, workers=workers, resources=resources)
            _map_with_retries(attempt, selected, config.map)
            clock = time.monotonic()
            complete = publisher.finish()
            written = list(map_stores) if was_finished else complete
            update_catalog(workspace.url, lease, [(name, config.run) for name in written])
            timings.publish = time.monotonic() - clock
    return _result(config, maps, complete, request, timings, published=len(map_stores))


def _open_scenes(
    config: Config, workspace: Workspace, spec: MapSpec, request: TileRequest
) -> tuple[dict[str, SceneMap], dict[str, list[Window]] | None]:
    """Open and plan all scenes, refusing what cannot be mapped before anything is written.

    Returns:
        The scenes, and their requested tiles, None for all.
    """
    if config.map.workers == 0:
        check_precision(own_device(config.resources), config.map.precision, key="map.precision")

    def opened(section: SceneSection) -> SceneMap:
        scene = SceneMap(spec, workspace, section)
        scene.check_replaced(request)
        _check_drift(scene)
        return scene

    maps = each_scene(opened, {scene.name: scene for scene in config.scenes})
    only = _requested(maps, request.tiles)
    each_scene(lambda scene: scene.planned, maps)  # raises if a scene cannot be planned
    return maps, only


def _open_map_stores(
    maps: Mapping[str, SceneMap], unpublished: Collection[str], run: str, lease: Lease
) -> dict[str, MapStore]:
    """Open the map stores of the scenes whose map is not published as it should be."""

    def opened(scene: SceneMap) -> MapStore | None:
        if scene.name in unpublished:
            return scene.open_work(run, lease)
        scene.remove_work(lease)  # an earlier run may have ended after publishing, before removing it
        return None

    return {name: work for name, work in each_scene(opened, maps).items() if work is not None}


def _map_with_retries(attempt: Attempt, tiles: Sequence[Tile], section: MapSection) -> None:
    """Map tiles, and those that fail again, each in isolation, after a pause that doubles with every retry."""
    for retry in range(section.attempts):
        if not tiles:
            return
        if retry:
            pause = section.backoff * 2 ** (retry - 1)
            info(f"{pluralize(len(tiles), 'tiles')} failed; retrying" + (f" in {pause:g} s" if pause else ""))
            time.sleep(pause)
        tiles = attempt.run(tiles, isolated=retry > 0)


def _all_done(scene: SceneMap) -> bool:
    return all(state == "done" for state in scene.states().values())


def _publish(scene: SceneMap, work: MapStore | None, *, run: str, fingerprint: str, lease: Lease) -> bool:
    """Publish a scene whose tiles are done, unless it is published; return False if its map store lacks their pixels."""
    scene.ledger.flush()
    return work is None or publish_scene(scene, work, run, fingerprint, lease)


def _result(
    config: Config,
    maps: Mapping[str, SceneMap],
    complete: Collection[str],
    request: TileRequest,
    timings: MapTimings,
    *,
    published: int,
) -> StageResult:
    """Summarize a map; raise TilesFailedError if a scene is not complete."""
    figures = timings.figures(config.map.workers)
    incomplete = [scene for name, scene in maps.items() if name not in complete]
    done = [scene for name, scene in maps.items() if name in complete]
    lines = [published_line(scene) for scene in done]
    if timings.tiles or not incomplete:
        lines += timing_lines(figures, config.map.workers, published=bool(published))
    if incomplete:
        missing = [line for scene in incomplete for line in incomplete_lines(scene, request)]
        raise TilesFailedError("\n".join([*missing, *lines, REMEDY]))
    pixels = {scene.name: scene.pixels() for scene in done}
    summary = {
        "pixels": sum(pixels.values()),
        "tiles": sum(len(scene.tasks) for scene in maps.values()),
        "scenes": pixels,
        "priors": config.prediction.priors,
    }
    outputs = [url for urls in each_scene(SceneMap.published_files, maps).values() for url in urls]
    outputs.append(storage.join(Workspace.of(config).url, CATALOG))
    return StageResult(summary | figures | {"scenes_published": published}, lines, outputs)


def check_tiles(config: Config, keys: Sequence[str]) -> None:
    """Check that a configuration's scenes have tiles with these keys.

    Raises:
        InputError: a tile does not exist; or as for `map_scenes`.
    """
    workspace = Workspace.of(config)
    spec = MapSpec.of(config, workspace)
    maps = each_scene(partial(SceneMap, spec, workspace), {scene.name: scene for scene in config.scenes})
    _requested(maps, keys)


def _check_drift(scene: SceneMap) -> None:
    """Compare a scene's values with the training data, as configured by `map.drift`."""
    section = scene.spec.config.map
    if section.drift == "ignore" or scene.is_training_data:
        return
    subject = f"scene {scene.name!r} differs from the model's training data: "
    drifts = measure_drift(scene.store, unmatched(scene.store, scene.spec.bundle.scaling))
    advice = matching_advice(drifts, section.drift_distance)
    far = describe_drift(drifts, section.drift_distance, length=LONGEST_WARNING - len(subject) - len(advice))
    if far is None:
        return
    text = f"{subject}{far}{advice}"
    if section.drift == "refuse":
        raise InputError(
            f"{text}. Check the units, band order and nodata of its files, or set `map.drift: warn` to map it anyway."
        )
    warn(text)


def _requested(maps: Mapping[str, SceneMap], keys: Sequence[str] | None) -> dict[str, list[Window]] | None:
    """The tiles with the given keys, by scene; None for all."""
    if keys is None:
        return None
    known = {tile.key: tile for scene in maps.values() for tile in scene.tiles}
    if len(maps) == 1:  # the scene's name may be omitted
        known |= {tile.key.partition("/")[2]: tile for scene in maps.values() for tile in scene.tiles}
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise InputError(
            f"--tiles {unknown[0]}: no such tile; tiles are named by scene and corner, for example {next(iter(known))}. "
            "`mibf status` lists the failed tiles."
        )
    found: dict[str, list[Window]] = {name: [] for name in maps}
    for key in keys:
        found[known[key].scene].append(known[key].window)
    return found
