"""Timing of benchmark cases: interleaved rounds after a warm-up, and ratios by round."""

from __future__ import annotations

from itertools import cycle

import pytest

from jobs.bench.harness import timing
from jobs.bench.harness.timing import Case, Timing, measure


def test_measure_times_every_case_each_round_after_one_warm_up_round(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = cycle([9.0, 9.0, 2.0, 1.0, 4.0, 1.0])  # two cases, a warm-up and two rounds
    monkeypatch.setattr(timing, "_seconds", lambda work: (work(), next(seconds))[1])
    done: list[str] = []
    found = measure([Case("a", 8, lambda: done.append("a")), Case("b", 8, lambda: done.append("b"))], rounds=2)
    assert done == ["a", "b"] * 3
    assert found == {"a": Timing("a", (4.0, 2.0)), "b": Timing("b", (8.0, 8.0))}
    assert found["b"].ratio(found["a"]) == 3.0  # the median of 2 and 4
    assert found["a"].rate == 3.0


def test_ratio_is_unaffected_by_a_slow_round() -> None:
    assert Timing("a", (20.0, 2.0, 20.0)).ratio(Timing("b", (10.0, 1.0, 10.0))) == 2.0
