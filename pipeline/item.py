"""The STAC item of a map: what its files are, where they lie, what they were made of. pystac writes and checks it.

STAC 1.1, https://github.com/radiantearth/stac-spec, with the extensions in `EXTENSIONS`. Their fields are written as the
extensions name them: pystac has no classes for raster 2.0 and processing 1.2. Fields `mibf:...` are our own.
"""

from __future__ import annotations

import json
import math
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from datetime import datetime as Instant
from typing import Any

import pystac
import pystac.validation
from odc.geo.geobox import GeoBox

from mibf import mlm
from mibf.bundle import ClassName
from mibf.jsonable import without_nan
from pipeline import storage
from pipeline.footprint import footprint
from pipeline.grid import Window, crs_to_json
from pipeline.period import period
from pipeline.quicklook import quicklook_shape

#: The extensions that an item may use, by the prefix of their fields.
EXTENSIONS = {
    "proj": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "raster": "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "classification": "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "file": "https://stac-extensions.github.io/file/v2.1.0/schema.json",
}
#: The products whose pixels are class ids, and the one whose bits are sources.
OF_CLASSES, OF_SOURCES = ("class", "second"), "sources"
PICTURE = ".png"
#: The media type and the roles of a file by the end of its name. A VRT has no type of its own.
KINDS = {
    ".tif": (pystac.MediaType.COG, ("data",)),
    ".vrt": (pystac.MediaType.XML, ("data",)),
    PICTURE: (pystac.MediaType.PNG, ("thumbnail", "overview")),
}
LEDGERS = {".json": "application/json", ".jsonl": "application/x-ndjson", ".parquet": "application/vnd.apache.parquet"}
#: Results of models, in the suggested processing levels.
LEVEL = "L4"
#: What a multihash of SHA-256 begins with: its code, and its length of 32 bytes.
SHA256 = "1220"


class InvalidItemError(RuntimeError):
    """A STAC item is not what the specification asks for."""


@dataclass(frozen=True)
class Asset:
    """One file of a map, beside its item.

    `product` is a product's name, or any word for the quicklook; the pieces of a large map have the same. `bands` are
    the bands' names; those of `sources`, whose one band holds a bit for each source, are the sources from the lowest
    bit on. `window` is what of the grid the file covers: all of it where None. `unit` is empty where there is none.
    """

    product: str
    name: str
    bytes: int
    sha256: str
    dtype: str
    nodata: float | None
    scale: float
    unit: str
    bands: tuple[str, ...]
    window: Window | None = None


@dataclass(frozen=True)
class ModelLink:
    """The model that made a map: where its model.json lies, a digest that tells it from others, its name."""

    href: str
    digest: str
    name: str


def map_item(
    *,
    id: str,
    grid: GeoBox,
    assets: Sequence[Asset],
    classes: Sequence[ClassName],
    created: Instant,
    datetime: str | None,
    model: ModelLink,
    inputs: Mapping[str, str],
    ledger: str,
    version: str,
    fingerprint: str,
    run: str,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The item of one scene's map, as JSON holds it; equal for equal arguments.

    No URL in it has credentials or a query. Hrefs of the map's own files are relative, so that the folder can be moved.

    Args:
        id: its name, unique among the maps that a catalogue may hold.
        grid: the map's pixels; without a CRS the item has no geometry, which STAC allows.
        assets: the map's files; each becomes an asset by its name without the ending.
        classes: those of the map.
        created: when the map was made, with a time zone.
        datetime: when the scene was taken, as `pipeline.period` reads it; not known: the item has the time it was made.
        model: what predicted.
        inputs: the files that the scene was read from, with their fingerprints; empty ones are not told.
        ledger: the ledger's place, relative to the item.
        version: of mibf.
        fingerprint: of all that the map depends on.
        run: the name of the run.
        facts: more to tell, each becomes a field `mibf:NAME`.

    Raises:
        ValueError: two assets have one name, a file's kind is not known, a time cannot be read.
    """
    made = created.astimezone(UTC)
    start, end = (made, made) if datetime is None else period(datetime)
    place = footprint(grid)
    geometry, bbox = (None, None) if place is None else place
    item = pystac.Item(
        id=id,
        geometry=geometry,
        bbox=bbox,
        datetime=start if start == end else None,
        start_datetime=None if start == end else start,
        end_datetime=None if start == end else end,
        properties={"created": _told(made)}
        | _projection(grid)
        | _processing(model, made, files=len(inputs), version=version, run=run)
        | {f"mibf:{name}": _shown(without_nan(value)) for name, value in facts.items()}
        | {"mibf:run": run, "mibf:fingerprint": fingerprint},
    )
    for asset in assets:
        key = posixpath.splitext(asset.name)[0]
        if key in item.assets:
            raise ValueError(f"the files {asset.name} and {item.assets[key].href} of a map cannot both be asset {key!r}")
        item.add_asset(key, _asset(asset, grid, classes))
    item.add_asset("ledger", _ledger(storage.shown(ledger)))
    item.add_links([_model_link(model), *(_input_link(url, stamp) for url, stamp in inputs.items())])
    found = item.to_dict(include_self_link=False, transform_hrefs=False)
    parts = [found["properties"], *found["assets"].values()]
    used = {field.partition(":")[0] for part in parts for field in part}
    return found | {"stac_extensions": [url for prefix, url in EXTENSIONS.items() if prefix in used]}


def check_item(item: Mapping[str, Any]) -> None:
    """See that an item is one, by the schemas of STAC that come with pystac; nothing is fetched.

    The schemas of extensions come with no package that can be asked for; the tests hold the fields to them.

    Raises:
        InvalidItemError: it is not; the message names the field.
    """
    try:
        content = json.loads(json.dumps(item, allow_nan=False))
        pystac.validation.validate_dict(content, pystac.STACObjectType.ITEM, pystac.get_stac_version(), extensions=[])
    except (pystac.STACValidationError, TypeError, ValueError) as error:
        cause = error.__cause__  # jsonschema's, which knows the place
        told = f"{getattr(cause, 'json_path', '$')}: {getattr(cause, 'message', error)}"
        raise InvalidItemError(f"the STAC item {item.get('id')!r} is not valid: {told}") from error


def lies_on(item: Mapping[str, Any], grid: GeoBox) -> bool:
    """Whether an item's map has the pixels of a grid."""
    told = json.loads(json.dumps(_projection(grid)))
    return all(item["properties"].get(name) == value for name, value in told.items())


def _told(time: Instant) -> str:
    return pystac.utils.datetime_to_str(time)


def _shown(value: Any) -> Any:
    """A JSON value none of whose texts tells a credential or a query of a URL."""
    if isinstance(value, str):
        return storage.without_queries(value)
    if isinstance(value, dict):
        return {key: _shown(v) for key, v in value.items()}
    return [_shown(v) for v in value] if isinstance(value, list) else value


def _projection(grid: GeoBox) -> dict[str, Any]:
    """The fields of a grid: its CRS, and what of it the grid covers."""
    return {"proj:code": None} | crs_to_json(grid) | _extent(grid)


def _extent(grid: GeoBox) -> dict[str, Any]:
    found: dict[str, Any] = {"proj:shape": list(grid.shape), "proj:transform": list(grid.affine)[:6]}
    return found if grid.crs is None else found | {"proj:bbox": list(grid.boundingbox)}


def _processing(model: ModelLink, made: Instant, *, files: int, version: str, run: str) -> dict[str, Any]:
    """How the map was made. The extension of models asks those of their results for the level and the expression."""
    return {
        "processing:level": LEVEL,
        "processing:lineage": f"Land cover, pixel by pixel, by model {model.name} in run {run}; input files: {files}.",
        "processing:datetime": _told(made),
        "processing:version": version,
        "processing:software": {"mibf": version},
        "processing:expression": {"format": "stac-mlm", "expression": storage.shown(model.href)},
    }


def _model_link(model: ModelLink) -> pystac.Link:
    """A link as the extension of models asks for it of what a model made; model.json is no whole item of STAC."""
    told = {"mlm:name": model.name, "mibf:digest": model.digest}
    href = storage.shown(model.href)
    return pystac.Link("derived_from", href, pystac.MediaType.JSON, title="The model", extra_fields=told)


def _input_link(url: str, fingerprint: str) -> pystac.Link:
    told = {"mibf:fingerprint": fingerprint} if fingerprint else {}
    return pystac.Link("derived_from", storage.shown(url), extra_fields=told)


def _asset(asset: Asset, grid: GeoBox, classes: Sequence[ClassName]) -> pystac.Asset:
    ending = posixpath.splitext(asset.name)[1]
    if ending not in KINDS:
        raise ValueError(f"{asset.name} is no file of a map: they end in {', '.join(KINDS)}")
    kind, roles = KINDS[ending]
    covered = grid if asset.window is None else grid[asset.window.slices]
    fields: dict[str, Any] = {"file:size": asset.bytes, "file:checksum": SHA256 + asset.sha256.lower()}
    if ending == PICTURE:
        fields |= _extent(covered.zoom_to(quicklook_shape(covered.shape)))
    else:
        fields |= _values(asset, grid) | _meanings(asset, classes)
        fields |= {} if covered == grid else _extent(covered)
    return pystac.Asset(f"./{asset.name}", media_type=kind, roles=list(roles), extra_fields=fields)


def _ledger(href: str) -> pystac.Asset:
    kind = LEDGERS.get(posixpath.splitext(href)[1])
    return pystac.Asset(href, title="What was done, tile by tile", media_type=kind, roles=["metadata"])


def _values(asset: Asset, grid: GeoBox) -> dict[str, Any]:
    """What the numbers of a raster are."""
    found: dict[str, Any] = {"data_type": asset.dtype}
    if asset.nodata is not None:
        found["nodata"] = _number(asset.nodata)
    if asset.unit:
        found["unit"] = asset.unit
    found |= {"raster:scale": asset.scale, "raster:sampling": "area"}
    resolution = _metres(grid)
    if resolution is not None:
        found["raster:spatial_resolution"] = resolution
    names = (asset.product,) if asset.product == OF_SOURCES else asset.bands
    return found | {"bands": [{"name": name} for name in names]}


def _number(value: float) -> int | float | str:
    """A number as STAC writes it: JSON has none that is not finite."""
    if not math.isfinite(value):
        return str(float(value))
    return int(value) if value == int(value) else value


def _metres(grid: GeoBox) -> float | None:
    """The side of a pixel; None where the CRS is not measured in lengths."""
    if grid.crs is None or not grid.crs.projected:
        return None
    unit = grid.crs.proj.axis_info[0].unit_conversion_factor
    return float(unit * math.sqrt(abs(grid.affine.determinant)))


def _meanings(asset: Asset, classes: Sequence[ClassName]) -> dict[str, Any]:
    """What the ids or bits of a raster mean; of measures nothing."""
    if asset.product in OF_CLASSES:
        told: list[dict[str, Any]] = [
            {"value": c.id, "name": mlm.class_key(c), "title": c.name, "color_hint": mlm.color_hint(c)} for c in classes
        ]
        if asset.nodata is not None:
            told.append({"value": int(asset.nodata), "name": "nodata", "title": "No data", "nodata": True})
        return {"classification:classes": told}
    if asset.product == OF_SOURCES:
        if asset.bands == (OF_SOURCES,):
            raise ValueError(f"{asset.name}: its bands are to name the sources of its bits, from the lowest on")
        return {"classification:bitfields": [_bit(offset, source) for offset, source in enumerate(asset.bands)]}
    return {}


def _bit(offset: int, source: str) -> dict[str, Any]:
    return {
        "name": mlm.as_name(source) or f"source_{offset}",
        "description": f"Whether source {source} has data",
        "offset": offset,
        "length": 1,
        "classes": [{"value": 0, "name": "without", "title": "Without"}, {"value": 1, "name": "with", "title": "With"}],
    }
