"""Sources that are searched: what was found is kept in the workspace, and used until it is searched again."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.config.loader import load
from jobs.config.resolve import sources
from jobs.fleet import submit as submit_module
from jobs.inspection.plan import plan
from jobs.search.frozen import freeze, with_found_items
from jobs.workflow.fingerprint import fingerprint
from jobs.workflow.found_items import NotSearchedError, found_items
from jobs.workflow.saved_config import as_run, relative_paths
from mibf.errors import InputError
from pipeline.io.lease import acquire
from pipeline.stac import search as search_module
from pipeline.stac.api_access import variable
from pipeline.stac.assets import read_items
from pipeline.stac.geoparquet import encode_table, read_kept, read_table, write_table
from tests.support.http_server import served
from tests.support.scenes import write_raster
from tests.support.searched_source import BOUNDS, Case
from tests.support.stac_api import FAULTS, StacApi, stac_api
from tests.support.stac_items import DAYS, GRID, write_found_items


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """Items whose files are served over HTTP."""
    folder = tmp_path_factory.mktemp("files")
    with served(folder) as address:
        yield write_found_items(folder, DAYS, address)


@pytest.fixture
def api(items: list[dict[str, Any]]) -> Iterator[StacApi]:
    with stac_api(copy.deepcopy(items), page=2) as server:
        yield server


@pytest.fixture
def case(tmp_path: Path, api: StacApi) -> Case:
    return Case(tmp_path, api.url)


def ids(case: Case) -> list[str]:
    return [item.id for item in read_items(str(case.kept))]


def test_prepare_searches_once_and_runs_again_without_a_network(case: Case, api: StacApi) -> None:
    done = case.mibf("prepare")
    assert done.exit_code == 0, done.output
    assert "a: source 'optical': 4 items of 3 days, 2024-06-01 to 2024-06-21; footprints cover 100.0 %" in done.stderr
    assert "median of 3 dates from 2024-06-01 to 2024-06-21" in done.stdout
    assert ids(case) == ["item0", "item1", "item2", "item3"]
    asked, before = len(api.searches), case.kept.read_bytes()
    config = case.load()
    current = fingerprint(config, "prepare")
    api.fault = "error"
    again = case.mibf("prepare")
    assert again.exit_code == 0, again.output
    assert len(api.searches) == asked
    assert case.kept.read_bytes() == before
    assert fingerprint(config, "prepare") == current


def test_store_is_that_of_the_same_items_in_a_file(case: Case) -> None:
    """The pixels are those of `stac.url` with the same items, and the item file is an ordinary one."""
    config = case.load()
    freeze(config, refresh=False)
    values = case.values
    del values["scenes"][0]["sources"]["optical"]["stac"]["search"]
    values["scenes"][0]["sources"]["optical"]["stac"]["url"] = str(case.kept)
    case.path.write_text(yaml.safe_dump(values))
    given = load(str(case.path))
    assert sources(found_items(config).scenes[0]) == sources(given.scenes[0])


def test_refresh_says_what_is_new_gone_and_changed_and_makes_the_store_stale(case: Case, api: StacApi) -> None:
    config = case.load()
    freeze(config, refresh=False)
    before = fingerprint(config, "prepare")
    api.items[0]["properties"]["eo:cloud_cover"] = 3.5
    api.items[4]["properties"]["datetime"] = "2024-06-29T18:00:00Z"
    gone = api.items.pop(3)
    done = case.mibf("prepare", "--refresh")
    assert done.exit_code == 0, done.output
    assert "new since the last search: 1 item: item4" in done.stderr
    assert f"no longer found since the last search: 1 item: {gone['id']}" in done.stderr
    assert "changed since the last search: 1 item: item0" in done.stderr
    assert ids(case) == ["item0", "item1", "item2", "item4"]
    assert fingerprint(config, "prepare") != before


def test_refresh_that_finds_the_same_items_leaves_everything_current(case: Case) -> None:
    config = case.load()
    freeze(config, refresh=False)
    before, stamp = fingerprint(config, "prepare"), case.kept.stat().st_mtime_ns
    freeze(config, refresh=True)
    assert case.kept.stat().st_mtime_ns == stamp
    assert fingerprint(config, "prepare") == before


def test_fingerprint_is_of_the_content_of_what_was_found(case: Case) -> None:
    config = case.load()
    freeze(config, refresh=False)
    before, content = fingerprint(config, "prepare"), case.kept.read_bytes()
    case.kept.unlink()
    case.kept.write_bytes(content)
    assert fingerprint(config, "prepare") == before, "a copy is the same"
    case.search["max_items"] = 50
    assert fingerprint(case.load(), "prepare") == before, "a limit that was not reached does not count"
    items, stated = read_kept(str(case.kept))
    case.kept.write_bytes(encode_table(items[:3], stated))
    assert fingerprint(config, "prepare") != before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dates": "2024-06-11/2024-07-02"}, ["item1", "item2", "item3", "item4"]),
        ({"filter": "eo:cloud_cover < 20"}, ["item0", "item1", "item2", "item3"]),
        ({"filter": {"op": "<", "args": [{"property": "eo:cloud_cover"}, 20]}}, ["item0", "item1", "item2", "item3"]),
        ({"collections": []}, ["item0", "item1", "item2", "item3"]),
    ],
)
def test_changed_search_is_done_again(change: dict[str, Any], expected: list[str], case: Case, api: StacApi) -> None:
    api.page = 9
    for item in api.items:
        item["properties"]["eo:cloud_cover"] = 10
    freeze(case.load(), refresh=False)
    asked = len(api.searches)
    case.search |= change
    freeze(case.load(), refresh=False)
    assert ids(case) == expected
    assert len(api.searches) > asked
    asked = len(api.searches)
    freeze(case.load(), refresh=False)
    assert len(api.searches) == asked


def test_changed_area_is_searched_again(case: Case, api: StacApi) -> None:
    """The area is the scene's own, or else the grid's; that of a file counts by its polygons."""
    freeze(case.load(), refresh=False)
    to_degrees = pyproj.Transformer.from_crs("EPSG:32612", "EPSG:4326", always_xy=True).transform_bounds(*BOUNDS)
    assert api.searches[-1]["bbox"] == pytest.approx(to_degrees, abs=1e-6)
    file = case.folder / "area.geojson"
    for west in (-111.0, -110.999):
        box = shapely.box(west, 36.1448, -110.998, 36.1462)
        geopandas.GeoDataFrame(geometry=[box], crs="EPSG:4326").to_file(file)
        case.scene["area"] = {"url": str(file)}
        freeze(case.load(), refresh=False)
        assert api.searches[-1]["bbox"] == pytest.approx(box.bounds, abs=1e-9)
    asked = len(api.searches)
    freeze(case.load(), refresh=False)
    assert len(api.searches) == asked


def test_area_of_a_grid_is_that_of_the_source_it_is_like(case: Case, api: StacApi) -> None:
    write_raster(case.folder / "dem.tif", np.ones((1, 20, 20), np.float32), transform=GRID.affine, crs="EPSG:32612")
    case.scene["grid"] = {"like": "dem"}
    case.scene["sources"]["dem"] = {"url": str(case.folder / "dem.tif")}
    freeze(case.load(), refresh=False)
    left, bottom, right, top = BOUNDS[0], BOUNDS[3] - 200, BOUNDS[0] + 200, BOUNDS[3]
    expected = pyproj.Transformer.from_crs("EPSG:32612", "EPSG:4326", always_xy=True).transform_bounds(
        left, bottom, right, top
    )
    assert api.searches[-1]["bbox"] == pytest.approx(expected, abs=1e-6)


def test_sources_with_the_same_search_ask_once(case: Case, api: StacApi) -> None:
    case.scene["sources"]["coarse"] = {"stac": {"search": case.search, "assets": ["nir"]}}
    freeze(case.load(), refresh=False)
    assert len(api.searches) == 2, "two pages"
    assert sorted(each.name for each in case.kept.parent.iterdir()) == ["coarse.parquet", "optical.parquet"]


def test_plan_writes_nothing_and_later_stages_do_not_search(case: Case, api: StacApi) -> None:
    config = case.load()
    with pytest.raises(NotSearchedError, match="source 'optical' of scene 'a' were not searched yet; run `mibf prepare`"):
        fingerprint(config, "prepare")
    asked = len(api.searches)
    for stage in ("train", "map", "status"):
        assert case.mibf(stage).exit_code in (0, 2)
    assert len(api.searches) == asked
    found = plan(config)
    assert "median of 3 dates" in found.lines()[1]
    assert not case.workspace.exists()
    assert len(api.searches) > asked


def test_plan_reads_what_is_kept(case: Case, api: StacApi) -> None:
    freeze(case.load(), refresh=False)
    api.fault = "error"
    with with_found_items(case.load()) as config:
        assert config.scenes[0].sources["optical"].stac.url == str(case.kept)


def test_saved_configuration_has_the_search_with_absolute_names(case: Case) -> None:
    """A rerun from another folder reads the same file of items."""
    freeze(case.load(), refresh=False)
    case.search["url"] = "catalog.json"
    config = case.load()
    assert relative_paths(config) == ["catalog.json"]
    saved = yaml.safe_load(as_run(config))["scenes"][0]["sources"]["optical"]["stac"]
    assert saved["search"]["url"] == str(Path("catalog.json").absolute())
    assert "url" not in saved
    case.path.write_text(as_run(config))
    assert found_items(load(str(case.path), saved=True)).scenes[0].sources["optical"].stac.url == str(case.kept)


def test_submitted_job_searches_itself(case: Case, api: StacApi) -> None:
    asked = len(api.searches)
    options = submit_module.SubmitOptions("prepare", str(case.path))
    case.load()
    job = submit_module._job(options, str(case.path), case.folder)
    assert job.metadata["mibf_fingerprint"] == ""
    assert not job.is_done()
    assert len(api.searches) == asked


def test_token_of_the_address_is_not_kept(case: Case) -> None:
    case.search["url"] = case.search["url"] + "/?token=SECRET"
    freeze(case.load(), refresh=False)
    assert b"SECRET" not in case.kept.read_bytes()
    items, stated = read_kept(str(case.kept))
    assert len(items) == 4
    assert "SECRET" not in json.dumps(stated)


def test_bearer_token_is_nowhere_in_workspace_output_and_job(
    case: Case, api: StacApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.token = "planted-token"
    done = case.mibf("prepare")
    assert done.exit_code == 2
    assert f"{api.url} demands credentials (status 401); set {variable(api.url)} to a bearer token" in done.stderr
    assert not case.workspace.exists()
    monkeypatch.setenv(variable(api.url), api.token)
    done = case.mibf("prepare")
    assert done.exit_code == 0, done.output
    job = submit_module._job(submit_module.SubmitOptions("prepare", str(case.path), again=True), str(case.path), case.folder)
    assert api.token not in done.output + repr(job)
    files = [path for path in case.workspace.rglob("*") if path.is_file()]
    assert case.kept in files
    assert not [path for path in files if b"planted" in path.read_bytes()]
    assert api.token not in json.dumps(read_kept(str(case.kept)))
    config = case.load()
    before = fingerprint(config, "prepare")
    monkeypatch.delenv(variable(api.url))
    assert fingerprint(config, "prepare") == before


def test_locked_workspace_is_not_changed(case: Case) -> None:
    with acquire(str(case.workspace)):
        done = case.mibf("prepare")
    assert done.exit_code == 4, done.output
    assert not case.kept.exists()


# --- bad input ---


@pytest.mark.parametrize(("fault", "expected"), FAULTS.items())
def test_misbehaving_api_is_named_and_nothing_is_written(
    fault: str, expected: str, case: Case, api: StacApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "TIMEOUT", (0.5, 0.5))
    monkeypatch.setattr(search_module, "RETRIES", 0)
    api.fault = fault
    case.search["max_items"] = 5
    done = case.mibf("prepare")
    assert done.exit_code == 2, done.output
    assert f"mibf: {api.url}: " in done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert not case.workspace.exists()


def test_failed_refresh_keeps_what_was_found(case: Case, api: StacApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "RETRIES", 0)
    freeze(case.load(), refresh=False)
    before = case.kept.read_bytes()
    api.fault = "error"
    assert case.mibf("prepare", "--refresh").exit_code == 2
    assert case.kept.read_bytes() == before


def test_search_without_items_is_refused(case: Case) -> None:
    case.search["dates"] = "2019-06-01/2019-07-01"
    done = case.mibf("prepare")
    assert done.exit_code == 2
    assert "has no items of s2 from 2019-06-01 to 2019-07-01 that touch the area" in done.stderr
    assert not case.workspace.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_damaged_items_are_named_and_searched_again_on_request(damage: str, case: Case, api: StacApi) -> None:
    freeze(case.load(), refresh=False)
    content = bytearray(case.kept.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[100] ^= 0xFF
    else:
        content = bytearray(b"{}")
    case.kept.write_bytes(content)
    asked = len(api.searches)
    for command in ("prepare", "plan"):
        done = case.mibf(command)
        assert done.exit_code == 2, done.output
        assert f"mibf: {case.kept}: cannot be read as STAC-GeoParquet" in done.stderr
        assert "search again with `mibf prepare --refresh`" in done.stderr
    assert case.kept.read_bytes() == content
    assert len(api.searches) == asked
    freeze(case.load(), refresh=True)
    assert len(ids(case)) == 4


def test_items_without_their_search_are_refused(case: Case) -> None:
    """A file that somebody put there: whether it answers the search is unknown."""
    freeze(case.load(), refresh=False)
    write_table(str(case.kept), read_table(str(case.kept)))
    with pytest.raises(InputError, match="does not say how its items of a: source 'optical' were searched"):
        freeze(case.load(), refresh=False)


def test_refresh_without_a_search_is_refused(case: Case) -> None:
    values = case.values
    values["scenes"][0]["sources"]["optical"] = {"url": str(case.folder / "labels.tif")}
    case.path.write_text(yaml.safe_dump(values))
    done = CliRunner().invoke(app, ["prepare", str(case.path), "--refresh"])
    assert done.exit_code == 2
    assert "--refresh: no source of the configuration has `stac.search`" in done.stderr


@pytest.mark.parametrize(
    ("search", "stac", "expected"),
    [
        ({"dates": "2024-07-31/2024-06-01"}, {}, "search.dates: the end is before the start; write the earlier date first"),
        ({"dates": "summer"}, {}, "search.dates: 'summer' is not a date; write START/END"),
        ({"max_items": 0}, {}, "search.max_items"),
        (
            {"filter": ["eo:cloud_cover < 20"]},
            {},
            "search.filter: `filter` is CQL2: text such as eo:cloud_cover < 40, or JSON such as",
        ),
        ({"filter": {"eo:cloud_cover": {"lt": 20}}}, {}, "search.filter: `filter` is CQL2"),
        ({"datetime": "2024"}, {}, "search.datetime: unknown key; did you mean 'dates'?"),
        ({}, {"url": "items.parquet"}, "give either `url`, an item or a file of items, or `search`"),
    ],
)
def test_wrong_search_is_refused_with_its_place(
    search: dict[str, Any], stac: dict[str, Any], expected: str, case: Case
) -> None:
    case.search |= search
    case.stac |= stac
    with pytest.raises(InputError) as refused:
        case.load()
    assert "scenes.0.sources.optical.stac" in str(refused.value)
    assert expected in str(refused.value)


def test_neither_file_nor_search_is_refused(case: Case) -> None:
    values = case.values
    del values["scenes"][0]["sources"]["optical"]["stac"]["search"]
    case.path.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match="give either `url`, an item or a file of items, or `search`"):
        load(str(case.path))


def test_search_without_an_area_is_refused(case: Case) -> None:
    case.scene["grid"] = {"like": "optical"}
    with pytest.raises(InputError, match=r"`grid\.like` is 'optical', which is searched in the scene's area; give `area:"):
        case.load()


def test_missing_area_is_named_before_anything_is_searched(case: Case, api: StacApi) -> None:
    case.scene["area"] = {"url": str(case.folder / "none.geojson")}
    asked = len(api.searches)
    done = case.mibf("prepare")
    assert done.exit_code == 2
    assert "none.geojson: no such file" in done.stderr
    assert len(api.searches) == asked
    assert not case.workspace.exists()
