"""A configuration with a searched source, its labels and its workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.config.loader import load
from tests.support.scenes import write_raster
from tests.support.stac_items import COLUMNS, GRID, MASK, ROWS

BOUNDS = [499_800, 4_000_000, 500_280, 4_000_400]


class Case:
    """A configuration with a searched source, and what its files hold."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.path, self.workspace = folder, folder / "mibf.yaml", folder / "work"
        labels = np.ones((1, ROWS, COLUMNS), np.uint8)
        labels[:, :, COLUMNS // 2 :] = 2
        write_raster(folder / "labels.tif", labels, transform=GRID.affine, crs="EPSG:32612")
        self.search: dict[str, Any] = {"url": url, "collections": ["s2"], "dates": "2024-06-01/2024-06-30"}
        self.stac: dict[str, Any] = {"assets": ["red", "nir"], "mask": MASK, "composite": "median"}
        self.scene: dict[str, Any] = {
            "name": "a",
            "grid": {"crs": "EPSG:32612", "resolution": 10, "bounds": BOUNDS},
            "sources": {"optical": {"stac": self.stac}},
            "labels": {"url": str(folder / "labels.tif")},
        }

    @property
    def kept(self) -> Path:
        return self.workspace / "stores" / "a.items" / "optical.parquet"

    @property
    def values(self) -> dict[str, Any]:
        self.stac["search"] = self.search
        return {
            "name": "summer",
            "workspace": str(self.workspace),
            "scenes": [self.scene],
            "classes": [{"id": 1, "name": "left"}, {"id": 2, "name": "right"}],
            "split": {"method": "random"},
        }

    def load(self) -> Any:
        self.path.write_text(yaml.safe_dump(self.values))
        return load(str(self.path))

    def mibf(self, *arguments: str) -> Any:
        self.path.write_text(yaml.safe_dump(self.values))
        command, *options = arguments
        return CliRunner().invoke(app, [command, str(self.path), *options])
