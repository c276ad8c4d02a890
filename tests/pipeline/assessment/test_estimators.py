"""Estimators against published examples, closed formulas, and simulated samples of a known population."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.assessment.estimators import Estimates, Figures, Frame, Tally, TooFewPointsError, estimate, merged_strata
from pipeline.assessment.intervals import wilson

#: Olofsson et al. (2014), tables 8 and 9: deforestation, forest gain, stable forest, stable non-forest.
OLOFSSON = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])
MAPPED = np.array([200_000, 150_000, 3_200_000, 6_450_000])


def by_map_class(counts: np.ndarray) -> Tally:
    """The tally of a sample whose strata are the classes of the map (..., C, C)."""
    return Tally.of_counts(np.eye(counts.shape[-1])[:, :, None] * counts[..., :, None, :])


def test_olofsson_2014() -> None:
    """The figures printed in section 5.2 and table 9; half-widths are 1.96 standard errors, without population correction.

    Of the producer's accuracies, the half-widths of forest gain (0.23) and stable non-forest (0.01) are not what the paper's
    own equation 7 gives, 0.25 and 0.02; nor is 34,097 pixels, next to 68,418 = 1.96 x 34,907, the area's standard error.
    """
    found = estimate(by_map_class(OLOFSSON), Frame.of_pixels(MAPPED))
    assert found.overall.value == pytest.approx(0.95, abs=0.005)
    assert 1.96 * found.overall.standard_error == pytest.approx(0.02, abs=0.005)
    assert found.users.value.round(2).tolist() == [0.88, 0.73, 0.93, 0.96]
    assert (1.96 * found.users.standard_error).round(2).tolist() == [0.07, 0.10, 0.04, 0.02]
    assert found.producers.value.round(2).tolist() == [0.75, 0.85, 0.93, 0.96]
    assert (1.96 * found.producers.standard_error).round(2).tolist() == [0.21, 0.25, 0.03, 0.02]
    pixels = MAPPED.sum() * found.proportions.value
    assert pixels[0] == pytest.approx(235_086, abs=1)
    assert found.proportions.standard_error[0] == pytest.approx(0.0035, abs=5e-5)
    assert 1.96 * MAPPED.sum() * found.proportions.standard_error[0] == pytest.approx(68_418, rel=2e-4)
    assert (0.09 * pixels).round().tolist() == [21_158, 11_686, 285_770, 581_386]
    assert 0.09 * 1.96 * MAPPED.sum() * found.proportions.standard_error == pytest.approx(
        [6_158, 3_756, 15_510, 16_282], abs=2
    )
    assert found.cells.sum() == pytest.approx(1)


def test_stehman_2014() -> None:
    """The example of section 5, where strata are not the classes of the map: 40 points, classes A to D."""
    classes = {name: position for position, name in enumerate("ABCD")}
    strata = np.repeat(np.arange(4), 10)
    mapped = "A" * 7 + "B" * 3 + "A" + "B" * 11 + "C" * 6 + "BB" + "D" * 10
    reference = "AAAAACBABC" + "ABBBBBAABB" + "CCCCCDDBBA" + "DDDDDDDCCB"
    tally = Tally.of(strata, [classes[c] for c in mapped], [classes[c] for c in reference], number=4, classes=4)
    found = estimate(tally, Frame.of_pixels([40_000, 30_000, 20_000, 10_000]))
    assert found.overall.value == pytest.approx(0.63)
    assert found.overall.standard_error == pytest.approx(0.085, abs=5e-4)
    assert found.proportions.value[[0, 2]].tolist() == pytest.approx([0.35, 0.20])
    assert found.proportions.standard_error[[0, 2]].tolist() == pytest.approx([0.082, 0.064], abs=5e-4)
    assert (found.users.value[1], found.users.standard_error[1]) == pytest.approx((0.574, 0.125), abs=5e-4)
    assert (found.producers.value[1], found.producers.standard_error[1]) == pytest.approx((0.794, 0.1165), abs=5e-4)
    assert found.cells[1, 2] == pytest.approx(0.08)


def closed_forms(counts: np.ndarray, pixels: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Variances of Olofsson et al. (2014), equations 5, 6, 7 and 10: overall, user's, producer's, area."""
    n, weights = counts.sum(axis=1), pixels / pixels.sum()
    q = counts / n[:, None]
    users = np.diag(q)
    cells = weights[:, None] * q
    producers = np.diag(cells) / cells.sum(axis=0)
    of_users = users * (1 - users) / (n - 1)
    total = pixels.sum() * cells.sum(axis=0)
    others = pixels[:, None] ** 2 * q * (1 - q) / (n - 1)[:, None]
    others = others.sum(axis=0) - np.diag(others)
    of_producers = (pixels**2 * (1 - producers) ** 2 * of_users + producers**2 * others) / total**2
    of_areas = (weights[:, None] ** 2 * q * (1 - q) / (n - 1)[:, None]).sum(axis=0)
    return float((weights**2 * of_users).sum()), of_users, of_producers, of_areas


@given(st.integers(0, 2**32 - 1))
def test_variances_equal_the_closed_formulas_where_strata_are_map_classes(seed: int) -> None:
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, 40, (3, 3)) + 1
    pixels = generator.integers(10**11, 10**12, 3)  # so many that the population correction is nothing
    found = estimate(by_map_class(counts), Frame.of_pixels(pixels))
    overall, users, producers, areas = closed_forms(counts, pixels.astype(float))
    assert found.overall.standard_error**2 == pytest.approx(overall)
    assert found.users.standard_error**2 == pytest.approx(users)
    assert found.producers.standard_error**2 == pytest.approx(producers)
    assert found.proportions.standard_error**2 == pytest.approx(areas)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100))
def test_pixels_of_equal_area_are_weighted_as_pixels(seed: int, hectares: float) -> None:
    generator = np.random.default_rng(seed)
    strata, mapped, reference = (np.concatenate([np.arange(3), generator.integers(0, 3, 60)] * 2) for _ in range(3))
    plain = Tally.of(strata, mapped, reference, number=3, classes=3)
    areas = Tally.of(strata, mapped, reference, np.full(len(strata), hectares), number=3, classes=3)
    pixels = np.array([1000, 3000, 500])
    one = estimate(plain, Frame.of_pixels(pixels))
    other = estimate(areas, Frame(pixels, pixels * hectares))
    for name in ("overall", "users", "producers", "f1", "proportions"):
        for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_census_has_no_standard_error() -> None:
    counts = np.array([[7, 3], [1, 9]])
    found = estimate(by_map_class(counts), Frame.of_pixels(counts.sum(axis=1)))
    assert found.overall.value == pytest.approx(16 / 20)
    assert found.overall.standard_error == 0
    assert found.producers.standard_error.tolist() == [0, 0]


def test_pixels_of_unequal_area_count_by_their_area() -> None:
    """Of a census of one stratum, the shares are those of the areas."""
    areas = np.array([1.0, 2.0, 3.0, 4.0])
    tally = Tally.of([0] * 4, [0, 0, 1, 1], [0, 1, 1, 1], areas, number=1, classes=2)
    found = estimate(tally, Frame(np.array([4]), np.array([10.0])))
    assert found.proportions.value.tolist() == pytest.approx([0.1, 0.9])
    assert found.users.value.tolist() == pytest.approx([1 / 3, 1])
    assert found.overall.standard_error == 0


def test_f1_is_that_of_the_estimated_error_matrix() -> None:
    found = estimate(by_map_class(OLOFSSON), Frame.of_pixels(MAPPED))
    expected = 2 / (1 / found.users.value + 1 / found.producers.value)
    assert found.f1.value == pytest.approx(expected)


def test_class_without_points_has_no_figure() -> None:
    counts = np.zeros((3, 3, 3))
    counts[0, 0, 0], counts[0, 0, 1], counts[1, 1, 1], counts[1, 1, 0] = 8, 2, 9, 1
    found = estimate(Tally.of_counts(counts[:2]), Frame.of_pixels([100, 100]))
    assert np.isnan(found.users.value[2])
    assert np.isnan(found.producers.value[2])
    assert np.isnan(found.f1.value[2])
    assert found.proportions.value[2] == 0
    assert 0 < found.proportions.interval().high[2] < 0.3


def test_stratum_with_one_point_is_refused() -> None:
    counts = np.array([[1, 0], [5, 5]])
    with pytest.raises(TooFewPointsError) as raised:
        estimate(by_map_class(counts), Frame.of_pixels([50, 50]))
    assert raised.value.strata == [0]
    assert estimate(by_map_class(counts), Frame.of_pixels([1, 50])).overall.value == pytest.approx((1 + 25) / 51)


def test_strata_that_are_too_small_are_merged() -> None:
    assert merged_strata([5, 5, 5], [50, 50, 50]).tolist() == [0, 1, 2]
    assert merged_strata([1, 5, 1], [50, 50, 50]).tolist() == [0, 1, 0]
    assert merged_strata([0, 9, 3], [50, 50, 50]).tolist() == [0, 1, 0]
    assert merged_strata([1, 9], [1, 50]).tolist() == [0, 1]
    assert merged_strata([1], [50]).tolist() == [0]


@given(st.integers(0, 30), st.integers(0, 30), st.integers(2, 500))
def test_interval_of_a_share_of_one_stratum_is_wilsons(right: int, wrong: int, others: int) -> None:
    """Of the points but one, as the variance is estimated, too, and whatever the other strata are."""
    n = right + wrong
    if n < 2:
        return
    counts = np.array([[right, wrong], [others // 2, others - others // 2]])
    found = estimate(by_map_class(counts), Frame.of_pixels([10**9, 3 * 10**9])).users
    expected = wilson(right / n, n - 1)
    assert [each[0] for each in found.interval()] == pytest.approx([float(each) for each in expected], abs=1e-6)


def test_points_with_large_weights_that_a_sample_lacks_widen_its_intervals() -> None:
    """A class of 2 %, of which a stratum of 90 % may hide some: 100 points there without any do not exclude it."""
    counts = np.array([[45, 5], [0, 100]])
    found = estimate(by_map_class(counts), Frame.of_pixels([2 * 10**7, 9 * 10**8]))
    assert found.producers.value[0] == 1
    assert found.producers.interval().low[0] < 0.6
    share = found.proportions
    assert share.interval().high[0] > 0.03 > share.value[0] + 1.96 * share.standard_error[0]


# --- coverage ---

DRAWS = 2000
#: Strata's shares of the frame and their accuracies, those of the map's classes: without a rare class, and with one, of
#: which as much as half of its mapped area is hidden in the largest stratum. (H,) each.
FRAMES = {
    "common": (np.array([0.08, 0.12, 0.3, 0.5]), np.array([0.75, 0.8, 0.9, 0.93]), 0.0),
    "3 %": (np.array([0.03, 0.12, 0.3, 0.55]), np.array([0.75, 0.8, 0.9, 0.93]), 0.015),
    "1 %": (np.array([0.01, 0.14, 0.3, 0.55]), np.array([0.75, 0.8, 0.9, 0.93]), 0.005),
}


def population(shares: np.ndarray, precision: np.ndarray, hidden: float, *, other_strata: bool) -> np.ndarray:
    """Distribution of the cells in each stratum (H, C, C): strata are the map's classes, or agree with 80 % of them."""
    classes = len(shares)
    confused = shares * np.ones((classes, 1)) * (1 - np.eye(classes))
    confused *= ((1 - precision) / confused.sum(axis=1))[:, None]
    given_map = np.diag(precision) + confused  # (map, reference)
    given_map[-1, [0, -1]] += np.array([hidden, -hidden]) / shares[-1]
    if not other_strata:
        return np.eye(classes)[:, :, None] * given_map
    maps = np.full((classes, classes), 0.2 / (classes - 1))
    np.fill_diagonal(maps, 0.8)
    return maps[:, :, None] * given_map


def covered(found: Estimates, cells: np.ndarray) -> dict[str, np.ndarray]:
    """Shares of the draws whose intervals cover the figures of the population with these cells."""
    right, mapped, reference = np.diag(cells), cells.sum(axis=1), cells.sum(axis=0)
    truths = {
        "overall": right.sum(), "users": right / mapped, "producers": right / reference,
        "f1": 2 * right / (mapped + reference), "proportions": reference,
    }  # fmt: skip  # one line per figure would fill a page
    shares = {}
    for name, truth in truths.items():
        figures: Figures = getattr(found, name)
        shown = figures.interval()
        shares[name] = ((shown.low <= truth) & (truth <= shown.high)).mean(axis=0)
    return shares


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("design", ["stratified", "indicator", "post-stratified"])
def test_intervals_cover_the_figures_of_the_frame(design: str, frame: str) -> None:
    generator = np.random.default_rng(20140601)
    shares, precision, hidden = FRAMES[frame]
    inside = population(shares, precision, hidden, other_strata=design == "indicator")
    cells = np.einsum("h,hij->ij", shares, inside)
    pixels = (shares * 10**8).astype(np.int64)
    if design == "post-stratified":
        drawn = generator.multinomial(1200, cells.ravel(), DRAWS).reshape(DRAWS, *cells.shape)
        tally, pixels = by_map_class(drawn), (cells.sum(axis=1) * 10**8).astype(np.int64)
    else:
        points = [150, 150, 250, 350]
        drawn = np.stack([generator.multinomial(n, own.ravel(), DRAWS) for n, own in zip(points, inside, strict=True)], 1)
        tally = Tally.of_counts(drawn.reshape(DRAWS, *inside.shape))
    for name, share in covered(estimate(tally, Frame.of_pixels(pixels)), cells).items():
        assert (share >= 0.93).all(), (name, share)
        assert (share <= 0.97).all(), (name, share)
