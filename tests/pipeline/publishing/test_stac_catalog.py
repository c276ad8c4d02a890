"""The catalog of a workspace: valid STAC, relative links, extents, and no map lost whichever run writes last."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pystac
import pystac.validation
import pytest
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from pipeline.io import storage
from pipeline.io.lease import Lease, LeaseLostError
from pipeline.publishing import stac_catalog
from pipeline.publishing.footprint import union_of_bounds
from pipeline.publishing.published_map import ITEM
from pipeline.publishing.stac_catalog import catalog_entry, href_from_item, update_catalog
from pipeline.publishing.stac_fields.rights import UNKNOWN, Rights
from pipeline.publishing.stac_item import Asset, ModelLink, map_item
from tests.support.http_server import served
from tests.support.published_maps import ANTIMERIDIAN, CLASSES, LOCAL, UTM


def item(
    scene: str, run: str, grid: GeoBox = UTM, time: str | None = "2024-07-01T00:00:00Z", rights: Rights = UNKNOWN
) -> dict[str, Any]:
    return map_item(
        id=f"valley-{scene}-{run}",
        grid=grid,
        assets=[Asset("class", "class.tif", 9, "ab" * 32, "uint8", 255, bands=("class",))],
        classes=CLASSES,
        created=datetime(2026, 1, 2, tzinfo=UTC),
        datetime=time,
        model=ModelLink("../../../models/main/model.json", "abc", "main"),
        inputs={},
        ledger="./ledger",
        version="0.1.0",
        fingerprint="ff",
        run="20260102T000000-abcdef",
        facts={},
        entry=catalog_entry("valley", scene, run),
        rights=rights,
    )


def publish(workspace: str, scene: str, run: str, **changes: Any) -> None:
    storage.write_json(storage.join(workspace, "maps", scene, run, ITEM), item(scene, run, **changes))


@pytest.fixture
def workspace(tmp_path: Path) -> str:
    """A workspace with maps of two runs and three scenes; one of the scenes was mapped by one of the runs."""
    url = str(tmp_path / "work")
    publish(url, "east", "main", time="2024-06-01T00:00:00Z/2024-08-31T23:59:59Z")
    publish(url, "west", "main", grid=ANTIMERIDIAN)
    publish(url, "west", "second", grid=ANTIMERIDIAN)
    publish(url, "image", "second", grid=LOCAL)
    return url


def files(url: str) -> dict[str, Any]:
    """The files of the catalog by path."""
    filesystem, path = storage.open_url(url)
    names = [storage.join(path, "catalog.json"), *filesystem.glob(storage.join(path, "collections", "*.json"))]
    return {
        name[len(path) :].lstrip("/"): json.loads(filesystem.cat_file(name)) for name in names if filesystem.exists(name)
    }


def found_items(root: str) -> set[str]:
    """The ids of the items that pystac finds from a catalog."""
    return {found.id for found in pystac.Catalog.from_file(root).get_items(recursive=True)}


EVERYTHING = {"valley-east-main", "valley-west-main", "valley-west-second", "valley-image-second"}


def test_catalog_leads_to_every_map_on_disk_and_on_a_web_server(workspace: str) -> None:
    update_catalog(workspace, Lease())
    assert found_items(f"{workspace}/catalog.json") == EVERYTHING
    with served(Path(workspace)) as url:
        assert found_items(f"{url}/catalog.json") == EVERYTHING
    # An item leads back to its collection and to the catalog, and to its model.
    read = pystac.Item.from_file(f"{workspace}/maps/west/second/item.json")
    collection = read.get_collection()
    assert collection is not None
    assert (collection.id, read.collection_id) == ("valley-second", "valley-second")
    root = read.get_single_link("root")
    assert root is not None
    assert root.get_absolute_href() == f"{workspace}/catalog.json"
    (model,) = read.get_links("derived_from")
    assert model.get_absolute_href() == f"{workspace}/models/main/model.json"


@pytest.mark.usefixtures("offline")
def test_catalog_and_collections_are_valid_against_the_core_schemas(workspace: str) -> None:
    update_catalog(workspace, Lease())
    for content in files(workspace).values():
        kind = pystac.STACObjectType(content["type"])
        pystac.validation.validate_dict(content, kind, "1.1.0", extensions=[])
        assert not [link for link in content["links"] if not link["href"].startswith("./") and link["href"][:3] != "../"]


def test_collections_have_the_extent_of_their_maps(workspace: str) -> None:
    update_catalog(workspace, Lease())
    main, second = (files(workspace)[f"collections/{run}.json"]["extent"] for run in ("main", "second"))
    east, west = item("east", "main")["bbox"], item("west", "main", ANTIMERIDIAN)["bbox"]
    assert west[0] > west[2], "across the antimeridian"
    # Around the world eastwards, the gap from the eastern map to the antimeridian is the narrower one.
    assert main["spatial"]["bbox"] == [[east[0], west[1], west[2], east[3]], *sorted([east, west])]
    assert main["temporal"]["interval"] == [["2024-06-01T00:00:00Z", "2024-08-31T23:59:59Z"]]
    assert second["spatial"]["bbox"] == [west], "a map without a CRS has no place"


def test_collection_has_the_licence_and_the_providers_of_its_maps(tmp_path: Path) -> None:
    url, office = str(tmp_path), {"name": "Office", "roles": ["producer"]}
    rights = Rights("CC-BY-4.0", "https://example.org/licence", (office,))
    publish(url, "east", "main", rights=rights)
    publish(url, "west", "main", rights=rights)
    update_catalog(url, Lease())
    found = files(url)["collections/main.json"]
    pystac.validation.validate_dict(found, pystac.STACObjectType.COLLECTION, "1.1.0", extensions=[])
    assert (found["license"], found["providers"]) == ("CC-BY-4.0", [office])
    assert [link["href"] for link in found["links"] if link["rel"] == "license"] == ["https://example.org/licence"]
    publish(url, "west", "main")
    update_catalog(url, Lease())
    assert files(url)["collections/main.json"]["license"] == "other", "that of one map is not known"


def test_maps_without_a_crs_are_anywhere(tmp_path: Path) -> None:
    publish(str(tmp_path), "image", "main", grid=LOCAL)
    update_catalog(str(tmp_path), Lease())
    assert files(str(tmp_path))["collections/main.json"]["extent"]["spatial"]["bbox"] == [[-180, -90, 180, 90]]


def test_catalog_follows_the_maps(workspace: str) -> None:
    update_catalog(workspace, Lease())
    before = {path: Path(workspace, path).stat().st_mtime_ns for path in files(workspace)}
    update_catalog(workspace, Lease())
    assert {path: Path(workspace, path).stat().st_mtime_ns for path in files(workspace)} == before, "nothing was written"
    for scene in ("west", "image"):
        storage.remove(f"{workspace}/maps/{scene}/second")
    Path(workspace, "maps/east/main/item.json").write_text("damaged")
    update_catalog(workspace, Lease())
    assert list(files(workspace)) == ["catalog.json", "collections/main.json"]
    assert found_items(f"{workspace}/catalog.json") == {"valley-west-main"}


@contextmanager
def counted_requests() -> Iterator[Counter[str]]:
    """Count what is asked of the storage, by function."""
    calls: Counter[str] = Counter()

    def counting(name: str) -> Callable[..., Any]:
        plain = getattr(storage, name)

        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return plain(*arguments)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("exists", "names", "folders", "read_bytes", "read_json", "write_json", "remove"):
            patch.setattr(stac_catalog.storage, name, counting(name))
        yield calls


def test_update_costs_the_same_however_many_other_maps_there_are(tmp_path: Path) -> None:
    found = []
    for others in (20, 60):
        url = str(tmp_path / str(others))
        for number in range(others):
            publish(url, f"scene{number}", "main")
            publish(url, f"scene{number}", "second")
        update_catalog(url, Lease())
        publish(url, "new", "main", grid=ANTIMERIDIAN)
        with counted_requests() as calls:
            update_catalog(url, Lease(), [("new", "main")])
        found.append(calls)
        updated = files(url)
        update_catalog(url, Lease())
        assert files(url) == updated, "the catalog is what it would be if all items had been read"
    assert found[0] == found[1]
    assert (found[0]["read_bytes"] - found[0]["read_json"], found[0]["write_json"]) == (1, 1), "one item, one collection"
    assert sum(found[0].values()) < 50


def test_deleted_maps_are_noticed_when_another_one_is_published(workspace: str) -> None:
    update_catalog(workspace, Lease())
    storage.remove(f"{workspace}/maps/east/main")
    storage.remove(f"{workspace}/maps/west/second")
    storage.remove(f"{workspace}/maps/image/second")
    publish(workspace, "north", "main")
    update_catalog(workspace, Lease(), [("north", "main")])
    assert list(files(workspace)) == ["catalog.json", "collections/main.json"]
    assert found_items(f"{workspace}/catalog.json") == {"valley-west-main", "valley-north-main"}
    storage.remove(f"{workspace}/maps/north/main")
    update_catalog(workspace, Lease(), [("north", "main")])
    assert found_items(f"{workspace}/catalog.json") == {"valley-west-main"}, "and those that the command itself found gone"


def test_catalogs_of_earlier_versions_are_made_again(workspace: str) -> None:
    update_catalog(workspace, Lease())
    expected = files(workspace)
    path = Path(workspace, "collections/main.json")
    old = json.loads(path.read_text())
    old["links"] = [{key: value for key, value in link.items() if ":" not in key} for link in old["links"]]
    path.write_text(json.dumps(old))
    update_catalog(workspace, Lease(), [("east", "main")])
    assert files(workspace) == expected
    Path(workspace, "catalog.json").unlink()
    update_catalog(workspace, Lease(), [("east", "main")])
    assert files(workspace) == expected


def test_workspace_without_maps_gets_no_catalog(tmp_path: Path) -> None:
    update_catalog(str(tmp_path), Lease())
    assert not list(tmp_path.iterdir())


def test_items_of_earlier_versions_are_listed(tmp_path: Path) -> None:
    old = {key: value for key, value in item("east", "main").items() if key != "collection"}
    old["links"] = [link for link in old["links"] if link["rel"] == "derived_from"]
    storage.write_json(str(tmp_path / "maps/east/main/item.json"), old)
    update_catalog(str(tmp_path), Lease())
    assert files(str(tmp_path))["collections/main.json"]["id"] == "main"
    assert found_items(str(tmp_path / "catalog.json")) == {"valley-east-main"}


def test_map_that_another_run_publishes_meanwhile_is_in_the_catalog(workspace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = storage.write_json

    def publish_then_write(url: str, value: Any) -> None:
        if url.endswith("catalog.json"):
            monkeypatch.setattr(stac_catalog.storage, "write_json", write)
            publish(workspace, "north", "third")
        write(url, value)

    monkeypatch.setattr(stac_catalog.storage, "write_json", publish_then_write)
    update_catalog(workspace, Lease())
    assert found_items(f"{workspace}/catalog.json") == EVERYTHING | {"valley-north-third"}


def test_runs_that_publish_at_once_lose_no_map(tmp_path: Path) -> None:
    url = str(tmp_path)

    def run(name: str) -> None:
        for scene in ("a", "b", "c"):
            publish(url, scene, name)
            update_catalog(url, Lease(), [(scene, name)])

    threads = [threading.Thread(target=run, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found_items(f"{url}/catalog.json")) == 6


def test_lost_lease_stops_the_writing(workspace: str) -> None:
    class Lost(Lease):
        def check(self) -> None:
            raise LeaseLostError("another run holds the workspace")

    with pytest.raises(LeaseLostError):
        update_catalog(workspace, Lost())
    assert not files(workspace)


def test_catalog_is_written_to_an_object_store() -> None:
    url = "memory://catalogs/work"
    try:
        publish(url, "east", "main")
        update_catalog(url, Lease())
        assert list(files(url)) == ["catalog.json", "collections/main.json"]
    finally:
        fsspec.filesystem("memory").rm("/catalogs", recursive=True)


def test_files_of_the_workspace_have_relative_locations() -> None:
    assert href_from_item("s3://bucket/work", "s3://bucket/work/models/main/model.json") == "../../../models/main/model.json"
    assert href_from_item("/data/work", "/data/works/model.json") == "/data/works/model.json"


BOXES = st.tuples(st.floats(-180, 180), st.floats(-90, 90), st.floats(0, 200), st.floats(0, 10)).map(
    lambda box: [box[0], box[1], box[0] + box[2] if box[0] + box[2] <= 180 else box[0] + box[2] - 360, box[1] + box[3]]
)


def covers(bounds: list[float], longitude: float) -> bool:
    west, _, east, _ = bounds
    slack = 1e-9
    if west <= east:
        return west - slack <= longitude <= east + slack
    return longitude >= west - slack or longitude <= east + slack


@given(st.lists(BOXES, min_size=1, max_size=5))
def test_union_covers_all_bounds_and_is_no_wider_than_needed(boxes: list[list[float]]) -> None:
    found = union_of_bounds(boxes)
    assert (found[1], found[3]) == (min(box[1] for box in boxes), max(box[3] for box in boxes))
    for west, _, east, _ in boxes:
        middle = (west + (east if west <= east else east + 360)) / 2
        assert all(covers(found, x if x <= 180 else x - 360) for x in (west, east, middle))
    if found[0] > -180 or found[2] < 180:  # it begins and ends with a box
        assert found[0] in [box[0] for box in boxes]
        assert any(abs(found[2] - box[2]) < 1e-9 for box in boxes)
