"""Estimates as JSON values and as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jobs.assess.run_map import MapClass
from pipeline.assessment.design import ClassCount, Design
from pipeline.assessment.estimators import Figures
from pipeline.assessment.intervals import COVERAGE
from pipeline.assessment.stratified import StratifiedEstimate

#: Estimators by method, for reports.
METHODS = {
    "stratified": "stratified estimators, strata are the classes of the map (Olofsson et al. 2014)",
    "post-stratified": "estimators stratified after drawing, by the classes of the map (Olofsson et al. 2014)",
    "indicator": "stratified indicator estimators, strata are not the classes of the map (Stehman 2014)",
}


def estimates_json(
    found: StratifiedEstimate, design: Design, classes: Sequence[MapClass], *, method: str, is_same: bool
) -> dict[str, Any]:
    """Estimates as JSON values: every figure with its standard error and interval, areas in hectares where known."""
    return {
        "design": design.design,
        "method": method,
        "estimators": METHODS[method],
        "coverage": COVERAGE,
        "excluded": {"subsets": list(design.excluded.subsets), "pixels": design.excluded.pixels},
        "area_unit": "pixels" if design.hectares is None else "ha",
        **_figures_json(found, classes, design.classes if is_same else None, design.pixels, design.hectares),
    }


def scene_json(
    found: StratifiedEstimate, counts: Sequence[ClassCount], classes: Sequence[MapClass], *, is_same: bool
) -> dict[str, Any]:
    """The estimates of one of several scenes as JSON values, from the pixels of its classes in the sampled map."""
    areas = [each.hectares for each in counts if each.hectares is not None]
    hectares = sum(areas) if len(areas) == len(counts) else None
    return {
        **_figures_json(found, classes, counts if is_same else None, sum(each.pixels for each in counts), hectares),
        "merged": list(found.merged),
    }


def _figures_json(
    found: StratifiedEstimate,
    classes: Sequence[MapClass],
    counted: Sequence[ClassCount] | None,
    pixels: int,
    hectares: float | None,
) -> dict[str, Any]:
    """The figures of a frame; `counted` are the classes of the map in it, None where they are estimated."""
    estimates = found.estimates
    total = float(pixels) if hectares is None else hectares
    mapped = estimates.cells.sum(axis=1)
    counts = found.tally.points.sum(axis=0).astype(int)
    rows = []
    for position, each in enumerate(classes):
        rows.append(
            {
                "id": each.id,
                "name": each.name,
                "color": each.color,
                "mapped_points": int(counts[position].sum()),
                "reference_points": int(counts[:, position].sum()),
                "users_accuracy": _figure(estimates.users, position),
                "producers_accuracy": _figure(estimates.producers, position),
                "f1": _figure(estimates.f1, position),
                "area_share": _figure(estimates.proportions, position),
                "area": _figure(estimates.proportions, position, times=total),
                "mapped_area": float(mapped[position]) * total if counted is None else _counted_area(counted[position]),
            }
        )
    return {
        "frame": {"pixels": pixels, "hectares": hectares},
        "overall_accuracy": _figure(estimates.overall),
        "classes": rows,
        "counts": counts.tolist(),
        "area_shares": estimates.cells.tolist(),
    }


def _counted_area(counted: ClassCount) -> float:
    """The area that the map says is of a class, of the frame."""
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
        *_table(figures, unit),
    ]
    for scene, own in figures["by_scene"].items():
        lines.append("")
        if "note" in own:
            lines.append(f"scene {scene}: {own['note']}")
            continue
        lines.append(f"scene {scene}, {own['points']:,} points: overall accuracy {_share(own['overall_accuracy'])}")
        if own["merged"]:
            lines.append(f"too few points: {', '.join(own['merged'])} were merged to one stratum after drawing")
        lines += _table(own, unit)
    return lines


def _table(figures: dict[str, Any], unit: str) -> list[str]:
    """The figures of the classes, one line each."""
    lines = []
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
