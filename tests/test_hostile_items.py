"""STAC items that mean harm: they name files of this machine, or are none; refused by name, and nothing is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from mibf.errors import InputError
from pipeline import stac
from pipeline.stac import asset_urls
from tests.conftest import SmallScene, write_raster
from tests.test_bad_input import refused
from tests.web import served


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


def elsewhere(content: Any, name: str = "item.json") -> str:
    """The URL of an item that came from elsewhere: a store in memory stands for every one that is not a disk."""
    url = f"memory://catalogue/a/b/{name}"
    fsspec.filesystem("memory").pipe_file(url.removeprefix("memory://"), json.dumps(content).encode())
    return url


def linked(href: str) -> list[dict[str, str]]:
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
)  # fmt: skip
def test_what_an_item_from_elsewhere_may_not_name(href: str) -> None:
    with pytest.raises(InputError) as caught:
        asset_urls(elsewhere(item(href)), ("red",))
    message = str(caught.value)
    assert "item.json: asset 'red' of item 'an-item' is at " in message
    assert "\x1b" not in message
    assert "urls" in message or "give its path" in message


@pytest.mark.parametrize("href", ["a.tif", "../../../../etc/passwd", "/etc/passwd", "./a.tif", "//etc/passwd"])
def test_a_relative_name_stays_on_the_items_server(href: str) -> None:
    url = elsewhere(item(href, links=linked("https://host/a/b/item.json")))
    ((found,),) = asset_urls(url, ("red",))
    assert found.startswith("https://host/")
    assert ".." not in found


@pytest.mark.parametrize("link", ["file:///etc/item.json", "/etc/item.json"])
def test_an_item_cannot_say_that_it_lies_on_this_machine(link: str) -> None:
    with pytest.raises(InputError, match="a file of this machine, which an item from elsewhere may not name"):
        asset_urls(elsewhere(item("passwd", links=linked(link))), ("red",))


def test_from_the_web_too(tmp_path: Path) -> None:
    (tmp_path / "item.json").write_text(json.dumps(item("file:///etc/passwd")))
    (tmp_path / "good.json").write_text(json.dumps(item("../b/a.tif")))
    with served(tmp_path) as address:
        with pytest.raises(InputError, match="a file of this machine"):
            asset_urls(f"{address}/item.json", ("red",))
        assert asset_urls(f"{address}/good.json", ("red",)) == ((f"{address}/b/a.tif",),)


@pytest.mark.parametrize("scheme", ["https", "s3", "gs", "az"])
def test_an_item_may_name_other_stores(scheme: str) -> None:
    assert asset_urls(elsewhere(item(f"{scheme}://place/a.tif")), ("red",)) == ((f"{scheme}://place/a.tif",),)


def test_an_item_on_a_disk_may_name_files_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "item.json"
    path.write_text(json.dumps(item("./a.tif")))
    assert asset_urls(str(path), ("red",)) == ((str(tmp_path / "a.tif"),),)
    for href in ("/vsizip/a.zip/b.tif", "simplecache::file:///etc/passwd", "FILE:///etc/passwd", "a\0.tif"):
        path.write_text(json.dumps(item(href)))
        with pytest.raises(InputError, match=r"item\.json: asset 'red'"):
            asset_urls(str(path), ("red",))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "cannot be read as a STAC item"),
        (b"\x89PNG\r\n\x1a\n\0\0", "cannot be read as a STAC item"),
        (b"<html>", "cannot be read as a STAC item"),
        (b"[" * 100_000, "nested without end"),
        (b'{"type": "Feature", "a": ' + b"[" * 100_000, "nested without end"),
        (b"null", "is of type None"),
        (b'{"type": "FeatureCollection"}', "cannot be read as a STAC item"),
        (b'{"type": "FeatureCollection", "features": [1]}', "cannot be read as a STAC item"),
        (b'{"type": "FeatureCollection", "features": []}', "a collection of no items"),
        (b'{"type": "\\u001b[2J"}', "is of type"),
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
def test_what_is_no_item(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "item.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        asset_urls(str(path), ("red",))
    assert told in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_an_item_of_any_size_is_read_no_farther_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stac, "MOST_BYTES", 2**20)
    with (tmp_path / "item.json").open("wb") as file:
        file.truncate(2**20 + 1)
    with pytest.raises(InputError, match=r"item\.json: is larger than 1 MiB"):
        asset_urls(str(tmp_path / "item.json"), ("red",))
    with served(tmp_path) as address, pytest.raises(InputError, match=r"item\.json: is larger than 1 MiB"):
        asset_urls(f"{address}/item.json", ("red",))


def test_the_command_refuses_such_an_item_and_writes_nothing(scene: SmallScene) -> None:
    write_raster(scene.folder / "private.tif", np.ones((1, 150, 130), np.uint8))
    (scene.folder / "item.json").write_text(json.dumps(item(f"file://{scene.folder}/private.tif")))
    with served(scene.folder) as address:
        first = scene.config()["scenes"][0]
        first["sources"]["radar"] = {"stac": {"url": f"{address}/item.json", "assets": ["red"]}}
        message = refused(scene, scenes=[first])
    assert "private.tif, a file of this machine, which an item from elsewhere may not name" in message
