"""The sample that comes with mibf: a real Sentinel-2 scene and OpenStreetMap polygons (see NOTICE.md)."""

from __future__ import annotations

import os
from pathlib import Path


def demo_config() -> str:
    """The path of the demonstration's configuration, with `${MIBF_SAMPLE}` set to where the sample lies."""
    folder = Path(__file__).resolve().parent
    os.environ["MIBF_SAMPLE"] = str(folder)
    return str(folder / "demo.yaml")
