"""The STAC item of a map: validity against schemas, content, projection, credentials and checksums."""

from __future__ import annotations

import copy
import hashlib
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from pydantic import ValidationError

from mibf.bundle.classes import ClassName
from pipeline.codes import UNLABELLED
from pipeline.grid import Window
from pipeline.io import checksums
from pipeline.publishing.quicklook import quicklook
from pipeline.publishing.stac_fields.rights import Rights
from pipeline.publishing.stac_item import EXTENSIONS, Asset, InvalidItemError, ModelLink, check_item, map_item
from tests.support.published_maps import ANTIMERIDIAN, CLASSES, CUSTOM_CRS, GEOGRAPHIC, LOCAL, UTM, make_grid, write_classes
from tests.support.stac_extensions import check_fields, check_published, needs_schemas

pytestmark = pytest.mark.usefixtures("offline")
SECRETS = ("hunter2", "SIGNED", "AKIA")


def raster(product: str, *, name: str | None = None, bands: tuple[str, ...] | None = None, **changes: Any) -> Asset:
    """Asset of a continuous product; `changes` replace its fields."""
    fields = {
        "dtype": "float32",
        "nodata": float("nan"),
        "scale": 1.0,
        "unit": "",
        "bytes": 123,
        "sha256": "ab" * 32,
        "window": None,
    }
    return Asset(product=product, name=name or f"{product}.tif", bands=bands or (product,), **fields | changes)


def class_raster(product: str = "class", **changes: Any) -> Asset:
    return raster(product, **{"dtype": "uint8", "nodata": UNLABELLED} | changes)


QUICKLOOK = Asset("quicklook", "quicklook.png", 50, "cd" * 32, "uint8", None, 1.0, "", ())
PROBABILITIES = raster("probabilities", bands=tuple(c.name for c in CLASSES))
BITS = raster("sources", bands=("optical", "radar.vv"), dtype="uint8", nodata=0)
PIECES = tuple(class_raster(name=f"class_y{y}_x{x}.tif", window=Window(y, x, 200, 150)) for y in (0, 200) for x in (0, 150))


def make(**changes: Any) -> dict[str, Any]:
    return map_item(
        **{
            "id": "valley-main",
            "grid": UTM,
            "assets": [class_raster(), raster("confidence", dtype="uint8", nodata=0, scale=0.004), QUICKLOOK],
            "classes": CLASSES,
            "created": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1))),
            "datetime": "2024-07-01T12:30:00+02:00",
            "model": ModelLink("https://me:hunter2@h/models/main/model.json?sig=SIGNED", "abc", "MIBF-Net main"),
            "inputs": {
                "s3://AKIA:hunter2@b/a.tif": "f1",
                "https://h/b.tif?X-Amz-Signature=SIGNED": "f2",
                "abfs://container@account/c.tif": "f3",
                "/data/d e.tif": "f4",
            },
            "ledger": "./ledger.jsonl",
            "version": "0.1.0",
            "fingerprint": "ff",
            "run": "main",
            "facts": {"temperature": 1.3, "priors": "trained", "pixels": 12, "loss": float("nan"), "precision": "float32"},
        }
        | changes
    )


ITEMS = {
    "one band": {},
    "many bands": {
        "assets": [class_raster(), class_raster("second_class"), PROBABILITIES, raster("entropy", unit="nat"), QUICKLOOK]
    },
    "pieces": {"assets": [*PIECES, class_raster(name="class.vrt"), QUICKLOOK]},
    "bits": {"assets": [class_raster(), BITS]},
    "no classes": {"assets": [raster("confidence")]},
    "no CRS": {"grid": LOCAL, "datetime": None},
    "geographic": {"grid": GEOGRAPHIC},
    "across the antimeridian": {"grid": ANTIMERIDIAN, "datetime": "2024-06-01T00:00:00Z/2024-08-31T23:59:59Z"},
    "around the pole": {"grid": make_grid(Affine(1e5, 0, -2e6, 0, -1e5, 2e6), "EPSG:3413", (40, 40))},
    "custom CRS": {"grid": CUSTOM_CRS},
    "engineering CRS": {"grid": make_grid(Affine(1, 0, 0, 0, -1, 40), 'LOCAL_CS["site grid",UNIT["metre",1]]')},
    "rotated pole": {
        "grid": make_grid(
            Affine(0.1, 0, -3, 0, -0.1, 2),
            "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +to_meter=0.0174532925199433 +type=crs",
        )
    },
}


@pytest.fixture(params=ITEMS)
def item(request: pytest.FixtureRequest) -> dict[str, Any]:
    return make(**ITEMS[request.param])


# Schemas


def test_item_is_valid_against_the_core_schemas(item: dict[str, Any]) -> None:
    check_item(item)
    assert item["stac_version"] == "1.1.0"


def test_item_fields_match_the_extension_requirements(item: dict[str, Any]) -> None:
    check_fields(item)


@needs_schemas
def test_item_is_valid_against_the_published_extension_schemas(item: dict[str, Any]) -> None:
    assert set(item["stac_extensions"]) <= set(EXTENSIONS.values())
    check_published(item)


INVALID: dict[str, list[tuple[list[str], Any]]] = {
    "core": [
        (["id"], None),
        (["type"], "Thing"),
        (["stac_version"], "1.0.0"),
        (["properties", "datetime"], "yesterday"),
        (["properties", "datetime"], None),
        (["bbox"], None),
        (["bbox"], [1, 2]),
        (["geometry"], {"type": "Polygon"}),
        (["links"], [{"rel": "derived_from"}]),
        (["assets", "class", "href"], None),
        (["assets", "class", "nodata"], "none"),
        (["assets", "class", "data_type"], "byte"),
        (["properties", "mibf:loss"], float("nan")),
        (["properties", "mibf:loss"], np.float32(1)),
        (["assets", "class", "roles"], "data"),
    ],
    "extensions": [
        (["properties", "proj:code"], 32633),
        (["properties", "proj:shape"], [1]),
        (["properties", "proj:epsg"], 32633),
        (["properties", "proj:transform"], [1, 2]),
        (["properties", "proj:bbox"], [1, 2]),
        (["properties", "processing:software"], "mibf"),
        (["properties", "processing:datetime"], "2024-01-01T00:00:00+02:00"),
        (["properties", "processing:expression"], {"format": "stac-mlm"}),
        (["assets", "class", "raster:scale"], "1"),
        (["assets", "class", "raster:sampling"], "pixel"),
        (["assets", "class", "classification:classes"], []),
        (["assets", "class", "classification:classes"], [{"value": 1, "name": "open water"}]),
        (["assets", "class", "classification:classes"], [{"value": 1, "name": "a", "color_hint": "#466b9f"}]),
        (["assets", "class", "classification:bitfields"], [{"offset": 0}]),
    ],
    "file": [(["assets", "class", "file:checksum"], "ab" * 32), (["assets", "class", "file:size"], -1)],
}
#: The schema of the file extension accepts any hexadecimal digits as a checksum.
SIZE = INVALID["file"][1:]


def invalid_item(place: list[str], value: Any) -> dict[str, Any]:
    """Return an item with the field at `place` replaced by `value`, or removed if it is None (a datetime becomes null)."""
    item = copy.deepcopy(make())
    part = item
    for key in place[:-1]:
        part = part[key]
    if value is None and place[-1] != "datetime":
        del part[place[-1]]
    else:
        part[place[-1]] = value
    return item


@pytest.mark.parametrize(("place", "value"), INVALID["core"])
def test_invalid_item_is_refused(place: list[str], value: Any) -> None:
    with pytest.raises(InvalidItemError, match="is not valid: "):
        check_item(invalid_item(place, value))


def test_validation_error_names_the_field() -> None:
    with pytest.raises(InvalidItemError, match=r"'valley-main' is not valid: \$\.assets.*data_type: 'byte' is not one of"):
        check_item(invalid_item(["assets", "class", "data_type"], "byte"))


@pytest.mark.parametrize(("place", "value"), INVALID["extensions"] + INVALID["file"])
def test_invalid_extension_fields_are_detected(place: list[str], value: Any) -> None:
    with pytest.raises((ValidationError, KeyError)):
        check_fields(invalid_item(place, value))


@needs_schemas
@pytest.mark.parametrize(("place", "value"), [*INVALID["extensions"], *SIZE])
def test_invalid_fields_are_detected_by_the_published_extension_schemas(place: list[str], value: Any) -> None:
    with pytest.raises(pystac.STACValidationError):
        check_published(invalid_item(place, value))


# Content of an item


def test_item_round_trips_through_json_and_pystac(item: dict[str, Any]) -> None:
    again = json.loads(json.dumps(item, allow_nan=False))
    assert again == item
    read = pystac.Item.from_dict(copy.deepcopy(again))
    assert read.to_dict(include_self_link=False, transform_hrefs=False) == item


def test_equal_arguments_give_equal_items() -> None:
    for changes in ITEMS.values():
        assert json.dumps(make(**changes)) == json.dumps(make(**changes))


def test_asset_links_stay_valid_when_the_folder_is_moved() -> None:
    item = pystac.Item.from_dict(make(**ITEMS["pieces"]))
    item.set_self_href("/elsewhere/item.json")
    assert item.assets["class"].get_absolute_href() == "/elsewhere/class.vrt"
    assert item.assets["ledger"].get_absolute_href() == "/elsewhere/ledger.jsonl"


def test_item_has_acquisition_time_and_creation_time_in_utc() -> None:
    properties = make()["properties"]
    assert properties["datetime"] == "2024-07-01T10:30:00Z"
    assert properties["created"] == properties["processing:datetime"] == "2026-01-02T02:04:05Z"
    interval = make(datetime="2024-06-01T00:00:00Z/2024-08-31T23:59:59Z")["properties"]
    assert interval["datetime"] is None
    assert (interval["start_datetime"], interval["end_datetime"]) == ("2024-06-01T00:00:00Z", "2024-08-31T23:59:59Z")
    assert make(datetime=None)["properties"]["datetime"] == "2026-01-02T02:04:05Z"


def test_item_contains_no_credentials() -> None:
    url = "https://me:hunter2@h/x?sig=SIGNED"
    facts = {"source": url, "sources": [url, {"at": f"read from {url}, twice"}]}
    text = json.dumps(make(facts=facts, ledger=f"{url}.jsonl"))
    assert not [secret for secret in SECRETS if secret in text]
    hrefs = [link["href"] for link in make()["links"]]
    assert hrefs == [
        "https://h/models/main/model.json",
        "s3://b/a.tif",
        "https://h/b.tif",
        "abfs://container@account/c.tif",
        "/data/d e.tif",
    ]


def test_item_links_the_model_and_the_inputs() -> None:
    item = make()
    model, *inputs = item["links"]
    assert {link["rel"] for link in item["links"]} == {"derived_from"}
    assert (model["mlm:name"], model["mibf:digest"]) == ("MIBF-Net main", "abc")
    assert [link["mibf:fingerprint"] for link in inputs] == ["f1", "f2", "f3", "f4"]
    properties = item["properties"]
    assert (properties["mibf:run"], properties["mibf:fingerprint"], properties["mibf:temperature"]) == ("main", "ff", 1.3)
    assert properties["mibf:loss"] is None, "JSON has no NaN"
    assert properties["processing:software"] == {"mibf": "0.1.0"}
    assert item["assets"]["ledger"]["roles"] == ["metadata"]


def test_only_class_rasters_have_classification_classes() -> None:
    assets = make(**ITEMS["many bands"])["assets"]
    for product in ("class", "second_class"):
        listed = assets[product]["classification:classes"]
        assert [(c["value"], c["name"], c["title"]) for c in listed] == [
            (1, "open_water", "open water"),
            (2, "forest_wood", "forest | wood"),
            (5, "class_5", "!"),
            (255, "nodata", "No data"),
        ]
        assert [c.get("nodata", False) for c in listed] == [False, False, False, True]
        assert listed[0]["color_hint"] == "466B9F"
    assert not [key for key in assets["entropy"] | assets["probabilities"] if key.startswith("classification")]
    assert [band["name"] for band in assets["probabilities"]["bands"]] == [c.name for c in CLASSES]
    assert (assets["entropy"]["nodata"], assets["entropy"]["unit"]) == ("nan", "nat")
    assert make()["assets"]["confidence"]["raster:scale"] == 0.004


def test_source_mask_bitfields_have_source_names() -> None:
    found = make(**ITEMS["bits"])["assets"]["sources"]
    bits = [(bit["offset"], bit["length"], bit["name"]) for bit in found["classification:bitfields"]]
    assert bits == [(0, 1, "optical"), (1, 1, "radar_vv")]
    assert [band["name"] for band in found["bands"]] == ["sources"], "the mask is a single band"
    with pytest.raises(ValueError, match="name the sources of its bits"):
        make(assets=[raster("sources", bands=("sources",))])


def test_renders_have_the_colours_of_the_classes_and_the_limits_of_stored_values() -> None:
    assets = [class_raster(), raster("confidence", dtype="uint16", nodata=65535, scale=0.0001), raster("entropy")]
    found = make(assets=assets)["properties"]["renders"]
    assert found["class"]["colormap"]["1"] == [0x46, 0x6B, 0x9F, 255]
    assert (found["class"]["assets"], found["class"]["nodata"], found["class"]["resampling"]) == (["class"], 255, "nearest")
    assert (found["confidence"]["rescale"], found["confidence"]["nodata"]) == ([[0, 10_000]], 65535)
    assert set(found) == {"class", "confidence"}
    item = make(**ITEMS["pieces"])
    assert [render["assets"] for render in item["properties"]["renders"].values()] == [["class"]]
    assert item["assets"]["class"]["href"] == "./class.vrt", "a map in blocks is drawn from its mosaic"


def test_rights_are_read_back_and_are_valid() -> None:
    rights = Rights("CC-BY-4.0", "https://example.org/licence", ({"name": "Office", "roles": ["licensor", "producer"]},))
    item = make(rights=rights)
    check_item(item)
    assert Rights.of(item) == rights
    assert Rights.of(make()) == Rights()


def test_names_that_are_alike_have_distinct_keys() -> None:
    classes = [ClassName(n, name, "#000000") for n, name in enumerate(["Forest (wet)", "forest wet", "沼泽", "nodata"])]
    sets = raster("prediction_set", dtype="uint8", nodata=0)
    mask = raster("sources", bands=("s.1", "s_1"), dtype="uint8", nodata=0)
    item = make(classes=classes, assets=[class_raster(), sets, mask])
    check_fields(item)
    listed = [c["name"] for c in item["assets"]["class"]["classification:classes"]]
    assert listed == ["Forest_wet_0", "forest_wet_1", "class_2", "nodata_3", "nodata"]
    assert [bit["name"] for bit in item["assets"]["prediction_set"]["classification:bitfields"]] == listed[:-1]
    assert [bit["name"] for bit in item["assets"]["sources"]["classification:bitfields"]] == ["s_1_0", "s_1_1"]


def test_pieces_have_their_own_projection_fields() -> None:
    assets = make(**ITEMS["pieces"])["assets"]
    piece, whole = assets["class_y200_x150"], assets["class"]
    assert piece["proj:shape"] == [200, 150]
    assert piece["proj:transform"] == [10, 0, 501500, 0, -10, 4_998_000]
    assert piece["proj:bbox"] == [501500, 4_996_000, 503000, 4_998_000]
    assert "proj:shape" not in whole, "the shape of the item applies"
    assert (piece["type"], whole["type"]) == (pystac.MediaType.COG, pystac.MediaType.XML)
    assert make(assets=[class_raster(window=Window(0, 0, 400, 300))])["assets"]["class"].keys().isdisjoint({"proj:shape"})


def test_quicklook_has_its_own_grid_and_the_bounds_of_the_map() -> None:
    big = GeoBox((4096, 1000), UTM.affine, "EPSG:32633")
    picture = make(grid=big, assets=[QUICKLOOK])["assets"]["quicklook"]
    assert picture["proj:shape"] == [1024, 250]
    assert picture["proj:transform"] == [40, 0, 500000, 0, -40, 5_000_000]
    assert picture["proj:bbox"] == make(grid=big)["properties"]["proj:bbox"]
    assert picture["roles"] == ["thumbnail", "overview"]


@pytest.mark.parametrize(("place", "metres"), [(UTM, 10.0), (GEOGRAPHIC, None), (LOCAL, None), (CUSTOM_CRS, 3.048006096)])
def test_spatial_resolution_is_in_metres(place: GeoBox, metres: float | None) -> None:
    found = make(grid=place)["assets"]["class"].get("raster:spatial_resolution")
    assert found == (metres if metres is None else pytest.approx(metres))


def test_duplicate_asset_names_and_unknown_files_are_refused() -> None:
    with pytest.raises(ValueError, match=r"class\.vrt and \./class\.tif of a map cannot both be asset 'class'"):
        make(assets=[class_raster(), class_raster(name="class.vrt")])
    with pytest.raises(ValueError, match=r"class\.jpg is not a map file"):
        make(assets=[class_raster(name="class.jpg")])


# Coordinate reference system


def test_item_without_crs_has_no_geometry() -> None:
    item = make(grid=LOCAL)
    assert item["geometry"] is None
    assert "bbox" not in item
    assert item["properties"]["proj:code"] is None
    assert item["properties"]["proj:shape"] == [40, 30]
    assert "proj:bbox" not in item["properties"]


def test_crs_without_epsg_code_is_stored_as_wkt2() -> None:
    properties = make(grid=CUSTOM_CRS)["properties"]
    assert properties["proj:code"] is None
    assert "Lambert Azimuthal Equal Area" in properties["proj:wkt2"]
    assert make()["properties"]["proj:code"] == "EPSG:32633"


# Files


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # a PNG has no georeferencing
def test_item_checksums_and_sizes_match_the_files(tmp_path: Path) -> None:
    shape = (400, 300)
    raster_file = write_classes(tmp_path / "class.tif", np.ones(shape, np.uint8))
    (tmp_path / "quicklook.png").write_bytes(quicklook([(str(raster_file), Window(0, 0, *shape))], shape, CLASSES))
    assets = []
    for asset in (class_raster(), QUICKLOOK):
        size, digest = checksums.sha256(str(tmp_path / asset.name))
        assets.append(Asset(**vars(asset) | {"bytes": size, "sha256": digest.upper()}))
    item = make(assets=assets)
    check_item(item)
    check_fields(item)
    for asset in assets:
        content = (tmp_path / asset.name).read_bytes()
        entry = item["assets"][asset.name.partition(".")[0]]
        multihash = bytes.fromhex(entry["file:checksum"])
        assert (multihash[0], multihash[1]) == (0x12, 32), "multihash prefix of SHA-256: code 0x12, 32 bytes"
        assert multihash[2:] == hashlib.sha256(content).digest()
        assert entry["file:size"] == len(content)
