"""Calendar periods and intervals, and the items that belong to them."""

from __future__ import annotations

import calendar
from datetime import date, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mibf.errors import InputError
from pipeline.stac.periods import Period, band_periods, calendar_periods, intervals, select_days, without_years

DATES = st.dates(date(1970, 1, 1), date(2100, 1, 1))


def names(unit: str, *days: str) -> list[str]:
    return [period.name for period in calendar_periods(unit, days, where="items.json")]


def test_periods_reach_from_the_first_day_to_the_last() -> None:
    assert names("month", "2024-02-29", "2023-11-30") == ["2023-11", "2023-12", "2024-01", "2024-02"]
    assert names("season", "2023-11-30", "2023-12-01", "2024-06-01") == ["2023-SON", "2024-DJF", "2024-MAM", "2024-JJA"]
    assert names("year", "2023-11-30", "2025-01-01") == ["2023", "2024", "2025"]


@given(st.sampled_from(["month", "season", "year"]), DATES, st.integers(0, 400))
def test_every_day_is_in_one_period_which_has_whole_months(unit: str, first: date, length: int) -> None:
    days = [(first + timedelta(offset)).isoformat() for offset in range(0, length + 1, 7)]
    periods = calendar_periods(unit, days, where="")
    assert all(sum(day in period for period in periods) == 1 for day in days)
    for period, following in pairwise(periods):
        assert date.fromisoformat(period.last) + timedelta(1) == date.fromisoformat(following.first)
    months = {"month": 1, "season": 3, "year": 12}[unit]
    for period in periods:
        start, end = date.fromisoformat(period.first), date.fromisoformat(period.last)
        assert start.day == 1
        assert end.day == calendar.monthrange(end.year, end.month)[1]
        assert 12 * (end.year - start.year) + end.month - start.month + 1 == months


def test_winter_has_the_year_of_its_january() -> None:
    [winter] = calendar_periods("season", ["2024-01-15"], where="")
    assert winter == Period("2024-DJF", "2023-12-01", "2024-02-29")
    assert names("season", "2023-12-31") == ["2024-DJF"]


def test_intervals_include_both_ends() -> None:
    first, second = intervals(["2024-03-01/2024-05-31", "2024-06-01/2024-06-01"])
    assert first.name == "2024-03-01/2024-05-31"
    assert "2024-03-01" in first
    assert "2024-05-31" in first
    assert "2024-06-01" not in first
    assert (first.middle, second.middle) == (date(2024, 4, 16).toordinal(), date(2024, 6, 1).toordinal() + 0.5)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["2024-03"], "'2024-03' is not an interval of days, such as 2024-03-01/2024-05-31"),
        (["2024-05-31/2024-03-01"], "ends before it starts"),
        (["2024-03-01/2024-05-31", "2024-05-31/2024-06-30"], "starts before 2024-03-01/2024-05-31 has ended"),
    ],
)
def test_wrong_intervals_are_refused(texts: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        intervals(texts)


def test_too_many_periods_are_refused() -> None:
    with pytest.raises(InputError, match=r"items\.json: its items, from 1924-06-01 to 2024-06-01, are of 1,201 periods"):
        names("month", "2024-06-01", "1924-06-01")


def test_period_without_items_is_refused_or_reported() -> None:
    days = ["2024-06-01", "2024-08-31", "2024-06-20"]
    months = calendar_periods("month", days, where="")
    with pytest.raises(InputError, match=r"items\.json: has no items in period 2024-07; its 3 items are from 2024-06-01 to"):
        select_days(months, days, gaps="exclude", where="items.json")
    taken, notes = select_days(months, days, gaps="interpolate", where="items.json")
    assert taken == [0, 1, 2]
    assert notes == ["items.json has no items in period 2024-07 of 3 periods; their values are interpolated"]
    summer = intervals(["2024-06-01/2024-06-30"])
    assert select_days(summer, days, gaps="exclude", where="items.json") == (
        [0, 2],
        ["1 of 3 items in items.json are in no period and are not read"],
    )
    with pytest.raises(InputError, match="has no items in period 2023-01-01/2023-12-31"):
        select_days(intervals(["2023-01-01/2023-12-31"]), days, gaps="fill", where="items.json")


def test_band_names_include_their_periods() -> None:
    assert band_periods(("red@2024-06", "nir@2024-06", "red@2024-03-01/2024-05-31")) == (
        "2024-06",
        "2024-06",
        "2024-03-01/2024-05-31",
    )
    assert band_periods(("red", "nir")) == band_periods(()) == ()


MONTHS = ["red@2024-06", "red@2024-07"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (MONTHS, ["red@2023-06", "red@2023-07"], True),
        (MONTHS, ["red@2024-07", "red@2024-08"], False),
        (MONTHS, ["nir@2023-06", "nir@2023-07"], False),
        (MONTHS, ["red@2023-06"], False),
        (["red@2023-12", "red@2024-01"], ["red@2024-12", "red@2025-01"], True),
        (["red@2023-06", "red@2024-06"], ["red@2021-06", "red@2024-06"], False),
        (["red@2022", "red@2023"], ["red@2023", "red@2024"], True),
        (["red@2024-DJF", "red@2024-MAM"], ["red@2023-DJF", "red@2023-MAM"], True),
        (["red@2024-03-01/2024-05-31"], ["red@2023-03-01/2023-05-31"], True),
        (["red@2024-03-01/2024-05-31"], ["red@2023-03-01/2024-05-31"], False),
        (["red@2023-12-01/2024-02-29"], ["red@2022-12-01/2023-02-28"], True),
        (["red@2024-01-01/2024-02-28"], ["red@2023-01-01/2023-02-27"], False),
        (["B2024", "B2023"], ["B2024", "B2022"], False),
    ],
)
def test_bands_of_scenes_of_different_years_are_the_same(one: list[str], other: list[str], same: bool) -> None:
    assert (without_years(one) == without_years(other)) is same
