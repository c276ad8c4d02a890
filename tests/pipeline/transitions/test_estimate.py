"""Areas of change from labelled points: exact for a census, unbiased and covered for samples."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mibf.errors import InputError
from pipeline.transitions.count import Transitions
from pipeline.transitions.estimate import LabelledTransitions, estimate_change

NAMES = ("water", "forest", "town")
SIZE = 40_000


def ground(seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and mapped transitions of all pixels, as codes 3 before + after: few changes, and maps with errors."""
    random = np.random.default_rng(seed)
    before = random.choice(3, SIZE, p=[0.2, 0.6, 0.2])
    after = np.where(random.random(SIZE) < 0.03, random.choice(3, SIZE), before)
    maps = [np.where(random.random(SIZE) < 0.06, random.choice(3, SIZE), each) for each in (before, after)]
    return before * 3 + after, maps[0] * 3 + maps[1]


def counted(mapped: NDArray[np.int64], hectares: float = 0.01) -> Transitions:
    pixels = np.bincount(mapped, minlength=9).reshape(3, 3)
    return Transitions(NAMES, pixels, pixels * hectares, 0, 0)


def labelled(mapped: NDArray[np.int64], true: NDArray[np.int64], chosen: NDArray[np.int64]) -> LabelledTransitions:
    own, label = mapped[chosen], true[chosen]
    return LabelledTransitions(own // 3, own % 3, label // 3, label % 3, None)


def drawn(mapped: NDArray[np.int64], points: int, seed: int) -> NDArray[np.int64]:
    """So many pixels of each transition."""
    random = np.random.default_rng(seed)
    return np.concatenate(
        [random.choice(np.flatnonzero(mapped == code), points, replace=False) for code in np.unique(mapped)]
    )


def test_census_gives_the_true_areas() -> None:
    true, mapped = ground(0)
    found = estimate_change(counted(mapped), labelled(mapped, true, np.arange(SIZE)), "transitions")
    assert found.unit == "ha"
    assert found.changed.value == pytest.approx((true // 3 != true % 3).sum() * 0.01)
    assert found.changed.standard_error == pytest.approx(0, abs=1e-9)
    assert found.transitions["forest", "town"].value == pytest.approx((true == 5).sum() * 0.01)


def test_estimates_are_unbiased_and_intervals_cover_the_truth_though_the_maps_claim_thrice_the_change() -> None:
    true, mapped = ground(1)
    change = (true // 3 != true % 3).sum() * 0.01
    maps = counted(mapped)
    assert maps.changed_hectares > 3 * change
    found = [
        estimate_change(maps, labelled(mapped, true, drawn(mapped, 60, seed)), "transitions").changed for seed in range(200)
    ]
    values = np.array([each.value for each in found])
    assert abs(values.mean() - change) < 3 * values.std() / np.sqrt(len(values))
    covered = np.mean([each.low <= change <= each.high for each in found])
    assert covered >= 0.9  # all of them here: 60 points of nine tenths of the ground exclude no changes there
    assert values.var() == pytest.approx(np.mean([each.standard_error**2 for each in found]), rel=0.3)


def test_few_points_in_a_transition_are_refused_or_merged() -> None:
    true, mapped = ground(2)
    chosen = np.random.default_rng(0).choice(SIZE, 150, replace=False)
    with pytest.raises(InputError, match=r"fewer than two labelled points.*pass `--sampled-by random`"):
        estimate_change(counted(mapped), labelled(mapped, true, chosen), "transitions")
    found = estimate_change(counted(mapped), labelled(mapped, true, chosen), "random")
    assert found.merged > 0
    assert found.changed.low <= (true // 3 != true % 3).sum() * 0.01 <= found.changed.high
    with pytest.raises(InputError, match="1 points are too few"):
        estimate_change(counted(mapped), labelled(mapped, true, chosen[:1]), "random")


def test_areas_are_in_pixels_where_hectares_are_not_known() -> None:
    true, mapped = ground(3)
    found = estimate_change(counted(mapped, np.nan), labelled(mapped, true, np.arange(SIZE)), "transitions")
    assert (found.unit, round(found.changed.value)) == ("px", (true // 3 != true % 3).sum())
