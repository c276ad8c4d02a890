"""The server of `mibf view`: ranges, what it serves and refuses, on disks and in buckets."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.view.served_map import ServedMap
from jobs.view.server import MapServer
from jobs.view.view import find_maps
from mibf.errors import InputError
from pipeline.publishing.page.page_file import static_files
from tests.support.browser import served
from tests.support.mapped_scene import Mapped
from tests.support.page_maps import GRIDS, marked, publish_page_map
from tests.support.s3_server import ObjectStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish_page_map(tmp_path_factory.mktemp("map"), GRIDS["utm"], {"class": marked(GRIDS["utm"])})


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[MapServer]:
    with served(MapServer([ServedMap("a b", str(folder))])) as running:
        yield running


def ask(server: MapServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Send a request and return the answer's status, headers and body; names of headers have underscores for hyphens."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


def test_ranges_are_those_of_the_file(server: MapServer, folder: Path) -> None:
    content = (folder / "class.tif").read_bytes()
    size = len(content)
    for text, first, end in (
        ("0-99", 0, 100),
        (f"{size - 10}-", size - 10, size),
        ("-7", size - 7, size),
        (f"5-{10**9}", 5, size),
    ):
        status, headers, body = ask(server, "/a%20b/class.tif", Range=f"bytes={text}")
        assert (status, headers["content-range"], body) == (206, f"bytes {first}-{end - 1}/{size}", content[first:end])
    status, headers, body = ask(server, "/a%20b/class.tif")
    assert (status, headers["accept-ranges"], body) == (200, "bytes", content)
    assert ask(server, "/a%20b/class.tif", Range=f"bytes={size}-")[0] == 416
    assert ask(server, "/a%20b/class.tif", If_None_Match=headers["etag"])[0] == 304
    status, headers, body = ask(server, "/a%20b/class.tif", "HEAD")
    assert (status, int(headers["content-length"]), body) == (200, size, b"")


def test_only_files_of_the_map_and_its_page_are_served(server: MapServer, folder: Path) -> None:
    (folder / "secret.txt").write_text("secret")
    for path in (
        "/a%20b/secret.txt",
        "/a%20b/../../s.tif",
        "/a%20b/%2e%2e/s.tif",
        "/a%20b/ledger",
        "/other/",
        "/a%20b%2f..%2fs.tif",
    ):
        assert ask(server, path)[0] == 404, path
    assert ask(server, "/a%20b/")[2] == static_files()[0].content
    assert ask(server, "/a%20b")[1]["location"] == "/a%20b/"
    assert json.loads(ask(server, "/a%20b/item.json")[2])["id"] == "valley <i>"
    assert b'<a href="a%20b/">a b</a>' in ask(server, "/")[2]


def test_requests_under_another_name_are_refused_and_other_origins_get_no_permission(
    server: MapServer, folder: Path
) -> None:
    assert ask(server, "/a%20b/", Host="example.org")[0] == 403
    status, headers, _ = ask(server, "/a%20b/item.json", Host="localhost:1", Origin="https://example.org")
    assert status == 200
    assert "access-control-allow-origin" not in headers
    with served(MapServer([ServedMap("map", str(folder))], origin="https://example.org")) as open_server:
        status, headers, _ = ask(open_server, "/map/class.tif", "OPTIONS")
        assert (status, headers["access-control-allow-headers"]) == (204, "Range")
        assert headers["access-control-allow-origin"] == "https://example.org"


def test_map_in_a_bucket_is_read_by_ranges(bucket: ObjectStore, folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_file():
            bucket.files.put_file(str(path), f"{bucket.bucket}/view/map/{path.name}")
    with bucket.used():
        (found,) = find_maps(f"{bucket.url('view')}/map/item.json")
        with served(MapServer([found])) as server:
            status, headers, body = ask(server, "/map/class.tif", Range="bytes=1000-1999")
            content = (folder / "class.tif").read_bytes()
            assert (status, headers["content-range"], body) == (206, f"bytes 1000-1999/{len(content)}", content[1000:2000])
            assert ask(server, "/map/other.tif")[0] == 404


def test_maps_are_found_by_configuration_folder_item_or_page(reference: Mapped, tmp_path: Path) -> None:
    for target in (reference.map, reference.map / "item.json", f"{reference.map}/index.html"):
        assert [found.folder for found in find_maps(str(target))] == [str(reference.map)]
    (found,) = find_maps(str(reference.config))
    assert (found.name, found.folder) == ("small", str(reference.map))
    listed = found.open("tiles.json")
    assert listed is not None
    assert json.loads(b"".join(listed.read(0, listed.size))) == {"total": 0, "tiles": []}
    for arguments, words in (
        ((str(tmp_path),), "no map is published there"),
        ((str(reference.config), [], "x"), "no such scene"),
    ):
        with pytest.raises(InputError, match=words):
            find_maps(arguments[0], **dict(zip(("overrides", "scene"), arguments[1:], strict=False)))
    with MapServer([]) as taken, pytest.raises(InputError, match="cannot be used"):
        MapServer([], port=taken.server_address[1])


def test_command_serves_until_it_is_interrupted(reference: Mapped, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(server: MapServer) -> None:
        del server
        raise KeyboardInterrupt

    monkeypatch.setattr(MapServer, "serve_forever", interrupted)
    shown = reference.does("view", "--no-open", "--json")
    assert shown.json["maps"] == {"small": str(reference.map)}
    assert f"showing 1 map at {shown.json['url']}" in shown.stderr
    assert reference.mibf("view", "--scene", "x").status == 2
