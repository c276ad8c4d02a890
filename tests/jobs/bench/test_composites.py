"""`mibf bench prepare --dates` and `--memory`: the right composite and complete tables. No measured value is asserted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from jobs.bench import composites
from jobs.bench.composites import BANDS, CLEAR, CompositeBench, CompositeMemory, Peak, Run, prepared, write_items
from pipeline.grid import Window
from tests.support.commands import invoke

SIDE = 256


def stacked(folder: Path, name: str, dates: int, times: int) -> np.ndarray:
    """One asset of all dates (date, y, x) on the scene's grid, from both tiles."""
    found = np.zeros((dates, SIDE, SIDE), np.uint16)
    for date in range(dates):
        for tile in (1, 0):
            with rasterio.open(folder / f"{date}_{tile}_{name}.tif") as dataset:
                values = dataset.read(1).repeat(times, axis=0).repeat(times, axis=1)
            found[date, :, slice(-values.shape[1], None) if tile else slice(values.shape[1])] = values
    return found


def test_items_and_composite_are_what_rasterio_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composites, "WRITTEN", 3)
    items = write_items(tmp_path, 4, SIDE)
    assert (tmp_path / "3_1_red.tif").samefile(tmp_path / "0_1_red.tif")
    values, valid, counts = prepared(items, SIDE).sources[0].observe(Window(0, 0, SIDE, SIDE))
    clear = stacked(tmp_path, "scl", 4, 2) == CLEAR
    assert counts is not None
    assert (counts == clear.sum(axis=0)).all()
    assert (valid == clear.any(axis=0)).all()
    for band, name in enumerate(BANDS):
        observed = np.where(clear, stacked(tmp_path, name, 4, 1), np.nan)
        assert (values[band][valid] == np.nanmedian(observed[:, valid], axis=0)).all()


def test_ratio_is_the_median_of_rounds_and_absent_without_odc_stac() -> None:
    own = [Run(2.0, 1.0, 100, 7), Run(4.0, 1.0, 120, 7), Run(1.0, 1.0, 110, 7)]
    others = [Run(4.0, 2.0, 300, 7), Run(4.0, 3.0, 300, 7), Run(9.0, 2.0, 300, 7)]
    found = CompositeBench(20, own, others)
    assert (found.ratio, found.cpu_ratio, found.equal) == (2, 2, True)
    assert "2.00 times as fast as odc-stac (CPU time: 2.00), the same values" in found.lines()[-1]
    assert not CompositeBench(20, own, [Run(4.0, 2.0, 300, 8)] * 3).equal
    alone = CompositeBench(20, own, [])
    assert (alone.ratio, alone.to_json()["ratio"]) == (None, None)
    assert "odc-stac is not installed" in alone.lines()[-1]
    assert "2.0 s" in alone.lines()[-2]


def test_memory_table_has_every_case() -> None:
    table = CompositeMemory([Peak(10, 2048, 500_000_000, 400_000_000, 1.0, 2.0)])
    assert table.lines()[-1].split() == ["10", "2048", "x", "2048", "500", "MB", "400", "MB", "1.00", "2.0"]


@pytest.mark.parametrize("option", [["--memory"], ["--dates", "20"]])
def test_configuration_is_refused_with_synthetic_dates(option: list[str], tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    assert "leave out CONFIG" in invoke("bench", "prepare", str(config), *option, status=2).output
