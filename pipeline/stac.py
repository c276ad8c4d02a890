"""STAC items and item collections as sources: which files an asset's name means. pystac reads them."""

from __future__ import annotations

import json
from textwrap import shorten
from urllib.parse import unquote, urlsplit

import pystac

from mibf.discreet import control_character
from mibf.errors import InputError
from pipeline import storage

#: Bytes of an item or a collection: some thousand items.
MOST_BYTES = 128 * 1024 * 1024
#: Schemes by which an item may name files.
SCHEMES = {"http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss"}


def asset_urls(url: str, assets: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The files of each asset, one for each item that is at a URL, in the order of the items.

    Raises:
        InputError: there is no STAC item or collection of items, or an item has not the asset.
    """
    items = _items(url)
    found = []
    for name in assets:
        lacking = [item for item in items if name not in item.assets]
        if lacking:
            raise InputError(f"{url}: item {lacking[0].id!r} has no asset {name!r}; it has {_listed(lacking[0])}.")
        found.append(tuple(_location(url, item, name) for item in items))
    return tuple(found)


def _listed(item: pystac.Item) -> str:
    names = list(item.assets)
    return ", ".join(names[:50]) + (f" and {len(names) - 50} more" if len(names) > 50 else "") or "none"


def _items(url: str) -> list[pystac.Item]:
    try:
        content = json.loads(storage.read_at_most(url, MOST_BYTES))
        kind = content.get("type") if isinstance(content, dict) else None
        if kind == "FeatureCollection":
            items = [pystac.Item.from_dict(feature) for feature in content["features"]]
        elif kind == "Feature":
            items = [pystac.Item.from_dict(content)]
        else:
            raise InputError(f"{url}: is of type {kind!r}; give a STAC item or a collection of items (FeatureCollection).")
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file; check the place in the configuration.") from error
    except RecursionError as error:
        raise InputError(f"{url}: cannot be read as a STAC item (it is nested without end).") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pystac.STACError) as error:
        raise InputError(f"{url}: cannot be read as a STAC item ({shorten(str(error), 500)}).") from error
    if not items:
        raise InputError(f"{url}: a collection of no items; search again, or give files with `urls`.")
    for item in items:
        if item.get_self_href() is None:
            item.set_self_href(url if not storage.is_local(url) else storage.local_path(url))
    return items


def _location(url: str, item: pystac.Item, asset: str) -> str:
    """An asset's URL; a relative one is taken from where the item is.

    Raises:
        InputError: it cannot be told, or is none that an item from `url` may name.
    """
    named = item.assets[asset].href
    try:
        location = item.assets[asset].get_absolute_href()
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"item {item.id!r}: the place of asset {asset!r} is no URL ({named!r}).") from error
    if location is None:
        raise InputError(f"item {item.id!r}: the place of asset {asset!r} cannot be told ({named}).")
    _check_place(url, item, asset, str(location))
    return str(location)


def _check_place(url: str, item: pystac.Item, asset: str, location: str) -> None:
    """See that an item names no place but files: one that came from elsewhere none of this machine's."""
    told = f"{url}: asset {asset!r} of item {item.id!r} is at {location}"
    if control_character(location) or any(c in location for c in '\n\t"\\'):
        raise InputError(f"{told}, which is no URL; give its files with `urls`.")
    local = storage.is_local(location)
    if local and not storage.is_local(url):
        raise InputError(
            f"{told}, a file of this machine, which an item from elsewhere may not name. If it is meant, save the item "
            "beside its files and give its path."
        )
    names_gdal = storage.local_path(location).startswith("/vsi") if local else location.lstrip("/").startswith("vsi")
    if names_gdal or "::" in location or not (local or location.partition("://")[0].lower() in SCHEMES):
        raise InputError(
            f"{told}; items may name files by {', '.join(sorted(SCHEMES))} and paths. Give its files with `urls`."
        )
    if not local and ".." in unquote(urlsplit(location).path).split("/"):
        raise InputError(f"{told}, which leads out of its server's folders; give its files with `urls`.")
