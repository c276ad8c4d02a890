"""Searches of a real STAC API: stac-fastapi-pgstac on PostgreSQL, with files over HTTP and on an S3 server."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
import rasterio.warp
import rasterio.windows
import shapely
import yaml
import zarr

from jobs.sample import catalogue, sample_folder
from jobs.search.frozen import freeze
from mibf.errors import InputError
from pipeline.stac import search as search_module
from pipeline.stac.assets import read_items
from pipeline.stac.geoparquet import read_table
from pipeline.stac.search import Query, search
from tests.support.commands import invoke
from tests.support.http_server import served
from tests.support.pgstac_server import Database, PgStac, database, missing, pgstac
from tests.support.s3_server import ObjectStore
from tests.support.scenes import write_raster
from tests.support.searched_source import Case
from tests.support.stac_items import DAYS, write_found_items

AREA = shapely.Polygon([(10.0, 40.0), (10.0, 42.0), (12.0, 42.0)])  # the upper left half of its box
START, END = datetime(2024, 6, 3, tzinfo=UTC), datetime(2024, 6, 9, 23, 59, 59, tzinfo=UTC)


@pytest.fixture(scope="module")
def tables() -> Iterator[Database]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with database() as running:
        yield running


@pytest.fixture(scope="module")
def api(tables: Database) -> Iterator[PgStac]:
    with pgstac(tables) as running:
        yield running


def scattered() -> list[dict[str, Any]]:
    """Forty items of half a degree in and around the area, of twelve days; some of intervals, without a moment."""
    drawn, items = random.Random(0), []
    for number in range(40):
        west, south, day = drawn.uniform(9, 12.5), drawn.uniform(39, 42.5), drawn.randint(1, 12)
        box = [west, south, west + 0.5, south + 0.5]
        properties: dict[str, Any] = {"datetime": f"2024-06-{day:02}T10:00:00Z", "eo:cloud_cover": number * 2.5}
        if number % 5 == 0:
            begin, end = f"2024-06-{day:02}T00:00:00Z", f"2024-06-{min(day + 3, 12):02}T00:00:00Z"
            properties |= {"datetime": None, "start_datetime": begin, "end_datetime": end}
        # Version 1 and version 2 of the projection extension, in turn.
        properties |= {"proj:epsg": 32632} if number % 2 else {"proj:code": "EPSG:32632", "proj:shape": [10, 20]}
        asset = {"href": f"https://host/{number}/red.tif", "raster:bands": [{"scale": 1e-4, "offset": -0.1, "nodata": 0}]}
        items.append(
            {
                "type": "Feature", "stac_version": "1.0.0", "id": f"item{number:02}", "bbox": box, "links": [],
                "geometry": shapely.geometry.mapping(shapely.box(*box)), "properties": properties,
                "assets": {"red": asset}, "collection": "odd" if number % 2 else "even",
            }
        )  # fmt: skip  # values in rows that belong together
    return items


@pytest.fixture(scope="module")
def loaded(api: PgStac) -> list[dict[str, Any]]:
    items = scattered()
    random.Random(1).shuffle(items)
    for name in ("odd", "even"):
        api.replace(name, [item for item in items if item["collection"] == name])
    return items


def expected(items: list[dict[str, Any]], area: Any, collections: tuple[str, ...], clouds: float) -> list[str]:
    """The ids of a search, by shapely and the times as text."""
    found = []
    for item in items:
        own = item["properties"]
        begin, end = (own.get(name) or own["datetime"] for name in ("start_datetime", "end_datetime"))
        inside = shapely.geometry.shape(item["geometry"]).intersects(area)
        within = begin <= "2024-06-09T23:59:59Z" and end >= "2024-06-03T00:00:00Z"
        if inside and within and item["collection"] in collections and own["eo:cloud_cover"] < clouds:
            found.append((begin, item["id"]))
    return [name for _, name in sorted(found)]


@pytest.mark.parametrize("page", [3, 100])
@pytest.mark.parametrize(
    ("area", "collections", "clouds"),
    [(AREA, ("odd", "even"), 101), (shapely.box(*AREA.bounds), ("odd",), 101), (AREA, ("odd", "even"), 50)],
)
def test_search_finds_what_touches_area_and_dates_on_any_number_of_pages(
    area: Any, collections: tuple[str, ...], clouds: float, page: int, api: PgStac, loaded: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip  # fixtures and parameters
    monkeypatch.setattr(search_module, "PAGE", page)
    wanted = expected(loaded, area, collections, clouds)
    assert len(wanted) >= 5
    as_json = {"op": "<", "args": [{"property": "eo:cloud_cover"}, clouds]}
    text = None if clouds > 100 else as_json if page == 100 else f"eo:cloud_cover < {clouds}"
    found = search(Query(api.url, area, START, END, collections, text, max_items=len(wanted)))
    assert [item["id"] for item in found.items] == wanted
    own = {item["id"]: pystac.Item.from_dict(copy.deepcopy(item)).to_dict() for item in loaded}
    for item in found.items:
        there = own[item["id"]]
        assert pystac.Item.from_dict(item).to_dict()["properties"] == there["properties"]
        assert item["assets"] == there["assets"]
        assert item["bbox"] == pytest.approx(there["bbox"])
    with pytest.raises(InputError, match=f"there are more than {len(wanted) - 1:,} items"):
        search(Query(api.url, area, START, END, collections, text, max_items=len(wanted) - 1))


def test_filter_that_the_api_cannot_read_is_refused_with_its_answer(api: PgStac, loaded: list[dict[str, Any]]) -> None:
    assert loaded
    with pytest.raises(InputError, match=r"the API answers with an error \(status 4\d\d: "):
        search(Query(api.url, AREA, START, END, (), "eo:cloud_cover <<< 20"))


def test_unknown_collection_is_named(api: PgStac, loaded: list[dict[str, Any]]) -> None:
    assert loaded
    with pytest.raises(InputError, match="has no items of none from 2024-06-03 to 2024-06-09 that touch the area"):
        search(Query(api.url, AREA, START, END, ("none",)))


def test_server_that_goes_away_between_pages_gives_one_message(
    tables: Database, loaded: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "PAGE", 2)
    assert loaded
    with pgstac(tables) as own:
        killed = []

        def kill(count: int) -> None:
            if not killed:
                killed.append(count)
                own.kill()

        with pytest.raises(InputError) as refused:
            search(Query(own.url, AREA, START, END), kill)
    assert killed == [1]
    assert str(refused.value).startswith(f"{own.url}: cannot be reached (")
    assert str(refused.value).count("Check the address and the connection") == 1


# --- a source of a configuration ---


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the items' files."""
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def items(folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Five items whose files are served over HTTP; the searches find four of them."""
    with served(folder) as address:
        made = moved(write_found_items(folder, DAYS), address)
        for item in made:
            item["properties"] |= {"proj:code": "EPSG:32612", "eo:cloud_cover": 12.5}
        yield made


@pytest.fixture
def case(tmp_path: Path, api: PgStac, items: list[dict[str, Any]]) -> Case:
    """A source that is searched, whose files are served over HTTP."""
    api.replace("s2", items)
    return Case(tmp_path, api.url)


def moved(items: list[dict[str, Any]], base: str) -> list[dict[str, Any]]:
    """The items, with their files below another address."""
    made = copy.deepcopy(items)
    for item in made:
        for asset in item["assets"].values():
            asset["href"] = f"{base}/{asset['href'].rpartition('/')[2]}"
    return made


def arrays(case: Case) -> dict[str, np.ndarray]:
    """All arrays of the prepared store."""
    store = zarr.open_group(str(case.workspace / "stores" / "a.zarr"), mode="r")
    return {name: np.asarray(value[...]) for name, value in store.members(max_depth=None) if isinstance(value, zarr.Array)}


def test_files_over_http_and_on_s3_give_the_store_of_files_on_disk(
    case: Case, api: PgStac, folder: Path, items: list[dict[str, Any]], used_bucket: ObjectStore
) -> None:
    (case.folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": moved(items, str(folder))}))
    used_bucket.files.put(str(folder), f"{used_bucket.bucket}/pgstac", recursive=True)
    places = (str(folder), str(case.folder / "items.json")), (items[0]["assets"]["red"]["href"].rpartition("/")[0], api.url)
    stores = []
    for number, (base, url) in enumerate((*places, (used_bucket.url("pgstac"), api.url))):
        if url == api.url:
            api.replace("s2", moved(items, base))
        case.search["url"], case.workspace = url, case.folder / f"work{number}"
        done = case.mibf("prepare")
        assert done.exit_code == 0, done.output
        assert all(asset.href.startswith(base) for item in read_items(str(case.kept)) for asset in item.assets.values())
        stores.append(arrays(case))
    assert np.count_nonzero(stores[0]["sources/optical"])
    for store in stores[1:]:
        assert store.keys() == stores[0].keys()
        for name, values in store.items():
            np.testing.assert_array_equal(values, stores[0][name], err_msg=name)


def test_kept_items_are_those_that_were_loaded_in_any_order(case: Case, api: PgStac, items: list[dict[str, Any]]) -> None:
    config = case.load()
    freeze(config, refresh=False)
    kept = read_table(str(case.kept))
    assert [item["id"] for item in kept] == ["item0", "item1", "item2", "item3"]
    for own, loaded in zip(kept, items, strict=False):
        item, there = (pystac.Item.from_dict(copy.deepcopy(each)).to_dict() for each in (own, loaded))
        assert item["assets"] == there["assets"]
        assert item["properties"] == there["properties"]
        assert item["collection"] == "s2"
        assert shapely.geometry.shape(item["geometry"]).equals(shapely.geometry.shape(there["geometry"]))
    content = case.kept.read_bytes()
    api.replace("s2", items[::-1])
    freeze(config, refresh=True)
    assert case.kept.read_bytes() == content


def test_refresh_says_what_the_server_has_new_changed_and_gone(case: Case, api: PgStac, items: list[dict[str, Any]]) -> None:
    freeze(case.load(), refresh=False)
    new, changed = copy.deepcopy(items[0]) | {"id": "new"}, copy.deepcopy(items[1])
    new["properties"]["datetime"] = "2024-06-05T18:00:00Z"
    changed["properties"]["eo:cloud_cover"] = 99.5
    api.send("POST", "collections/s2/items", new)
    api.send("PUT", "collections/s2/items/item1", changed)
    api.send("DELETE", "collections/s2/items/item3")
    done = case.mibf("prepare", "--refresh")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("since the last search") == 3
    assert "new since the last search: 1 item: new\n" in done.stderr
    assert "no longer found since the last search: 1 item: item3\n" in done.stderr
    assert "changed since the last search: 1 item: item1\n" in done.stderr
    assert [item.id for item in read_items(str(case.kept))] == ["item0", "new", "item1", "item2"]


def test_sample_is_searched_and_prepared_over_http(api: PgStac, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The median of three cloudy days in the store is the sample itself, as rasterio reads it."""
    folder, names = tmp_path / "catalogue", ("B02", "B08")
    monkeypatch.setattr(catalogue, "BANDS", names)
    catalogue.write_catalogue(folder)
    with served(folder) as address:
        items = []
        for item in pystac.Catalog.from_file(str(folder / "catalog.json")).get_items(recursive=True):
            made = item.to_dict(include_self_link=False) | {"links": []}
            for asset in made["assets"].values():
                asset["href"] = asset["href"].replace(str(folder.resolve()), address)
            items.append(made)
        api.replace(catalogue.COLLECTION, items)
        config = yaml.safe_load((sample_folder() / "search.yaml").read_text())
        scene = config["scenes"][0]
        with rasterio.open(sample_folder() / "B02.jp2") as dataset:
            window = rasterio.windows.Window(384, 256, 256, 256)
            bounds = dataset.window_bounds(window)
            values = [rasterio.open(sample_folder() / f"{name}.jp2").read(1, window=window) for name in names]
        del scene["area"], scene["sources"]["s2_20m"]
        scene["grid"] = {"crs": "EPSG:32633", "resolution": 10, "bounds": list(bounds)}
        halves = np.repeat(np.uint8([1, 2]), 128)[None, None].repeat(256, 1)
        write_raster(
            tmp_path / "labels.tif", halves, transform=rasterio.transform.from_bounds(*bounds, 256, 256), crs="EPSG:32633"
        )
        scene["labels"] = {"url": str(tmp_path / "labels.tif")}
        scene["sources"]["s2_10m"]["stac"]["assets"] = list(names)
        scene["sources"]["s2_10m"]["stac"]["search"]["url"] = api.url
        config |= {"workspace": str(tmp_path / "work"), "split": {"method": "random"}, "classes": config["classes"][:2]}
        (tmp_path / "mibf.yaml").write_text(yaml.safe_dump(config))
        done = invoke("prepare", str(tmp_path / "mibf.yaml"))
    assert "3 items of 3 days, 2017-02-06 to 2017-02-26; footprints cover 100.0 % of the area" in done.stderr
    store = zarr.open_group(str(tmp_path / "work" / "stores" / "brandenburg.zarr"), mode="r")
    np.testing.assert_array_equal(store["sources/s2_10m"][...], np.stack(values))


def test_real_scene_is_found_and_read_as_rasterio_reads_it(
    api: PgStac, tmp_path: Path, shared: Callable[[str], Path], used_bucket: ObjectStore
) -> None:
    """Sentinel-2 and Sentinel-1 of one place are two collections, of the two versions of the projection extension."""
    folder = shared("data/terramind_282D_485L_3_3")
    config = {
        "name": "real", "workspace": str(tmp_path / "work"), "split": {"method": "random"},
        "scenes": [
            {
                "name": "a", "grid": {"like": "dem"}, "sources": {"dem": {"url": str(folder / "dem.tif")}},
                "labels": {"url": str(folder / "lulc.tif")},
            }
        ],
        "classes": [{"id": number, "name": f"class {number}"} for number in (1, 2, 6, 9)],
    }  # fmt: skip  # values in rows that belong together
    for name, stated in (("s2_l2a", {"proj:epsg": 32722}), ("s1_rtc", {"proj:code": "EPSG:32722"})):
        with rasterio.open(folder / f"{name}.tif") as dataset:
            place = rasterio.warp.transform_geom(
                dataset.crs, "EPSG:4326", shapely.geometry.mapping(shapely.box(*dataset.bounds))
            )
        bounds = list(shapely.geometry.shape(place).bounds)
        item = pystac.Item(name, place, bounds, datetime(2020, 6, 1, tzinfo=UTC), stated)
        used_bucket.files.put_file(str(folder / f"{name}.tif"), f"{used_bucket.bucket}/real/{name}.tif")
        item.add_asset("data", pystac.Asset(used_bucket.url("real", f"{name}.tif")))
        api.replace(name, [item.to_dict() | {"collection": name, "links": []}])
        search = {"url": api.url, "collections": [name], "dates": "2020-01-01/2020-12-31"}
        config["scenes"][0]["sources"][name] = {"stac": {"search": search, "assets": ["data"]}}
    (tmp_path / "mibf.yaml").write_text(yaml.safe_dump(config))
    invoke("prepare", str(tmp_path / "mibf.yaml"))
    store = zarr.open_group(str(tmp_path / "work" / "stores" / "a.zarr"), mode="r")
    for name in ("s2_l2a", "s1_rtc"):
        with rasterio.open(folder / f"{name}.tif") as dataset:
            np.testing.assert_array_equal(store[f"sources/{name}"][...], dataset.read().astype("float32"))
