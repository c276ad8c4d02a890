"""Counts of training values: they merge in any order; integer quantiles are exact, float quantiles within a bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mibf.errors import InputError
from pipeline.store.quantiles import HIGH, LOW, PAGE, BandHistogram, QuantileSketch, fit_scaling, merge

INTEGERS = st.sampled_from([np.uint8, np.int8, np.uint16, np.int16])
FLOATS = arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
SHARES = st.sampled_from([0.0, LOW, 0.3, 0.5, HIGH, 1.0])


def counted(*parts: np.ndarray, exact: bool) -> BandHistogram:
    band = BandHistogram(exact)
    for part in parts:
        band.add(part)
    return band


def quantile(values: np.ndarray, share: float) -> float:
    """Return, by sorting, the smallest value that at least this share of the values does not exceed."""
    return float(np.sort(values)[max(1, int(np.ceil(share * len(values)))) - 1])


@given(INTEGERS.flatmap(lambda dtype: arrays.arrays(dtype, st.integers(1, 60))), SHARES)
def test_integer_quantiles_are_exact(values: np.ndarray, share: float) -> None:
    assert counted(values, exact=True).quantile(share) == quantile(values, share)


@given(FLOATS, SHARES)
def test_float_quantiles_are_within_error_bound(values: np.ndarray, share: float) -> None:
    wanted = quantile(values, share)
    assert abs(counted(values, exact=False).quantile(share) - wanted) <= 2**-14 * abs(wanted) + 2**-126


@given(st.lists(arrays.arrays(np.int16, st.integers(0, 20)), min_size=1, max_size=5), st.permutations(range(5)))
def test_integer_counts_merge_in_any_order(parts: list[np.ndarray], order: list[int]) -> None:
    joint = counted(np.concatenate(parts), exact=True)
    total = BandHistogram(exact=True)
    for i in order:
        if i < len(parts):
            total.merge(counted(parts[i], exact=True))
    assert total.pixels == joint.pixels
    if joint.pixels:
        assert [total.quantile(q) for q in (LOW, 0.5, HIGH)] == [joint.quantile(q) for q in (LOW, 0.5, HIGH)]


@given(FLOATS, FLOATS)
def test_merged_float_counts_equal_joint_counts(one: np.ndarray, other: np.ndarray) -> None:
    total = counted(one, exact=False)
    total.merge(counted(other, exact=False))
    joint = counted(np.concatenate([one, other]), exact=False)
    assert [total.quantile(q) for q in (LOW, 0.5, HIGH)] == [joint.quantile(q) for q in (LOW, 0.5, HIGH)]


def test_constant_band_median_is_bit_exact() -> None:
    for value in (0.1, -3.7e20, 0.0, 300.25):
        values = np.full(100, value, np.float32)
        assert counted(values, exact=False).quantile(0.5) == values[0]


def test_only_valid_training_pixels_of_finer_source_are_counted() -> None:
    values = np.arange(2 * 4 * 6, dtype=np.uint16).reshape(2, 4, 6)
    valid = np.ones((4, 6), bool)
    valid[0, 0] = False
    trained = np.zeros((2, 3), bool)
    trained[0, 0] = trained[1, 2] = True
    sketch = QuantileSketch(2, np.dtype(np.uint16))
    sketch.add_at(values, valid, trained)
    wanted = [1, 6, 7, 16, 17, 22, 23]  # 2 x 2 pixels for each of the two samples, minus the one without data
    for band, counts in enumerate(sketch.bands):
        seen = [PAGE * p + i for p in sorted(counts.pages) for i, n in enumerate(counts.pages[p].tolist()) for _ in range(n)]
        assert seen == [v + 24 * band for v in wanted]


def test_float_counts_around_zero_use_little_memory() -> None:
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    band = counted(values, exact=False)
    assert sum(page.nbytes for page in band.pages.values()) < 4e6
    assert band.quantile(0.5) == pytest.approx(quantile(values, 0.5), rel=2**-13)


def test_band_varying_within_one_bin_is_not_constant() -> None:
    band = counted(np.linspace(1000, 1000.02, 50, dtype=np.float32), exact=False)
    assert band.limits() == (np.float32(1000), np.float32(1000.02))
    same = counted(np.full(9, 1000.01, np.float32), exact=False)
    assert len(set(same.limits())) == 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.float32])
def test_band_is_constant_only_if_all_values_are_equal_whatever_its_dtype(dtype: type) -> None:
    rare = np.full(1000, 3, dtype)
    rare[:4] = 90  # 0.4 %: beyond the quantiles
    sketch = QuantileSketch(3, np.dtype(dtype))
    values = np.stack([rare, np.full(1000, 3, dtype), np.arange(1000).astype(dtype) % 100])[:, None]
    sketch.add(values, np.ones((1, 1000), bool))
    scaling = sketch.scaling()
    assert scaling.constant.tolist() == [False, True, False]
    assert (scaling.low[0], scaling.high[0]) == (3, 90)
    assert scaling.fill[0] == pytest.approx(3, rel=2**-14)


@given(st.integers(-100, 100), st.integers(-100, 100), st.integers(1, 3))
def test_limits_of_integers_equal_those_of_the_same_numbers_as_floats(usual: int, other: int, share: int) -> None:
    values = np.array([usual] * 997 + [other] * share, np.int16)
    assert counted(values, exact=True).limits() == counted(values.astype(np.float32), exact=False).limits()


def test_source_without_training_data_raises_with_name() -> None:
    sketches: dict[str, QuantileSketch] = {}
    merge(sketches, {"radar": QuantileSketch(1, np.dtype(np.float32))})
    with pytest.raises(InputError, match="source 'radar' has no data at any training pixel"):
        fit_scaling(sketches)
