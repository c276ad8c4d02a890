"""Publish a scene's finished map with the provenance that only the run knows."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from jobs.config.config import Config
from jobs.config.resolve import scene_urls
from jobs.map.scene_map import LEDGER_EVENTS, TILES_DIGEST, VERSIONS, SceneMap
from jobs.map.spec import MapSpec
from jobs.runtime.progress import progress_bar
from jobs.workflow.found_items import found_items
from jobs.workflow.workspace import Workspace
from mibf import __version__
from mibf.bundle.bundle import MODEL
from mibf.errors import InputError
from pipeline.geotiff import cog
from pipeline.io import checksums, model_bundle, storage
from pipeline.io.lease import Lease
from pipeline.io.sidecars import Listings
from pipeline.maps.map_store import MapStore
from pipeline.maps.tile_checksums import event_count
from pipeline.parallel.executor import Executor, ThreadExecutor
from pipeline.publishing.map_file import FileContent, MapFiles
from pipeline.publishing.map_part import MapSource
from pipeline.publishing.page.page_file import INDEX
from pipeline.publishing.page.tile_list import ListedTile, tile_list
from pipeline.publishing.publish_map import Publication, publish_map
from pipeline.publishing.stac_catalog import catalog_entry, href_from_item
from pipeline.publishing.stac_fields.rights import OTHER, Rights
from pipeline.publishing.stac_item import Asset, InvalidItemError, ModelLink, map_item
from pipeline.publishing.stac_item_reader import PublishedItem

#: Pixels of a map that is built faster by threads than its tasks are started elsewhere.
SMALL = 2048 * 2048


def publish_scene(scene: SceneMap, work: MapStore, run: str, fingerprint: str, lease: Lease) -> bool:
    """Publish a scene's map, its item last, then remove the map store; return whether it was published.

    It is not if pixels of tiles are damaged: they are marked as pending.

    Raises:
        Exception: as for `pipeline.publishing.publish_map`.
    """
    publication = make_publication(scene, work)
    damaged = publish_map(
        publication,
        _executor(scene),
        describe=lambda assets: make_item(scene, work, assets, run, fingerprint),
        run=run,
        lease=lease,
        progress=lambda steps: progress_bar(f"{scene.name}: publish", steps, unit="steps"),
    )
    if damaged:
        scene.requeue_damaged(damaged, run)
        return False
    scene.remove_work(lease)
    return True


def make_publication(scene: SceneMap, work: MapStore) -> Publication:
    """Describe what to publish of a scene's finished map."""
    config, spec = scene.spec.config, scene.spec
    tags = {"mibf_version": __version__, "mibf_run": config.run, "mibf_model": spec.digest}
    source = MapSource(
        store=scene.store.url,
        work=scene.work_url,
        published=scene.folder,
        staging="",
        products=spec.products,
        tile_size=scene.tile_size,
        missing=config.map.missing,
    )
    files = MapFiles(
        folder=scene.folder,
        staging="",
        grid=scene.store.grid,
        products=spec.products,
        names=tuple(tuple(work.band_names(product)) for product in spec.products),
        classes=tuple(spec.bundle.classes),
        sources=tuple(work.sources),
        tags=tags | {"mibf_priors": config.prediction.priors},
    )
    block = cog.block_side(config.map.block, scene.tile_size)
    page = tile_list(listed_tiles(scene)) if config.map.page else None
    return Publication(source, files, block, scene.source_tiles(), _published_files(scene), page)


def is_published(scene: SceneMap) -> bool:
    """Whether the published map consists of the ledger's tiles, with files, page and rights as configured."""
    item, config = scene.item() or {}, scene.spec.config
    has_page = INDEX in item.get("assets", {})
    return scene.is_published() and has_page == config.map.page and Rights.of(item) == rights(config)


def rights(config: Config) -> Rights:
    """The licence and the providers of a configuration's maps. A licence with its text alone has no identifier."""
    section = config.map
    known = section.license or (OTHER if section.license_url else None)
    providers = tuple(provider.model_dump(mode="json", exclude_defaults=True) for provider in section.providers)
    return Rights(known, section.license_url, providers)


def listed_tiles(scene: SceneMap) -> list[ListedTile]:
    """The tiles of a scene that are not done, or are done after attempts that failed."""
    last, found = scene.ledger.last(), list[ListedTile]()
    for window, state in scene.states().items():
        before = last.get(window)
        if state != "done":
            attempts, cause = (0, "") if before is None else (before.failed_attempts, before.cause)
            found.append(ListedTile(window, state, attempts, cause))
        elif before is not None and before.failed_attempts:
            found.append(ListedTile(window, "retried", before.failed_attempts, "done since; the ledger has the causes"))
    return found


def _published_files(scene: SceneMap) -> dict[str, FileContent]:
    """The files of the published map; none if its tiles are not known, or it is of an earlier version."""
    found = scene.item() or {}
    if not scene.published_checksums or LEDGER_EVENTS not in found["properties"]:
        return {}
    try:
        item = PublishedItem.of(found)
    except InvalidItemError:
        return {}
    return {file.name: FileContent(file.bytes, file.sha256, file.pixels) for file in item.files}


def _executor(scene: SceneMap) -> Executor:
    """Build large maps on the cluster's nodes, beside the workers that map other scenes; small ones on threads."""
    section = scene.spec.config.map
    if section.workers == 0 or math.prod(scene.store.shape) <= SMALL:
        return ThreadExecutor()
    from jobs.runtime import ray_cluster  # import Ray only where it is used
    from jobs.runtime.ray_executor import RayExecutor

    ray_cluster.ensure(workers=section.workers)
    return RayExecutor(beside_others=True)


def make_item(scene: SceneMap, work: MapStore, assets: Sequence[Asset], run: str, fingerprint: str) -> dict[str, Any]:
    """The STAC item of a scene's map. `work` has the versions of the libraries that made it."""
    spec = scene.spec
    config, model = spec.config, model_bundle.bundle_folder(spec.model)
    facts = {
        "content": scene.published_content(),
        TILES_DIGEST.removeprefix("mibf:"): scene.content(),
        LEDGER_EVENTS.removeprefix("mibf:"): event_count(scene.ledger),
        "tiles": len(scene.planned),
        "tile": scene.tile_size,
        "pixels": scene.pixels(),
        "temperature": None if spec.bundle.single is None else spec.bundle.single.temperature,
        **_prediction_sets(spec),
        "priors": config.prediction.priors,
        "precision": config.map.precision,
        "missing": config.map.missing,
        VERSIONS.removeprefix("mibf:"): work.group.attrs[VERSIONS],
    }
    return map_item(
        id=f"{config.name}-{scene.name}-{config.run}",
        grid=scene.store.grid,
        assets=assets,
        classes=spec.bundle.classes,
        created=datetime.now(UTC),
        datetime=scene.scene.datetime,
        model=ModelLink(
            href_from_item(Workspace.of(config).url, model_bundle.bundle_file(model, MODEL)),
            spec.digest,
            posixpath.basename(storage.redact_url(model)),
        ),
        inputs=_fingerprints(_inputs(config, scene.name)),
        ledger="./ledger",
        version=__version__,
        fingerprint=fingerprint,
        run=run,
        facts=facts,
        area=scene.store.outline,
        entry=catalog_entry(config.name, scene.name, config.run),
        rights=rights(config),
    )


def _prediction_sets(spec: MapSpec) -> dict[str, Any]:
    """What the mapped prediction sets promise, and their thresholds in the order of the classes; nothing without them."""
    if not spec.set_thresholds:
        return {}
    choice = spec.config.prediction.set_choice
    return {"prediction_sets": choice._asdict() | {"thresholds": list(spec.set_thresholds)}}


def _inputs(config: Config, name: str) -> list[str]:
    """The URLs of a scene's inputs; none if its STAC items no longer exist: the map was made from the patch store."""
    try:
        return next(scene_urls(scene) for scene in found_items(config).scenes if scene.name == name)
    except InputError:
        return []


def _fingerprints(urls: Sequence[str]) -> dict[str, str]:
    """The inputs' fingerprints; empty if a file no longer exists: the map was made from the patch store."""
    listings = Listings()
    found = dict.fromkeys(urls, "")
    for url in urls:
        with suppress(InputError):
            found[url] = checksums.input_fingerprint(url, listings)
    return found
