"""The plan of an epoch: draws per window by class frequency, their split over workers, and groups of windows."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, pairwise, takewhile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sampling.epoch_plan import WindowDraws, epoch_windows, expected_draws, make_groups, rounded_draws, times_drawn
from pipeline.sampling.sample_table import SampleTable


@given(
    st.lists(st.integers(0, 10**6), min_size=2, max_size=12).filter(any), st.sampled_from(["natural", "balanced", "sqrt"])
)
def test_expected_draws_match_class_frequencies_and_sum_to_sample_count(counts: list[int], how: Any) -> None:
    samples = np.array(counts)
    drawn = expected_draws(samples, how) * samples
    assert drawn.sum() == pytest.approx(samples.sum())
    present = samples[samples > 0]
    weight = {"natural": present, "balanced": np.ones(len(present)), "sqrt": np.sqrt(present)}[how]
    assert drawn[samples > 0] == pytest.approx(samples.sum() * weight / weight.sum())
    assert (drawn[samples == 0] == 0).all()


@given(st.lists(st.integers(0, 16384), min_size=3, max_size=3), st.integers(0, 2**31), st.integers(0, 99))
def test_draws_are_rounded_up_or_down_and_natural_draws_equal_samples(counts: list[int], seed: int, place: int) -> None:
    samples, expected = np.array(counts), np.array([0.3, 1.0, 7.7])
    draws = rounded_draws(samples, expected, seed=seed, epoch=0, index=place, lap=0).draws
    assert (np.abs(draws - samples * expected) < 1).all()
    assert draws[1] == samples[1]


def test_rounding_is_unbiased_for_one_sample_per_window() -> None:
    drawn = sum(
        rounded_draws(np.array([1]), np.array([0.25]), seed=3, epoch=1, index=place, lap=0).draws[0] for place in range(4000)
    )
    assert drawn == pytest.approx(1000, abs=5 * np.sqrt(4000 * 0.25 * 0.75))


@given(st.integers(0, 2**40), st.integers(0, 50), st.integers(1, 5), st.sampled_from(["natural", "balanced"]))
@settings(max_examples=30)
def test_draws_are_split_over_workers_once_and_evenly(seed: int, epoch: int, workers: int, how: Any) -> None:
    samples = np.random.default_rng(seed).integers(0, 400, (23, 3)) + 1
    drawn = [np.zeros(n, np.int64) for n in samples.sum(axis=1)]
    totals, whole = [], {}
    for rank in range(workers):
        parts = epoch_windows(SampleTable.of(samples), frequencies=how, seed=seed, epoch=epoch, rank=rank, workers=workers)
        totals.append(0)
        for part in takewhile(lambda part: part.lap == 0, parts):
            times = times_drawn(part, np.random.default_rng(part.index))
            assert times.sum() == part.total
            assert (times > 0).sum() <= part.distinct
            drawn[part.index] += times
            whole[part.index] = times_drawn(replace(part, begin=0, end=part.draws.sum()), np.random.default_rng(part.index))
            totals[-1] += part.total
    assert max(totals) - min(totals) <= 1
    assert all((drawn[place] == whole[place]).all() for place in range(23))


def test_worker_without_windows_draws_from_all() -> None:
    parts = epoch_windows(SampleTable.of(np.array([[1, 1]])), frequencies="natural", seed=0, epoch=0, rank=0, workers=3)
    assert [(p.index, p.lap, p.total) for p in islice(parts, 3)] == [(0, 0, 2), (0, 1, 2), (0, 2, 2)]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 120))
def test_groups_contain_as_many_windows_as_fit(sizes: list[int], limit: int) -> None:
    parts = [WindowDraws.full(i, i // 20, np.array([n]), np.array([n])) for i, n in enumerate(sizes)]
    groups = list(make_groups(parts, size=lambda part: part.total, limit=limit))
    assert [part for group in groups for part in group.parts] == parts
    assert [group.number for group in groups] == list(range(len(groups)))
    for group in groups:
        assert len(group.parts) == 1 or group.total <= limit
        assert len({part.lap for part in group.parts}) == 1
    for one, after in pairwise(groups):
        assert one.total + after.parts[0].total > limit or one.parts[0].lap != after.parts[0].lap
