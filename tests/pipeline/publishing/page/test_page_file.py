"""The files of a page: vendored libraries as they were published, no scripts from elsewhere, and how an item lists them."""

from __future__ import annotations

import hashlib
import re
from importlib import resources

import pytest

from pipeline.publishing.page import page_file
from pipeline.publishing.page.page_file import INDEX, STATIC, PageFile, is_page_file, static_files, with_page

#: SHA-256 of the vendored files, as in the npm packages ol 10.11.0 (dist/ol.js, ol.css) and geotiff 3.0.5 (dist-browser/).
VENDORED = {
    "ol.js": "a4e607e98b56846d543e2131161720845c7a80170d5f00aa2bc8b6c4e0f9194a",
    "ol.css": "abc8afd72cc10bd29cc143f443bae4a6804bd3cb3fb262e6b6a6bc6c924ea34f",
    "geotiff.js": "8cfc01ffc945904766d8fb89f19da7afb799e342834454f5592fbcf0bcfe2db5",
}


def packaged(name: str) -> bytes:
    return (resources.files(page_file.__package__) / "static" / name).read_bytes()


@pytest.mark.parametrize("name", VENDORED)
def test_vendored_libraries_are_those_of_their_packages(name: str) -> None:
    assert hashlib.sha256(packaged(name)).hexdigest() == VENDORED[name]


def test_libraries_are_published_with_their_licences() -> None:
    libraries = next(file for file in static_files() if file.name == "libraries.js").content.decode()
    head = libraries[: libraries.index("*/")]
    for part in ("OpenLayers", "BSD 2-Clause License", "geotiff.js 3.0.5", "EOX IT Services GmbH", "pako"):
        assert part in head
    assert packaged("ol.js").decode()[:200] in libraries
    assert "sourceMappingURL" not in libraries


def test_page_allows_no_scripts_from_elsewhere_and_no_inline_scripts() -> None:
    page = packaged(INDEX).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    directives = dict(part.split(" ", 1) for part in policy[1].split("; "))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == directives["style-src"] == "'self'"
    assert re.findall(r"<script(?! src=)", page) == re.findall(r"\son\w+=|style=", page) == []
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) - {"libraries.js", "view.js", "view.css"} == set(
        re.findall(r'href="(data:[^"]*)"', page)
    )
    ours = [packaged(name).decode() for name in ("raster.js", "view.js", "panel.js")]
    assert not any(re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text) for text in ours)


def test_item_lists_the_page_with_sizes_and_checksums() -> None:
    item = {"properties": {"created": "now"}, "assets": {"class": {}}, "links": []}
    files = [PageFile(INDEX, "page", b"<p>"), PageFile("overview_source0.webp", "optical", b"x", {"mibf:step": 4})]
    found = with_page(item, files, {"1": 5})
    assert list(found["assets"]) == ["class", INDEX, "overview_source0.webp"]
    assert found["assets"][INDEX]["file:checksum"] == "1220" + hashlib.sha256(b"<p>").hexdigest()
    assert (found["assets"][INDEX]["roles"], found["assets"][INDEX]["type"]) == (["overview"], "text/html")
    assert found["assets"]["overview_source0.webp"]["mibf:step"] == 4
    assert found["properties"] == {"created": "now", "mibf:class_pixels": {"1": 5}}
    assert found["links"][0]["rel"] == "alternate"
    assert with_page(item, [], {}) == item
    assert item["assets"] == {"class": {}}


def test_names_of_page_files_are_recognised() -> None:
    assert all(map(is_page_file, [*STATIC, "tiles.json", "overview_source12.webp", "overview_labels.png"]))
    assert not any(map(is_page_file, ["class.tif", "item.json", "notes.html", "overview_source.png", "ol.js"]))
