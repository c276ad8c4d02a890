"""Search a STAC catalogue for items of an area and dates, and save them for `stac.url` of a configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import pystac
import shapely
from shapely.geometry.base import BaseGeometry

from jobs.config.scene import check_bbox
from jobs.config.stac import check_filter
from jobs.runtime.progress import info, pluralize
from mibf.errors import InputError
from pipeline.areas.area import Area, area_of_option, box_area
from pipeline.areas.footprints import covered, share
from pipeline.io import storage
from pipeline.scenes.acquisition_time import days
from pipeline.stac.assets import read_items, solar_date
from pipeline.stac.geoparquet import is_geoparquet, write_table
from pipeline.stac.search import Found, Query, search

#: Items after which the number found so far is printed again.
REPORTED = 500
#: New or missing items that are listed by name.
LISTED = 10


@dataclass(frozen=True)
class SearchSummary:
    """What a search found, and what has changed since the last one."""

    output: str
    items: int
    days: tuple[str, ...]
    coverage: float  #: share of the area that footprints cover, 0 to 1
    assets: tuple[str, ...]  #: keys that all items have
    added: tuple[str, ...] | None  #: ids; None if there was no earlier result
    removed: tuple[str, ...] | None
    changed: tuple[str, ...] | None  #: whose description is another one

    def lines(self) -> list[str]:
        """Describe it for a person."""
        return [*self.found(), "", "made:", f"  {self.output}"]

    def found(self) -> list[str]:
        """Describe what was found."""
        found = [
            f"{pluralize(self.items, 'items')} of {pluralize(len(self.days), 'days')}, {self.days[0]} to {self.days[-1]}; "
            f"footprints cover {100 * self.coverage:.1f} % of the area",
            f"assets of all items: {', '.join(self.assets) or 'none'}",
        ]
        for what, ids in (("new", self.added), ("no longer found", self.removed), ("changed", self.changed)):
            if ids or (ids is not None and what != "changed"):
                more = f" and {len(ids) - LISTED} more" if len(ids) > LISTED else ""
                names = f": {', '.join(ids[:LISTED])}{more}" if ids else ""
                found.append(f"{what} since the last search: {pluralize(len(ids), 'items')}{names}")
        return found

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return dict(vars(self))


def find_items(
    url: str,
    *,
    area: str | None,
    bbox: str | None,
    dates: str,
    collections: Sequence[str],
    filter_text: str | None,
    max_items: int,
    output: str,
    refresh: bool,
) -> SearchSummary:
    """Search and save; an earlier result is replaced only if that is asked for.

    Args:
        url: of a STAC API, a catalogue or collection, or a file of items.
        area: a vector file; or else
        bbox: west, south, east and north in degrees, with commas between them.
        dates: START/END, both included.
        collections: ids; empty: all.
        filter_text: in CQL2, as text or JSON.
        max_items: more are refused.
        output: a file whose name ends in .parquet, .geoparquet or .json.
        refresh: replace an earlier result, and say what has changed.

    Raises:
        InputError: the search or the result cannot be used; nothing is written.
    """
    if (area is None) == (bbox is None):
        raise InputError("give either --area or --bbox.")
    if not (is_geoparquet(output) or output.lower().endswith(".json")):
        raise InputError(f"{output}: give a name that ends in .parquet or .json.")
    earlier = None
    if storage.exists(output):
        if not refresh:
            raise InputError(f"{output}: is there already; search again with --refresh, or give another name.")
        earlier = _saved(output)
    ground = box_area(parse_box(bbox)) if bbox is not None else area_of_option(area or "")
    polygons = in_degrees(ground)
    start, end = parse_dates(dates)
    query = Query(url, polygons, start, end, tuple(collections), parse_filter(filter_text), max_items)
    found = search(query, report_progress)
    with storage.as_input_errors(output):
        write(output, found)
    return summarize(output, found, polygons, earlier, _saved(output))


def report_progress(count: int) -> None:
    """Print the number of items found so far, now and then."""
    if count % REPORTED == 0:
        info(f"{count:,} items ...")


def _saved(output: str) -> list[dict[str, Any]]:
    return [item.to_dict() for item in read_items(output)]


def summarize(
    output: str,
    found: Found,
    polygons: BaseGeometry,
    earlier: Sequence[Mapping[str, Any]] | None,
    saved: Sequence[Mapping[str, Any]],
) -> SearchSummary:
    """Summarize what a search found.

    Args:
        output: where it is saved.
        found: the items and their footprints.
        polygons: the area, in degrees.
        earlier: the items that were saved before; None if there were none.
        saved: the items as they are saved now.
    """
    items = [pystac.Item.from_dict(item) for item in found.items]
    west, _, east, _ = polygons.bounds
    now, before = _by_name(saved), _by_name(earlier or ())

    def listed(names: set[tuple[str, str]]) -> tuple[str, ...] | None:
        return None if earlier is None else tuple(sorted(name for _, name in names))

    return SearchSummary(
        output=output,
        items=len(items),
        days=tuple(sorted({solar_date(item, ((west + east) / 2 + 180) % 360 - 180) for item in items})),
        coverage=share(polygons, covered(polygons, found.footprints)),
        assets=tuple(key for key in items[0].assets if all(key in item.assets for item in items)),
        added=listed(now.keys() - before.keys()),
        removed=listed(before.keys() - now.keys()),
        changed=listed({name for name in now.keys() & before.keys() if now[name] != before[name]}),
    )


def _by_name(items: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(str(item.get("collection")), str(item["id"])): item for item in items}


def write(output: str, found: Found) -> None:
    """Write items as GeoParquet, or as a JSON item collection."""
    if is_geoparquet(output):
        write_table(output, found.items)
    else:
        storage.write_json(output, {"type": "FeatureCollection", "features": list(found.items)})


def parse_box(text: str) -> tuple[float, float, float, float]:
    """Parse west, south, east and north in degrees.

    Raises:
        InputError: they are not that.
    """
    try:
        west, south, east, north = (float(part) for part in text.split(","))
        return check_bbox((west, south, east, north))
    except ValueError as error:
        why = f": {error}" if "bbox" in str(error) else " is not four numbers; write W,S,E,N, as in 13.2,52.3,13.6,52.5"
        raise InputError(f"--bbox {text}{why}.") from None


def parse_filter(text: str | None) -> str | dict[str, Any] | None:
    """Parse a filter: JSON if it begins with a brace, else text.

    Raises:
        InputError: it is not CQL2.
    """
    try:
        value = json.loads(text) if text is not None and text.lstrip().startswith("{") else text
        return cast(str | dict[str, Any] | None, check_filter(value))
    except json.JSONDecodeError as error:
        raise InputError(f"--filter {text}: is not valid JSON ({error}).") from None
    except ValueError as error:
        raise InputError(f"--filter {text}: {error}.") from None


def parse_dates(text: str) -> tuple[datetime, datetime]:
    """Parse START/END, of dates or times, into the first and the last moment, in UTC; a day lasts from 00:00:00 to 23:59:59.

    Raises:
        InputError: it is neither, or the end is before the start.
    """
    try:
        return days(text)
    except ValueError as error:
        raise InputError(f"--dates {text}: {error}.") from None


def in_degrees(ground: Area) -> BaseGeometry:
    """The polygons of an area in degrees, in one piece."""
    return shapely.make_valid(ground.transformed("EPSG:4326"))
