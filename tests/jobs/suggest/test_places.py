"""Choice of places: independent of windows, by score, spread over classes and space, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.suggest.places import BestPlaces, Places, Rank, pixel_scores, quotas, score_places
from pipeline.grid import windows

SHAPE, SIDE = (90, 70), 3


def scene(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, class positions and eligible pixels of a map; the third class is rare."""
    generator = np.random.default_rng(seed)
    return (
        generator.random(SHAPE),
        generator.choice(3, SHAPE, p=[0.7, 0.27, 0.03]),
        generator.random(SHAPE) < 0.8,
    )


def search(seed: int, *, number: int, step: int, choice: int = 0) -> BestPlaces:
    """Score all places, window by window."""
    scores, positions, eligible = scene(seed)
    best = BestPlaces(number)
    for window in windows(SHAPE, step):
        best.add(
            score_places(
                scores[window.slices],
                positions[window.slices],
                eligible[window.slices],
                side=SIDE,
                corner_yx=(window.y, window.x),
                scene=0,
                seed=choice,
            )
        )
    return best


def rows_of(places: Places | None) -> list[tuple[int, int]]:
    """The central pixels of places, in order."""
    assert places is not None
    return list(zip(places.row.tolist(), places.column.tolist(), strict=True))


def test_places_do_not_depend_on_windows_and_follow_the_seed() -> None:
    chosen = [rows_of(search(1, number=20, step=step).choose(distance=6)) for step in (SIDE * 4, SIDE * 30)]
    assert chosen[0] == chosen[1]
    assert len(set(chosen[0])) == 20
    assert rows_of(search(1, number=20, step=90, choice=5).choose(distance=6)) != chosen[0]


def test_places_are_apart_of_every_class_and_high_in_score() -> None:
    scores, positions, eligible = scene(2)
    best = search(2, number=24, step=30)
    chosen = best.choose(distance=8)
    assert chosen is not None
    away = np.hypot(*(np.subtract.outer(v, v) for v in (chosen.row, chosen.column)))
    assert away[np.triu_indices(24, 1)].min() >= 8
    assert set(chosen.position.tolist()) == {0, 1, 2}
    for row, column, position, score in zip(chosen.row, chosen.column, chosen.position, chosen.score, strict=True):
        assert eligible[row, column]
        assert positions[row, column] == position
        square = slice(row - 1, row + 2), slice(column - 1, column + 2)
        assert score == pytest.approx((scores * eligible)[square].sum() / SIDE**2)
    every = Places.joined(list(best.best.values()))
    assert np.median(chosen.score[:12]) > np.quantile(every.score, 0.75)


def test_half_of_the_places_are_like_the_map() -> None:
    """Their scores and classes are those of all places, while the other half has high scores and more of rare classes."""
    scores, positions, eligible = scene(4)
    middle = eligible[1 : SHAPE[0] // SIDE * SIDE : SIDE, 1 : SHAPE[1] // SIDE * SIDE : SIDE]
    rare = (positions[1::SIDE, 1::SIDE][middle] == 2).mean()
    halves: tuple[list[tuple[float, float]], ...] = [], []
    for choice in range(40):
        chosen = search(4, number=40, step=90, choice=choice).choose(distance=3)
        assert chosen is not None
        for half, own in zip(halves, (chosen[:20], chosen[20:]), strict=True):
            half.append((own.score.mean(), (own.position == 2).mean()))
    (high, many), (usual, few) = np.mean(halves, axis=1)
    assert usual == pytest.approx(scores.mean() * eligible.mean(), rel=0.15)
    assert high > 1.2 * usual
    assert few < 2 * rare < many  # what the first half takes is missing in the second


def test_too_great_a_distance_gives_fewer_places_and_nothing_gives_none() -> None:
    assert 1 <= len(rows_of(search(3, number=30, step=30).choose(distance=60))) < 30
    assert BestPlaces(5).choose(distance=1) is None


@given(st.dictionaries(st.integers(0, 20), st.floats(1e-6, 1e6), min_size=1, max_size=8), st.integers(1, 200))
@settings(deadline=None)
def test_quotas_add_up_and_leave_out_no_class_that_fits(sums: dict[int, float], number: int) -> None:
    found = quotas(sums, number)
    assert found.keys() == sums.keys()
    assert sum(found.values()) == number
    assert sum(share > 0 for share in found.values()) == min(len(sums), number)
    for one in sums:
        for other in sums:
            assert sums[one] <= sums[other] or found[one] >= found[other] - (sums[one] == sums[other])


def test_ranks_are_shares_of_the_map_and_scores_their_geometric_mean() -> None:
    rank = Rank.of(np.array([1.0, 2.0, 2.0, np.nan, 4.0]))
    np.testing.assert_allclose(rank(np.array([0.0, 1.0, 2.0, 3.0, 9.0, np.nan])), [0, 0.125, 0.5, 0.75, 1, 0])
    measures = {"entropy": np.array([[4.0, 2.0]]), "kl": np.array([[2.0, 9.0]])}
    np.testing.assert_allclose(pixel_scores(measures, {"entropy": rank, "kl": rank}), np.sqrt([[0.875 * 0.5, 0.5 * 1.0]]))
    assert Rank.of(np.array([np.nan]))(np.array([1.0])).tolist() == [0.0]
