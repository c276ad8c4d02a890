"""Malicious STAC items that reference local files or are not items: refused by name, nothing is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.rasters.header import RasterFile
from pipeline.rasters.raster import open_raster, stamped
from pipeline.stac import assets as stac_assets
from pipeline.stac.assets import asset_files, further_pages
from tests.support.http_server import served
from tests.support.refusals import refused
from tests.support.scenes import SmallScene, write_raster


def item(href: Any, **changes: Any) -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": "an-item",
        "geometry": None,
        "properties": {"datetime": "2024-07-01T00:00:00Z"},
        "links": [],
        "assets": {"red": {"href": href}},
    } | changes


def remote_item(content: Any, name: str = "item.json") -> str:
    """Store an item in a memory file system, which stands for any remote location; return its URL."""
    url = f"memory://catalogue/a/b/{name}"
    fsspec.filesystem("memory").pipe_file(url.removeprefix("memory://"), json.dumps(content).encode())
    return url


def urls(url: str, *names: str) -> list[list[str]]:
    """The files of each asset."""
    return [[file.url for file in layer] for layer in asset_files(url, names)]


def self_link(href: str) -> list[dict[str, str]]:
    return [{"rel": "self", "href": href}]


@pytest.mark.parametrize(
    "href",
    [
        "file:///etc/passwd", "FILE:///etc/passwd", "file://localhost/etc/passwd", "File:///etc/shadow",
        "local:///etc/passwd", "/vsicurl/https://host/a.tif", "/vsizip//etc/a.zip/b.tif", "/vsisubfile/0_100,/etc/passwd",
        "vsicurl://host/a.tif", "zip://a.tif::/etc/a.zip", "simplecache::file:///etc/passwd", "dir://x::file:///etc",
        "reference://a", "memory://x/a.tif", "ftp://host/a.tif", "ssh://host/a.tif", "data:///x", "javascript://x",
        "https://host/%2e%2e/%2e%2e/etc/passwd", "s3://bucket/../other/a.tif", "https://host/a\x1b[2J.tif", "https://host/a\0.tif",
        'https://host/a.nc":/etc/x', "https://host/a\n.tif",
    ],
    ids=ascii,
)  # fmt: skip  # a list of names: one per line would fill a page
def test_remote_item_with_unsafe_asset_href_is_refused(href: str) -> None:
    with pytest.raises(InputError) as caught:
        asset_files(remote_item(item(href)), ("red",))
    message = str(caught.value)
    assert "item.json: asset 'red' of item 'an-item' is at " in message
    assert "\x1b" not in message
    assert "urls" in message or "give its path" in message


@pytest.mark.parametrize("href", ["a.tif", "../../../../etc/passwd", "/etc/passwd", "./a.tif", "//etc/passwd"])
def test_relative_href_of_remote_item_stays_on_its_server(href: str) -> None:
    url = remote_item(item(href, links=self_link("https://host/a/b/item.json")))
    [[found]] = urls(url, "red")
    assert found.startswith("https://host/")
    assert ".." not in found


@pytest.mark.parametrize("link", ["file:///etc/item.json", "/etc/item.json"])
def test_remote_item_with_local_self_link_is_refused(link: str) -> None:
    with pytest.raises(InputError, match="a local file, which a remote item may not reference"):
        asset_files(remote_item(item("passwd", links=self_link(link))), ("red",))


def test_item_over_http_may_not_reference_local_files(tmp_path: Path) -> None:
    (tmp_path / "item.json").write_text(json.dumps(item("file:///etc/passwd")))
    (tmp_path / "good.json").write_text(json.dumps(item("../b/a.tif")))
    with served(tmp_path) as address:
        with pytest.raises(InputError, match="a local file"):
            asset_files(f"{address}/item.json", ("red",))
        assert urls(f"{address}/good.json", "red") == [[f"{address}/b/a.tif"]]


@pytest.mark.parametrize("scheme", ["https", "s3", "gs", "az"])
def test_remote_item_may_reference_other_object_stores(scheme: str) -> None:
    assert urls(remote_item(item(f"{scheme}://place/a.tif")), "red") == [[f"{scheme}://place/a.tif"]]


def test_local_item_may_reference_files_next_to_it(tmp_path: Path) -> None:
    path = tmp_path / "item.json"
    path.write_text(json.dumps(item("./a.tif")))
    assert urls(str(path), "red") == [[str(tmp_path / "a.tif")]]
    for href in ("/vsizip/a.zip/b.tif", "simplecache::file:///etc/passwd", "FILE:///etc/passwd", "a\0.tif"):
        path.write_text(json.dumps(item(href)))
        with pytest.raises(InputError, match=r"item\.json: asset 'red'"):
            asset_files(str(path), ("red",))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "cannot be read as a STAC item"),
        (b"\x89PNG\r\n\x1a\n\0\0", "cannot be read as a STAC item"),
        (b"<html>", "cannot be read as a STAC item"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"type": "Feature", "a": ' + b"[" * 100_000, "nested too deeply"),
        (b"null", "has type None"),
        (b'{"type": "FeatureCollection"}', "cannot be read as a STAC item"),
        (b'{"type": "FeatureCollection", "features": [1]}', "cannot be read as a STAC item"),
        (b'{"type": "FeatureCollection", "features": []}', "the item collection is empty"),
        (b'{"type": "\\u001b[2J"}', "has type"),
        (json.dumps(item(1)).encode(), "cannot be read as a STAC item"),
        (json.dumps(item(None)).encode(), "cannot be read as a STAC item"),
        (json.dumps(item("a", assets=[])).encode(), "cannot be read as a STAC item"),
        (json.dumps(item("a", assets={"red": 1})).encode(), "cannot be read as a STAC item"),
        (json.dumps(item("a", links=1)).encode(), "cannot be read as a STAC item"),
        (json.dumps(item("a", properties={"datetime": 1})).encode(), "cannot be read as a STAC item"),
        (json.dumps(item("a", assets={f"b{i}": {"href": "a"} for i in range(9999)})).encode(), "and 9949 more"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_invalid_item_document_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "item.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        asset_files(str(path), ("red",))
    assert expected in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_item_larger_than_the_size_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stac_assets, "MAX_BYTES", 2**20)
    with (tmp_path / "item.json").open("wb") as file:
        file.truncate(2**20 + 1)
    with pytest.raises(InputError, match=r"item\.json: is larger than 1 MiB"):
        asset_files(str(tmp_path / "item.json"), ("red",))
    with served(tmp_path) as address, pytest.raises(InputError, match=r"item\.json: is larger than 1 MiB"):
        asset_files(f"{address}/item.json", ("red",))


def test_command_refuses_malicious_item_and_writes_nothing(scene: SmallScene) -> None:
    write_raster(scene.folder / "private.tif", np.ones((1, 150, 130), np.uint8))
    (scene.folder / "item.json").write_text(json.dumps(item(f"file://{scene.folder}/private.tif")))
    with served(scene.folder) as address:
        first = scene.config()["scenes"][0]
        first["sources"]["radar"] = {"stac": {"url": f"{address}/item.json", "assets": ["red"]}}
        message = refused(scene, scenes=[first])
    assert "private.tif, a local file, which a remote item may not reference" in message


#: Names of files, and the hrefs of a local item that mean them.
NAMED = [
    ("B 04.tif", "B 04.tif"), ("B 04.tif", "./B%2004.tif"), ("B%2004.tif", "B%2004.tif"), ("B#4.tif", "B#4.tif"),
    ("B#4.tif", "B%234.tif"), ("B?4.tif", "B?4.tif"), ("B?4.tif", "B%3F4.tif"), ("B4.tif", "B4.tif?version=2"),
    ("B4.tif", "B4.tif#x"), ("50%.tif", "50%.tif"), ("B 04.tif", "file://{folder}/B%2004.tif"),
    ("B 04.tif", "file://{folder}/B 04.tif"), ("B#4.tif", "file://localhost{folder}/B%234.tif"),
    ("B 04.tif", "{folder}/B%2004.tif"), ("a::b.tif", "a::b.tif"),
]  # fmt: skip  # a table: one entry per line would fill a page


@pytest.mark.parametrize(("name", "href"), NAMED)
def test_href_of_a_local_item_means_the_file_of_that_name_encoded_or_not(name: str, href: str, tmp_path: Path) -> None:
    folder = tmp_path / "a b#c"
    folder.mkdir()
    (folder / "item.json").write_text(json.dumps(item(href.format(folder=folder))))
    (folder / name).write_bytes(b"")
    assert urls(str(folder / "item.json"), "red") == [[str(folder / name)]]


@pytest.mark.parametrize(
    ("name", "href"),
    [
        ("B 04.tif", "B 04.tif"), ("B 04.tif", "B%2004.tif"), ("B#4.tif", "B%234.tif"), ("B#4.tif", "B#4.tif"),
        ("B#4.tif", "{address}/B#4.tif"), ("B 04.tif", "{address}/B 04.tif"), ("B?4.tif", "B%3F4.tif"),
        ("B4.tif", "B4.tif?signature=1"),
    ],
)  # fmt: skip  # a table: one entry per line would fill a page
def test_href_on_the_web_is_read_encoded_or_not(name: str, href: str, tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    write_raster(tmp_path / name, values)
    with served(tmp_path) as address:
        (tmp_path / "item.json").write_text(json.dumps(item(href.format(address=address))))
        [[url]] = urls(f"{address}/item.json", "red")
        file = stamped(RasterFile(url))
        with open_raster(file) as raster:
            assert (raster.read(Window(0, 0, 3, 4))[0] == values).all()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"numberMatched": 12}, "holds 2 of 12 items of a search"),
        ({"context": {"matched": 12}}, "holds 2 of 12 items of a search"),
        ({"links": [{"rel": "next", "href": "x"}]}, "holds 2 items, and a link to further ones, of a search"),
        ({"numberMatched": 2, "links": [{"rel": "next", "href": "x"}]}, None),
        ({}, None),
    ],
)
def test_one_page_of_a_search_is_not_taken_for_all_of_it(changes: dict[str, Any], expected: str | None) -> None:
    page = {"type": "FeatureCollection", "features": [item("a.tif"), item("b.tif")], **changes}
    found = further_pages(remote_item(page))
    assert found is None if expected is None else expected in str(found)
    assert further_pages(remote_item(item("a.tif"))) is None
