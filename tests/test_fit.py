"""Counts of training values: they merge in any order, integers give exact quantiles, floats near ones, within a bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mibf.errors import InputError
from pipeline.fit import HIGH, LOW, PAGE, BandCounts, Sketch, fit_scaling, merge

INTEGERS = st.sampled_from([np.uint8, np.int8, np.uint16, np.int16])
FLOATS = arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
SHARES = st.sampled_from([0.0, LOW, 0.3, 0.5, HIGH, 1.0])


def counted(*parts: np.ndarray, exact: bool) -> BandCounts:
    band = BandCounts(exact)
    for part in parts:
        band.add(part)
    return band


def quantile(values: np.ndarray, share: float) -> float:
    """The smallest value that at least this share does not exceed, by sorting."""
    return float(np.sort(values)[max(1, int(np.ceil(share * len(values)))) - 1])


@given(INTEGERS.flatmap(lambda dtype: arrays.arrays(dtype, st.integers(1, 60))), SHARES)
def test_quantiles_of_integers_are_exact(values: np.ndarray, share: float) -> None:
    assert counted(values, exact=True).quantile(share) == quantile(values, share)


@given(FLOATS, SHARES)
def test_quantiles_of_floats_are_within_the_bound(values: np.ndarray, share: float) -> None:
    wanted = quantile(values, share)
    assert abs(counted(values, exact=False).quantile(share) - wanted) <= 2**-14 * abs(wanted) + 2**-126


@given(st.lists(arrays.arrays(np.int16, st.integers(0, 20)), min_size=1, max_size=5), st.permutations(range(5)))
def test_shards_merge_in_any_order(parts: list[np.ndarray], order: list[int]) -> None:
    whole = counted(np.concatenate(parts), exact=True)
    total = BandCounts(exact=True)
    for i in order:
        if i < len(parts):
            total.merge(counted(parts[i], exact=True))
    assert total.pixels == whole.pixels
    if whole.pixels:
        assert [total.quantile(q) for q in (LOW, 0.5, HIGH)] == [whole.quantile(q) for q in (LOW, 0.5, HIGH)]


@given(FLOATS, FLOATS)
def test_floats_merge_as_if_counted_together(one: np.ndarray, other: np.ndarray) -> None:
    total = counted(one, exact=False)
    total.merge(counted(other, exact=False))
    whole = counted(np.concatenate([one, other]), exact=False)
    assert [total.quantile(q) for q in (LOW, 0.5, HIGH)] == [whole.quantile(q) for q in (LOW, 0.5, HIGH)]


def test_a_constant_band_keeps_its_value_to_the_last_bit() -> None:
    for value in (0.1, -3.7e20, 0.0, 300.25):
        values = np.full(100, value, np.float32)
        assert counted(values, exact=False).quantile(0.5) == values[0]


def test_only_training_samples_with_data_count_and_those_of_finer_sources_by_their_reference_pixel() -> None:
    values = np.arange(2 * 4 * 6, dtype=np.uint16).reshape(2, 4, 6)
    valid = np.ones((4, 6), bool)
    valid[0, 0] = False
    trained = np.zeros((2, 3), bool)
    trained[0, 0] = trained[1, 2] = True
    sketch = Sketch(2, np.dtype(np.uint16))
    sketch.add_at(values, valid, trained)
    wanted = [1, 6, 7, 16, 17, 22, 23]  # 2 x 2 pixels for each of the two, less the one without data
    for band, counts in enumerate(sketch.bands):
        seen = [PAGE * p + i for p in sorted(counts.pages) for i, n in enumerate(counts.pages[p].tolist()) for _ in range(n)]
        assert seen == [v + 24 * band for v in wanted]


def test_floats_about_zero_take_little_memory() -> None:
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    band = counted(values, exact=False)
    assert sum(page.nbytes for page in band.pages.values()) < 4e6
    assert band.quantile(0.5) == pytest.approx(quantile(values, 0.5), rel=2**-13)


def test_a_band_that_varies_within_one_bin_is_not_taken_as_constant() -> None:
    band = counted(np.linspace(1000, 1000.02, 50, dtype=np.float32), exact=False)
    assert band.limits() == (np.float32(1000), np.float32(1000.02))
    same = counted(np.full(9, 1000.01, np.float32), exact=False)
    assert len(set(same.limits())) == 1


def test_a_source_without_training_data_is_refused_by_name() -> None:
    sketches: dict[str, Sketch] = {}
    merge(sketches, {"radar": Sketch(1, np.dtype(np.float32))})
    with pytest.raises(InputError, match="source 'radar' has no data at any training pixel"):
        fit_scaling(sketches)
