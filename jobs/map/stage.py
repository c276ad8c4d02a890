"""`mibf map`: map whole scenes tile by tile into cloud-optimised GeoTIFFs, and record failures for a rerun.

Only the driver writes the ledger. A tile that raises is retried, then recorded with its cause while the rest continue; a
tile whose worker dies is recorded too. A scene is published when all its tiles are done under the current fingerprints.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

from jobs.config.config import Config
from jobs.config.map import MapSection
from jobs.map.attempt import Attempt, MapTimings
from jobs.map.publish import publish_scene
from jobs.map.request import TileRequest
from jobs.map.scene_map import SceneMap
from jobs.map.spec import MapSpec
from jobs.map.summary import REMEDY, incomplete_lines, published_line, timing_lines
from jobs.runtime.progress import info, pluralize, warn
from jobs.runtime.worker_resources import own_device
from jobs.workflow.errors import TilesFailedError
from jobs.workflow.manifest import StageResult
from jobs.workflow.runner import invalidate
from jobs.workflow.saved_config import save_map_config
from jobs.workflow.workspace import Workspace
from mibf.device import check_precision
from mibf.errors import InputError
from pipeline.grid import Tile, Window
from pipeline.io.lease import Lease
from pipeline.maps.drift import describe_drift, matching_advice, measure_drift, unmatched
from pipeline.maps.map_store import MapStore
from pipeline.maps.tile_mapper import MapJob, Predictor

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
) -> StageResult:
    """Map the selected tiles of every scene of a configuration, and publish the scenes that are complete.

    `predictor` is as for `MapJob`.

    Raises:
        InputError: a scene and the model do not match, or another model's map would be replaced.
        TilesFailedError: tiles failed or were not requested; scenes without such tiles are published.
    """
    request = request or TileRequest()
    spec = MapSpec.of(config, workspace, predictor=predictor)
    maps = {scene.name: SceneMap(spec, workspace, scene) for scene in config.scenes}
    only = _check(maps, request)
    lease.check()
    save_map_config(config, workspace)
    run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
    timings = MapTimings()
    with ExitStack() as ledgers:
        for scene in maps.values():
            ledgers.enter_context(scene.ledger.writing(lease))
            scene.finish_publication(lease)
            scene.record_pending(run, restart=request.restart)
            scene.record_empty(run)
        if any(not scene.is_published() or scene.select(request, only).tiles for scene in maps.values()):
            invalidate(workspace, "map", lease)
        map_stores = _open_map_stores(maps, run, lease)
        # Selected only now: tiles of an earlier map that could not be restored must be mapped too.
        selected = [Tile(name, window) for name, scene in maps.items() for window in scene.select(request, only).tiles]
        _map_with_retries(Attempt(spec, maps, run, lease, timings), maps, selected, config.map)
        complete = []
        for name, scene in maps.items():
            scene.ledger.flush()
            work = map_stores.get(name)
            if any(state != "done" for state in scene.states().values()):
                continue
            clock = time.monotonic()
            if work is None or publish_scene(scene, work, run, fingerprint, lease):
                complete.append(scene)
            timings.publish += time.monotonic() - clock
    return _result(config, maps, complete, request, timings, published=len(map_stores))


def _check(maps: Mapping[str, SceneMap], request: TileRequest) -> dict[str, list[Window]] | None:
    """Refuse what cannot be mapped before anything is written; return the requested tiles by scene, None for all."""
    config = next(iter(maps.values())).spec.config
    if config.map.workers == 0:
        check_precision(own_device(config.resources), config.map.precision, key="map.precision")
    for scene in maps.values():
        scene.check_replaced(request)
        _check_drift(scene)
    only = _requested(maps, request.tiles)
    for scene in maps.values():
        _ = scene.planned  # raises if the scene cannot be planned
    return only


def _open_map_stores(maps: Mapping[str, SceneMap], run: str, lease: Lease) -> dict[str, MapStore]:
    """Open the map stores of the scenes whose map is not published as it should be."""
    map_stores = {}
    for name, scene in maps.items():
        if scene.is_published():
            scene.remove_work(lease)  # an earlier run may have ended after publishing, before removing it
        else:
            map_stores[name] = scene.open_work(run, lease)
    return map_stores


def _map_with_retries(attempt: Attempt, maps: Mapping[str, SceneMap], tiles: Sequence[Tile], section: MapSection) -> None:
    """Map tiles, and those that fail again, each in isolation, after a pause that doubles with every retry."""
    for retry in range(section.attempts):
        if not tiles:
            return
        if retry:
            pause = section.backoff * 2 ** (retry - 1)
            info(f"{pluralize(len(tiles), 'tiles')} failed; retrying" + (f" in {pause:g} s" if pause else ""))
            time.sleep(pause)
        attempt.run(tiles, isolated=retry > 0)
        tiles = [Tile(name, window) for name, scene in maps.items() for window in scene.retry_selection(tiles).tiles]


def _result(
    config: Config,
    maps: Mapping[str, SceneMap],
    complete: Sequence[SceneMap],
    request: TileRequest,
    timings: MapTimings,
    *,
    published: int,
) -> StageResult:
    """Summarize a map; raise TilesFailedError if a scene is not complete."""
    figures = timings.figures(config.map.workers)
    incomplete = [scene for scene in maps.values() if scene not in complete]
    lines = [published_line(scene) for scene in complete]
    if timings.tiles or not incomplete:
        lines += timing_lines(figures, config.map.workers, published=bool(published))
    if incomplete:
        missing = [line for scene in incomplete for line in incomplete_lines(scene, request)]
        raise TilesFailedError("\n".join([*missing, *lines, REMEDY]))
    pixels = {scene.name: scene.pixels() for scene in complete}
    summary = {
        "pixels": sum(pixels.values()),
        "tiles": sum(len(scene.tasks) for scene in maps.values()),
        "scenes": pixels,
        "priors": config.prediction.priors,
    }
    outputs = [url for scene in complete for url in scene.published_files()]
    return StageResult(summary | figures | {"scenes_published": published}, lines, outputs)


def check_tiles(config: Config, keys: Sequence[str]) -> None:
    """Check that a configuration's scenes have tiles with these keys.

    Raises:
        InputError: a tile does not exist; or as for `map_scenes`.
    """
    workspace = Workspace.of(config)
    spec = MapSpec.of(config, workspace)
    _requested({scene.name: SceneMap(spec, workspace, scene) for scene in config.scenes}, keys)


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
