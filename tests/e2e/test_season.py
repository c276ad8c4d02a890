"""Crops that differ over the season: each is bare or green in spring and in summer, so one period separates half of them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml

from pipeline.grid import Window
from pipeline.store.patch_store import PatchStore
from tests.support.commands import invoke
from tests.support.scenes import write_raster

pytestmark = pytest.mark.slow
SIDE, FIELD = 120, 15
#: By class id: whether it is green in spring, and in summer.
CROPS = {1: ("fallow", 0, 0), 2: ("wheat", 1, 0), 3: ("maize", 0, 1), 4: ("grass", 1, 1)}
DAYS = ("2024-04-03", "2024-04-18", "2024-05-08", "2024-07-02", "2024-07-17", "2024-08-06")
SPRING, SUMMER = "2024-03-01/2024-05-31", "2024-06-01/2024-08-31"
CLEAR, CLOUD = 4, 9


def write_season(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write fields, and items with a red and a near-infrared band and clouds; return values (day, band, y, x) and clouds."""
    drawn = np.random.default_rng(4)
    fields = drawn.integers(1, 5, (SIDE // FIELD, SIDE // FIELD)).astype(np.uint8)
    crops = np.kron(fields, np.ones((FIELD, FIELD), np.uint8))
    write_raster(folder / "labels.tif", crops[None])
    bare_or_green = np.array([[0, 0], *(own[1:] for own in CROPS.values())])
    red_and_nir = np.array([[1500, 1900], [500, 3500]])  # of bare soil, and of a green crop
    values = np.empty((len(DAYS), 2, SIDE, SIDE), np.uint16)
    clouds = drawn.random((len(DAYS), SIDE, SIDE)) < 0.25
    features = []
    for number, day in enumerate(DAYS):
        state = bare_or_green[crops, int(day > SPRING[-10:])]
        values[number] = red_and_nir[state].transpose(2, 0, 1) + drawn.normal(0, 150, (2, SIDE, SIDE))
        values[number][:, clouds[number]] = 9000
        bands = {"red": values[number, 0], "nir": values[number, 1], "scl": np.where(clouds[number], CLOUD, CLEAR)}
        for name, band in bands.items():
            write_raster(folder / f"{day}_{name}.tif", band[None].astype(np.uint16))
        features.append(
            {
                "type": "Feature", "stac_version": "1.0.0", "id": day, "geometry": None, "links": [],
                "properties": {"datetime": f"{day}T10:00:00Z"},
                "assets": {name: {"href": f"{day}_{name}.tif"} for name in bands},
            }
        )  # fmt: skip  # items are shorter so
    (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return values, clouds


def write_config(folder: Path, name: str, periods: Any, *, steps: int) -> str:
    stac = {
        "url": str(folder / "items.json"),
        "assets": ["red", "nir"],
        "mask": {"asset": "scl", "invalid": [CLOUD]},
        "composite": "median",
        "periods": periods,
        "gaps": "fill",
    }
    scene = {"name": "farm", "grid": {"like": "optical"}, "sources": {"optical": {"stac": stac}}}
    values = {
        "name": name,
        "workspace": str(folder / name),
        "scenes": [scene | {"labels": {"url": str(folder / "labels.tif")}}],
        "classes": [{"id": number, "name": own[0]} for number, own in CROPS.items()],
        "split": {"block": FIELD, "fractions": {"train": 0.5, "validation": 0.2, "test": 0.3}},
        "model": {"patch": 5, "centre": True},
        "train": {"recipe": "standard", "batch_size": 64, "workers": 0, "threads": 1, "period_dropout": 0.1}
        | {"steps": steps, "validate_steps": steps // 4},
        "baselines": {"enabled": False},
        "map": {"tile_size": 64, "workers": 0},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def accuracy(folder: Path, name: str) -> float:
    found: float = json.loads((folder / name / "runs/main/evaluation.json").read_text())["overall_accuracy"]
    return found


def test_all_periods_distinguish_what_each_alone_does_not(tmp_path: Path) -> None:
    values, clouds = write_season(tmp_path)
    for name, interval in (("spring", SPRING), ("summer", SUMMER)):
        config = write_config(tmp_path, name, [interval], steps=60)
        for command in ("prepare", "train", "evaluate"):
            invoke(command, config)
        assert 0.4 < accuracy(tmp_path, name) <= 0.6
    invoke("run", write_config(tmp_path, "season", "season", steps=120))
    assert accuracy(tmp_path, "season") >= 0.95

    store = PatchStore(str(tmp_path / "season/stores/farm.zarr"))
    (source,) = store.sources
    assert source.band_names == ("red@2024-MAM", "nir@2024-MAM", "red@2024-JJA", "nir@2024-JJA")
    masked = np.where(clouds[:, None], np.nan, values.astype(float)).reshape(2, 3, 2, SIDE, SIDE)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice encountered", RuntimeWarning)
        medians = np.nanmedian(masked, axis=1).reshape(4, SIDE, SIDE)
    found, known = store.read_source("optical", Window(0, 0, SIDE, SIDE))
    assert (known == ~np.isnan(medians)).all()
    assert (found[known] == medians[known]).all()
    assert 0 < (~known).mean() < 0.05
    with (
        rasterio.open(tmp_path / "season/maps/farm/main/class.tif") as product,
        rasterio.open(tmp_path / "labels.tif") as labels,
    ):
        assert (product.read(1) == labels.read(1)).mean() > 0.95
        assert (product.read_masks(1) > 0).mean() == pytest.approx(known.any(axis=0).mean())
