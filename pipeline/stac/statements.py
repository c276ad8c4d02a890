"""What a STAC item states about the values of an asset: scale, offset and nodata of each band, and the CRS.

They are read as the raster extension (1.1 in `raster:bands`, 2.0 in STAC 1.1's `bands`) and the projection extension
define them; a band takes from its asset, and an asset from the item's properties, what it does not state itself.

Sentinel-2 has a rule of its own. From processing baseline 04.00 (January 2022) on, ESA stores reflectance as
(1000 + 10000 * reflectance), before as 10000 * reflectance; DN 0 is no data in both. Some catalogues subtract the 1000 from
the files and say so by a property whose name ends in `boa_offset_applied`, but still state ESA's offset; others state
neither scale nor offset.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import pystac

from mibf.errors import InputError
from pipeline.rasters.header import StatedBand

#: Sentinel-2's scale, and its offset in stored values from `OFFSET_BASELINE` on.
S2_SCALE, S2_OFFSET, OFFSET_BASELINE = 1e-4, -1000, 4.0
#: Names of Sentinel-2's bands of reflectance, and the common names that catalogues use for assets and bands.
S2_BAND = re.compile(r"B(0[1-9]|1[0-2]|8A)(_\d+m)?", re.IGNORECASE)
S2_COMMON_NAMES = {
    "coastal", "blue", "green", "red", "rededge", "rededge1", "rededge2", "rededge3", "rededge071", "rededge075",
    "rededge078", "nir", "nir08", "nir09", "cirrus", "swir16", "swir22",
}  # fmt: skip  # a list of names: one per line would fill a page


#: Roles and keys of assets that are pictures for people: their values are not the bands' values.
PICTURE_ROLES = {"overview", "thumbnail", "visual"}
PICTURE_KEY = re.compile(r"(visual|tci|overview|thumbnail|preview|rendered_preview)([-_].*)?", re.IGNORECASE)
#: Integers beyond are no values of a raster.
LARGEST = 2**64


@dataclass(frozen=True)
class BandFields:
    """One band of an asset: its names, and the fields that it states or takes from its asset or item."""

    names: frozenset[str]  #: its own name and its common name
    fields: Mapping[str, Any]


def band_fields(item: pystac.Item, key: str) -> list[BandFields]:
    """Return the bands that an asset describes; one without a name where it describes none."""
    asset = item.assets[key]
    own = asset.extra_fields
    shared = {name: own.get(name, item.properties.get(name)) for name in ("nodata", "raster:scale", "raster:offset")}
    lists = [own.get(name) for name in ("bands", "eo:bands", "raster:bands")]
    given = [[b if isinstance(b, dict) else {} for b in each] if isinstance(each, list) else [] for each in lists]
    count = max(1, *map(len, given))
    found = []
    for position in range(count):
        bands = [each[position] if position < len(each) else {} for each in given]
        names = {b.get(name) for b in bands for name in ("name", "common_name", "eo:common_name")}
        modern, _, raster = bands
        fields = {
            "nodata": _first(modern.get("nodata"), raster.get("nodata"), shared["nodata"]),
            "scale": _first(modern.get("raster:scale"), raster.get("scale"), shared["raster:scale"]),
            "offset": _first(modern.get("raster:offset"), raster.get("offset"), shared["raster:offset"]),
        }
        found.append(BandFields(frozenset(name for name in names if isinstance(name, str)), fields))
    return found


def is_picture(item: pystac.Item, key: str) -> bool:
    """Whether an asset is a picture for people, by its roles or its key."""
    roles = item.assets[key].roles
    named = {role for role in roles if isinstance(role, str)} if isinstance(roles, list | tuple) else set()
    return bool(PICTURE_ROLES & named) or PICTURE_KEY.fullmatch(key) is not None


def stated_bands(item: pystac.Item, key: str) -> tuple[StatedBand, ...]:
    """Return what an item states about all bands of an asset, or about each of several; empty if nothing.

    A value that is not a number matters only where it is used, so it is not refused here.
    """
    found = list[StatedBand]()
    for band in band_fields(item, key):
        values, unusable = dict[str, float | None](), list[tuple[str, str]]()
        for name in ("nodata", "scale", "offset"):
            try:
                values[name] = _number(item, key, name, band.fields[name])
            except InputError as error:
                unusable.append((name, str(error)))
        nodata, scale, offset = (values.get(name) for name in ("nodata", "scale", "offset"))
        if unusable:
            is_default = nodata is None and _is_reflectance_of_sentinel_2(item, key, band.names)
            absent = 0.0 if is_default else nodata
            found.append(StatedBand(nodata=absent, nodata_is_default=is_default, unusable=tuple(unusable)))
            continue
        if _is_reflectance_of_sentinel_2(item, key, band.names):
            found.append(_of_sentinel_2(item, scale, offset, nodata))
            continue
        if scale is not None or offset is not None:
            scale, offset = 1.0 if scale is None else scale, 0.0 if offset is None else offset
        found.append(StatedBand(scale, offset, nodata))
    if len(set(found)) == 1:
        return () if found[0] == StatedBand() else (found[0],)
    return tuple(found)


def stated_crs(item: pystac.Item, key: str) -> str | None:
    """Return the CRS that an item states for an asset, as a code or WKT; None if it states none."""
    for place in (item.assets[key].extra_fields, item.properties):
        code, epsg, wkt = (place.get(f"proj:{name}") for name in ("code", "epsg", "wkt2"))
        if isinstance(code, str):
            return code
        if isinstance(epsg, int):
            return f"EPSG:{epsg}"
        if isinstance(wkt, str):
            return wkt
    return None


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _number(item: pystac.Item, key: str, name: str, value: Any) -> float | None:
    """A number of an item; the raster extension writes those that JSON lacks as `nan`, `inf` and `-inf`."""
    if value is None:
        return None
    special = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    if name == "nodata" and isinstance(value, str) and value.lower() in special:
        return special[value.lower()]
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_usable(name, value):
        raise InputError(
            f"item {item.id!r}: asset {key!r} states {name} {shorten(repr(value), 60)}, not a number; correct the item."
        )
    return value


def _is_usable(name: str, value: float) -> bool:
    """Whether a number can be one of a raster: finite, or not a number as nodata, and no larger than any data type."""
    return abs(value) <= LARGEST if isinstance(value, int) else math.isfinite(value) or name == "nodata"


def _is_reflectance_of_sentinel_2(item: pystac.Item, key: str, names: frozenset[str]) -> bool:
    if is_picture(item, key):
        return False
    of = [item.collection_id, item.properties.get("constellation"), item.properties.get("platform")]
    if not any(isinstance(value, str) and re.match(r"sentinel-(2|s2)", value.lower()) for value in of):
        return False
    return any(S2_BAND.fullmatch(name) or name.lower() in S2_COMMON_NAMES for name in {key, *names})


def _of_sentinel_2(item: pystac.Item, scale: float | None, offset: float | None, nodata: float | None) -> StatedBand:
    """Scale, offset and nodata of a reflectance band of Sentinel-2, by its item and its processing baseline."""
    baseline = _baseline(item)
    is_applied = any(value is True for name, value in item.properties.items() if name.endswith("boa_offset_applied"))
    own = S2_SCALE if scale is None else scale
    absent, is_default = (0.0, True) if nodata is None else (nodata, False)
    if is_applied or (baseline is not None and baseline < OFFSET_BASELINE):
        return StatedBand(own, 0.0, absent, decided=True, nodata_is_default=is_default)
    if offset is not None:
        return StatedBand(own, offset, absent, nodata_is_default=is_default)
    if baseline is not None:
        return StatedBand(own, S2_OFFSET * own, absent, decided=True, nodata_is_default=is_default)
    return StatedBand(nodata=absent, undecided=True, nodata_is_default=is_default)


def _baseline(item: pystac.Item) -> float | None:
    """The processing baseline of a Sentinel-2 product, such as 5.09; None if the item does not state it."""
    names = ("s2:processing_baseline", "sentinel:processing_baseline", "processing:version")
    for value in (item.properties.get(name) for name in names):
        text = str(value) if isinstance(value, str | float) else ""
        if found := re.fullmatch(r"N?(\d\d?)\.(\d\d?)|N?(\d\d)(\d\d)", text.strip()):
            return float(f"{found[1] or found[3]}.{found[2] or found[4]}")
    return None
