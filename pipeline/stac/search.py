"""Search for items: in a STAC API, a static catalogue, or a file of items.

An API is asked for the items in the area's box; whatever answers, an item counts only if its footprint touches the area.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pystac
import pystac.utils
import pystac_client
import requests
import shapely
import shapely.affinity
import shapely.errors
import shapely.geometry
from numpy.typing import NDArray
from pystac_client.exceptions import APIError
from shapely.geometry.base import BaseGeometry

from mibf.errors import InputError
from pipeline.io import storage
from pipeline.stac.api_access import ApiAccess
from pipeline.stac.assets import read_items
from pipeline.stac.geoparquet import is_geoparquet

#: Seconds that a server may take to answer, and for all pages together.
TIMEOUT, LIMIT = (10.0, 60.0), 900.0
#: Times that a request is sent again after a server's error.
RETRIES = 4
#: What is said where no server answers.
UNREACHABLE = "cannot be reached ({}). Check the address and the connection, or try again later."
#: What is said where an API may not take a filter as text.
JSON_FILTER = (
    'If it does not take filters as text, as Earth Search, write CQL2 JSON: {"op": "<", "args": [{"property": '
    '"eo:cloud_cover"}, 40]}.'
)
#: Links of an item to where it is from; the client makes some of them of the URL that it was given.
HIERARCHY = ("self", "root", "parent", "collection")
#: Items of a page.
PAGE = 100


@dataclass(frozen=True)
class Query:
    """What to search for."""

    url: str  #: of an API, a catalogue or collection, or a file of items
    area: BaseGeometry  #: in degrees; longitudes may exceed 180 where it crosses the antimeridian
    start: datetime
    end: datetime
    collections: tuple[str, ...] = ()
    filter: str | dict[str, Any] | None = None  #: in CQL2, as text or JSON, for an API
    max_items: int = 1000

    @property
    def name(self) -> str:
        """Its URL for messages, without signatures and tokens."""
        return storage.redact_url(self.url)


@dataclass(frozen=True)
class Found:
    """The items of a search, in the order of their times."""

    items: tuple[dict[str, Any], ...]
    footprints: tuple[BaseGeometry, ...]  #: in degrees, next to the area


def search(query: Query, report: Callable[[int], None] = lambda count: None) -> Found:
    """Search for items; `report` gets their number while pages arrive.

    Raises:
        InputError: nothing answers at the URL, or no STAC; there is no item, or there are more than `max_items`.
    """
    started, found = time.monotonic(), dict[str, tuple[str, dict[str, Any], BaseGeometry]]()
    placeless, repeated = 0, 0
    for item in _candidates(query):
        placeless += not item.get("geometry")
        if time.monotonic() - started > LIMIT:
            raise InputError(
                f"{query.name}: the search has not ended within {LIMIT:.0f} s, with {len(found):,} items so far; limit "
                "it by dates, a filter or a smaller area."
            )
        taken = _accepted(query, item)
        if taken is None:
            continue
        key = f"{item.get('collection')}/{item.get('id')}"
        repeated += key in found
        if repeated > query.max_items:  # more than those in both boxes of an area across the antimeridian
            raise InputError(f"{query.name}: the search does not end: its pages repeat the same items. Limit it by dates.")
        found[key] = (*taken[:1], item, taken[1])
        report(len(found))
        if len(found) > query.max_items:
            raise InputError(
                f"{query.name}: there are more than {query.max_items:,} items; limit the search by dates, a filter or a "
                "smaller area, or raise the maximum."
            )
    if not found:
        where = ", ".join(f"{value:.4g}" for value in query.area.bounds)
        of = f" of {', '.join(query.collections)}" if query.collections else ""
        raise InputError(
            f"{query.name}: has no items{of} from {query.start:%Y-%m-%d} to {query.end:%Y-%m-%d} that touch the area "
            f"({where}); check dates, collections, filter and area"
            f"{f' ({placeless} items have no geometry, so their place is unknown)' if placeless else ''}."
        )
    ordered = sorted(found.values(), key=lambda each: (each[0], str(each[1].get("id"))))
    return Found(tuple(item for _, item, _ in ordered), tuple(footprint for _, _, footprint in ordered))


def boxes(area: BaseGeometry) -> list[tuple[float, float, float, float]]:
    """Return the boxes in degrees that an area is in: two where it crosses the antimeridian."""
    west, south, east, north = area.bounds
    if east - west >= 360:
        return [(-180.0, south, 180.0, north)]
    west, east = (west + 180) % 360 - 180, (west + 180) % 360 - 180 + east - west
    if east <= 180:
        return [(west, south, east, north)]
    return [(west, south, 180.0, north), (-180.0, south, east - 360, north)]


def _candidates(query: Query) -> Iterator[dict[str, Any]]:
    """Items that an API finds, or all items of a catalogue or file."""
    url = storage.local_path(query.url) if storage.is_local(query.url) else query.url
    try:
        found = _of_file(url) or (pystac.read_file(url) if storage.is_local(url) else _client(url))
        if isinstance(found, pystac_client.Client) and found.conforms_to("ITEM_SEARCH"):
            for box in boxes(query.area):
                yield from _of_api(found, query, box)
            return
        if query.filter is not None:
            raise InputError(f"{query.name}: only an API can filter; leave the filter out.")
        items = found if isinstance(found, list) else _of_catalogue(query, found)
        yield from map(partial(_to_dict, query), items)
    except InputError:
        raise
    except APIError as error:
        status = getattr(error, "status_code", None)  # unknown if nothing answered
        if status is None:
            raise InputError(f"{query.name}: {UNREACHABLE.format(_short(error))}") from error
        remedy = f" {JSON_FILTER}" if status == 400 and isinstance(query.filter, str) else ""
        raise InputError(
            f"{query.name}: the API answers with an error (status {status}: {_short(error)}).{remedy}"
        ) from error
    except requests.exceptions.RequestException as error:
        raise InputError(f"{query.name}: {UNREACHABLE.format(_short(error))}") from error
    except FileNotFoundError as error:
        raise InputError(f"{query.name}: no such file; check its name.") from error
    except Exception as error:  # pystac raises types of several kinds for documents that are not STAC
        raise InputError(f"{query.name}: does not answer as STAC ({_short(error)}).") from error


def _of_file(url: str) -> list[pystac.Item] | None:
    """The items of a GeoParquet file or an item collection; None for a catalogue, a collection or an API."""
    if is_geoparquet(url):
        return read_items(url)
    if not storage.is_local(url):
        return None
    kind = storage.read_json(url).get("type")
    return read_items(url) if kind in ("Feature", "FeatureCollection") else None


def _of_catalogue(query: Query, found: pystac.STACObject) -> Iterable[pystac.Item]:
    if not isinstance(found, pystac.Catalog):
        raise InputError(f"{query.name}: is no API, catalogue, collection or file of items.")
    return found.get_items(recursive=True)


def _client(url: str) -> pystac_client.Client:
    """A client of an API, or of a static catalogue, which is no API."""
    return pystac_client.Client.open(url, stac_io=ApiAccess(url, retries=RETRIES), timeout=TIMEOUT)


def _of_api(client: pystac_client.Client, query: Query, box: tuple[float, float, float, float]) -> Iterator[dict[str, Any]]:
    # Text goes with GET and JSON with POST, which all APIs must take, where they take either.
    text = isinstance(query.filter, str)
    found = client.search(
        method="GET" if text else "POST",
        limit=PAGE,
        collections=list(query.collections) or None,
        bbox=box,
        datetime=(query.start, query.end),
        filter=query.filter,
        filter_lang=None if query.filter is None else "cql2-text" if text else "cql2-json",
    )
    yield from map(partial(_to_dict, query), found.items())


def _to_dict(query: Query, item: pystac.Item) -> dict[str, Any]:
    """An item that can be saved elsewhere: names of files are absolute, and where it is from has no token.

    Raises:
        InputError: an item from elsewhere names files of this machine, which the saved one could have read.
    """
    if item.get_self_href() is None:  # of an API that gives none; names are relative to its address
        item.set_self_href(query.url)
    item.make_asset_hrefs_absolute()
    for key, asset in item.assets.items() if not storage.is_local(query.url) else ():
        others = asset.extra_fields.get("alternate")
        others = [each.get("href") for each in others.values() if isinstance(each, dict)] if isinstance(others, dict) else []
        local = [href for href in (asset.href, *others) if str(href).lower().startswith("file:")]
        if local:
            raise InputError(
                f"{query.name}: asset {key!r} of item {item.id!r} is at {local[0]}, a local file, which a remote item "
                "may not reference. If this is intended, save the items next to their files and give that file."
            )
    found = item.to_dict(transform_hrefs=False)
    for link in found["links"]:
        if link["rel"] in HIERARCHY:
            link["href"] = storage.redact_url(str(link["href"]))
    return found


def _accepted(query: Query, item: dict[str, Any]) -> tuple[str, BaseGeometry] | None:
    """An item's time and its footprint next to the area, if it belongs to the search."""
    if (query.collections and item.get("collection") not in query.collections) or not item.get("geometry"):
        return None
    try:
        properties = item["properties"]
        texts = (properties.get(name) or properties["datetime"] for name in ("start_datetime", "end_datetime"))
        begin, end = (pystac.utils.str_to_datetime(text).astimezone(UTC) for text in texts)
        footprint = polygons_of(item["geometry"])
    except (ValueError, TypeError, KeyError, AttributeError, shapely.errors.ShapelyError) as error:
        raise InputError(
            f"{query.name}: item {item.get('id')!r} has no usable time or geometry ({_short(error)})."
        ) from error
    if begin > query.end or end < query.start:
        return None
    for turn in (0, 360, -360):
        moved = shapely.affinity.translate(footprint, turn) if turn else footprint
        if moved.intersects(query.area):
            return begin.isoformat(), moved
    return None


def polygons_of(geometry: Mapping[str, Any]) -> BaseGeometry:
    """Return a GeoJSON geometry, valid; a polygon that crosses the antimeridian uncut extends beyond 180 degrees.

    One does if a side of it spans more than half of the Earth, but less than all of it.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, ShapelyError: it is no geometry.
    """
    parts = []
    for part in shapely.get_parts(shapely.geometry.shape(dict(geometry))):
        steps = np.abs(np.diff(shapely.get_coordinates(part)[:, 0]))
        is_across = part.geom_type == "Polygon" and bool(((steps > 180) & (steps < 360)).any())
        parts.append(shapely.transform(part, _eastward) if is_across else part)
    return shapely.make_valid(shapely.union_all(shapely.make_valid(np.array(parts))))


def _eastward(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.column_stack([np.mod(points[:, 0], 360), points[:, 1]])


def _short(error: Exception) -> str:
    text = storage.without_queries(" ".join(str(error).split()))
    return text[:300] or type(error).__name__
