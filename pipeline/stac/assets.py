"""Resolve assets of STAC items and item collections to files. pystac parses the items.

An asset is named by its key, or by the name or common name of a band (`red`, `B04`), for which the asset with that band is
found in each item.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, timedelta
from pathlib import Path
from textwrap import shorten
from urllib.parse import unquote, urlsplit

import pystac
import pystac.utils

from mibf.errors import InputError
from mibf.redaction import control_character
from pipeline.io import storage
from pipeline.rasters.header import StatedBand
from pipeline.stac.geoparquet import is_geoparquet, read_table
from pipeline.stac.statements import band_fields, is_picture, stated_bands, stated_crs

#: Maximum bytes of an item or an item collection; enough for a few thousand items.
MAX_BYTES = 128 * 1024 * 1024
#: URL schemes of the files that an item may reference.
SCHEMES = {"http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss"}


@dataclass(frozen=True)
class AssetFile:
    """The file of an asset, and what its item states about it."""

    item: str  #: its id
    url: str
    band: int | None  #: that a band's name chose, numbered from 1; None: all
    stated: tuple[StatedBand, ...]  #: of all bands of the file, or of each
    crs: str | None
    date: str  #: of its item: year, month and day by the sun

    def scalings(self, bands: tuple[int, ...] | None) -> list[tuple[float, float] | None]:
        """Return the scale and offset of each band that is read, or one for all; None where none are stated.

        Args:
            bands: numbers of the bands that are read, if no name chose one; None: all.
        """
        read, chosen = self.stated, bands if self.band is None else (self.band,)
        if chosen is not None and len(read) > 1:
            read = tuple(read[number - 1] for number in chosen if number <= len(read))
        return [None if b.gain is None or b.offset is None else (b.gain, b.offset) for b in read]


class LackingError(InputError):
    """An item has no such asset."""


@dataclass(frozen=True)
class Skipped:
    """An item that is left out of a series."""

    date: str  #: as in `AssetFile`
    cause: str  #: with the item's name, if it is known

    def __str__(self) -> str:
        return self.cause


def asset_files(url: str, assets: tuple[str, ...], *, alternate: str | None = None) -> tuple[tuple[AssetFile, ...], ...]:
    """Return the files of each asset, one per item at the URL, in the order of the items.

    Args:
        url: of an item or an item collection.
        assets: keys of assets, or names of bands.
        alternate: name of the location to use where an asset has several (STAC's extension for alternate assets).

    Raises:
        InputError: the URL has no STAC item or item collection, or an item lacks an asset or states no usable values.
    """
    return series_files(url, assets, alternate=alternate, skip=False)[0]


def series_files(
    url: str, assets: tuple[str, ...], *, alternate: str | None, skip: bool
) -> tuple[tuple[tuple[AssetFile, ...], ...], tuple[Skipped, ...]]:
    """Return as `asset_files`; with `skip` of the items that have all assets, if there are some, and the other items.

    Raises:
        InputError: as `asset_files`.
    """
    items = read_items(url)
    longitude = _longitude(items)
    rows, lacking = list[tuple[AssetFile, ...]](), list[Skipped]()
    first: LackingError | None = None
    for item in items:
        try:
            rows.append(tuple(_asset_file(url, item, name, alternate, longitude) for name in assets))
        except LackingError as error:
            if not skip:
                raise
            first = first or error
            day = solar_date(item, longitude)
            lacking.append(Skipped(day, f"an item of {day}: {str(error).removeprefix(f'{url}: ')}"))
    if first is not None and not rows:
        raise first
    return tuple(zip(*rows, strict=True)), tuple(lacking)


def _asset_file(url: str, item: pystac.Item, name: str, alternate: str | None, longitude: float) -> AssetFile:
    key, band = find_asset(url, item, name)
    try:
        stated, crs, day = stated_bands(item, key), stated_crs(item, key), solar_date(item, longitude)
    except InputError as error:
        raise InputError(f"{url}: {error}") from None
    return AssetFile(item.id, _location(url, item, key, alternate), band, stated, crs, day)


def center_longitude(item: pystac.Item) -> float | None:
    """Return the longitude of the center of an item's box, -180 to 180; None if it has no usable one."""
    box = item.bbox
    if not isinstance(box, list | tuple) or len(box) not in (4, 6):
        return None
    west, east = box[0], box[len(box) // 2]
    if not all(isinstance(value, int | float) and abs(value) <= 360 for value in (west, east)):
        return None
    return (west + (east - west if east >= west else east + 360 - west) / 2 + 180) % 360 - 180


def _longitude(items: Sequence[pystac.Item]) -> float:
    """The longitude by which the days of items are determined: that of the first with a box."""
    return next((found for found in map(center_longitude, items) if found is not None), 0.0)


def solar_dates(url: str, items: Sequence[pystac.Item]) -> list[str]:
    """Return the day of each item of a URL, as in `AssetFile`.

    Raises:
        InputError: an item has no usable time.
    """
    longitude = _longitude(items)
    try:
        return [solar_date(item, longitude) for item in items]
    except InputError as error:
        raise InputError(f"{url}: {error}") from None


def solar_date(item: pystac.Item, longitude: float) -> str:
    """Return the day of an item by the sun at a longitude, such as that of a scene: its images of one day have one date.

    Times without a zone are in UTC; of an interval it is the day on which it starts.

    Raises:
        InputError: the item has no usable time.
    """
    try:
        moment = item.datetime or pystac.utils.str_to_datetime(item.properties["start_datetime"])
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        return (moment + timedelta(hours=longitude / 15)).date().isoformat()
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(f"item {item.id!r} has no usable time ({error}); correct its `datetime`.") from error


def find_asset(url: str, item: pystac.Item, name: str) -> tuple[str, int | None]:
    """Return the key of an asset, and the number of the band that a name chooses; None if the key is the name.

    Of several assets with the band, the one with the smallest pixels is taken, for some catalogues offer copies; of those
    the one with the fewest bands.

    Raises:
        LackingError: the item has no such asset.
        InputError: it has several that do not differ in this.
    """
    if name in item.assets:
        return name, None
    found = [
        (_pixel_size(item, key), len(bands), key, position + 1 if len(bands) > 1 else None)
        for key in item.assets
        if not is_picture(item, key)
        for bands in [band_fields(item, key)]
        for position, band in enumerate(bands)
        if name in band.names
    ]
    if not found:
        raise LackingError(
            f"{url}: item {item.id!r} has no asset {name!r}, and no band of this name; it has {_list_assets(item)}."
        )
    found.sort(key=lambda each: each[:2])
    best = [each for each in found if each[:2] == found[0][:2]]
    if len(best) > 1:
        keys = list(dict.fromkeys(each[2] for each in best))
        if len(keys) == 1:
            raise InputError(
                f"{url}: item {item.id!r}: asset {keys[0]!r} has several bands {name!r}; choose one with `bands`."
            )
        raise InputError(
            f"{url}: item {item.id!r} has several assets with a band {name!r}: {', '.join(keys)}; give the key of one of "
            "them."
        )
    return best[0][2], best[0][3]


def _pixel_size(item: pystac.Item, key: str) -> float:
    """The side of an asset's pixels in the units that the item uses; infinite if it states none."""
    own = item.assets[key].extra_fields
    for name in ("raster:spatial_resolution", "spatial_resolution", "gsd"):
        size = own.get(name)
        if isinstance(size, int | float):
            return float(size)
    bands, transform = own.get("raster:bands"), own.get("proj:transform")
    if isinstance(bands, list) and bands and isinstance(bands[0], dict):
        size = bands[0].get("spatial_resolution")
        if isinstance(size, int | float):
            return float(size)
    if isinstance(transform, list) and transform and isinstance(transform[0], int | float):
        return abs(float(transform[0]))
    return math.inf


def further_pages(url: str) -> str | None:
    """Describe the items that a search found beside those in a file, which holds one page of its result; None if all."""
    if is_geoparquet(url):
        return None
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


def read_items(url: str) -> list[pystac.Item]:
    """Read an item, an item collection, or a GeoParquet file of items; each item knows where it is.

    Raises:
        InputError: it is none of these, or has no item.
    """
    try:
        items = _items_of_table(url) if is_geoparquet(url) else _items_of_json(url)
    except FileNotFoundError as error:
        raise InputError(f"{url}: no such file; check the URL.") from error
    except RecursionError as error:
        raise InputError(f"{url}: cannot be read as a STAC item (it is nested too deeply).") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pystac.STACError, pystac.STACTypeError) as error:
        raise InputError(f"{url}: cannot be read as a STAC item ({shorten(str(error), 500)}).") from error
    if not items:
        raise InputError(f"{url}: the item collection is empty; repeat the search, or list files with `urls`.")
    for item in items:
        if item.get_self_href() is None:
            item.set_self_href(url if not storage.is_local(url) else storage.local_path(url))
    return items


def _items_of_table(url: str) -> list[pystac.Item]:
    return [pystac.Item.from_dict(item) for item in read_table(url)]


def _items_of_json(url: str) -> list[pystac.Item]:
    content = json.loads(storage.read_at_most(url, MAX_BYTES))
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "FeatureCollection":
        return [pystac.Item.from_dict(feature) for feature in content["features"]]
    if kind == "Feature":
        return [pystac.Item.from_dict(content)]
    raise InputError(f"{url}: has type {kind!r}; provide a STAC item or an item collection (FeatureCollection).")


def _location(url: str, item: pystac.Item, asset: str, alternate: str | None) -> str:
    """An asset's URL; a relative one is resolved against the item's location.

    Raises:
        InputError: it cannot be resolved, or is not one that an item from `url` may reference.
    """
    chosen = item.assets[asset]
    if alternate is not None:
        chosen = pystac.Asset(_alternate(url, item, asset, alternate))
        chosen.set_owner(item)
    named = chosen.href
    try:
        location = chosen.get_absolute_href()
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"item {item.id!r}: the href of asset {asset!r} is not a URL ({named!r}).") from error
    if location is None:
        raise InputError(f"item {item.id!r}: the href of asset {asset!r} cannot be resolved ({named}).")
    found = _as_named(item, str(named), str(location))
    _check_location(url, item, asset, found)
    return found


def _alternate(url: str, item: pystac.Item, asset: str, alternate: str) -> str:
    """The href of one of an asset's alternate locations."""
    others = item.assets[asset].extra_fields.get("alternate")
    others = others if isinstance(others, dict) else {}
    href = others[alternate].get("href") if isinstance(others.get(alternate), dict) else None
    if not isinstance(href, str):
        raise InputError(
            f"{url}: asset {asset!r} of item {item.id!r} has no alternate location {alternate!r}; it has "
            f"{', '.join(map(str, others)) or 'none'}. Correct `stac.alternate`, or leave it out."
        )
    return href


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
