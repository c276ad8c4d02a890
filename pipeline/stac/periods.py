"""Periods: intervals of days, the observations of each of which become one composite. Standard library only."""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

from mibf.errors import InputError

Gaps = Literal["exclude", "fill", "interpolate"]
#: Months of a calendar period, and months by which the first of them is before January.
CALENDAR = {"month": (1, 0), "season": (3, 1), "year": (12, 0)}
#: Meteorological seasons by the initials of their months, which hold on both hemispheres.
SEASONS = ("DJF", "MAM", "JJA", "SON")
#: Maximum number of periods; more are probably due to a wrong date.
MOST_PERIODS = 500
#: What separates the name of a band from that of its period.
OF_PERIOD = "@"


@dataclass(frozen=True)
class Period:
    """An interval of days, both of which it includes, as ISO 8601 dates."""

    name: str
    first: str
    last: str

    def __contains__(self, day: str) -> bool:
        return self.first <= day <= self.last

    @property
    def middle(self) -> float:
        """Its middle in days."""
        return (date.fromisoformat(self.first).toordinal() + date.fromisoformat(self.last).toordinal() + 1) / 2


def intervals(texts: Sequence[str]) -> tuple[Period, ...]:
    """Parse intervals of days such as `2024-03-01/2024-05-31`, which must be in order and not overlap.

    Raises:
        ValueError: they are not.
    """
    found = list[Period]()
    for text in texts:
        first, _, last = text.partition("/")
        try:
            days = [date.fromisoformat(day.strip()).isoformat() for day in (first, last)]
        except ValueError:
            raise ValueError(f"{text!r} is not an interval of days, such as 2024-03-01/2024-05-31") from None
        if days[0] > days[1]:
            raise ValueError(f"{text!r} ends before it starts")
        if found and days[0] <= found[-1].last:
            raise ValueError(f"{text!r} starts before {found[-1].name} has ended; give intervals in order, without overlap")
        found.append(Period("/".join(days), *days))
    return tuple(found)


def calendar_periods(unit: str, days: Sequence[str], *, where: str) -> tuple[Period, ...]:
    """All calendar periods from the first to the last of some days, also those that none of the days is in.

    Args:
        unit: of `CALENDAR`.
        days: of items.
        where: the items are from, for messages.

    Raises:
        InputError: there are more than `MOST_PERIODS`.
    """
    length, before = CALENDAR[unit]
    months = [12 * int(day[:4]) + int(day[5:7]) - 1 + before for day in (min(days), max(days))]
    numbers = range(months[0] // length, months[1] // length + 1)
    if len(numbers) > MOST_PERIODS:
        raise InputError(
            f"{where}: its items, from {min(days)} to {max(days)}, are of {len(numbers):,} periods, and {MOST_PERIODS} "
            "is the limit; check their dates, or use longer periods."
        )
    return tuple(_calendar_period(unit, number * length - before, length) for number in numbers)


def _calendar_period(unit: str, month: int, length: int) -> Period:
    """The period of some months from a month on, counted from January of the year 0."""
    (year, first), (end_year, last) = divmod(month, 12), divmod(month + length - 1, 12)
    name = {
        "month": f"{year:04}-{first + 1:02}",
        "season": f"{end_year:04}-{SEASONS[last // 3]}",
        "year": f"{year:04}",
    }[unit]
    end = monthrange(end_year, last + 1)[1]
    return Period(name, f"{year:04}-{first + 1:02}-01", f"{end_year:04}-{last + 1:02}-{end:02}")


def select_days(periods: Sequence[Period], days: Sequence[str], *, gaps: Gaps, where: str) -> tuple[list[int], list[str]]:
    """Return the positions of the days that a period includes, and notes for the user on days and periods left over.

    Args:
        periods: in order.
        days: of items.
        gaps: what becomes of periods without any.
        where: the items are from, for messages.

    Raises:
        InputError: a period has no item, and gaps are excluded; or no period has one.
    """
    taken = [position for position, day in enumerate(days) if any(day in period for period in periods)]
    empty = [period.name for period in periods if not any(day in period for day in days)]
    if empty and (gaps == "exclude" or not taken):
        raise InputError(
            f"{where}: has no items in {listed(empty)}; its {len(days)} items are from {min(days)} to {max(days)}. Search "
            "for more, choose other `periods`, or set `gaps` to `interpolate` or `fill`."
        )
    notes = []
    if empty:
        verb = "interpolated" if gaps == "interpolate" else "filled"
        notes.append(f"{where} has no items in {listed(empty)} of {len(periods)} periods; their values are {verb}")
    if len(taken) < len(days):
        notes.append(f"{len(days) - len(taken)} of {len(days)} items in {where} are in no period and are not read")
    return taken, notes


def listed(names: Sequence[str]) -> str:
    """List periods by their names, at most twelve."""
    more = f" and {len(names) - 12} others" if len(names) > 12 else ""
    return f"{'period' if len(names) == 1 else 'periods'} {', '.join(names[:12])}{more}"


def without_years(names: Sequence[str]) -> tuple[str, ...]:
    """The names of bands with the years of their periods counted from the first year, to compare scenes of other years.

    The last day of February is the same in all years.
    """
    dated = rf"([{OF_PERIOD}/])(\d{{4}})(-02-29(?![^/]))?"
    years = [int(found[2]) for name in names if OF_PERIOD in name for found in re.finditer(dated, name)]

    def counted(found: re.Match[str]) -> str:
        return f"{found[1]}+{int(found[2]) - min(years)}{'-02-28' if found[3] else ''}"

    return tuple(re.sub(dated, counted, name) if OF_PERIOD in name else name for name in names)


def band_periods(names: Sequence[str]) -> tuple[str, ...]:
    """The period of each band, by its name `BAND@PERIOD`; empty if one has none."""
    found = tuple(name.rpartition(OF_PERIOD)[2] for name in names if OF_PERIOD in name)
    return found if len(found) == len(names) else ()
