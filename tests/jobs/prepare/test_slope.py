"""Stores with a derived slope: names, values and statistics, the same for any shards; the buffer counts its neighbors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from jobs.config.loader import load
from jobs.prepare.scenes import open_scenes
from pipeline.grid import Window
from pipeline.parallel.executor import ThreadExecutor
from pipeline.store.patch_store import PatchStore
from pipeline.store.quantiles import HIGH, LOW
from tests.support.commands import invoke, run
from tests.support.scenes import COLUMNS, ROWS, SmallScene, write_raster
from tests.support.stores import SHARDS, objects

NAMES = ["height", "slope"]


def with_heights(scene: SmallScene) -> list[Any]:
    """Replace the radar source by heights and their slope."""
    heights = np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).cumsum(axis=0).cumsum(axis=1).astype(np.float32)
    heights[60:64, 60:64] = -9999
    path = write_raster(scene.folder / "dem.tif", heights[None], nodata=-9999)
    first = scene.config()["scenes"][0]
    dem = {"url": str(path), "band_names": ["height"], "derive": {"slope": "slope(height)"}}
    return [first | {"sources": {"optical": first["sources"]["optical"], "dem": dem}}]


def test_shards_of_any_size_hold_the_same_slope_and_statistics(scene: SmallScene) -> None:
    scenes, work = with_heights(scene), scene.folder / "work"
    run(scene, scenes=scenes)
    store = PatchStore(str(work / "stores/small.zarr"))
    assert list(store.source("dem").band_names) == NAMES
    whole = {name: store.array(name)[:].tobytes() for name in ("sources/dem", "valid/dem", "split")}
    slopes, valid = store.array("sources/dem")[1], store.array("valid/dem")[:].astype(bool)
    assert not valid[60:64, 60:64].any()
    assert valid.sum() == ROWS * COLUMNS - 16
    scaling = json.loads((work / "scaling.json").read_text())
    run(scene, SHARDS, scenes=scenes)
    assert len({key for key in objects(scene) if key.startswith("sources/dem/")}) == 4
    again = PatchStore(str(work / "stores/small.zarr"))
    assert {name: again.array(name)[:].tobytes() for name in whole} == whole
    assert json.loads((work / "scaling.json").read_text()) == scaling
    (opened,) = open_scenes(load(str(scene.write_config(scenes=scenes))), ThreadExecutor(1))
    values, _ = opened.sources[1].read(Window(0, 0, ROWS, COLUMNS))
    assert (values[1] == slopes).all()
    train = (again.array("split")[:] == 1) & valid
    low, high = np.quantile(slopes[train], (LOW, HIGH))
    assert scaling["dem"]["low"][1] == pytest.approx(low, abs=0.2)
    assert scaling["dem"]["high"][1] == pytest.approx(high, abs=0.2)


def test_plan_names_the_bands_and_prepare_the_buffer_that_shares_no_height(scene: SmallScene) -> None:
    scenes = with_heights(scene)
    config = str(scene.write_config(scenes=scenes))
    assert "dem: 2 bands (height, slope); exact" in " ".join(invoke("plan", config).output.split())
    prepared = " ".join(invoke("prepare", config).output.split())
    assert "hold a pixel of source 'dem' that a training patch holds; set split.buffer to 6" in prepared
    wide = ("--set", "split.buffer=6", "--json")
    summary = json.loads(invoke("prepare", config, *wide).stdout)
    assert summary["stages"][0]["figures"]["source_overlap"]["small"] == {"dem": 0.0}
