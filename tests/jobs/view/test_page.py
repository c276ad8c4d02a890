"""The page of a map in a real browser: what is on the screen, values of pixels, links, keyboard, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.view.served_map import ServedMap
from jobs.view.server import MapServer
from pipeline.grid import Window
from pipeline.maps.products import product
from tests.support.browser import Browser, centre_of, chromium, served
from tests.support.page_maps import CLASSES, GRIDS, MARKERS, SHAPE, failed, marked, publish_page_map

COLORS = {c.id: c.color for c in CLASSES}
CAUSE = "<script>document.title = 'x'</script>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A map of classes on each grid; that on the UTM grid has further products, a failed tile and two files of each."""
    root = tmp_path_factory.mktemp("maps")
    found = {}
    for name, grid in GRIDS.items():
        layers: dict[str, Any] = {"class": marked(grid)}
        tiles = []
        if name == "utm":
            shares = np.stack([np.full(SHAPE, value) for value in (0.2, 0.7, 0.1)])
            layers["probabilities"] = product("probabilities").encode(shares)
            layers["confidence"] = product("confidence").encode(np.full((1, *SHAPE), 0.7))
            layers["kl"] = product("kl").encode(np.linspace(0, 90, SHAPE[0])[None, :, None].repeat(SHAPE[1], 2))
            tiles = [failed(Window(256, 0, 256, 256), CAUSE)]
        found[name] = publish_page_map(root / name, grid, layers, tiles=tiles, block=512 if name == "utm" else 1024)
    return found


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[MapServer]:
    with served(MapServer([ServedMap(name, str(folder)) for name, folder in folders.items()])) as running:
        yield running


def address(server: Any, name: str, fragment: str = "") -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{name.replace(' ', '%20')}/{fragment}"


@pytest.mark.parametrize("name", GRIDS)
def test_classes_are_at_their_places_with_north_up(browser: Browser, server: MapServer, name: str) -> None:
    """Distances and directions on the screen are those on the ground, at one scale: no page code is used to check it."""
    browser.open(address(server, name))
    browser.click("#close-panel")
    browser.drawn()
    screen = browser.screen()
    places = {code: centre_of(screen, COLORS[code]) for code in MARKERS}
    (x, y), (east, north) = places[7], MARKERS[7]
    scale = (places[3][0] - x) / (MARKERS[3][0] - east)
    assert scale > 0.5
    for code, (to_east, to_north) in MARKERS.items():
        assert places[code][0] - x == pytest.approx(scale * (to_east - east), abs=1)
        assert y - places[code][1] == pytest.approx(scale * (to_north - north), abs=1)
    assert browser.log() == []


def test_click_reads_all_products_and_text_is_never_html(browser: Browser, server: MapServer) -> None:
    browser.open(address(server, "utm", "#center=501805,5795295&pixel=16"))
    assert browser.text("h1") == "valley <i>"
    assert "ground <b>&amp;" in browser.text("#legend")
    x, y = browser.run("const {map, grid} = mibfPage; return map.getPixelFromCoordinate(grid.toView(180.5, 470.5))")
    browser.click_at(x, y)
    found = browser.wait(lambda: (text := browser.text("#pixel")) and "Südwest" in text and text)
    for part in ("Confidence\n0.700", "forest\n0.700", "water\n0.200", "KL divergence\n60.5 nat", "180, 470"):
        assert part in found, found
    assert browser.log() == []


def test_link_restores_layer_place_opacity_overlays_and_comparison(browser: Browser, server: MapServer) -> None:
    link = "#center=503000.0,5796500.0&pixel=2.000&layer=confidence&opacity=60&compare=class&swipe=25&overlays=tiles"
    browser.open(address(server, "utm", link))
    assert browser.driver.current_url.endswith(link)
    state = browser.run("return {...mibfPage.state, overlays: [...mibfPage.state.overlays]}")
    assert state == {"layer": "confidence", "band": 0, "compare": "class", "opacity": 60, "swipe": 25, "overlays": ["tiles"]}
    browser.keys("#swipe", "\ue014")  # the right arrow
    assert "swipe=27" in browser.driver.current_url
    assert browser.run("return document.getElementById('swipe').getAttribute('aria-valuenow')") == "27"
    assert browser.log() == []


def test_divider_shows_one_layer_on_each_side(browser: Browser, server: MapServer) -> None:
    browser.open(address(server, "utm", "#center=503000,5796500&pixel=2&layer=class&compare=confidence&swipe=50"))
    browser.click("#close-panel")
    browser.drawn()
    screen = browser.screen()
    assert screen[700, 500].tolist() == [200, 200, 200]  # the ground's colour
    assert screen[700, 700].tolist() not in ([200, 200, 200], screen[700, 0].tolist())


def test_keyboard_reads_the_pixel_at_the_centre_and_every_control_has_a_name(browser: Browser, server: MapServer) -> None:
    browser.open(address(server, "utm", f"#center={503000},{5796500 + 1500}&pixel=1"))
    browser.keys("#map", "\ue007")  # Enter
    browser.wait(lambda: "north" in browser.text("#pixel"))
    unnamed = browser.run(
        "return [...document.querySelectorAll('button, input, select, [role=slider], canvas[role=img]')].filter((one) =>"
        "!one.textContent.trim() && !one.getAttribute('aria-label') && !one.title && !one.labels?.length)"
        ".map((one) => one.outerHTML)"
    )
    assert unnamed == []
    assert browser.log() == []


def test_legend_hides_classes_and_the_theme_can_be_chosen(browser: Browser, server: MapServer) -> None:
    browser.open(address(server, "geographic"))
    before = browser.run("return getComputedStyle(document.body).color")
    browser.click("#theme")
    assert browser.run("return getComputedStyle(document.body).color") != before
    browser.click("#theme")
    browser.driver.find_elements("css selector", "#legend button")[1].click()
    browser.click("#close-panel")
    browser.drawn()
    with pytest.raises(AssertionError, match="not on the screen"):
        centre_of(browser.screen(), COLORS[2])


def test_failed_tiles_and_sources_can_be_shown(browser: Browser, server: MapServer) -> None:
    browser.open(address(server, "utm", "#layer=source+optical&overlays=tiles"))
    browser.wait(lambda: "1" in browser.text("#overlays"))
    browser.run("mibfPage.inspect(mibfPage.grid.toView(10.5, 300.5))")
    browser.wait(lambda: CAUSE in browser.text("#pixel"))
    browser.click("#close-panel")
    browser.drawn()
    assert len(np.unique(browser.screen()[200:600, 500:700].reshape(-1, 3), axis=0)) > 1000  # noise in colours
    assert browser.log() == []


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def plain_server(folder: Path) -> ThreadingHTTPServer:
    """A folder server as Python has it: without ranges, and without permissions for other origins."""
    return ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))


def test_folder_server_without_ranges_shows_small_maps_and_says_why_not_large_ones(
    browser: Browser, folders: dict[str, Path]
) -> None:
    with served(plain_server(folders["utm"].parent)) as server:
        browser.open(address(server, "map"))
        browser.click("#close-panel")
        browser.drawn()
        centre_of(browser.screen(), COLORS[3])
        assert browser.log() == []
        browser.driver.get("about:blank")
        browser.driver.get(address(server, "map"))
        browser.wait(lambda: browser.run("return Boolean(window.mibfPage)"))
        browser.run(
            "const client = new RangeClient(new URL('class_y0_x0.tif', location.href).href, 2 ** 40);"
            "return client.request({headers: {Range: 'bytes=0-9'}}).catch((error) => report(error.message))"
        )
        browser.wait(lambda: "does not support range requests" in browser.text("#message"))


def test_other_origin_without_permission_is_named(browser: Browser, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["geographic"], tmp_path / "map")
    with served(plain_server(folders["geographic"])) as other, served(plain_server(tmp_path)) as server:
        item = json.loads((tmp_path / "map/item.json").read_text())
        origin = f"http://127.0.0.1:{other.server_address[1]}"
        item["assets"]["class"]["href"] = f"{origin}/class.tif"
        (tmp_path / "map/item.json").write_text(json.dumps(item))
        browser.open(address(server, "map"), ready=False)
        browser.wait(lambda: f"{origin} cannot be reached, or does not allow other sites" in browser.text("#message"))


def test_replaced_removed_and_damaged_maps_are_named(browser: Browser, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["utm"], tmp_path / "map")
    path = folder / "item.json"
    original = path.read_text()
    with served(MapServer([ServedMap("map", str(folder))])) as server:
        browser.open(server.url)
        (folder / "kl_y0_x0.tif").unlink()
        browser.run("mibfPage.change({layer: 'kl'})")
        browser.wait(lambda: "kl_y0_x0.tif: the file is missing" in browser.text("#message"))
        browser.open(server.url)
        path.write_text(original.replace('"mibf:content": "one"', '"mibf:content": "two"'))
        assert browser.run("return mibfPage.checkReplaced()")
        assert "replaced by a newer one" in browser.text("#message")
        path.unlink()
        browser.open(server.url, ready=False)
        browser.wait(lambda: "No map is published here: item.json is missing" in browser.text("#message"))
        path.write_text("{")
        browser.open(server.url, ready=False)
        browser.wait(lambda: "not valid JSON" in browser.text("#message") or "missing" in browser.text("#message"))


def test_page_from_a_disk_says_what_to_do(browser: Browser, folders: dict[str, Path]) -> None:
    browser.open((folders["utm"] / "index.html").as_uri(), ready=False)
    browser.wait(lambda: "Run `mibf view` with the folder of this page" in browser.text("#message"))
