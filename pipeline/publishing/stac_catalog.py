"""The STAC catalog of a workspace: one collection for each run, with the items of its published maps.

    catalog.json                   links the collections
    collections/RUN.json           extent of the run's maps; links their items
    maps/SCENE/RUN/item.json

All links are relative, so that the catalog can be read on a disk, in an object store and on a web server alike.

An update costs as many requests as maps were published, however many others there are. The link of an item has what its
collection needs to know of it (`LinkedMap`), and the collections that there are, not the catalog, say which runs there are:
no run is lost, whichever wrote the catalog last. The lease keeps others from writing the collection of the same run. That
maps were deleted is noticed by looking for some of those that are linked; then, and where there is no catalog or its links
are of an earlier version, all items are read.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pystac
from pystac.utils import datetime_to_str, str_to_datetime

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
#: Linked maps of a collection that an update looks for; of fewer, it looks for all.
LOOKED_FOR = 16
_EVERYWHERE = [-180.0, -90.0, 180.0, 90.0]
_MAPS_OF = "Maps of "

Result = TypeVar("Result")


@dataclass(frozen=True)
class LinkedMap:
    """What a collection needs to know of a map, as fields of the link to its item."""

    bbox: tuple[float, ...] | None
    times: tuple[str, str]  #: of the first and the last acquisition
    collection: str | None  #: id of the collection; items of earlier versions have none
    rights: Rights

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> LinkedMap:
        """The map that an item describes."""
        properties = item["properties"]
        given = [properties.get(name) for name in ("datetime", "start_datetime", "end_datetime")]
        times = sorted(str_to_datetime(time) for time in given if time)
        bbox = tuple(item["bbox"]) if item.get("bbox") else None
        return cls(bbox, (datetime_to_str(times[0]), datetime_to_str(times[-1])), item.get("collection"), Rights.of(item))

    @classmethod
    def of_link(cls, link: Mapping[str, Any]) -> LinkedMap:
        """The map that a link describes; KeyError if it is of an earlier version."""
        bbox, (start, end) = link["mibf:bbox"], link["mibf:times"]
        rights = Rights(link.get("mibf:license"), link.get("mibf:license_url"), tuple(link.get("mibf:providers", ())))
        return cls(None if bbox is None else tuple(bbox), (start, end), link.get("mibf:collection"), rights)

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of the link."""
        known = {"collection": self.collection, "license": self.rights.license, "license_url": self.rights.license_url}
        if self.rights.providers:
            known["providers"] = [dict(provider) for provider in self.rights.providers]  # type: ignore[assignment]  # JSON
        bbox = None if self.bbox is None else list(self.bbox)
        found = {name: value for name, value in known.items() if value is not None}
        return {"mibf:bbox": bbox, "mibf:times": list(self.times)} | {f"mibf:{name}": value for name, value in found.items()}


#: The maps of a run by scene, and those of all runs.
Maps = Mapping[str, LinkedMap]
MapsByRun = Mapping[str, Maps]


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


def update_catalog(workspace: str, lease: Lease, published: Collection[tuple[str, str]] | None = None) -> None:
    """Write the catalog of the maps that are published in a workspace (URL); files that are up to date are left as they are.

    Args:
        workspace: its URL.
        lease: checked before each write.
        published: scene and run of the maps that were published or removed; None: any.

    Raises:
        LeaseLostError: the workspace lease was lost.
        StorageUnavailableError: the object store does not respond.
    """
    if published is None or not _update(workspace, lease, published):
        _rebuild(workspace, lease)


def _update(workspace: str, lease: Lease, published: Collection[tuple[str, str]]) -> bool:
    """Update the collections of the maps that were published; return False if the catalog must be made again."""
    if not _retried(storage.join(workspace, CATALOG), storage.exists):
        return False
    runs = _runs(workspace)
    changed = {run: {scene for scene, of in published if of == run} for run in sorted({run for _, run in published})}
    others = sorted(runs - changed.keys())
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        for run in [*changed, *random.sample(others, min(1, len(others)))]:
            known = _linked(workspace, run) if run in runs else {}
            if known is None:
                return False
            scenes = sorted(changed.get(run, ()))
            rest = sorted(known.keys() - set(scenes))
            looked_for = [_item_url(workspace, run, scene) for scene in random.sample(rest, min(LOOKED_FOR, len(rest)))]
            if not all(pool.map(lambda url: _retried(url, storage.exists), looked_for)):
                return False
            found = pool.map(_read_item, [_item_url(workspace, run, scene) for scene in scenes])
            maps = {scene: known[scene] for scene in rest}
            maps |= {scene: LinkedMap.of(item) for scene, item in zip(scenes, found, strict=True) if item is not None}
            if scenes:
                _write_collection(workspace, run, maps, lease)
    _write_catalog(workspace, lease)
    return True


def _rebuild(workspace: str, lease: Lease) -> None:
    """Make the catalog from the items that there are, until it has all that were published meanwhile."""
    for _ in range(ATTEMPTS):
        found = _read_items(workspace)
        changed = [_write_collection(workspace, run, maps, lease) for run, maps in sorted(found.items())]
        changed += [_write_collection(workspace, run, {}, lease) for run in sorted(_runs(workspace) - found.keys())]
        if not any([*changed, _write_catalog(workspace, lease)]):
            return


def _item_url(workspace: str, run: str, scene: str) -> str:
    return storage.join(workspace, MAPS, scene, run, ITEM)


def _runs(workspace: str) -> set[str]:
    """The runs that have a collection."""
    names = _retried(storage.join(workspace, COLLECTIONS), storage.names)
    return {name.removesuffix(".json") for name in names if name.endswith(".json")}


def _linked(workspace: str, run: str) -> dict[str, LinkedMap] | None:
    """The maps that a collection links, by scene; None if that cannot be read from it."""
    collection = _read_json(storage.join(workspace, COLLECTIONS, f"{run}.json"))
    try:
        links = [link for link in collection["links"] if link["rel"] == "item"]
        return {link["title"]: LinkedMap.of_link(link) for link in links}
    except (KeyError, TypeError, ValueError):
        return None


def _collection(run: str, maps: Maps, *, title: str | None) -> dict[str, Any]:
    """The collection of a run's maps."""
    found = [maps[scene] for scene in sorted(maps)]
    rights = [each.rights for each in found]
    known = next((each.collection for each in found if each.collection), run)
    times = [str_to_datetime(time) for each in found for time in each.times]
    collection = pystac.Collection(
        id=known,
        title=f"Maps of run {run}",
        description=f"Land-cover maps made by run {run}: class of each pixel, and how certain it is.",
        extent=pystac.Extent(_spatial_extent(found), pystac.TemporalExtent([[min(times), max(times)]])),
        license=joint_license(rights),
        providers=[pystac.Provider.from_dict(provider) for provider in joint_providers(rights)] or None,
        keywords=["land cover", "classification"],
    )
    collection.links = [_link(rel, f"../{CATALOG}", title=title) for rel in ("root", "parent")]
    texts = {link.href: link for each in rights for link in each.links}
    collection.links += [texts[url] for url in sorted(texts)]
    for scene in sorted(maps):
        link = _link("item", f"../{MAPS}/{scene}/{run}/{ITEM}", media_type=pystac.MediaType.GEOJSON, title=scene)
        link.extra_fields = maps[scene].fields
        collection.links.append(link)
    return collection.to_dict(include_self_link=False, transform_hrefs=False)


def _link(rel: str, href: str, *, media_type: str = pystac.MediaType.JSON, title: str | None = None) -> pystac.Link:
    return pystac.Link(rel, href, media_type, title=title)


def _spatial_extent(maps: Iterable[LinkedMap]) -> pystac.SpatialExtent:
    """The bounds of all maps, and of each if they are few. STAC has no word for nowhere: maps without a CRS are anywhere."""
    bounds = [list(each.bbox) for each in maps if each.bbox is not None]
    if not bounds:
        return pystac.SpatialExtent([_EVERYWHERE])
    each = sorted(bounds) if 1 < len(bounds) <= LISTED_BOUNDS else []
    return pystac.SpatialExtent([union_of_bounds(bounds), *each])


def _read_items(workspace: str) -> dict[str, dict[str, LinkedMap]]:
    """All published maps of a workspace, by run and scene."""
    maps = storage.join(workspace, MAPS)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:

        def runs(scene: str) -> list[str]:
            return _retried(storage.join(maps, scene), storage.folders)

        scenes = _retried(maps, storage.folders)
        places = [(run, scene) for scene, found in zip(scenes, pool.map(runs, scenes), strict=True) for run in found]
        urls = [_item_url(workspace, run, scene) for run, scene in places]
        items: dict[str, dict[str, LinkedMap]] = {}
        for (run, scene), item in zip(places, pool.map(_read_item, urls), strict=True):
            if item is not None:
                items.setdefault(run, {})[scene] = LinkedMap.of(item)
    return items


def _read_item(url: str) -> dict[str, Any] | None:
    """The item at a URL; None if no map is published there, or the file is not an item, which `mibf verify` reports."""
    try:
        item = json.loads(_retried(url, storage.read_bytes))
        LinkedMap.of(item)
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return item if item.get("type") == "Feature" else None


def _retried(url: str, read: Callable[[str], Result]) -> Result:
    return call_with_retry(url, lambda: read(url))


def _write_collection(workspace: str, run: str, maps: Maps, lease: Lease) -> bool:
    """Write the collection of a run, or remove it if the run has no maps; return whether anything had to be changed."""
    url = storage.join(workspace, COLLECTIONS, f"{run}.json")
    if maps:
        return _write(url, _collection(run, maps, title=_title(workspace)), lease)
    if not _retried(url, storage.exists):
        return False
    lease.check()
    storage.remove(url)
    return True


def _write_catalog(workspace: str, lease: Lease) -> bool:
    """Write the catalog of the collections that there are; return whether anything had to be changed."""
    url, changed = storage.join(workspace, CATALOG), False
    for _ in range(ATTEMPTS):  # until no other run has added its collection meanwhile
        runs = sorted(_runs(workspace))
        if not runs and not _retried(url, storage.exists):
            return changed
        title = _title(workspace)
        name = title.removeprefix(_MAPS_OF)
        catalog = pystac.Catalog(id=name, title=title, description="Land-cover maps, one collection for each run.")
        catalog.links = [_link("root", f"./{CATALOG}", title=title)]
        catalog.links += [_link("child", f"./{COLLECTIONS}/{run}.json", title=f"Maps of run {run}") for run in runs]
        if not _write(url, catalog.to_dict(include_self_link=False, transform_hrefs=False), lease):
            return changed
        changed = True
    return changed


def _title(workspace: str) -> str:
    return _MAPS_OF + (storage.redact_url(workspace).rstrip("/").rpartition("/")[2] or "workspace")


def _write(url: str, content: Mapping[str, Any], lease: Lease) -> bool:
    """Write a file unless it is up to date; return whether it had to be written."""
    if _read_json(url) == content:
        return False
    lease.check()
    call_with_retry(url, lambda: storage.write_json(url, content))
    return True


def _read_json(url: str) -> Any:
    try:
        return _retried(url, storage.read_json)
    except (FileNotFoundError, ValueError):
        return None
