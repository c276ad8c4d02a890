"""Resolve asset names of STAC items and item collections to files. pystac parses the items."""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import shorten
from urllib.parse import unquote, urlsplit

import pystac

from mibf.errors import InputError
from mibf.redaction import control_character
from pipeline.io import storage

#: Maximum bytes of an item or an item collection; enough for a few thousand items.
MAX_BYTES = 128 * 1024 * 1024
#: URL schemes of the files that an item may reference.
SCHEMES = {"http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss"}


def asset_urls(url: str, assets: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The files of each asset, one per item at the URL, in the order of the items.

    Raises:
        InputError: the URL has no STAC item or item collection, or an item lacks an asset.
    """
    items = _items(url)
    found = []
    for name in assets:
        lacking = [item for item in items if name not in item.assets]
        if lacking:
            raise InputError(f"{url}: item {lacking[0].id!r} has no asset {name!r}; it has {_list_assets(lacking[0])}.")
        found.append(tuple(_location(url, item, name) for item in items))
    return tuple(found)


def further_pages(url: str) -> str | None:
    """Describe the items that a search found beside those in a file, which holds one page of its result; None if all."""
    content = json.loads(storage.read_at_most(url, MAX_BYTES))
    if content.get("type") != "FeatureCollection":
        return None
    context = content.get("context")
    matched = content.get("numberMatched", context.get("matched") if isinstance(context, dict) else None)
    there = len(content["features"])
    links = content.get("links")
    links = links if isinstance(links, list) else []
    continued = any(isinstance(link, dict) and link.get("rel") == "next" for link in links)
    if not (matched > there if isinstance(matched, int) else continued):
        return None
    total = f"{there} of {matched} items" if isinstance(matched, int) else f"{there} items, and a link to further ones,"
    return (
        f"{storage.redact_url(url)} holds {total} of a search; the others are not read. Raise the limit of the "
        "search, or save all pages in one file"
    )


def _list_assets(item: pystac.Item) -> str:
    names = list(item.assets)
    return ", ".join(names[:50]) + (f" and {len(names) - 50} more" if len(names) > 50 else "") or "none"


def _items(url: str) -> list[pystac.Item]:
    try:
        content = json.loads(storage.read_at_most(url, MAX_BYTES))
        kind = content.get("type") if isinstance(content, dict) else None
        if kind == "FeatureCollection":
            items = [pystac.Item.from_dict(feature) for feature in content["features"]]
        elif kind == "Feature":
            items = [pystac.Item.from_dict(content)]
        else:
            raise InputError(f"{url}: has type {kind!r}; provide a STAC item or an item collection (FeatureCollection).")
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file; check the URL in the configuration.") from error
    except RecursionError as error:
        raise InputError(f"{url}: cannot be read as a STAC item (it is nested too deeply).") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pystac.STACError) as error:
        raise InputError(f"{url}: cannot be read as a STAC item ({shorten(str(error), 500)}).") from error
    if not items:
        raise InputError(f"{url}: the item collection is empty; repeat the search, or list files with `urls`.")
    for item in items:
        if item.get_self_href() is None:
            item.set_self_href(url if not storage.is_local(url) else storage.local_path(url))
    return items


def _location(url: str, item: pystac.Item, asset: str) -> str:
    """An asset's URL; a relative one is resolved against the item's location.

    Raises:
        InputError: it cannot be resolved, or is not one that an item from `url` may reference.
    """
    named = item.assets[asset].href
    try:
        location = item.assets[asset].get_absolute_href()
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"item {item.id!r}: the href of asset {asset!r} is not a URL ({named!r}).") from error
    if location is None:
        raise InputError(f"item {item.id!r}: the href of asset {asset!r} cannot be resolved ({named}).")
    found = _as_named(item, str(named), str(location))
    _check_location(url, item, asset, found)
    return found


def _as_named(item: pystac.Item, named: str, location: str) -> str:
    """The file that an href means: of that very name if there is one, else with `%20` and the like decoded.

    Hrefs are URLs, but many catalogues write paths and keys as they are. `location` is what pystac makes of the href; on a
    disk it lacks what follows `#` or `?`. On the web, percent-encoded names stay: the server decodes them.
    """
    base = str(item.get_self_href())
    if storage.is_local(location):
        folder = Path(storage.local_path(base)).parent if storage.is_local(base) else Path("/")
        written = [named, re.split("[?#]", named)[0]]  # what follows is not part of a file's name, unless it is
        written = [name if name.startswith("file:") else str(folder / name) for name in written]
        candidates = [storage.local_path(name) for text in written for name in (text, unquote(text))]
        return next(filter(_is_there, candidates), candidates[0])
    if "%" in location and not location.startswith("http") and not _is_there(location) and _is_there(unquote(location)):
        return unquote(location)
    return location


def _is_there(location: str) -> bool:
    """Whether a file exists; False if that cannot be found out, which its reader reports."""
    if "\0" in location or "::" in location.partition("://")[2]:
        return False
    try:
        return storage.exists(location)
    except Exception:  # each file system raises its own types
        return False


def _check_location(url: str, item: pystac.Item, asset: str, location: str) -> None:
    """Check that an item references only files, and that a remote item references no local ones."""
    described = f"{url}: asset {asset!r} of item {item.id!r} is at {location}"
    if control_character(location) or any(c in location for c in '\n\t"\\'):
        raise InputError(f"{described}, which is not a URL; list its files with `urls`.")
    local = storage.is_local(location)
    if local and not storage.is_local(url):
        raise InputError(
            f"{described}, a local file, which a remote item may not reference. If this is intended, save the item "
            "next to its files and give its path."
        )
    names_gdal = (storage.local_path(location) if local else location).lstrip("/").startswith("vsi")
    if names_gdal or not (local or ("::" not in location and location.partition("://")[0].lower() in SCHEMES)):
        raise InputError(
            f"{described}; items may reference files by {', '.join(sorted(SCHEMES))} and paths. List its files with `urls`."
        )
    if not local and ".." in unquote(urlsplit(location).path).split("/"):
        raise InputError(f"{described}, which leads outside its server's folders; list its files with `urls`.")
