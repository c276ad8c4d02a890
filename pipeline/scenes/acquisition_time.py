"""Acquisition time of a scene: an ISO 8601 instant or interval. Standard library only."""

from __future__ import annotations

from datetime import UTC, datetime


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
