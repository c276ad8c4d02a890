"""Coverage and width of 95 % intervals of a rare class's accuracy and area, in simulated samples; see docs/accuracy.md.

    python benchmarks/intervals.py [DRAWS]

The cases are all combinations of a class of 1, 3 or 8 % of the map, 4 or 8 classes, 200, 500 or 1000 points, five designs,
and nothing, or another half of the class's area, hidden in the largest stratum. In samples with a figure of 0 or 1, whose
standard error is 0, the normal and the logit interval have no width.
"""

from __future__ import annotations

import itertools
import sys
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from pipeline.assessment.allocation import allocate, point_shares
from pipeline.assessment.estimators import Figures, Frame, Tally, estimate
from pipeline.assessment.intervals import wilson

Z, PIXELS = 1.959964, 10**8
RARE, POINTS = (0.01, 0.03, 0.08), (200, 500, 1000)
OTHERS = {4: (0.15, 0.3, 0.55), 8: (0.03, 0.05, 0.1, 0.12, 0.15, 0.2, 0.35)}
DESIGNS = ("equal", "proportional", "neyman", "other strata", "random")
Bounds = tuple[np.ndarray, np.ndarray]


def normal(found: Figures) -> Bounds:
    """Return p -+ z s, as in Olofsson et al. (2014)."""
    return found.value - Z * found.standard_error, found.value + Z * found.standard_error


def logit(found: Figures) -> Bounds:
    """Return the normal interval of log(p / (1 - p))."""
    p = np.clip(found.value, 1e-9, 1 - 1e-9)
    centre, spread = np.log(p / (1 - p)), Z * found.standard_error / (p * (1 - p))
    return 1 / (1 + np.exp(spread - centre)), 1 / (1 + np.exp(-spread - centre))


def plain_wilson(found: Figures) -> Bounds:
    """Return Wilson's interval for the effective number of points of the sample's own variance."""
    with np.errstate(divide="ignore", invalid="ignore"):
        points = found.value * (1 - found.value) / found.standard_error**2
    return wilson(found.value, np.where(np.isfinite(points), points, np.inf))


KINDS = {
    "normal": normal,
    "logit": logit,
    "Wilson, n of the sample": plain_wilson,
    "Wilson, n of smoothed shares": Figures.interval,
}


def cases(draws: int) -> Iterator[tuple[Tally, np.ndarray, np.ndarray]]:
    """Yield the samples of each case, with the pixels of its strata and the shares of all cells of its population."""
    generator = np.random.default_rng(0)
    for rare, classes, hidden, points, design in itertools.product(RARE, OTHERS, (0.0, 0.5), POINTS, DESIGNS):
        shares = np.array([rare, *(share * (1 - rare) for share in OTHERS[classes])])
        precision = np.array([0.75, 0.8, *([0.9] * (classes - 3)), 0.93])
        confused = shares * (1 - np.eye(classes))
        given_map = np.diag(precision) + confused * ((1 - precision) / confused.sum(axis=1))[:, None]
        given_map[-1, [0, -1]] += np.array([hidden, -hidden]) * rare / shares[-1]
        maps = np.eye(classes)
        if design == "other strata":
            maps = 0.8 * maps + 0.2 / (classes - 1) * (1 - maps)
        inside = maps[:, :, None] * given_map
        cells, pixels = np.einsum("h,hij->ij", shares, inside), (shares * PIXELS).astype(np.int64)
        if design == "random":
            drawn = generator.multinomial(points, cells.ravel(), draws).reshape(draws, classes, classes)
            drawn = drawn[(drawn.sum(axis=2) > 1).all(axis=1)]  # those that need no merged strata
            if len(drawn) < draws / 2:
                continue
            counts = np.eye(classes)[:, :, None] * drawn[:, :, None, :]
        else:
            allocation = "equal" if design == "other strata" else design
            wanted = point_shares(pixels, precision, allocation)
            numbers = allocate(pixels, wanted, points, minimum=min(25, points // classes))
            each = [generator.multinomial(n, own.ravel(), draws) for n, own in zip(numbers, inside, strict=True)]
            counts = np.stack(each, axis=1).reshape(draws, *inside.shape)
        yield Tally.of_counts(counts), pixels, cells


def main() -> None:
    """Print coverage and width of each kind of interval over all cases."""
    covered, widths = defaultdict(list), defaultdict(list)
    for tally, pixels, cells in cases(int(sys.argv[1]) if len(sys.argv) > 1 else 2000):
        found, reference = estimate(tally, Frame.of_pixels(pixels)), cells.sum(axis=0)
        truths = {"producer's accuracy": cells[0, 0] / reference[0], "area": reference[0]}
        for name, figures in (("producer's accuracy", found.producers), ("area", found.proportions)):
            own = Figures(*(values[..., 0] for values in figures))
            known = ~np.isnan(own.value)
            for kind, interval in KINDS.items():
                low, high = (bound[known] for bound in interval(own))
                covered[name, kind].append(((low <= truths[name]) & (truths[name] <= high)).mean())
                widths[name, kind].append((high - low).mean())
    print(f"{len(covered['area', 'normal'])} cases")
    for (name, kind), values in covered.items():
        share, width = np.array(values), np.array(widths[name, kind]) / np.array(widths[name, "normal"])
        print(
            f"{name:<19} {kind:<28} coverage {share.mean():.3f}, lowest {share.min():.3f}, "
            f"below 0.93 in {(share < 0.93).mean():4.0%} of the cases, above 0.97 in {(share > 0.97).mean():4.0%}; "
            f"width {width.mean():.2f}"
        )


if __name__ == "__main__":
    main()
