"""The STAC item of a map: its files, footprint and provenance. Written and validated with pystac.

STAC 1.1, https://github.com/radiantearth/stac-spec, with the extensions in `EXTENSIONS`. Extension fields are written by
name: pystac has no classes for raster 2.0 and processing 1.2. Fields `mibf:...` are our own.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from datetime import datetime as Instant
from typing import Any

import pystac
import pystac.validation
from odc.geo.geobox import GeoBox

from mibf.bundle import stac_mlm
from mibf.bundle.classes import ClassName
from mibf.distinct_keys import distinct_keys
from mibf.serialization import without_nan
from pipeline.grid import Window, crs_to_json
from pipeline.io import storage
from pipeline.publishing.footprint import footprint
from pipeline.publishing.quicklook import quicklook_shape
from pipeline.publishing.stac_fields.renders import class_render, fraction_render
from pipeline.publishing.stac_fields.rights import UNKNOWN, Rights
from pipeline.publishing.stac_fields.titles import OTHER_TITLES, TITLES
from pipeline.scenes.acquisition_time import period

#: Extensions that an item may use, by field prefix.
EXTENSIONS = {
    "proj": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "raster": "https://stac-extensions.github.io/raster/v2.0.0/schema.json",
    "classification": "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "processing": "https://stac-extensions.github.io/processing/v1.2.0/schema.json",
    "file": "https://stac-extensions.github.io/file/v2.1.0/schema.json",
    "renders": "https://stac-extensions.github.io/render/v2.0.0/schema.json",
}
#: Products of class ids, the product whose bits are sources, and that whose bits are classes.
CLASS_LAYERS, SOURCES_LAYER, SETS_LAYER = ("class", "second_class"), "sources", "prediction_set"
RASTERS, PICTURE = (".tif", ".vrt"), ".png"
#: Media type and roles of a file by its extension. VRT has no media type of its own.
KINDS = {
    ".tif": (pystac.MediaType.COG, ("data",)),
    ".vrt": (pystac.MediaType.XML, ("data",)),
    PICTURE: (pystac.MediaType.PNG, ("thumbnail", "overview")),
    ".qml": (pystac.MediaType.XML, ("style",)),
    ".xml": (pystac.MediaType.XML, ("metadata",)),
}
LEDGERS = {".json": "application/json", ".jsonl": "application/x-ndjson", ".parquet": "application/vnd.apache.parquet"}
#: What the name of a block of a large map adds to that of its product.
BLOCK = re.compile(r"_y(\d+)_x(\d+)(?=\.|$)")
#: Processing level of model results, among the levels suggested by the extension.
LEVEL = "L4"
#: Prefix of a SHA-256 multihash: its code, and its length of 32 bytes.
SHA256 = "1220"


class InvalidItemError(RuntimeError):
    """A STAC item does not conform to the specification."""


@dataclass(frozen=True)
class Asset:
    """One file of a map, in the same folder as its item.

    `product` is a product's name, or any word for the quicklook; all files of a large map's product share it, those that
    are not rasters included, of which only name, size and checksum are used. `bands` are the names of the bands; for
    `sources`, whose single band holds one bit per source, they are the sources from the lowest bit up. `window` is the part
    of the grid that the file covers; None for the whole grid. `unit` is empty if there is no unit. `pixels` is the number of
    pixels of each class id; None where it is not known.
    """

    product: str
    name: str
    bytes: int
    sha256: str
    dtype: str = ""
    nodata: float | None = None
    scale: float = 1.0
    unit: str = ""
    bands: tuple[str, ...] = ()
    window: Window | None = None
    pixels: Mapping[int, int] | None = None

    @property
    def key(self) -> str:
        """Key in the item: the file name, of rasters and pictures without its extension."""
        stem, ending = posixpath.splitext(self.name)
        return stem if ending in (*RASTERS, PICTURE) else self.name

    @property
    def title(self) -> str:
        """Title of the file, with its place in the grid if it is a block of a large map."""
        title = TITLES.get(self.product, self.product)
        ending = posixpath.splitext(self.name)[1]
        place = BLOCK.search(self.name)
        title = title if place is None else f"{title}, from row {place[1]} and column {place[2]}"
        return OTHER_TITLES.get(ending, "{}").format(title)


@dataclass(frozen=True)
class ModelLink:
    """The model that made a map: location of its model.json, a URL or relative to the item; its digest and its name."""

    href: str
    digest: str
    name: str


@dataclass(frozen=True)
class CatalogEntry:
    """An item's place in a catalog: its title, the id of its collection, and the locations of both, relative to the item."""

    title: str
    collection: str
    collection_href: str
    root_href: str


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
    area: Mapping[str, Any] | None = None,
    entry: CatalogEntry | None = None,
    rights: Rights = UNKNOWN,
) -> dict[str, Any]:
    """Build the item of one scene's map as JSON values. Deterministic: equal arguments give an equal item.

    URLs are written without credentials and queries. Hrefs of the map's own files are relative, so the folder can be moved.

    Args:
        id: the item's id, unique among the maps of a catalogue.
        grid: the map's grid; without a CRS the item has no geometry, which STAC allows.
        assets: the map's files; each becomes an asset (`Asset.key`).
        classes: classes of the map.
        created: creation time of the map, with a time zone.
        datetime: acquisition time of the scene (see `pipeline.scenes.acquisition_time`); None for `created`.
        model: the model that made the map.
        inputs: the scene's input files with their fingerprints; empty fingerprints are omitted.
        ledger: location of the ledger, relative to the item.
        version: version of mibf.
        fingerprint: hash of everything that the map depends on.
        run: name of the run.
        facts: additional properties, written as `mibf:NAME`.
        area: the outline of the scene's area, as for `footprint`; None: the item's geometry is the outline of the grid.
        entry: the item's place in a catalog; None for none.
        rights: licence and providers.

    Raises:
        ValueError: two assets have the same key, a file's type is unknown, or a time cannot be parsed.
    """
    created_utc = created.astimezone(UTC)
    item = pystac.Item(
        id=id,
        **_place(grid, area),
        **_times(created_utc if datetime is None else datetime),
        properties=_common(entry, created_utc, rights)
        | _projection(grid)
        | _processing(model, created_utc, files=len(inputs), version=version, run=run)
        | {f"mibf:{name}": _redacted(without_nan(value)) for name, value in facts.items()}
        | _renders(assets, classes)
        | {"mibf:run": run, "mibf:fingerprint": fingerprint},
    )
    _add_assets(item, assets, grid, classes)
    item.add_asset("ledger", _ledger(storage.redact_url(ledger)))
    _add_links(item, entry, [*rights.links, _model_link(model), *(_input_link(url, stamp) for url, stamp in inputs.items())])
    return _with_extensions(item.to_dict(include_self_link=False, transform_hrefs=False))


def _place(grid: GeoBox, area: Mapping[str, Any] | None) -> dict[str, Any]:
    geometry, bbox = footprint(grid, area) or (None, None)
    return {"geometry": geometry, "bbox": bbox}


def _common(entry: CatalogEntry | None, created: Instant, rights: Rights) -> dict[str, Any]:
    """STAC's common metadata but for the times of acquisition."""
    title = {} if entry is None else {"title": entry.title}
    return title | {"created": _format_time(created)} | rights.properties


def _add_links(item: pystac.Item, entry: CatalogEntry | None, others: Sequence[pystac.Link]) -> None:
    if entry is not None:
        item.collection_id = entry.collection
        rels = {"root": entry.root_href, "parent": entry.collection_href, "collection": entry.collection_href}
        item.add_links([pystac.Link(rel, href, pystac.MediaType.JSON) for rel, href in rels.items()])
    item.add_links(list(others))


def _add_assets(item: pystac.Item, assets: Sequence[Asset], grid: GeoBox, classes: Sequence[ClassName]) -> None:
    for asset in assets:
        key = asset.key
        if key in item.assets:
            raise ValueError(f"the files {asset.name} and {item.assets[key].href} of a map cannot both be asset {key!r}")
        item.add_asset(key, _asset(asset, grid, classes))


def _renders(assets: Sequence[Asset], classes: Sequence[ClassName]) -> dict[str, Any]:
    """How to draw the classes and their confidence; of a map in blocks its mosaics."""
    found = {}
    for asset in assets:
        if asset.key != asset.product or posixpath.splitext(asset.name)[1] not in RASTERS:
            continue
        if asset.product in CLASS_LAYERS:
            found[asset.key] = class_render(asset.key, asset.title, classes, nodata=asset.nodata)
        elif asset.product == "confidence":
            found[asset.key] = fraction_render(asset.key, asset.title, scale=asset.scale, nodata=asset.nodata)
    return {"renders": found} if found else {}


def _with_extensions(item: dict[str, Any]) -> dict[str, Any]:
    """Declare the extensions whose fields an item or its assets have."""
    parts = [item["properties"], *item["assets"].values()]
    used = {field.partition(":")[0] for part in parts for field in part}
    return item | {"stac_extensions": [url for prefix, url in EXTENSIONS.items() if prefix in used]}


def check_item(item: Mapping[str, Any]) -> None:
    """Validate an item against the STAC schemas that pystac includes; nothing is fetched.

    No package includes the schemas of the extensions; their fields are covered by tests.

    Raises:
        InvalidItemError: the item is not valid; the message names the field.
    """
    try:
        content = json.loads(json.dumps(item, allow_nan=False))
        pystac.validation.validate_dict(content, pystac.STACObjectType.ITEM, pystac.get_stac_version(), extensions=[])
    except (pystac.STACValidationError, TypeError, ValueError) as error:
        found = error.__cause__  # jsonschema's error, which has the JSON path
        cause = f"{getattr(found, 'json_path', '$')}: {getattr(found, 'message', error)}"
        raise InvalidItemError(f"the STAC item {item.get('id')!r} is not valid: {cause}") from error


def _times(datetime: Instant | str) -> dict[str, Any]:
    """An item's times: of an instant, or of an instant or interval as text."""
    start, end = period(datetime) if isinstance(datetime, str) else (datetime, datetime)
    if start == end:
        return {"datetime": start}
    return {"datetime": None, "start_datetime": start, "end_datetime": end}


def matches_grid(item: Mapping[str, Any], grid: GeoBox) -> bool:
    """Whether an item's map has the pixel grid `grid`."""
    expected = json.loads(json.dumps(_projection(grid)))
    return all(item["properties"].get(name) == value for name, value in expected.items())


def _format_time(time: Instant) -> str:
    return pystac.utils.datetime_to_str(time)


def _redacted(value: Any) -> Any:
    """Remove credentials and URL queries from all strings of a JSON value."""
    if isinstance(value, str):
        return storage.without_queries(value)
    if isinstance(value, dict):
        return {key: _redacted(v) for key, v in value.items()}
    return [_redacted(v) for v in value] if isinstance(value, list) else value


def _projection(grid: GeoBox) -> dict[str, Any]:
    """Projection fields of a grid: its CRS and extent."""
    return {"proj:code": None} | crs_to_json(grid) | _extent(grid)


def _extent(grid: GeoBox) -> dict[str, Any]:
    found: dict[str, Any] = {"proj:shape": list(grid.shape), "proj:transform": list(grid.affine)[:6]}
    return found if grid.crs is None else found | {"proj:bbox": list(grid.boundingbox)}


def _processing(model: ModelLink, created: Instant, *, files: int, version: str, run: str) -> dict[str, Any]:
    """Processing fields. The STAC MLM extension asks for the level and the expression in items made by a model."""
    return {
        "processing:level": LEVEL,
        "processing:lineage": f"Per-pixel land cover predicted by model {model.name} in run {run}; input files: {files}.",
        "processing:datetime": _format_time(created),
        "processing:version": version,
        "processing:software": {"mibf": version},
        "processing:expression": {"format": "stac-mlm", "expression": storage.redact_url(model.href)},
    }


def _model_link(model: ModelLink) -> pystac.Link:
    """The link to the model that the STAC MLM extension asks for. In earlier bundles, it is not a complete STAC item."""
    fields = {"mlm:name": model.name, "mibf:digest": model.digest}
    href = storage.redact_url(model.href)
    return pystac.Link("derived_from", href, pystac.MediaType.GEOJSON, title="The model", extra_fields=fields)


def _input_link(url: str, fingerprint: str) -> pystac.Link:
    fields = {"mibf:fingerprint": fingerprint} if fingerprint else {}
    return pystac.Link("derived_from", storage.redact_url(url), extra_fields=fields)


def _asset(asset: Asset, grid: GeoBox, classes: Sequence[ClassName]) -> pystac.Asset:
    ending = posixpath.splitext(asset.name)[1]
    if ending not in KINDS:
        raise ValueError(f"{asset.name} is not a map file; expected a name that ends in {', '.join(KINDS)}")
    kind, roles = KINDS[ending]
    covered = grid if asset.window is None else grid[asset.window.slices]
    fields: dict[str, Any] = {"file:size": asset.bytes, "file:checksum": SHA256 + asset.sha256.lower()}
    if ending == PICTURE:
        fields |= _extent(covered.zoom_to(quicklook_shape(covered.shape)))
    elif ending in RASTERS:
        fields |= _values(asset, grid) | _meanings(asset, classes)
        fields |= {} if covered == grid else _extent(covered)
    return pystac.Asset(f"./{asset.name}", title=asset.title, media_type=kind, roles=list(roles), extra_fields=fields)


def _ledger(href: str) -> pystac.Asset:
    kind = LEDGERS.get(posixpath.splitext(href)[1])
    return pystac.Asset(href, title="Ledger of all tiles and attempts", media_type=kind, roles=["metadata"])


def _values(asset: Asset, grid: GeoBox) -> dict[str, Any]:
    """Fields that describe a raster's values."""
    found: dict[str, Any] = {"data_type": asset.dtype}
    if asset.nodata is not None:
        found["nodata"] = _number(asset.nodata)
    if asset.unit:
        found["unit"] = asset.unit
    found |= {"raster:scale": asset.scale, "raster:sampling": "area"}
    resolution = _metres(grid)
    if resolution is not None:
        found["raster:spatial_resolution"] = resolution
    names = (asset.product,) if asset.product == SOURCES_LAYER else asset.bands
    return found | {"bands": [{"name": name} for name in names]}


def _number(value: float) -> int | float | str:
    """Format a number for STAC; JSON cannot hold non-finite numbers."""
    if not math.isfinite(value):
        return str(float(value))
    return int(value) if value == int(value) else value


def _metres(grid: GeoBox) -> float | None:
    """Pixel size in metres; None if the CRS does not use lengths."""
    if grid.crs is None or not grid.crs.projected:
        return None
    unit = grid.crs.proj.axis_info[0].unit_conversion_factor
    return float(unit * math.sqrt(abs(grid.affine.determinant)))


def _meanings(asset: Asset, classes: Sequence[ClassName]) -> dict[str, Any]:
    """Fields that define a raster's class ids or bits; none for continuous products."""
    if asset.product in CLASS_LAYERS:
        found: list[dict[str, Any]] = [
            {"value": c.id, "name": key, "title": c.name, "color_hint": stac_mlm.color_hint(c)}
            | ({} if asset.pixels is None else {"count": asset.pixels.get(c.id, 0)})
            for c, key in zip(classes, stac_mlm.class_keys(classes), strict=True)
        ]
        if asset.nodata is not None:
            found.append({"value": int(asset.nodata), "name": "nodata", "title": "No data", "nodata": True})
        return {"classification:classes": found}
    if asset.product == SOURCES_LAYER:
        if asset.bands == (SOURCES_LAYER,):
            raise ValueError(f"{asset.name}: bands must name the sources of its bits, lowest bit first")
        keys = distinct_keys(asset.bands, range(len(asset.bands)), kind="source")
        meanings = [f"Whether source {source} has data" for source in asset.bands]
        return {"classification:bitfields": _bits(keys, meanings)}
    if asset.product == SETS_LAYER:
        meanings = [f"Whether {c.name} is in the prediction set" for c in classes]
        return {"classification:bitfields": _bits(stac_mlm.class_keys(classes), meanings)}
    return {}


def _bits(keys: Sequence[str], descriptions: Sequence[str]) -> list[dict[str, Any]]:
    """One bit for each key, from the lowest up."""
    values = [{"value": 0, "name": "without", "title": "Without"}, {"value": 1, "name": "with", "title": "With"}]
    return [
        {"name": key, "description": text, "offset": offset, "length": 1, "classes": values}
        for offset, (key, text) in enumerate(zip(keys, descriptions, strict=True))
    ]
