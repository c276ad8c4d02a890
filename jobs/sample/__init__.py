"""The sample data included in mibf: a real Sentinel-2 scene and OpenStreetMap polygons (see NOTICE.md)."""

from __future__ import annotations

import os
from pathlib import Path


def sample_folder() -> Path:
    """Return the folder of the sample."""
    return Path(__file__).resolve().parent


def demo_config() -> str:
    """Set `MIBF_SAMPLE` to the sample folder and return the path of the demo configuration, which refers to it."""
    folder = sample_folder()
    os.environ["MIBF_SAMPLE"] = str(folder)
    return str(folder / "demo.yaml")
