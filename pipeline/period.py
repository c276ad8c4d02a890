"""When a scene was taken: an instant or an interval, as ISO 8601 writes them. The standard library alone."""

from __future__ import annotations

from datetime import UTC, datetime


def period(text: str) -> tuple[datetime, datetime]:
    """The start and the end, in UTC, of an instant or of an interval `start/end`; an instant is both.

    Raises:
        ValueError: it is neither, a time has no time zone, or the end comes before the start.

    >>> start, end = period("2024-07-01T12:30:00+02:00")
    >>> start.isoformat(), start == end
    ('2024-07-01T10:30:00+00:00', True)
    """
    first, slash, last = text.partition("/")
    start = _instant(first)
    end = _instant(last) if slash else start
    if end < start:
        raise ValueError("an interval's end comes after its start")
    return start, end


def _instant(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(
            "is no time of ISO 8601: write an instant, such as 2024-07-01T10:30:00Z, or an interval of two, start/end"
        ) from None
    if found.tzinfo is None:
        raise ValueError(f"{text.strip()} has no time zone: add Z for UTC, or the offset, such as 2024-07-01T10:30:00+02:00")
    return found.astimezone(UTC)
