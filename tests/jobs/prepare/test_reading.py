"""What shards read is known from headers, so that an interrupted `prepare` reports how much is left; numpy is the oracle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine

from jobs.config.loader import load
from jobs.prepare import stage as stage_module
from jobs.prepare.scenes import open_scenes
from pipeline.grid import Window
from pipeline.parallel.executor import ThreadExecutor
from pipeline.store.reading import Reading, reading
from tests.support.commands import invoke
from tests.support.scenes import COLUMNS, ROWS, TRANSFORM, SmallScene, write_raster


def files(folder: Path) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Sources of every kind, the bytes that each pixel of the grid costs, and the items (item, y, x) that cover it."""
    ones = np.ones((2, ROWS, COLUMNS), np.uint16)
    write_raster(folder / "left.tif", ones[:, :, :70])
    write_raster(folder / "right.tif", ones[:, :100, 70:], transform=TRANSFORM * Affine.translation(70, 0))
    coarse = np.ones((1, ROWS // 2, COLUMNS // 2), np.uint8)
    write_raster(folder / "coarse.tif", coarse, transform=TRANSFORM * Affine.scale(2))
    shifted = np.ones((3, ROWS, COLUMNS), np.float32)
    write_raster(folder / "shifted.tif", shifted, transform=TRANSFORM * Affine.translation(0.5, 0))
    sources = {
        "optical": {"tiles": [str(folder / "left.tif"), str(folder / "right.tif")]},
        "coarse": {"url": str(folder / "coarse.tif")},
        "shifted": {"url": str(folder / "shifted.tif"), "resampling": "nearest", "missing": "fill"},
    }
    cover = np.zeros((4, ROWS, COLUMNS))
    cover[0, :, :70] = 1
    cover[1, :100, 70:] = 1
    cover[2] = 1
    cover[3] = 1
    cover[3, :, 0] = 0.5  # half of the first column, for the file is shifted
    return sources, np.einsum("iyx,i->yx", cover, [4, 4, 0.25, 12]), cover > 0


def write_config(scene: SmallScene, sources: dict[str, Any]) -> str:
    first = scene.config()["scenes"][0]
    grid = {"crs": "EPSG:32633", "resolution": 10}
    left, top = TRANSFORM.c, TRANSFORM.f
    grid |= {"bounds": [left, top - 10 * ROWS, left + 10 * COLUMNS, top]}
    return str(scene.write_config(scenes=[first | {"sources": sources, "grid": grid}], prepare={"shard": 128}))


def test_reading_of_each_shard_is_that_of_its_pixels(scene: SmallScene) -> None:
    sources, size, items = files(scene.folder)
    (opened,) = open_scenes(load(write_config(scene, sources)), ThreadExecutor(1))
    found = reading(opened)
    assert set(found) == set(opened.shards)
    assert len(found) == 4
    for window, own in found.items():
        assert own.shards == 1
        assert own.items == items[:, *window.slices].any(axis=(1, 2)).sum()
        assert own.bytes == pytest.approx(size[window.slices].sum(), abs=2)


def test_interrupted_prepare_reports_what_is_there(scene: SmallScene, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, _, _ = files(scene.folder)
    config = write_config(scene, sources)
    build, calls = stage_module.build_store, list[list[Window]]()

    def interrupted(*arguments: Any, each: Any, **options: Any) -> Any:
        def stop(shards: list[Window]) -> None:
            each(shards)
            calls.append(shards)
            if len(calls) == 3:
                raise KeyboardInterrupt

        return build(*arguments, each=stop, **options)

    monkeypatch.setattr(stage_module, "build_store", interrupted)
    monkeypatch.setattr(stage_module, "make_executor", one_thread)
    assert "write store (4 shards, " in invoke("prepare", config, status=130).stderr
    assert [len(shards) for shards in calls] == [0, 1, 1]
    monkeypatch.setattr(stage_module, "build_store", build)
    assert "small: write store: 2 shards of 4 are there already" in invoke("prepare", config).stderr


@contextmanager
def one_thread(*_: Any, **__: Any) -> Iterator[ThreadExecutor]:
    yield ThreadExecutor(1)


def test_amounts_add_up() -> None:
    assert Reading(3, 4, 5) + Reading(1, 1, 1) - Reading(2, 2, 2) == Reading(2, 3, 4)
