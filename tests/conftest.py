"""Small scenes that tests are made of."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
import yaml
from affine import Affine
from hypothesis import settings
from rasterio.warp import Resampling, calculate_default_transform, reproject

# The machine's cores are shared by the test workers; one thread each also makes float sums repeatable.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# How long an example takes says nothing here: other tests run beside it.
settings.register_profile("mibf", deadline=None)
settings.load_profile("mibf")

ROWS, COLUMNS = 150, 130
CRS = "EPSG:32633"
TRANSFORM = Affine(10.0, 0.0, 400000.0, 0.0, -10.0, 5800000.0)
CLASSES = [{"id": 1, "name": "water"}, {"id": 2, "name": "forest"}, {"id": 5, "name": "town"}]


def write_raster(
    path: Path, values: np.ndarray, *, transform: Affine = TRANSFORM, crs: str | None = CRS, nodata: Any = None
) -> Path:
    """Write a (band, y, x) array as a GeoTIFF."""
    bands, rows, columns = values.shape
    profile = {"driver": "GTiff", "count": bands, "height": rows, "width": columns, "dtype": values.dtype.name}
    with rasterio.open(path, "w", **profile, transform=transform, crs=crs, nodata=nodata) as dataset:
        dataset.write(values)
    return path


@dataclass(frozen=True)
class SmallScene:
    """Files of a scene of three classes: forest differs in the optical source, town in the radar one alone."""

    folder: Path
    truth: np.ndarray
    optical: np.ndarray

    def config(self, **changes: Any) -> dict[str, Any]:
        """A configuration of it that trains in seconds; `changes` replace top-level keys."""
        return {
            "name": "small",
            "workspace": str(self.folder / "work"),
            "scenes": [
                {
                    "name": "small",
                    "grid": {"like": "optical"},
                    "sources": {
                        "optical": {"url": str(self.folder / "optical.tif")},
                        "radar": {"url": str(self.folder / "radar.tif"), "missing": "fill"},
                    },
                    "labels": {"url": str(self.folder / "labels.tif"), "ignore": [0]},
                }
            ],
            "classes": CLASSES,
            "split": {"block": 20, "fractions": {"train": 0.5, "validation": 0.2, "test": 0.3}},
            "model": {"patch": 5},
            "train": {"epochs": 2, "batch": 64, "rate": 3e-3, "workers": 1},
            "map": {"tile": 64, "workers": 1},
        } | changes

    def write_config(self, **changes: Any) -> Path:
        """That configuration as a file."""
        path = self.folder / "small.yaml"
        path.write_text(yaml.safe_dump(self.config(**changes), sort_keys=False))
        return path


def make_scene(folder: Path) -> SmallScene:
    """Write a small scene: optical and labels on one grid, radar in degrees, labels sparse."""
    generator = np.random.default_rng(7)
    coarse = generator.integers(0, 3, (ROWS // 10, COLUMNS // 10))
    truth = np.array([1, 2, 5], np.uint8)[np.kron(coarse, np.ones((10, 10), int))]
    optical = generator.normal(0, 60, (3, ROWS, COLUMNS)) + 1000 + 500 * (truth == 2)
    optical = optical.astype(np.uint16)
    optical[:, :4, :6] = 0  # no data in a corner
    write_raster(folder / "optical.tif", optical, nodata=0)
    radar = (generator.normal(0, 0.1, (1, ROWS, COLUMNS)) + (truth == 5)).astype(np.float32)
    _write_in_degrees(folder / "radar.tif", radar)
    labels = np.where(generator.random((ROWS, COLUMNS)) < 0.6, truth, 0)[None].astype(np.uint8)
    write_raster(folder / "labels.tif", labels)
    return SmallScene(folder, truth, optical)


def _write_in_degrees(path: Path, values: np.ndarray) -> None:
    bounds = rasterio.transform.array_bounds(ROWS, COLUMNS, TRANSFORM)
    transform, columns, rows = calculate_default_transform(CRS, "EPSG:4326", COLUMNS, ROWS, *bounds)
    target = np.full((1, rows, columns), np.nan, np.float32)
    reproject(
        values, target, src_transform=TRANSFORM, src_crs=CRS, dst_transform=transform, dst_crs="EPSG:4326",
        resampling=Resampling.bilinear, dst_nodata=np.nan,
    )  # fmt: skip
    write_raster(path, target, transform=transform, crs="EPSG:4326", nodata=np.nan)


def write_polygons(path: Path, rows: list[tuple[shapely.Polygon, Any]], *, crs: str | None = CRS) -> Path:
    """Write polygons with an attribute `kind` as a GeoPackage."""
    geometries, kinds = zip(*rows, strict=True)
    geopandas.GeoDataFrame({"kind": list(kinds)}, geometry=list(geometries), crs=crs).to_file(path)
    return path


@pytest.fixture
def scene(tmp_path: Path) -> SmallScene:
    """A small scene in a folder of its own."""
    return make_scene(tmp_path)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallScene, Any]:
    """A small scene with its patch store, read only, and the workspace."""
    from jobs.config import load
    from jobs.prepare import prepare
    from jobs.stages import run_stage
    from jobs.workspace import Workspace

    scene = make_scene(tmp_path_factory.mktemp("prepared"))
    config = load(str(scene.write_config()))
    run_stage(config, "prepare", prepare, keep_current=False)
    return scene, Workspace.of(config)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A scene with a trained model and no map (`tests.mapped.Mapped`), to be copied."""
    from tests.mapped import Mapped

    return Mapped.make(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def whole(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same with its map, made in one process without a fault, to be copied and compared with."""
    made = trained.copy(tmp_path_factory.mktemp("whole") / "scene")
    made.does("map")
    return made


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Where real scenes lie, beside the repository or at MIBF_SHARED; a test without them is skipped."""
    root = Path(os.environ.get("MIBF_SHARED", Path(__file__).resolve().parents[2] / "shared"))

    def find(name: str) -> Path:
        path = root / name
        if not path.exists():
            pytest.skip(f"{name} of the shared scenes is not on this machine (set MIBF_SHARED)")
        return path

    return find
