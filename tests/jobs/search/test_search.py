"""Items of an area and dates are found in APIs, catalogues and files alike, saved, and used as a source."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pystac
import pytest
import shapely
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.search.search import parse_dates
from mibf.errors import InputError
from pipeline.stac import search as search_module
from pipeline.stac.assets import read_items
from pipeline.stac.geoparquet import read_table, write_table
from pipeline.stac.search import boxes
from tests.support.scenes import write_raster
from tests.support.stac_api import FAULTS, stac_api
from tests.support.stac_items import COLUMNS, DAYS, GRID, MASK, ROWS, write_items


def item(name: str, west: float, day: str, *, collection: str = "scenes", **properties: Any) -> dict[str, Any]:
    """An item of one degree, from 40 to 41 degrees north."""
    box = [west, 40.0, west + 1, 41.0]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": collection,
        "bbox": box,
        "geometry": shapely.geometry.mapping(shapely.box(*box)),
        "properties": {"datetime": f"{day}T10:00:00Z", **properties},
        "links": [],
        "assets": {"red": {"href": f"https://host/{name}/red.tif", "raster:bands": [{"scale": 1e-4, "nodata": 0}]}},
    }


ITEMS = [
    item("c", 10.0, "2024-07-20", **{"eo:cloud_cover": 12.5}),
    item("a", 10.5, "2024-06-01"),
    item("b", 11.0, "2024-07-01", **{"proj:shape": [100, 100]}),
    item("late", 10.0, "2025-01-01"),
    item("far", 20.0, "2024-07-01"),
    item("other", 10.0, "2024-07-01", collection="others"),
]
#: A place in the box of an area, and outside of its polygon.
CORNER = shapely.geometry.mapping(shapely.box(11.1, 40.1, 11.3, 40.3))
WANTED = ["--bbox", "10.2,40.2,10.8,40.8", "--dates", "2024-06-01/2024-07-31", "--collection", "scenes"]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["search", *arguments])


def ids(path: Path) -> list[str]:
    return [each.id for each in read_items(str(path))]


def write_catalogue(folder: Path, items: list[dict[str, Any]]) -> Path:
    """Write a static catalogue with a collection for each name."""
    catalogue = pystac.Catalog("root", "A static catalogue")
    for name in {each["collection"] for each in items}:
        extent = pystac.Extent(pystac.SpatialExtent([[-180, -90, 180, 90]]), pystac.TemporalExtent([[None, None]]))
        collection = pystac.Collection(name, name, extent)
        collection.add_items([pystac.Item.from_dict(each) for each in items if each["collection"] == name])
        catalogue.add_child(collection)
    catalogue.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)
    return folder / "catalog.json"


def test_api_catalogue_and_files_give_the_same_items_in_the_order_of_time(tmp_path: Path) -> None:
    collection = tmp_path / "all.json"
    collection.write_text(json.dumps({"type": "FeatureCollection", "features": ITEMS}))
    write_table(str(tmp_path / "all.parquet"), ITEMS)
    with stac_api(ITEMS, page=1) as api:
        places = [api.url, str(write_catalogue(tmp_path / "static", ITEMS)), str(collection), str(tmp_path / "all.parquet")]
        for number, place in enumerate(places):
            output = tmp_path / f"found{number}.parquet"
            done = run(place, *WANTED, "--output", str(output))
            assert done.exit_code == 0, done.output
            assert ids(output) == ["a", "c"]
            assert "2 items of 2 days, 2024-06-01 to 2024-07-20; footprints cover 100.0 % of the area" in done.stdout
            assert "assets of all items: red" in done.stdout
        assert len(api.searches) == 2, "one page for each item"


def test_only_footprints_that_touch_the_area_count(tmp_path: Path) -> None:
    """The box of the area reaches into all items; its polygon does not."""
    area = shapely.Polygon([(10.6, 40.9), (11.9, 40.9), (11.9, 40.1)])
    geopandas.GeoDataFrame(geometry=[area], crs="EPSG:4326").to_file(tmp_path / "area.geojson")
    with stac_api([ITEMS[1], ITEMS[2], item("corner", 10.0, "2024-07-01")]) as api:
        output = tmp_path / "items.json"
        wanted = ["--area", str(tmp_path / "area.geojson"), "--dates", "2024-06-01/2024-07-31"]
        assert run(api.url, *wanted, "--output", str(output)).exit_code == 0
        assert ids(output) == ["a", "b", "corner"]
        narrow = shapely.Polygon([(11.2, 40.9), (11.9, 40.9), (11.9, 40.1)])
        geopandas.GeoDataFrame(geometry=[narrow], crs="EPSG:4326").to_file(tmp_path / "area.geojson")
        assert run(api.url, *wanted, "--output", str(output), "--refresh").exit_code == 0
        assert ids(output) == ["a", "b"]


def test_maximum_is_of_items_that_touch_the_area(tmp_path: Path) -> None:
    """An API answers by box: it has any number of items there that are outside the polygon, in any order."""
    area = shapely.Polygon([(11.2, 40.9), (11.9, 40.9), (11.9, 40.1)])
    geopandas.GeoDataFrame(geometry=[area], crs="EPSG:4326").to_file(tmp_path / "area.geojson")
    outside = [item(f"far{n}", 11.1, "2024-07-01") | {"geometry": CORNER} for n in range(9)]
    wanted = ["--area", str(tmp_path / "area.geojson"), "--dates", "2024-06-01/2024-07-31", "--max-items", "2"]
    with stac_api([*outside, *ITEMS[:3]]) as api:
        assert run(api.url, *wanted, "--output", str(tmp_path / "items.json")).exit_code == 0
        assert ids(tmp_path / "items.json") == ["a", "b"]
        api.items += [item("one more", 11.0, "2024-07-20")]
        refused = run(api.url, *wanted, "--output", str(tmp_path / "items.json"), "--refresh")
    assert refused.exit_code == 2
    assert "there are more than 2 items" in refused.stderr


def test_api_that_repeats_a_page_endlessly_is_refused(tmp_path: Path) -> None:
    with stac_api(ITEMS, fault="repeating") as api:
        refused = run(api.url, *WANTED, "--max-items", "5", "--output", str(tmp_path / "items.json"))
    assert refused.exit_code == 2
    assert f"{api.url}: the search does not end: its pages repeat the same items" in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("alternate", [False, True])
def test_item_of_an_api_must_not_name_files_of_this_machine(alternate: bool, tmp_path: Path) -> None:
    """Saved on this machine, the item could have read them."""
    asset = {"href": "https://host/red.tif", "alternate": {"disk": {"href": "file:///etc/secret.tif"}}}
    harmful = ITEMS[0] | {"assets": {"red": asset if alternate else {"href": "file:///etc/secret.tif"}}}
    with stac_api([ITEMS[1], harmful]) as api:
        refused = run(api.url, *WANTED, "--output", str(tmp_path / "items.parquet"))
    assert refused.exit_code == 2
    assert "asset 'red' of item 'c' is at file:///etc/secret.tif, a local file, which a remote item may" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_relative_names_of_an_api_are_of_its_server(tmp_path: Path) -> None:
    """Without a link of the item to itself, they were paths of this machine."""
    relative = ITEMS[0] | {"assets": {"red": {"href": "/etc/secret.tif"}, "nir": {"href": "c/nir.tif"}}}
    with stac_api([relative]) as api:
        done = run(api.url, *WANTED, "--output", str(tmp_path / "items.parquet"))
    assert done.exit_code == 0, done.output
    found = read_items(str(tmp_path / "items.parquet"))[0]
    assert found.assets["red"].get_absolute_href() == f"{api.url}/etc/secret.tif"
    assert found.assets["nir"].get_absolute_href() == f"{api.url}/c/nir.tif"


def test_area_across_the_antimeridian_is_searched_on_both_sides(tmp_path: Path) -> None:
    there = [item("west", 179.0, "2024-07-01"), item("east", -180.0, "2024-07-02"), item("far", 0.0, "2024-07-01")]
    output = tmp_path / "items.parquet"
    with stac_api(there) as api:
        done = run(api.url, "--bbox", "179.5,40,-179.5,41", "--dates", "2024-07-01/2024-07-31", "--output", str(output))
        assert done.exit_code == 0, done.output
        assert [search["bbox"] for search in api.searches] == [[179.5, 40, 180, 41], [-180, 40, -179.5, 41]]
    assert ids(output) == ["west", "east"]
    assert "footprints cover 100.0 % of the area" in done.stdout


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((10, 0, 20, 5), [(10, 0, 20, 5)]),
        ((170, 0, 190, 5), [(170, 0, 180, 5), (-180, 0, -170, 5)]),
        ((-190, 0, -170, 5), [(170, 0, 180, 5), (-180, 0, -170, 5)]),
        ((-180, 0, 180, 5), [(-180, 0, 180, 5)]),
    ],
)
def test_boxes_of_an_area(bounds: tuple[float, ...], expected: list[tuple[float, ...]]) -> None:
    assert boxes(shapely.box(*bounds)) == expected


def test_items_are_the_same_after_they_were_a_table(tmp_path: Path) -> None:
    path = str(tmp_path / "items.parquet")
    write_table(path, ITEMS)
    found = [pystac.Item.from_dict(each).to_dict() for each in read_table(path)]
    expected = [pystac.Item.from_dict(each).to_dict() for each in ITEMS]
    for own, other in zip(found, expected, strict=True):
        assert own["assets"] == other["assets"]
        assert own["properties"] == other["properties"]
        assert own["bbox"] == other["bbox"]
        assert shapely.geometry.shape(own["geometry"]).equals(shapely.geometry.shape(other["geometry"]))
        assert (own["id"], own["collection"]) == (other["id"], other["collection"])


def test_refresh_says_what_is_new_and_what_is_gone(tmp_path: Path) -> None:
    output = tmp_path / "items.parquet"
    with stac_api(ITEMS) as api:
        assert run(api.url, *WANTED, "--output", str(output)).exit_code == 0
        before = output.read_bytes()
        again = run(api.url, *WANTED, "--output", str(output))
        assert again.exit_code == 2
        assert f"{output}: is there already; search again with --refresh" in again.stderr
        assert output.read_bytes() == before
        api.items = [*ITEMS[1:], item("new", 10.1, "2024-07-05")]
        done = run(api.url, *WANTED, "--output", str(output), "--refresh")
    assert done.exit_code == 0
    assert "new since the last search: 1 item: new" in done.stdout
    assert "no longer found since the last search: 1 item: c" in done.stdout
    assert ids(output) == ["a", "new"]


def test_filter_is_sent_to_an_api_and_refused_elsewhere(tmp_path: Path) -> None:
    with stac_api(ITEMS, page=9) as api:
        done = run(api.url, *WANTED, "--filter", "eo:cloud_cover < 20", "--output", str(tmp_path / "items.json"))
        assert done.exit_code == 0, done.output
        assert api.searches[0]["filter"] == "eo:cloud_cover < 20"
    catalogue = write_catalogue(tmp_path / "static", ITEMS)
    refused = run(str(catalogue), *WANTED, "--filter", "eo:cloud_cover < 20", "--output", str(tmp_path / "b.json"))
    assert refused.exit_code == 2
    assert "only an API can filter; leave the filter out" in refused.stderr


def test_filter_as_json_is_posted(tmp_path: Path) -> None:
    """Earth Search takes no text: https://github.com/stac-utils/stac-server."""
    items = [each | {"properties": each["properties"] | {"eo:cloud_cover": 10 * at}} for at, each in enumerate(ITEMS)]
    wanted = {"op": "<", "args": [{"property": "eo:cloud_cover"}, 10]}
    with stac_api(items, page=9) as api:
        done = run(api.url, *WANTED, "--filter", json.dumps(wanted), "--output", str(tmp_path / "items.json"))
        assert done.exit_code == 0, done.output
        assert (api.searches[0]["filter"], api.searches[0]["filter-lang"]) == (wanted, "cql2-json")
    assert ids(tmp_path / "items.json") == [items[0]["id"]]


@pytest.mark.parametrize("text", ["", '{"eo:cloud_cover": {"lt": 20}}', '{"op": "<", "args": 20}'])
def test_filter_in_another_form_is_refused(text: str, tmp_path: Path) -> None:
    done = run("http://127.0.0.1:1", *WANTED, "--filter", text, "--output", str(tmp_path / "items.json"))
    assert done.exit_code == 2
    assert f"--filter {text}: `filter` is CQL2: text such as eo:cloud_cover < 40, or JSON such as {{op:" in done.stderr


def test_filter_of_invalid_json_is_refused(tmp_path: Path) -> None:
    done = run("http://127.0.0.1:1", *WANTED, "--filter", "{op: lt}", "--output", str(tmp_path / "items.json"))
    assert done.exit_code == 2
    assert "--filter {op: lt}: is not valid JSON (Expecting property name" in done.stderr


def test_refusal_of_a_filter_as_text_names_the_remedy(tmp_path: Path) -> None:
    with stac_api(ITEMS, fault="text") as api:
        done = run(api.url, *WANTED, "--filter", "eo:cloud_cover < 20", "--output", str(tmp_path / "items.json"))
    assert done.exit_code == 2
    assert "status 400: " in done.stderr
    assert 'write CQL2 JSON: {"op": "<", "args": [{"property": "eo:cloud_cover"}, 40]}' in done.stderr


@pytest.mark.parametrize(("fault", "expected"), FAULTS.items())
def test_misbehaving_api_is_named_and_nothing_is_written(
    fault: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "TIMEOUT", (0.5, 0.5))
    monkeypatch.setattr(search_module, "RETRIES", 0)
    with stac_api(ITEMS, fault=fault) as api:
        done = run(api.url, *WANTED, "--max-items", "5", "--output", str(tmp_path / "items.parquet"))
        assert done.exit_code in (1, 2), done.output
        assert f"mibf: {api.url}: " in done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_search_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "LIMIT", 0.2)
    with stac_api(ITEMS, fault="endless") as api:
        done = run(api.url, *WANTED, "--max-items", "100000", "--output", str(tmp_path / "items.parquet"))
    assert done.exit_code == 2
    assert "the search has not ended within" in done.stderr


def test_address_at_which_nothing_listens_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "RETRIES", 0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    done = run(url, *WANTED, "--output", str(tmp_path / "items.parquet"))
    assert done.exit_code == 2
    assert f"mibf: {url}: cannot be reached" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dates", "2024-07-31/2024-06-01"], "the end is before the start; write the earlier date first"),
        (["--dates", "summer"], "'summer' is not a date; write START/END"),
        (["--bbox", "1,2,3"], "--bbox 1,2,3 is not four numbers; write W,S,E,N"),
        (["--bbox", "10,41,11,40"], "--bbox 10,41,11,40: `bbox` must be [west, south, east, north]"),
        (["--area", "none.geojson"], "give either --area or --bbox"),
        (["--output", "items.gpkg"], "items.gpkg: give a name that ends in .parquet or .json"),
        (["--dates", "2019-06-01/2019-07-31"], "has no items of scenes from 2019-06-01 to 2019-07-31 that touch the area"),
        (["--collection", "none"], "that touch the area"),
    ],
)
def test_wrong_arguments_are_refused_with_the_remedy(arguments: list[str], expected: str, tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": ITEMS}))
    wanted = list(WANTED)
    if arguments[0] in wanted:
        wanted[wanted.index(arguments[0]) + 1] = arguments[1]
        arguments = []
    output = [] if "--output" in arguments else ["--output", str(tmp_path / "items.parquet")]
    done = run(str(path), *wanted, *output, *arguments)
    assert done.exit_code == 2, done.output
    assert expected in done.stderr
    assert not (tmp_path / "items.parquet").exists()


@pytest.mark.parametrize("content", ['{"type": "Catalog"}', "hello", "[]", '{"type": "FeatureCollection", "features": [1]}'])
def test_file_that_is_not_stac_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    path.write_text(content)
    done = run(str(path), *WANTED, "--output", str(tmp_path / "items.parquet"))
    assert done.exit_code == 2
    assert f"mibf: {path}: " in done.stderr


def test_token_of_an_address_is_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(search_module, "RETRIES", 0)
    done = run("http://127.0.0.1:1/stac?token=SECRET", *WANTED, "--output", str(tmp_path / "items.parquet"))
    assert done.exit_code == 2
    assert "http://127.0.0.1:1/stac: cannot be reached" in done.stderr
    assert "SECRET" not in done.stderr


def test_items_without_a_place_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    features = [each | {"geometry": None} for each in ITEMS[:2]]
    for feature in features:
        feature.pop("bbox")
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    done = run(str(path), *WANTED, "--output", str(tmp_path / "items.parquet"))
    assert done.exit_code == 2
    assert "(2 items have no geometry, so their place is unknown)" in done.stderr


def test_days_last_until_midnight_and_times_are_exact() -> None:
    start, end = parse_dates("2024-06-01/2024-06-30")
    assert (start.isoformat(), end.isoformat()) == ("2024-06-01T00:00:00+00:00", "2024-06-30T23:59:59+00:00")
    start, end = parse_dates("2024-06-01T12:00:00+02:00/2024-06-02")
    assert start.isoformat() == "2024-06-01T10:00:00+00:00"
    assert parse_dates("2024-06-01")[1].isoformat() == "2024-06-01T23:59:59+00:00"
    with pytest.raises(InputError, match="is not a date"):
        parse_dates("2024-06-01/")


def test_what_was_found_is_prepared_as_a_source(tmp_path: Path) -> None:
    """From a box and dates over an API to the store of a cloud-free median."""
    collection = json.loads(write_items(tmp_path, DAYS).read_text())
    footprint = GRID.geographic_extent.geom
    for feature in collection["features"]:
        feature |= {"collection": "s2", "bbox": list(footprint.bounds), "geometry": shapely.geometry.mapping(footprint)}
        for asset in feature["assets"].values():
            asset["href"] = str(tmp_path / asset["href"])
    (tmp_path / "found.json").write_text(json.dumps(collection))
    west, south, east, north = footprint.bounds
    box = f"{west + 1e-4},{south + 1e-4},{east - 1e-4},{north - 1e-4}"
    output = tmp_path / "items.parquet"
    found = run(str(tmp_path / "found.json"), "--bbox", box, "--dates", "2024-06-01/2024-06-30", "--output", str(output))
    assert found.exit_code == 0, found.output
    labels = np.ones((1, ROWS, COLUMNS), np.uint8)
    labels[:, :, COLUMNS // 2 :] = 2
    write_raster(tmp_path / "labels.tif", labels, transform=GRID.affine, crs="EPSG:32612")
    config = {
        "name": "summer",
        "workspace": str(tmp_path / "work"),
        "scenes": [
            {
                "name": "a",
                "grid": {"crs": "EPSG:32612", "resolution": 10, "bounds": [499_800, 4_000_000, 500_280, 4_000_400]},
                "sources": {
                    "optical": {
                        "stac": {"url": str(output), "assets": ["red", "nir"], "mask": MASK, "composite": "median"},
                        "derive": {"ndvi": "(nir - red) / (nir + red)"},
                    }
                },
                "labels": {"url": str(tmp_path / "labels.tif")},
            }
        ],
        "classes": [{"id": 1, "name": "left"}, {"id": 2, "name": "right"}],
        "split": {"method": "random"},
    }
    path = tmp_path / "mibf.yaml"
    path.write_text(yaml.safe_dump(config))
    done = CliRunner().invoke(app, ["prepare", str(path)])
    assert done.exit_code == 0, done.output
    assert "median of 3 dates from 2024-06-01 to 2024-06-21" in done.stdout
    assert f"{ROWS} x {COLUMNS} pixels" in done.stdout
