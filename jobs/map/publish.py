"""Publish a scene's finished map with the provenance that only the run knows."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from jobs.config.config import Config
from jobs.config.resolve import scene_urls
from jobs.map.scene_map import VERSIONS, SceneMap
from jobs.runtime.progress import progress_bar
from jobs.workflow.found_items import found_items
from mibf import __version__
from mibf.bundle.bundle import MODEL
from mibf.errors import InputError
from pipeline.io import checksums, model_bundle, storage
from pipeline.io.lease import Lease
from pipeline.io.sidecars import Listings
from pipeline.maps.map_store import MapStore
from pipeline.publishing import cog
from pipeline.publishing.publish_map import file_count, publish_map
from pipeline.publishing.stac_item import Asset, ModelLink, map_item


def publish_scene(scene: SceneMap, work: MapStore, run: str, fingerprint: str, lease: Lease) -> None:
    """Publish a scene's map, its item last; then remove the map store.

    Raises:
        Exception: as for `pipeline.publishing.publish_map`.
    """
    config, spec = scene.spec.config, scene.spec
    block = cog.block_side(config.map.block, scene.tile_size)
    tags = {"mibf_version": __version__, "mibf_run": config.run, "mibf_model": spec.digest}
    files = file_count(spec.products, scene.store.shape, block)
    with progress_bar(f"{scene.name}: publish", files, unit="files") as advance:
        publish_map(
            work,
            store=scene.store,
            products=spec.products,
            folder=scene.folder,
            classes=spec.bundle.classes,
            tags=tags | {"mibf_priors": config.prediction.priors},
            tile_size=scene.tile_size,
            block=block,
            missing=config.map.missing,
            describe=lambda assets: _item(scene, work, assets, run, fingerprint),
            run=run,
            lease=lease,
            each=lambda _: advance(1),
        )
    scene.remove_work(lease)


def _item(scene: SceneMap, work: MapStore, assets: Sequence[Asset], run: str, fingerprint: str) -> dict[str, Any]:
    """The STAC item of a scene's map."""
    spec = scene.spec
    config, model = spec.config, model_bundle.bundle_folder(spec.model)
    facts = {
        "content": scene.published_content(),
        "tiles": len(scene.planned),
        "tile": scene.tile_size,
        "pixels": scene.pixels(),
        "temperature": None if spec.bundle.single is None else spec.bundle.single.temperature,
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
        model=ModelLink(model_bundle.bundle_file(model, MODEL), spec.digest, posixpath.basename(storage.redact_url(model))),
        inputs=_fingerprints(_inputs(config, scene.name)),
        ledger="./ledger",
        version=__version__,
        fingerprint=fingerprint,
        run=run,
        facts=facts,
        area=scene.store.outline,
    )


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
