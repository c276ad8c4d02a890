"""Periods of a composite are composites of their own, whose bands follow each other; rasterio and numpy are the oracle."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from jobs.config.resolve import sources
from jobs.config.scene import SceneSection
from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.scenes.geometries import AreaMask
from pipeline.scenes.source import AlignedSource, open_source
from pipeline.stac import composite as composite_module
from pipeline.stac.periods import Gaps
from tests.support.refusals import load_error
from tests.support.scenes import SmallScene, write_raster
from tests.support.stac_items import COLUMNS, GRID, MASK, ROWS, observed, opened, write_items

DAYS = [f"2024-{day}T18:00:00Z" for day in ("06-01", "06-11", "06-21", "07-01", "07-11", "09-05")]
MONTHS = {"2024-06": slice(0, 3), "2024-07": slice(3, 5), "2024-08": slice(0, 0), "2024-09": slice(5, 6)}
#: The middle of each month, in days after June 1.
MIDDLES = np.array([15, 30 + 15.5, 61 + 15.5, 92 + 15])
WHOLE = Window(0, 0, ROWS, COLUMNS)


def medians(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The median (period, band, y, x) of each month, NaN without one, and the number of clear dates (period, y, x)."""
    values, clear = observed(path, dilate=2)
    masked = np.where(clear[:, None], values, np.nan)
    empty = np.full((1, *values.shape[1:]), np.nan)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice encountered", RuntimeWarning)
        found = np.stack([np.nanmedian(np.concatenate([masked[own], empty]), axis=0) for own in MONTHS.values()])
    return found, np.stack([clear[own].sum(axis=0) for own in MONTHS.values()])


def monthly(path: Path, gaps: Gaps, **changes: Any) -> AlignedSource:
    return opened(path, mask=MASK, composite="median", periods="month", gaps=gaps, **changes)


@pytest.mark.parametrize("gaps", ["fill", "interpolate"])
def test_each_period_is_a_composite_of_its_own(gaps: Gaps, tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS)
    source = monthly(path, gaps)
    expected, counts = medians(path)
    values, valid, found = source.observe(WHOLE)
    assert source.declared.kept == tuple(f"{band}@{month}" for month in MONTHS for band in ("red", "nir"))
    assert (source.bands, values.shape) == (8, (8, ROWS, COLUMNS))
    assert found is not None
    assert (found == counts).all()
    assert (valid == (counts > 0).any(axis=0)).all()
    assert 0 < (counts[:2] == 0).mean() < 0.9, "there are gaps"
    own = values.reshape(expected.shape)
    known = np.broadcast_to(counts[:, None] > 0, own.shape)
    assert own[known] == pytest.approx(expected[known], rel=1e-6)
    if gaps == "fill":
        assert (own[~known] == 0).all()
        return
    for y, x in zip(*np.nonzero(valid), strict=True):
        there = counts[:, y, x] > 0
        for band in (0, 1):
            line = np.interp(MIDDLES, MIDDLES[there], expected[there, band, y, x])
            assert own[:, band, y, x] == pytest.approx(line, rel=1e-6)


def test_pixel_that_a_period_lacks_is_missing_by_default(tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS[:5])
    expected, counts = medians(path)
    values, valid, found = opened(path, mask=MASK, composite="median", periods="month").observe(WHOLE)
    assert (valid == (counts[:2] > 0).all(axis=0)).all()
    assert 0.05 < valid.mean() < 0.95
    assert values[:, valid] == pytest.approx(expected[:2].reshape(4, ROWS, COLUMNS)[:, valid], rel=1e-6)
    assert (values[:, ~valid] == 0).all()
    assert found is not None
    assert (found == counts[:2]).all(), "what was observed is known, even where another period was not"


def test_counts_of_a_composite_without_periods_are_one_plane(tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS)
    _, clear = observed(path, dilate=2)
    counts = opened(path, mask=MASK, composite="medoid").observe(WHOLE).counts
    assert counts is not None
    assert (counts == clear.sum(axis=0)[None]).all()
    assert opened(path, mask=MASK).observe(WHOLE).counts is None


@pytest.mark.parametrize("gaps", ["fill", "interpolate"])
@pytest.mark.parametrize("inside", [False, True], ids=["everywhere", "area"])
def test_each_window_alone_is_what_the_whole_is(
    gaps: Gaps, inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    area = None
    if inside:
        left, top = GRID.affine.c, GRID.affine.f
        area = AreaMask(np.array([shapely.Point(left + 200, top - 180).buffer(150)]), GRID)
    source = monthly(write_items(tmp_path, DAYS), gaps, area=area)
    entire = source.observe(WHOLE)
    assert entire.counts is not None
    if area is not None:
        assert not entire.valid[~area.inside(WHOLE)].any()
        assert not entire.counts[:, ~area.inside(WHOLE)].any()
        assert entire.counts.any()
    monkeypatch.setattr(composite_module, "DATES_BYTES", 3 * 5 * 130)  # parts of few pixels
    for y, x, height, width in ((3, 5, 11, 16), (ROWS - 1, COLUMNS - 1, 1, 1), (0, 20, 40, 8)):
        for own, expected in zip(source.observe(Window(y, x, height, width)), entire, strict=True):
            assert own is not None
            assert expected is not None
            assert (own == expected[..., y : y + height, x : x + width]).all()


def test_derived_bands_are_those_of_each_period(tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS[:5])
    zeros = np.zeros((1, ROWS, COLUMNS), np.uint16)
    for number in (3, 4):  # red and nir are 0 in July, so that their sum is
        for name in ("red", "nir"):
            write_raster(tmp_path / f"{number}_{name}.tif", zeros, transform=GRID.affine, crs="EPSG:32612")
    section = {"stac": {"url": str(path), "assets": ["red", "nir"], "composite": "median", "periods": "month"}}
    section["stac"]["gaps"] = "fill"
    more = {"derive": {"ndvi": "(nir - red) / (nir + red)"}, "keep": ["ndvi", "red"]}
    scene = SceneSection.model_validate({"name": "a", "grid": {"like": "s"}, "sources": {"s": section | more}})
    source = open_source(sources(scene)["s"], GRID)
    values, valid, counts = source.observe(WHOLE)
    assert source.declared.kept == ("ndvi@2024-06", "red@2024-06", "ndvi@2024-07", "red@2024-07")
    red, nir = np.median(observed(path, dilate=0)[0][:3], axis=0)
    assert values[0] == pytest.approx((nir - red) / (nir + red), rel=1e-5)
    assert values[1] == pytest.approx(red)
    assert valid.all()
    assert counts is not None
    assert (counts[0] == 3).all()
    assert (counts[1] == 0).all(), "July has no value, although it was observed"
    assert (values[2:] == 0).all()


def test_mask_of_the_source_counts_for_all_periods(tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS[:5])
    allowed = np.random.default_rng(5).integers(0, 2, (1, ROWS, COLUMNS)).astype(np.uint8)
    write_raster(tmp_path / "mask.tif", allowed, transform=GRID.affine, crs="EPSG:32612")
    section = {
        "stac": {"url": str(path), "assets": ["red", "nir"], "composite": "median", "periods": "month"},
        "mask": {"url": str(tmp_path / "mask.tif"), "valid": [1]},
    }
    scene = SceneSection.model_validate({"name": "a", "grid": {"like": "s"}, "sources": {"s": section}})
    _, valid, counts = open_source(sources(scene)["s"], GRID).observe(WHOLE)
    assert (valid == (allowed[0] == 1)).all()
    assert counts is not None
    assert (counts == np.array([3, 2])[:, None, None] * allowed).all()


def test_description_says_what_is_combined(tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS)
    assert monthly(path, "fill").how[1] == "median of 6 dates in 4 periods from 2024-06-01 to 2024-09-05"
    assert len(monthly(path, "fill").declared.notes) == 1


def test_only_items_of_the_intervals_are_read(tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS)
    (tmp_path / "5_red.tif").unlink()  # of September
    source = opened(path, composite="median", periods=["2024-06-01/2024-06-15", "2024-06-16/2024-07-31"])
    assert source.declared.kept[2] == "red@2024-06-16/2024-07-31"
    counts = source.observe(WHOLE).counts
    assert counts is not None
    assert counts[:, 0, 0].tolist() == [2, 3]
    assert "1 of 6 items in" in source.declared.notes[0]


def test_period_without_items_is_refused(tmp_path: Path) -> None:
    path = write_items(tmp_path, DAYS)
    with pytest.raises(InputError, match=r"items\.json: has no items in period 2024-08"):
        monthly(path, "exclude")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"composite": "median", "periods": "week"}, "`periods` is month, season, year or a list of intervals"),
        ({"composite": "median", "periods": []}, "`periods` is month, season, year or a list of intervals"),
        ({"composite": "median", "periods": ["2024-06"]}, "'2024-06' is not an interval of days"),
        ({"periods": "month"}, "`periods` needs `composite`"),
        ({"composite": "median", "gaps": "fill"}, "`gaps` is about periods"),
        ({"composite": "median", "periods": "month", "gaps": "mean"}, "gaps"),
    ],
)
def test_wrong_keys_are_refused_by_name(values: dict[str, Any], expected: str, scene: SmallScene) -> None:
    content = scene.config()
    content["scenes"][0]["sources"]["optical"] = {"stac": {"url": "items.json", "assets": ["red"]} | values}
    assert expected in load_error(scene, scenes=content["scenes"])
