"""Shifts between sources: known ones are found, unlike sources are told as such, and where the windows lie."""

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
from pipeline.shift import Shift, measure, places, plane

SIDE = 96
Pair = tuple[np.ndarray, np.ndarray]


def field(seed: int, *, margin: int = 0, smooth: float = 2.0) -> np.ndarray:
    """A smooth random field of deviation 1 that goes on over its edges, so that Fourier shifts of it are exact."""
    side = 2 * (SIDE + margin)
    noise = np.fft.fft2(np.random.default_rng(seed).normal(size=(side, side)))
    values = np.fft.ifft2(
        noise * frequencies(side, lambda fy, fx: np.exp(-2 * (np.pi * smooth) ** 2 * (fy**2 + fx**2)))
    ).real
    return values / values.std()


def frequencies(side: int, of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    f = np.fft.fftfreq(side)
    return of(f[:, None], f[None])


def moved(values: np.ndarray, dy: float, dx: float) -> np.ndarray:
    """The field moved down by dy and right by dx."""
    turn = frequencies(len(values), lambda fy, fx: np.exp(-2j * np.pi * (fy * dy + fx * dx)))
    return np.fft.ifft2(np.fft.fft2(values) * turn).real


def pairs(dy: float, dx: float, *, seed: int = 0, count: int = 4, contrast: float = 1.0, noise: float = 0.0) -> list[Pair]:
    """Windows of fields and of the same moved, noise of its own on each."""
    generator = np.random.default_rng(seed + 1000)
    made = []
    for k in range(count):
        first = field(seed + k)
        both = [first, contrast * moved(first, dy, dx)]
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
def test_a_known_shift_is_found(shift: tuple[float, float], contrast: float, noise: float, seed: int) -> None:
    found = measure(pairs(*shift, seed=seed, contrast=contrast, noise=noise))
    assert found.windows == 4
    assert found.credible
    assert (found.dy, found.dx) == pytest.approx(shift, abs=0.3 if noise else 0.15)


@pytest.mark.parametrize("shift", [(0, 0), (3, 0), (0, -2), (-5, 4)])
def test_whole_pixels_are_found_to_a_tenth(shift: tuple[int, int]) -> None:
    found = measure(pairs(*shift, contrast=-1.0))
    assert (found.dy, found.dx) == pytest.approx(shift, abs=0.101)
    assert found.agreeing == found.windows == 4
    assert found.distance == pytest.approx(math.hypot(*shift), abs=0.15)


def test_the_sign_is_how_far_the_second_lies_below_and_to_the_right() -> None:
    first, second = np.zeros((SIDE, SIDE), np.float32), np.zeros((SIDE, SIDE), np.float32)
    first[40:50, 40:55] = 1
    second[44:54, 37:52] = 1  # 4 down, 3 to the left
    found = measure([(first, second)] * 3)
    assert (found.dy, found.dx) == pytest.approx((4, -3), abs=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_sources_that_share_nothing_are_not_credible(seed: int) -> None:
    generator = np.random.default_rng(seed)
    fields = [field(100 * seed + k)[:SIDE, :SIDE].astype(np.float32) for k in range(18)]
    assert not measure(list(zip(fields[:9], fields[9:], strict=True))).credible
    noise = [generator.normal(size=(SIDE, SIDE)).astype(np.float32) for _ in range(18)]
    assert not measure(list(zip(noise[:9], noise[9:], strict=True))).credible


@pytest.mark.parametrize("lie", [lambda y, x: 4 * x, lambda y, x: 0.005 * (x - 48) ** 2])
def test_a_gap_of_both_at_one_place_does_not_pass_for_an_edge(lie: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    holed = pairs(2.0, -3.0)
    y, x = np.mgrid[:SIDE, :SIDE]
    for both in holed:
        for layer in both:
            layer += 50 + lie(y, x)  # a fill with any one value would be a cliff
            layer[(y - 45) ** 2 + (x - 28) ** 2 < 16**2] = np.nan
    found = measure(holed)
    assert found.windows == 4
    assert (found.dy, found.dx) == pytest.approx((2, -3), abs=0.3)


def test_scattered_gaps_of_both_are_bridged() -> None:
    generator = np.random.default_rng(0)
    holed = pairs(2.0, -3.0)
    x = np.mgrid[:SIDE, :SIDE][1]
    for both in holed:
        gaps = generator.random((SIDE, SIDE)) < 0.08
        for layer, moved_by in zip(both, (0, -3), strict=True):
            layer += 0.02 * (x - moved_by - 30) ** 2  # so that the rim of a gap filled with any one value is a cliff
            layer[gaps] = np.nan
    found = measure(holed)
    assert found.windows == 4
    assert (found.dy, found.dx) == pytest.approx((2, -3), abs=0.3)


def test_windows_that_can_tell_nothing_are_left_out() -> None:
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
        assert measure([pair]).windows == 0
    found = measure(good + left_out)
    assert found.windows == 3
    assert found.credible


def test_nothing_measured_is_not_credible() -> None:
    found = measure([])
    assert (found.windows, found.credible) == (0, False)
    assert math.isnan(found.distance)


@pytest.mark.parametrize(
    ("windows", "agreeing", "credible"),
    [(2, 2, False), (3, 1, False), (3, 2, False), (3, 3, True), (4, 3, True), (5, 3, True), (9, 5, False), (9, 6, True)],
)
def test_three_windows_that_agree_and_are_sixty_percent_are_credible(windows: int, agreeing: int, credible: bool) -> None:
    assert Shift(0.0, 0.0, windows, agreeing).credible == credible


def test_the_median_is_not_led_astray_by_one_window() -> None:
    found = measure([*pairs(1.0, 2.0, count=3), *pairs(-4.0, 6.0, count=1, seed=50)])
    assert (found.windows, found.agreeing) == (4, 3)
    assert (found.dy, found.dx) == pytest.approx((1, 2), abs=0.2)


def test_windows_of_unequal_shape_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="cut both alike"):
        measure([(np.zeros((50, 50), np.float32), np.zeros((50, 51), np.float32))])


def test_the_plane_keeps_edges_that_the_mean_of_bands_would_level() -> None:
    edge = field(0)[:SIDE, :SIDE]
    values = np.stack([1000 + 300 * edge, 5 - 0.1 * edge, np.full_like(edge, 7.0)])
    values[1, 3, 4] = np.nan
    made = plane(values)
    assert made.dtype == np.float32
    assert np.argwhere(np.isnan(made)).tolist() == [[3, 4]]
    known = np.isfinite(made)
    assert abs(np.corrcoef(made[known], edge[known])[0, 1]) > 0.999


def test_the_plane_of_nothing_is_nothing() -> None:
    assert np.isnan(plane(np.full((2, 8, 9), np.nan, np.float32))).all()
    assert (plane(np.full((2, 8, 9), 3.0, np.float32)) == 0).all()


@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.integers(1, 400), st.integers(1, 30))
def test_places_lie_apart_inside_the_grid_and_as_many_as_fit(shape: tuple[int, int], side: int, count: int) -> None:
    found = places(shape, side, count)
    assert 1 <= len(found) <= count
    assert found == places(shape, side, count)
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


def test_places_of_common_grids() -> None:
    assert places((200, 100)) == [Window(0, 0, 200, 100)]
    assert places((1000, 1000)) == [Window(y, x, 256, 256) for y in (38, 371, 705) for x in (38, 371, 705)]
    assert len(places((300, 5000))) == 9


def test_bands_of_a_real_scene_agree_and_a_shift_of_them_is_found(shared: Callable[[str], Path]) -> None:
    bands = []
    for band in (3, 5):
        with rasterio.open(shared("data/zion") / f"landsat_b{band}.tif") as dataset:
            values = dataset.read().astype(np.float32)
            values[values == dataset.nodata] = np.nan
            bands.append(plane(values))
    for dy, dx in ((0, 0), (3, -2)):
        second = np.roll(bands[1], (dy, dx), (0, 1))
        found = measure([(bands[0][w.slices], second[w.slices]) for w in places(second.shape)])
        assert found.credible
        assert (found.dy, found.dx) == pytest.approx((dy, dx), abs=0.3)
    mirrored = bands[1][::-1]
    assert not measure([(bands[0][w.slices], mirrored[w.slices]) for w in places(mirrored.shape)]).credible
