"""Make the screenshot of the documentation, docs/view.png, from a published map: that of `make demo`, for example.

Run `PYTHONPATH=. .venv/bin/python .ci/screenshot.py mibf-demo/maps/brandenburg/main docs/view.png` in the repository's root,
with Chromium and selenium installed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from jobs.view.server import MapServer
from jobs.view.view import find_maps
from tests.support.browser import chromium, served

#: The class map beside the optical image; of the pixel that is read.
LINK, COLUMN, ROW = "#layer=class&compare=source+s2_10m&swipe=62", 700, 400


def main(folder: str, picture: str) -> None:
    """Open a map's page and save what is on the screen."""
    with (
        served(MapServer(find_maps(folder))) as server,
        tempfile.TemporaryDirectory() as profile,
        chromium(Path(profile), width=1280, height=800) as browser,
    ):
        browser.open(server.url + LINK)
        browser.run(f"mibfPage.inspect(mibfPage.grid.toView({COLUMN}.5, {ROW}.5))")
        browser.wait(lambda: "Column, row" in browser.text("#pixel"))
        browser.drawn()
        browser.driver.save_screenshot(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
