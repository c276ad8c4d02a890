"""Estimates against another implementation on a real map: Dynamic World's tile that `olmoearth-inferencex` includes.

It needs that package (`pip install olmoearth-inferencex`), of which nothing else here makes use.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from pipeline.assessment.estimators import Figures, Frame, Tally, estimate

stratified = pytest.importorskip("oe_inferencex.stratified", reason="olmoearth-inferencex is not installed")
CLASSES = 9


@pytest.fixture(scope="module")
def tile() -> tuple[np.ndarray, np.ndarray]:
    """The classes that the map and the expert name (n,), of all windows that have both."""
    with np.load(str(files("oe_inferencex").joinpath("sample/dynamic_world_tile.npz"))) as data:
        probabilities, expert = data["probs"].astype(np.float64), data["expert"]
    known = (expert >= 0) & np.isfinite(probabilities).all(axis=0)
    return probabilities[:, known].argmax(axis=0), expert[known].astype(np.int64)


@pytest.mark.parametrize("own_strata", [True, False], ids=["map classes", "other strata"])
def test_estimates_and_variances_equal_those_of_another_implementation(
    tile: tuple[np.ndarray, np.ndarray], own_strata: bool
) -> None:
    mapped, expert = tile
    generator = np.random.default_rng(0)
    stratum = mapped if own_strata else np.arange(len(mapped)) * 5 // len(mapped)
    drawn, names = [], np.unique(stratum)
    for name in names:
        own = np.flatnonzero(stratum == name)
        drawn.append(generator.choice(own, min(len(own), 60), replace=False))
    at = np.concatenate(drawn)
    pixels = np.array([np.count_nonzero(stratum == name) for name in names])
    position = np.searchsorted(names, stratum[at])
    design = stratified.Design(position, pixels / pixels.sum(), pixels)
    tally = Tally.of(position, mapped[at], expert[at], number=len(names), classes=CLASSES)
    found = estimate(tally, Frame.of_pixels(pixels))
    agree = (mapped == expert)[at].astype(float)
    _same(stratified.normal_linear(design, agree), Figures(*(each[None] for each in found.overall)), 0)
    for c in range(CLASSES):
        is_mapped, is_reference = (values[at] == c for values in (mapped, expert))
        both = (is_mapped & is_reference).astype(float)
        _same(stratified.normal_linear(design, is_reference.astype(float)), found.proportions, c)
        _same(stratified.normal_ratio(design, both, is_mapped.astype(float)), found.users, c)
        _same(stratified.normal_ratio(design, both, is_reference.astype(float)), found.producers, c)


def _same(expected: tuple[Any, Any], figures: Figures, position: int) -> None:
    value, variance = expected
    if value is None:
        assert np.isnan(figures.value[position])
        return
    assert figures.value[position] == pytest.approx(value, abs=1e-12)
    assert figures.standard_error[position] ** 2 == pytest.approx(variance, rel=1e-9, abs=1e-15)
