"""A headless Chromium for tests of pages: Debian's packages chromium and chromium-driver, by Selenium."""

from __future__ import annotations

import io
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

#: WebGL without a GPU; colours of the screen are those of the page.
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--force-color-profile=srgb", "--force-device-scale-factor=1", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync",
)  # fmt: skip  # a command line
WAIT_SECONDS = 30


class Browser:
    """A browser with one window."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str, *, ready: bool = True) -> None:
        """Open a page from scratch; wait until its map is drawn."""
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get(url)
        if ready:
            self.wait(lambda: self.run("return Boolean(window.mibfPage)"))
            self.drawn()

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript in the page."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any]) -> Any:
        """Wait until a condition is true, and return its value."""
        end = time.monotonic() + WAIT_SECONDS
        while not (found := condition()):
            assert time.monotonic() < end, f"the page has not come so far: {self.text('body')}\n{self.log()}"
            time.sleep(0.05)
        return found

    def drawn(self) -> None:
        """Wait until the map has loaded and drawn everything."""
        self.driver.set_script_timeout(WAIT_SECONDS)
        self.driver.execute_async_script(
            "const done = arguments[0]; mibfPage.map.once('rendercomplete', () => requestAnimationFrame(() => done()));"
            "mibfPage.map.render();"
        )

    def text(self, selector: str) -> str:
        """The visible text of an element."""
        return str(self.driver.find_element("css selector", selector).text)

    def click(self, selector: str) -> None:
        """Click an element."""
        self.driver.find_element("css selector", selector).click()

    def click_at(self, x: float, y: float) -> None:
        """Click a place of the window."""
        from selenium.webdriver import ActionChains

        chain = ActionChains(self.driver, duration=0)
        chain.w3c_actions.pointer_action.move_to_location(round(x), round(y))
        chain.w3c_actions.pointer_action.click()
        chain.perform()

    def screen(self) -> NDArray[np.uint8]:
        """The window's pixels, (y, x, 3)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with MemoryFile(io.BytesIO(self.driver.get_screenshot_as_png())) as file, file.open() as picture:
                return np.moveaxis(picture.read([1, 2, 3]), 0, -1)

    def log(self) -> list[str]:
        """What the page wrote to its console since it was opened, and errors of its requests."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def keys(self, selector: str, *keys: str) -> None:
        """Press keys in an element."""
        self.driver.find_element("css selector", selector).send_keys(*keys)


@contextmanager
def chromium(folder: Path, *, width: int = 1200, height: int = 800) -> Iterator[Browser]:
    """Run a browser with a new profile in a folder; skip where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("Chromium is not installed (Debian's packages chromium and chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (*ARGUMENTS, f"--user-data-dir={folder}"):
        options.add_argument(argument)
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    try:
        started.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)  # of the page, without the window's frame
        yield Browser(started)
    finally:
        started.quit()


@contextmanager
def served(server: Any) -> Iterator[Any]:
    """Run an HTTP server in a thread; its address is `server.url`, or that of its port."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def centre_of(screen: NDArray[np.uint8], color: str) -> tuple[float, float]:
    """Where the pixels of exactly a colour (#rrggbb) are on a screen, on average: x to the right, y downwards."""
    wanted = np.frombuffer(bytes.fromhex(color.removeprefix("#")), np.uint8)
    rows, columns = np.nonzero((screen == wanted).all(axis=-1))
    assert len(rows) > 100, f"{color} is not on the screen"
    return float(columns.mean()), float(rows.mean())
