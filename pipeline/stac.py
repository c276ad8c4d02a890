"""STAC items and item collections as sources: which files an asset's name means. pystac reads them."""

from __future__ import annotations

import json

import pystac

from mibf.errors import InputError
from pipeline import storage


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
            raise InputError(
                f"{url}: item {lacking[0].id!r} has no asset {name!r}; it has {', '.join(lacking[0].assets) or 'none'}."
            )
        found.append(tuple(_location(item, name) for item in items))
    return tuple(found)


def _items(url: str) -> list[pystac.Item]:
    try:
        content = json.loads(storage.read_bytes(url))
        kind = content.get("type") if isinstance(content, dict) else None
        if kind == "FeatureCollection":
            items = [pystac.Item.from_dict(feature) for feature in content["features"]]
        elif kind == "Feature":
            items = [pystac.Item.from_dict(content)]
        else:
            raise InputError(f"{url}: is of type {kind!r}; give a STAC item or a collection of items (FeatureCollection).")
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file; check the place in the configuration.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pystac.STACError) as error:
        raise InputError(f"{url}: cannot be read as a STAC item ({error}).") from error
    if not items:
        raise InputError(f"{url}: a collection of no items; search again, or give files with `urls`.")
    for item in items:
        if item.get_self_href() is None:
            item.set_self_href(url if not storage.is_local(url) else storage.local_path(url))
    return items


def _location(item: pystac.Item, asset: str) -> str:
    """An asset's URL; a relative one is taken from where the item is."""
    location = item.assets[asset].get_absolute_href()
    if location is None:
        raise InputError(f"item {item.id!r}: the place of asset {asset!r} cannot be told ({item.assets[asset].href}).")
    return str(location)
