"""The STAC catalog of a workspace: one collection for each run, with the items of its published maps.

    catalog.json                   links the collections
    collections/RUN.json           extent of the run's maps; links their items
    maps/SCENE/RUN/item.json

All links are relative, so that the catalog can be read on a disk, in an object store and on a web server alike. It is
derived from the items that there are, never from what it said before: no map is lost, whichever run wrote it last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime as Instant
from typing import Any, TypeVar

import pystac
from pystac.utils import str_to_datetime

from pipeline.io import storage
from pipeline.io.lease import Lease
from pipeline.io.retry import call_with_retry
from pipeline.publishing.footprint import union_of_bounds
from pipeline.publishing.published_map import ITEM
from pipeline.publishing.stac_fields.rights import Rights, joint_license, joint_providers
from pipeline.publishing.stac_item import CatalogEntry

CATALOG, COLLECTIONS, MAPS = "catalog.json", "collections", "maps"
#: Maximum number of maps whose bounds a collection lists one by one.
LISTED_BOUNDS = 100
#: Items that are read at once; and how often a catalog is written again because a map was published meanwhile.
PARALLEL_READS, ATTEMPTS = 16, 5
_EVERYWHERE = [-180.0, -90.0, 180.0, 90.0]

Result = TypeVar("Result")
#: Items of published maps by run and scene.
Items = Mapping[str, Mapping[str, Mapping[str, Any]]]


def catalog_entry(name: str, scene: str, run: str) -> CatalogEntry:
    """The place of a scene's item in the catalog: in the collection of the run of a configuration with this name."""
    return CatalogEntry(
        title=f"{scene}, run {run}",
        collection=f"{name}-{run}",
        collection_href=f"../../../{COLLECTIONS}/{run}.json",
        root_href=f"../../../{CATALOG}",
    )


def href_from_item(workspace: str, url: str) -> str:
    """The location of a file for the item of a map: relative if it is in the same workspace, so that both can be moved."""
    folder = workspace.rstrip("/") + "/"
    return f"../../../{url.removeprefix(folder)}" if url.startswith(folder) else url


def update_catalog(workspace: str, lease: Lease) -> None:
    """Write the catalog of the maps that are published in a workspace (URL); files that are up to date are left as they are.

    Maps may be published by other runs at the same time: the catalog is written until it has all that there are.

    Raises:
        LeaseLostError: the workspace lease was lost.
        StorageUnavailableError: the object store does not respond.
    """
    items = _read_items(workspace)
    if not items and not storage.exists(storage.join(workspace, CATALOG)):
        return
    for _ in range(ATTEMPTS):
        if not _write(workspace, items, lease):
            return
        items = _read_items(workspace)


def catalog_files(workspace: str, items: Items) -> dict[str, dict[str, Any]]:
    """The files of a catalog by path below the workspace, in the order in which to write them."""
    name = storage.redact_url(workspace).rstrip("/").rpartition("/")[2] or "workspace"
    catalog = pystac.Catalog(id=name, title=f"Maps of {name}", description="Land-cover maps, one collection for each run.")
    catalog.links = [_link("root", f"./{CATALOG}", title=catalog.title)]
    files = {}
    for run in sorted(items):
        path = f"{COLLECTIONS}/{run}.json"
        files[path] = _collection(run, items[run], title=catalog.title)
        catalog.links.append(_link("child", f"./{path}", title=files[path]["title"]))
    return files | {CATALOG: catalog.to_dict(include_self_link=False, transform_hrefs=False)}


def _collection(run: str, items: Mapping[str, Mapping[str, Any]], *, title: str | None) -> dict[str, Any]:
    """The collection of a run's maps, by scene."""
    found = [items[scene] for scene in sorted(items)]
    rights = [Rights.of(item) for item in found]
    known = next((str(item["collection"]) for item in found if item.get("collection")), run)
    collection = pystac.Collection(
        id=known,
        title=f"Maps of run {run}",
        description=f"Land-cover maps made by run {run}: class of each pixel, and how certain it is.",
        extent=pystac.Extent(_spatial_extent(found), pystac.TemporalExtent([list(_interval(found))])),
        license=joint_license(rights),
        providers=[pystac.Provider.from_dict(provider) for provider in joint_providers(rights)] or None,
        keywords=["land cover", "classification"],
    )
    collection.links = [_link(rel, f"../{CATALOG}", title=title) for rel in ("root", "parent")]
    texts = {link.href: link for each in rights for link in each.links}
    collection.links += [texts[url] for url in sorted(texts)]
    collection.links += [
        _link("item", f"../{MAPS}/{scene}/{run}/{ITEM}", media_type=pystac.MediaType.GEOJSON, title=scene)
        for scene in sorted(items)
    ]
    return collection.to_dict(include_self_link=False, transform_hrefs=False)


def _link(rel: str, href: str, *, media_type: str = pystac.MediaType.JSON, title: str | None = None) -> pystac.Link:
    return pystac.Link(rel, href, media_type, title=title)


def _spatial_extent(items: Sequence[Mapping[str, Any]]) -> pystac.SpatialExtent:
    """The bounds of all maps, and of each if they are few. STAC has no word for nowhere: maps without a CRS are anywhere."""
    bounds = [item["bbox"] for item in items if item.get("bbox")]
    if not bounds:
        return pystac.SpatialExtent([_EVERYWHERE])
    each = sorted(bounds) if 1 < len(bounds) <= LISTED_BOUNDS else []
    return pystac.SpatialExtent([union_of_bounds(bounds), *each])


def _interval(items: Sequence[Mapping[str, Any]]) -> tuple[Instant, Instant]:
    """First and last acquisition time of the maps."""
    times = [
        str_to_datetime(item["properties"][name])
        for item in items
        for name in ("datetime", "start_datetime", "end_datetime")
        if item["properties"].get(name)
    ]
    return min(times), max(times)


def _read_items(workspace: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The items of all published maps of a workspace, by run and scene."""
    maps = storage.join(workspace, MAPS)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:

        def runs(scene: str) -> list[str]:
            return _retried(storage.join(maps, scene), storage.folders)

        scenes = _retried(maps, storage.folders)
        places = [(run, scene) for scene, found in zip(scenes, pool.map(runs, scenes), strict=True) for run in found]
        urls = [storage.join(maps, scene, run, ITEM) for run, scene in places]
        items: dict[str, dict[str, dict[str, Any]]] = {}
        for (run, scene), item in zip(places, pool.map(_read_item, urls), strict=True):
            if item is not None:
                items.setdefault(run, {})[scene] = item
    return items


def _read_item(url: str) -> dict[str, Any] | None:
    """The item at a URL; None if no map is published there, or the file is not an item, which `mibf verify` reports."""
    try:
        item = json.loads(_retried(url, storage.read_bytes))
        _interval([item])
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return item if item.get("type") == "Feature" else None


def _retried(url: str, read: Callable[[str], Result]) -> Result:
    return call_with_retry(url, lambda: read(url))


def _write(workspace: str, items: Items, lease: Lease) -> bool:
    """Write the files that differ from those that there are, the catalog last, and remove the collections of other runs.

    Returns:
        Whether anything had to be changed.
    """
    files, changed = catalog_files(workspace, items), False
    for path, content in files.items():
        url = storage.join(workspace, *path.split("/"))
        if _read_json(url) != content:
            lease.check()
            changed = True
            call_with_retry(url, lambda url=url, content=content: storage.write_json(url, content))  # type: ignore[misc]  # bound now
    folder = storage.join(workspace, COLLECTIONS)
    for name in _retried(folder, storage.names):
        if f"{COLLECTIONS}/{name}" not in files and name.endswith(".json"):
            lease.check()
            changed = True
            storage.remove(storage.join(folder, name))
    return changed


def _read_json(url: str) -> Any:
    try:
        return _retried(url, storage.read_json)
    except (FileNotFoundError, ValueError):
        return None
