"""What items state about the values of their assets, in the forms in which large catalogues publish them."""

from __future__ import annotations

import math
import time as clock
from collections.abc import Iterator
from typing import Any

import pystac
import pytest

from mibf.errors import InputError
from pipeline.rasters.header import RasterFile, StatedBand
from pipeline.stac.assets import center_longitude, find_asset, solar_date
from pipeline.stac.statements import stated_bands, stated_crs


@pytest.fixture(autouse=True)
def zone() -> Iterator[None]:
    """Restore the machine's time zone after a test."""
    yield
    clock.tzset()


def item(
    assets: dict[str, dict[str, Any]], properties: dict[str, Any] | None = None, collection: str | None = None
) -> pystac.Item:
    """An item whose assets have these fields besides their href."""
    return pystac.Item.from_dict(
        {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": "an-item",
            "geometry": None,
            "collection": collection,
            "properties": {"datetime": "2024-07-01T00:00:00Z"} | (properties or {}),
            "links": [],
            "assets": {key: {"href": f"https://host/{key}.tif"} | fields for key, fields in assets.items()},
        }
    )


#: A band of Earth Search's Sentinel-2, whose items state ESA's offset whether or not it is applied.
EARTH_SEARCH = {
    "eo:bands": [{"name": "red", "common_name": "red"}],
    "raster:bands": [{"nodata": 0, "data_type": "uint16", "spatial_resolution": 10, "scale": 0.0001, "offset": -0.1}],
}

COPERNICUS = {
    "bands": [{"name": "B04", "eo:common_name": "red"}],
    "nodata": 0,
    "raster:scale": 0.0001,
    "raster:offset": -0.1,
}
BASELINE_3, BASELINE_5 = {"s2:processing_baseline": "03.01"}, {"s2:processing_baseline": "05.09"}


def test_fields_of_both_versions_of_the_raster_extension_are_read() -> None:
    old = {"raster:bands": [{"scale": 0.5, "offset": 3, "nodata": -1}, {"nodata": "nan"}]}
    new = {"bands": [{"raster:scale": 0.5, "raster:offset": 3, "nodata": -1}, {"nodata": "nan"}]}
    for fields in (old, new):
        first, second = stated_bands(item({"a": fields}), "a")
        assert first == StatedBand(0.5, 3.0, -1)
        assert (second.gain, second.offset) == (None, None)
        assert second.nodata is not None
        assert math.isnan(second.nodata)


def test_band_takes_from_its_asset_and_the_asset_from_the_item() -> None:
    fields = {"nodata": 0, "raster:scale": 0.1, "bands": [{"name": "a"}, {"name": "b", "nodata": 7}]}
    found = item({"values": fields}, {"raster:offset": 2.0, "nodata": 9})
    assert stated_bands(found, "values") == (StatedBand(0.1, 2.0, 0), StatedBand(0.1, 2.0, 7))


def test_asset_that_states_nothing_says_nothing_about_its_bands() -> None:
    found = item({"visual": {"eo:bands": [{"common_name": name} for name in ("red", "green", "blue")]}})
    assert stated_bands(found, "visual") == ()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"nodata": 3, "scale": "0.1"}, "asset 'a' states scale '0.1', not a number"),
        ({"offset": math.inf}, "asset 'a' states offset inf, not a number"),
        ({"nodata": "none"}, "asset 'a' states nodata 'none', not a number"),
        ({"scale": True}, "asset 'a' states scale True, not a number"),
        ({"nodata": 10**400}, "asset 'a' states nodata"),
    ],
)
def test_value_that_is_not_a_number_is_refused_where_it_is_used(fields: dict[str, Any], expected: str) -> None:
    wrong = list(fields)[-1]
    (band,) = stated_bands(item({"a": {"raster:bands": [fields]}}), "a")
    assert (band.gain, band.offset, band.nodata) == (None, None, 3 if len(fields) > 1 else None)
    band.check(RasterFile("b.tif"), *({"scale", "offset", "nodata"} - {wrong}))
    with pytest.raises(InputError, match=rf"b\.tif: item '.*': {expected}"):
        band.check(RasterFile("b.tif"), "scale", "offset", "nodata")


def test_reflectance_has_its_nodata_value_whatever_else_is_stated_wrongly() -> None:
    found = item({"B04": {"raster:bands": [{"scale": "0.1"}]}}, BASELINE_5, "sentinel-2-l2a")
    (band,) = stated_bands(found, "B04")
    assert (band.nodata, band.nodata_is_default, band.gain) == (0, True, None)


@pytest.mark.parametrize(
    ("collection", "properties", "fields", "expected"),
    [
        # Earth Search v1: the offset is stated, but may be subtracted from the files already.
        ("sentinel-2-l2a", {"earthsearch:boa_offset_applied": True} | BASELINE_5, EARTH_SEARCH, (1e-4, 0.0)),
        ("sentinel-2-l2a", {"earthsearch:boa_offset_applied": False} | BASELINE_5, EARTH_SEARCH, (1e-4, -0.1)),
        # Products before 04.00 have no offset, whatever is stated.
        ("sentinel-2-l2a", {"earthsearch:boa_offset_applied": False} | BASELINE_3, EARTH_SEARCH, (1e-4, 0.0)),
        # Collection 1: as ESA stores it, and stated.
        ("sentinel-2-c1-l2a", BASELINE_5, EARTH_SEARCH, (1e-4, -0.1)),
        # Earth Search v0.
        ("sentinel-s2-l2a-cogs", {"sentinel:boa_offset_applied": True}, {}, (1e-4, 0.0)),
        # Planetary Computer: nothing is stated but the baseline.
        ("sentinel-2-l2a", BASELINE_5, {}, (1e-4, -0.1)),
        ("sentinel-2-l2a", BASELINE_3, {}, (1e-4, 0.0)),
        # Copernicus Data Space.
        (None, {"processing:version": "05.11", "constellation": "sentinel-2"}, COPERNICUS, (1e-4, -0.1)),
        # Forms of the baseline; one that is not known decides nothing.
        ("sentinel-2-l2a", {"s2:processing_baseline": "5.10"}, {}, (1e-4, -0.1)),
        ("sentinel-2-l2a", {"s2:processing_baseline": 5.1}, {}, (1e-4, -0.1)),
        ("sentinel-2-l2a", {"s2:processing_baseline": "N0301"}, {}, (1e-4, 0.0)),
        ("sentinel-2-l2a", {}, {}, (None, None)),
        ("sentinel-2-l2a", {"s2:processing_baseline": "new"}, {}, (None, None)),
        # An offset without a scale is one of reflectance.
        ("sentinel-2-l2a", BASELINE_5, {"raster:bands": [{"offset": -0.1}]}, (1e-4, -0.1)),
        ("sentinel-2-l2a", {}, {"raster:bands": [{"offset": -0.1}]}, (1e-4, -0.1)),
        # One flag that is true suffices.
        ("sentinel-2-l2a", {"a:boa_offset_applied": False, "b:boa_offset_applied": True}, EARTH_SEARCH, (1e-4, 0.0)),
    ],
)
def test_offset_of_sentinel_2_follows_flag_and_baseline(
    collection: str | None, properties: dict[str, Any], fields: dict[str, Any], expected: tuple[float, float]
) -> None:
    [found] = stated_bands(item({"B04": fields}, properties, collection), "B04")
    assert (found.gain, found.offset) == pytest.approx(expected)
    assert found.nodata == 0, "by ESA's definition, stated or not"


def test_other_sensors_keep_what_their_items_state() -> None:
    landsat = {"raster:bands": [{"scale": 2.75e-05, "offset": -0.2, "nodata": 0}]}
    assert stated_bands(item({"red": landsat}, {}, "landsat-c2-l2"), "red") == (StatedBand(2.75e-05, -0.2, 0),)
    assert stated_bands(item({"B04": {}}, BASELINE_5, "hls2-s30"), "B04") == ()


@pytest.mark.parametrize("key", ["scl", "SCL", "aot", "wvp", "visual", "TCI_10m"])
def test_other_assets_of_sentinel_2_have_no_offset(key: str) -> None:
    """Pictures have bands that are called red, green and blue, too."""
    bands = {"eo:bands": [{"common_name": "red"}]} if key in ("visual", "TCI_10m") else {}
    found = item({key: bands}, {"s2:processing_baseline": "05.00"}, "sentinel-2-l2a")
    assert stated_bands(found, key) == ()


@pytest.mark.parametrize(
    ("fields", "properties", "expected"),
    [
        ({}, {}, None),
        ({}, {"proj:epsg": 32612}, "EPSG:32612"),
        ({"proj:code": "EPSG:32613"}, {"proj:epsg": 32612}, "EPSG:32613"),
        ({}, {"proj:epsg": None, "proj:wkt2": "GEOGCRS[...]"}, "GEOGCRS[...]"),
    ],
)
def test_crs_of_the_projection_extension(fields: dict[str, Any], properties: dict[str, Any], expected: str | None) -> None:
    assert stated_crs(item({"a": fields}, properties), "a") == expected


def named(name: str, **fields: Any) -> dict[str, Any]:
    return {"eo:bands": [{"name": "B04", "common_name": name}]} | fields


def test_asset_is_found_by_its_key_before_the_names_of_bands() -> None:
    found = item({"red": named("blue"), "other": named("red")})
    assert find_asset("url", found, "red") == ("red", None)
    assert find_asset("url", found, "blue") == ("red", None)


def test_asset_is_found_by_the_common_name_or_the_name_of_its_band() -> None:
    found = item({"B04_10m": named("red"), "B08_10m": {"bands": [{"name": "B08", "eo:common_name": "nir"}]}})
    assert find_asset("url", found, "red") == ("B04_10m", None)
    assert find_asset("url", found, "B04") == ("B04_10m", None)
    assert find_asset("url", found, "nir") == ("B08_10m", None)


def test_band_of_a_file_with_several_is_chosen_and_pictures_are_not() -> None:
    bands = {"eo:bands": [{"common_name": name} for name in ("red", "green", "blue", "nir")]}
    found = item({"picture": bands | {"roles": ["visual"]}, "image": bands | {"roles": ["data"]}})
    assert find_asset("url", found, "nir") == ("image", 4)


def test_copy_with_the_smallest_pixels_is_taken() -> None:
    found = item({"B04_60m": named("red", gsd=60), "B04_10m": named("red", gsd=10), "B04_20m": named("red", gsd=20)})
    assert find_asset("url", found, "red") == ("B04_10m", None)
    transforms = {key: named("red", **{"proj:transform": [size, 0, 0, 0, -size, 0]}) for key, size in (("a", 20), ("b", 10))}
    assert find_asset("url", item(transforms), "red") == ("b", None)


def test_smallest_pixels_count_before_the_number_of_bands() -> None:
    several = {"gsd": 10, "eo:bands": [{"name": "blue"}, {"name": "red"}]}
    found = item({"coarse": {"gsd": 60, "eo:bands": [{"name": "red"}]}, "fine": several})
    assert find_asset("url", found, "red") == ("fine", 2)


@pytest.mark.parametrize("roles", [None, "data", 5, [["data"]], [{"a": 1}]])
def test_roles_of_any_form_are_read(roles: Any) -> None:
    assert find_asset("url", item({"a": named("red", roles=roles)}), "red") == ("a", None)


def test_name_that_two_bands_of_an_asset_have_is_refused() -> None:
    with pytest.raises(InputError, match=r"asset 'a' has several bands 'red'; choose one with `bands`"):
        find_asset("url", item({"a": {"bands": [{"name": "red"}, {"name": "red"}]}}), "red")


@pytest.mark.parametrize(
    ("time", "longitude", "expected"),
    [
        ("2024-06-01T23:30:00Z", 0.0, "2024-06-01"),
        ("2024-06-01T23:30:00", 0.0, "2024-06-01"),
        ("2024-06-01T23:30:00Z", 15.0, "2024-06-02"),
        ("2024-06-01T00:30:00+02:00", 0.0, "2024-05-31"),
        ("2024-06-01T22:00:00Z", 179.0, "2024-06-02"),
    ],
)
def test_day_is_by_the_sun(time: str, longitude: float, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")  # the machine's zone says nothing about an item
    clock.tzset()
    assert solar_date(item({}, {"datetime": time}), longitude) == expected


def test_item_without_a_usable_time_is_refused() -> None:
    found = item({})
    found.datetime, found.properties = None, {"datetime": None, "start_datetime": None, "end_datetime": None}
    with pytest.raises(InputError, match=r"item 'an-item' has no usable time .*; correct its `datetime`"):
        solar_date(found, 0.0)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([10, 0, 12, 1], 11.0),
        ([179, 0, -179, 1], -180.0),
        ([-180, -90, 180, 90], 0.0),
        ([10, 0, 0, 12, 1, 5], 11.0),
        ([None] * 4, None),
        (["a", 0, "b", 1], None),
        ([1e308, 0, 1, 1], None),
        (None, None),
    ],
)
def test_center_of_a_box(box: Any, expected: float | None) -> None:
    found = item({})
    found.bbox = box
    assert center_longitude(found) == expected


def test_ambiguous_and_unknown_names_are_refused_with_what_there_is() -> None:
    with pytest.raises(InputError, match=r"several assets with a band 'red': tif, jp2; give the key of one of them"):
        find_asset("url", item({"tif": named("red"), "jp2": named("red")}), "red")
    with pytest.raises(InputError, match=r"no asset 'lilac', and no band of this name; it has tif, jp2"):
        find_asset("url", item({"tif": named("red"), "jp2": named("red")}), "lilac")
