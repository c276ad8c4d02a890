"""Choose combinations of factors so that every feasible pair of levels occurs at least once. Standard library only."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations

Choice = dict[str, str]
#: Random completions tried for a pair; the one that covers the most new pairs is taken.
TRIES = 12


def pairwise(factors: Mapping[str, Sequence[str]], feasible: Callable[[Choice], bool]) -> list[Choice]:
    """Combinations of one level per factor, each feasible, that contain every pair of levels that is feasible."""
    generator = random.Random(0)
    covered: set[tuple[str, str, str, str]] = set()
    chosen = []
    for one, other in combinations(factors, 2):
        for first in factors[one]:
            for second in factors[other]:
                if (one, first, other, second) in covered:
                    continue
                found = [c for c in _completions(factors, {one: first, other: second}, generator) if feasible(c)]
                if found:
                    best = max(found, key=lambda choice: len(set(_pairs(choice)) - covered))
                    covered.update(_pairs(best))
                    chosen.append(best)
    return chosen


def _completions(factors: Mapping[str, Sequence[str]], fixed: Choice, generator: random.Random) -> Iterator[Choice]:
    for _ in range(TRIES):
        yield {name: fixed.get(name) or generator.choice(levels) for name, levels in factors.items()}


def _pairs(choice: Choice) -> Iterator[tuple[str, str, str, str]]:
    for one, other in combinations(choice, 2):
        yield one, choice[one], other, choice[other]
