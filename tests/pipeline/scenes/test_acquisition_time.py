"""Acquisition times are parsed to UTC, and invalid times are refused."""

from __future__ import annotations

from datetime import UTC

import pytest

from pipeline.scenes.acquisition_time import period


def test_interval_is_parsed_to_utc_start_and_end() -> None:
    start, end = period("2024-07-01T00:00:00+02:00/2024-07-02T00:00:00Z")
    assert (start.isoformat(), end.isoformat()) == ("2024-06-30T22:00:00+00:00", "2024-07-02T00:00:00+00:00")
    assert start.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("last summer", "is not an ISO 8601 time"),
        ("", "is not an ISO 8601 time"),
        ("2024-07-01T00:00:00", "has no time zone: add Z for UTC"),
        ("2024-07-01", "2024-07-01 has no time zone"),
        ("2024-07-01T00:00:00Z/", "is not an ISO 8601 time"),
        ("2024-07-01T00:00:00Z/..", "is not an ISO 8601 time"),
        ("2024-07-01T00:00:00Z/2024-06-01T00:00:00Z", "must not be before its start"),
        ("2024-07-01T00:00:00Z/2024-07-02T00:00:00", "has no time zone"),
    ],
)
def test_invalid_time_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        period(text)
