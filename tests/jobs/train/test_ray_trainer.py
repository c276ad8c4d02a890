"""Training on Ray continues after failures while it progresses, and stops after too many without progress."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jobs.train.ray_trainer import fit_while_progressing


@given(st.lists(st.booleans(), max_size=12), st.integers(0, 3))
def test_only_failures_without_progress_in_between_are_counted(progress: list[bool], max_failures: int) -> None:
    """`progress` says of each failure whether a checkpoint was written before it; after the last, training succeeds."""
    left, saved, calls = iter(progress), 0, 0

    def fit() -> RuntimeError | None:
        nonlocal saved, calls
        calls += 1
        progressed = next(left, None)
        if progressed is None:
            return None
        saved += progressed
        return RuntimeError("a worker died")

    failure = fit_while_progressing(fit, lambda: saved, max_failures=max_failures)
    stops = [end for end in range(1, len(progress) + 1) if _at_one_place(progress[:end]) > max_failures]
    assert calls == (stops[0] if stops else len(progress) + 1)
    assert (failure is not None) == bool(stops)


def _at_one_place(progress: list[bool]) -> int:
    """The number of failures since the last progress."""
    return next((i for i, progressed in enumerate(reversed(progress), 1) if progressed), len(progress))
