"""Times of acquisition: an ISO 8601 instant or interval of a scene, the days of a search. Standard library only."""

from __future__ import annotations

from datetime import UTC, date, datetime, time


def period(text: str) -> tuple[datetime, datetime]:
    """Parse an instant or an interval `start/end` into its start and end in UTC, which are equal for an instant.

    Raises:
        ValueError: it is neither, a time has no time zone, or the end is before the start.

    >>> start, end = period("2024-07-01T12:30:00+02:00")
    >>> start.isoformat(), start == end
    ('2024-07-01T10:30:00+00:00', True)
    """
    first, slash, last = text.partition("/")
    start = _instant(first)
    end = _instant(last) if slash else start
    if end < start:
        raise ValueError("the end of an interval must not be before its start")
    return start, end


def _instant(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            "is not an ISO 8601 time: use an instant, such as 2024-07-01T10:30:00Z, or an interval, start/end"
        ) from None
    if found.tzinfo is None:
        raise ValueError(f"{text.strip()} has no time zone: add Z for UTC, or an offset, such as 2024-07-01T10:30:00+02:00")
    return found.astimezone(UTC)


def days(text: str) -> tuple[datetime, datetime]:
    """Parse `start/end`, of dates or times, or one date, into the first and the last moment, in UTC.

    Times without a zone are in UTC. A day lasts from 00:00:00 to 23:59:59.

    Raises:
        ValueError: it is neither, or the end is before the start.

    >>> [moment.isoformat() for moment in days("2024-07-01/2024-07-02T12:00:00Z")]
    ['2024-07-01T00:00:00+00:00', '2024-07-02T12:00:00+00:00']
    """
    first, slash, last = text.partition("/")
    start, end = _moment(first, time.min), _moment(last if slash else first, time.max.replace(microsecond=0))
    if end < start:
        raise ValueError("the end is before the start; write the earlier date first")
    return start, end


def _moment(text: str, at: time) -> datetime:
    try:
        if len(text.strip()) == len("2024-07-01"):
            return datetime.combine(date.fromisoformat(text.strip()), at, UTC)
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is not a date; write START/END, as in 2024-03-01/2024-10-31") from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
