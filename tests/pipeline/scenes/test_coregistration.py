"""Coregistration: known shifts are recovered, unrelated sources are not credible, and windows are placed well."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.grid import Window
from pipeline.parallel.executor import ThreadExecutor
from pipeline.rasters.header import RasterFile
from pipeline.scenes.coregistration import Shift, measure_shift, measure_shifts, most_varied_plane, sample_windows
from pipeline.scenes.reference_grid import reference_grid
from pipeline.scenes.source import Source, open_source
from pipeline.stac.composite import Composite
from pipeline.stac.periods import Gaps, intervals
from tests.support.scenes import write_raster

SIDE = 96
Pair = tuple[np.ndarray, np.ndarray]


def field(seed: int, *, margin: int = 0, smooth: float = 2.0) -> np.ndarray:
    """A smooth periodic random field with standard deviation 1; Fourier shifts of it are exact."""
    side = 2 * (SIDE + margin)
    noise = np.fft.fft2(np.random.default_rng(seed).normal(size=(side, side)))
    values = np.fft.ifft2(
        noise * frequencies(side, lambda fy, fx: np.exp(-2 * (np.pi * smooth) ** 2 * (fy**2 + fx**2)))
    ).real
    return values / values.std()


def frequencies(side: int, of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    f = np.fft.fftfreq(side)
    return of(f[:, None], f[None])


def shifted(values: np.ndarray, dy: float, dx: float) -> np.ndarray:
    """Shift a periodic field down by dy and right by dx pixels."""
    turn = frequencies(len(values), lambda fy, fx: np.exp(-2j * np.pi * (fy * dy + fx * dx)))
    return np.fft.ifft2(np.fft.fft2(values) * turn).real


def pairs(dy: float, dx: float, *, seed: int = 0, count: int = 4, contrast: float = 1.0, noise: float = 0.0) -> list[Pair]:
    """Windows of fields and of the shifted fields, each with independent noise."""
    generator = np.random.default_rng(seed + 1000)
    made = []
    for k in range(count):
        first = field(seed + k)
        both = [first, contrast * shifted(first, dy, dx)]
        cut = [layer[40 : 40 + SIDE, 40 : 40 + SIDE] + noise * generator.normal(size=(SIDE, SIDE)) for layer in both]
        made.append((cut[0].astype(np.float32), cut[1].astype(np.float32)))
    return made


@given(
    st.tuples(st.floats(-6, 6), st.floats(-6, 6)),
    st.sampled_from([1.0, -1.0, -300.0]),
    st.sampled_from([0.0, 0.1]),
    st.integers(0, 10**6),
)
@settings(max_examples=15)
def test_known_subpixel_shift_is_recovered(shift: tuple[float, float], contrast: float, noise: float, seed: int) -> None:
    found = measure_shift(pairs(*shift, seed=seed, contrast=contrast, noise=noise))
    assert found.windows == 4
    assert found.credible
    assert (found.dy, found.dx) == pytest.approx(shift, abs=0.3 if noise else 0.15)


@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (0, -2), (-5, 4)])
def test_integer_shifts_are_recovered_to_a_tenth_of_a_pixel(shift: tuple[int, int]) -> None:
    found = measure_shift(pairs(*shift, contrast=-1.0))
    assert (found.dy, found.dx) == pytest.approx(shift, abs=0.101)
    assert found.agreeing == found.windows == 4
    assert found.distance == pytest.approx(math.hypot(*shift), abs=0.15)


def test_shift_is_positive_when_second_source_is_lower_and_further_right() -> None:
    first, second = np.zeros((SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.float32)
    first[40:50, 40:55] = 1
    second[44:54, 37:52] = 1  # 4 down, 3 to the left
    found = measure_shift([(first, second)] * 3)
    assert (found.dy, found.dx) == pytest.approx((4, -3), abs=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_shift_of_unrelated_sources_is_not_credible(seed: int) -> None:
    generator = np.random.default_rng(seed)
    fields = [field(100 * seed + k)[:SIDE, :SIDE].astype(np.float32) for k in range(18)]
    assert not measure_shift(list(zip(fields[:9], fields[9:], strict=True))).credible
    noise = [generator.normal(size=(SIDE, SIDE)).astype(np.float32) for _ in range(18)]
    assert not measure_shift(list(zip(noise[:9], noise[9:], strict=True))).credible


@pytest.mark.parametrize("trend", [lambda y, x: 4 * x, lambda y, x: 0.005 * (x - 48) ** 2])
def test_common_gap_in_both_sources_is_not_mistaken_for_an_edge(
    trend: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    gapped_pairs = pairs(2.0, -3.0)
    y, x = np.mgrid[:SIDE, :SIDE]
    for both in gapped_pairs:
        for layer in both:
            layer += 50 + trend(y, x)  # a constant fill would create an edge
            layer[(y - 45) ** 2 + (x - 28) ** 2 < 16**2] = np.nan
    found = measure_shift(gapped_pairs)
    assert found.windows == 4
    assert (found.dy, found.dx) == pytest.approx((2, -3), abs=0.3)


def test_scattered_gaps_in_both_sources_are_interpolated() -> None:
    generator = np.random.default_rng(0)
    gapped_pairs = pairs(2.0, -3.0)
    x = np.mgrid[:SIDE, :SIDE][1]
    for both in gapped_pairs:
        gaps = generator.random((SIDE, SIDE)) < 0.08
        for layer, shift_x in zip(both, (0, -3), strict=True):
            layer += 0.02 * (x - shift_x - 30) ** 2  # a constant fill would create an edge around each gap
            layer[gaps] = np.nan
    found = measure_shift(gapped_pairs)
    assert found.windows == 4
    assert (found.dy, found.dx) == pytest.approx((2, -3), abs=0.3)


def test_windows_without_information_are_excluded() -> None:
    good = pairs(1.0, 1.0, count=3)
    empty, flat, slope = (
        good[0][0].copy(),
        np.full((SIDE, SIDE), 0.1, np.float32),
        np.mgrid[:SIDE, :SIDE][0].astype(np.float32),
    )
    empty[:21] = np.nan  # 22 %
    rounding = flat + np.float32(1e-8) * np.random.default_rng(0).normal(size=flat.shape).astype(np.float32)
    none = np.full((SIDE, SIDE), np.nan, np.float32)
    small = (good[0][0][:12, :12], good[0][1][:12, :12])
    left_out = [
        (empty, good[0][1]),
        (good[0][0], empty),
        (flat, good[0][1]),
        (slope, good[0][1]),
        (rounding, rounding),
        small,
    ]
    left_out.append((none, none))
    for pair in left_out:
        assert measure_shift([pair]).windows == 0
    found = measure_shift(good + left_out)
    assert found.windows == 3
    assert found.credible


def test_shift_without_windows_is_not_credible() -> None:
    found = measure_shift([])
    assert (found.windows, found.credible) == (0, False)
    assert math.isnan(found.distance)


@pytest.mark.parametrize(
    ("windows", "agreeing", "credible"),
    [(2, 2, False), (3, 1, False), (3, 2, False), (3, 3, True), (4, 3, True), (5, 3, True), (9, 5, False), (9, 6, True)],
)
def test_shift_is_credible_if_three_windows_and_sixty_percent_agree(windows: int, agreeing: int, credible: bool) -> None:
    assert Shift(0.0, 0.0, windows, agreeing).credible == credible


def test_single_outlier_window_does_not_change_the_shift() -> None:
    found = measure_shift([*pairs(1.0, 2.0, count=3), *pairs(-4.0, 6.0, count=1, seed=50)])
    assert (found.windows, found.agreeing) == (4, 3)
    assert (found.dy, found.dx) == pytest.approx((1, 2), abs=0.2)


def test_windows_of_unequal_shape_raise_value_error() -> None:
    with pytest.raises(ValueError, match="they must match"):
        measure_shift([(np.zeros((50, 50), np.float32), np.zeros((50, 51), np.float32))])


def test_plane_keeps_edges_that_cancel_in_the_band_mean() -> None:
    edge = field(0)[:SIDE, :SIDE]
    values = np.stack([1000 + 300 * edge, 5 - 0.1 * edge, np.full_like(edge, 7.0)])
    values[1, 3, 4] = np.nan
    made = most_varied_plane(values)
    assert made.dtype == np.float32
    assert np.argwhere(np.isnan(made)).tolist() == [[3, 4]]
    known = np.isfinite(made)
    assert abs(np.corrcoef(made[known], edge[known])[0, 1]) > 0.999


def test_plane_of_empty_bands_is_nan_and_of_constant_bands_is_zero() -> None:
    assert np.isnan(most_varied_plane(np.full((2, 8, 9), np.nan, np.float32))).all()
    assert (most_varied_plane(np.full((2, 8, 9), 3.0, np.float32)) == 0).all()


@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.integers(1, 400), st.integers(1, 30))
def test_places_are_disjoint_inside_the_grid_and_near_the_requested_count(
    shape: tuple[int, int], side: int, count: int
) -> None:
    found = sample_windows(shape, side, count)
    assert 1 <= len(found) <= count
    assert found == sample_windows(shape, side, count)
    for window in found:
        assert (window.height, window.width) == (min(side, shape[0]), min(side, shape[1]))
        assert 0 <= window.y <= shape[0] - window.height
        assert 0 <= window.x <= shape[1] - window.width
    for one in found:
        for other in found:
            apart = abs(one.y - other.y) >= one.height or abs(one.x - other.x) >= one.width
            assert one == other or apart
    most = (shape[0] // min(side, shape[0])) * (shape[1] // min(side, shape[1]))
    assert len(found) >= min(most, count) / 2


def test_common_grid_shapes_have_the_expected_places() -> None:
    assert sample_windows((200, 100)) == [Window(0, 0, 200, 100)]
    assert sample_windows((1000, 1000)) == [Window(y, x, 256, 256) for y in (38, 371, 705) for x in (38, 371, 705)]
    assert len(sample_windows((300, 5000))) == 9


def test_shift_between_real_landsat_bands_is_recovered(shared: Callable[[str], Path]) -> None:
    bands = []
    for band in (3, 5):
        with rasterio.open(shared("data/zion") / f"landsat_b{band}.tif") as dataset:
            values = dataset.read().astype(np.float32)
            values[values == dataset.nodata] = np.nan
            bands.append(most_varied_plane(values))
    for dy, dx in ((0, 0), (3, -2)):
        second = np.roll(bands[1], (dy, dx), (0, 1))
        found = measure_shift([(bands[0][w.slices], second[w.slices]) for w in sample_windows(second.shape)])
        assert found.credible
        assert (found.dy, found.dx) == pytest.approx((dy, dx), abs=0.3)
    mirrored = bands[1][::-1]
    assert not measure_shift([(bands[0][w.slices], mirrored[w.slices]) for w in sample_windows(mirrored.shape)]).credible


def test_single_source_is_not_read_as_there_is_no_other_to_compare() -> None:
    class Reader:
        def each(self, *_: object) -> None:
            raise AssertionError("windows were read")

    assert measure_shifts(Reader(), [object()], (100, 100)) == {}  # type: ignore[arg-type,list-item]  # never used


@pytest.mark.parametrize("gaps", ["fill", "interpolate"])
def test_clouds_that_two_sources_share_do_not_hide_the_shift_of_the_ground(gaps: Gaps, tmp_path: Path) -> None:
    terrain = 3000 + 300 * field(3, margin=24)
    clouds = np.kron(np.random.default_rng(1).random((60, 60)) < 0.4, np.ones((4, 4), bool))
    opened = []
    for name, ground in (("first", np.roll(terrain, (2, -3), (0, 1))), ("second", terrain)):
        days = {"2024-06-05": np.where(clouds, 0, ground / 3), "2024-07-05": ground}
        written = [write_raster(tmp_path / f"{name}_{d}.tif", v[None].astype(np.uint16), nodata=0) for d, v in days.items()]
        files = tuple(RasterFile(str(path)) for path in written)
        source = Source(
            name,
            (files,),
            band_names=("red",),
            composite=Composite("median"),
            dates=tuple(days),
            periods=intervals(["2024-06-01/2024-06-30", "2024-07-01/2024-07-31"]),
            gaps=gaps,
        )
        opened.append(open_source(source, reference_grid(source)))
    found = measure_shifts(ThreadExecutor(1), opened, terrain.shape)["second"]
    assert found.credible
    assert (found.dy, found.dx) == pytest.approx((-2, 3), abs=0.3)
