"""Estimates as JSON values and as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jobs.assess.run_map import MapClass
from pipeline.assessment.design import Design
from pipeline.assessment.estimators import Estimates, Figures, Tally
from pipeline.assessment.intervals import COVERAGE

#: Estimators by method, for reports.
METHODS = {
    "stratified": "stratified estimators, strata are the classes of the map (Olofsson et al. 2014)",
    "post-stratified": "estimators stratified after drawing, by the classes of the map (Olofsson et al. 2014)",
    "indicator": "stratified indicator estimators, strata are not the classes of the map (Stehman 2014)",
}


def estimates_json(
    found: Estimates, tally: Tally, design: Design, classes: Sequence[MapClass], *, method: str, is_same: bool
) -> dict[str, Any]:
    """Estimates as JSON values: every figure with its standard error and interval, areas in hectares where known."""
    unit = "pixels" if design.hectares is None else "ha"
    total = float(design.pixels) if design.hectares is None else design.hectares
    mapped = found.cells.sum(axis=1)
    counts = tally.points.sum(axis=0).astype(int)
    rows = []
    for position, each in enumerate(classes):
        rows.append(
            {
                "id": each.id,
                "name": each.name,
                "color": each.color,
                "mapped_points": int(counts[position].sum()),
                "reference_points": int(counts[:, position].sum()),
                "users_accuracy": _figure(found.users, position),
                "producers_accuracy": _figure(found.producers, position),
                "f1": _figure(found.f1, position),
                "area_share": _figure(found.proportions, position),
                "area": _figure(found.proportions, position, times=total),
                "mapped_area": _counted_area(design, position) if is_same else float(mapped[position]) * total,
            }
        )
    return {
        "design": design.design,
        "method": method,
        "estimators": METHODS[method],
        "coverage": COVERAGE,
        "frame": {"pixels": design.pixels, "hectares": design.hectares},
        "excluded": {"subsets": list(design.excluded.subsets), "pixels": design.excluded.pixels},
        "area_unit": unit,
        "overall_accuracy": _figure(found.overall),
        "classes": rows,
        "counts": counts.tolist(),
        "area_shares": found.cells.tolist(),
    }


def _counted_area(design: Design, position: int) -> float:
    """The area that the map says is of a class, of the frame."""
    counted = design.classes[position]
    return float(counted.pixels) if counted.hectares is None else counted.hectares


def _figure(figures: Figures, *position: int, times: float = 1.0) -> dict[str, Any]:
    """One figure with its standard error and interval; None where the sample does not define it."""
    found = figures.interval()
    values = (figures.value, figures.standard_error, found.low, found.high)
    value, error, low, high = (float(each[position]) * times for each in values)
    return {
        "estimate": None if np.isnan(value) else value,
        "standard_error": None if np.isnan(error) else error,
        "low": None if np.isnan(low) else low,
        "high": None if np.isnan(high) else high,
        "interval": "none" if np.isnan(value) else "Wilson",
    }


def estimate_lines(figures: dict[str, Any]) -> list[str]:
    """Format estimates for a terminal."""
    overall, unit = figures["overall_accuracy"], figures["area_unit"]
    lines = [f"note: {note}" for note in figures["notes"]]
    lines += [
        f"{figures['points']:,} points, {figures['design']} sample; {figures['estimators']}",
        f"overall accuracy {_share(overall)}, intervals of {100 * figures['coverage']:.0f} %",
    ]
    width = max(5, *(len(row["name"]) for row in figures["classes"]))
    head = ("user's accuracy", "producer's accuracy", "F1", f"area, {unit}")
    lines.append(f"{'class':<{width}}  " + "  ".join(f"{title:>22}" for title in head) + f"  {'mapped, ' + unit:>14}")
    for row in figures["classes"]:
        shares = [_share(row[name]) for name in ("users_accuracy", "producers_accuracy", "f1")]
        cells = [f"{text:>22}" for text in (*shares, _area(row["area"]))]
        lines.append(f"{row['name']:<{width}}  " + "  ".join(cells) + f"  {row['mapped_area']:>14,.1f}")
    return lines


def _share(figure: dict[str, Any]) -> str:
    if figure["estimate"] is None:
        return "-"
    return f"{figure['estimate']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _area(figure: dict[str, Any]) -> str:
    return f"{figure['estimate']:,.1f} [{figure['low']:,.1f}, {figure['high']:,.1f}]"
