"""What prediction sets cover on test samples, for `evaluation.json` and for a terminal."""

from __future__ import annotations

from typing import Any

from jobs.config.config import Config
from mibf.bundle.bundle import Bundle
from mibf.metrics.calibration import Reliability


def set_coverage(reliability: Reliability, bundle: Bundle, config: Config) -> dict[str, Any] | None:
    """Return coverage and size of the sets, overall and by class in the order of classes; None for a model without them."""
    fitted, choice = bundle.prediction_sets, config.prediction.set_choice
    if fitted is None:
        return None
    return {
        "wanted": choice.coverage,
        "class_conditional": choice.class_conditional,
        "thresholds": fitted.thresholds(config.prediction.priors, choice),
        "validation_pixels": fitted.pixels,
        "validation_blocks": fitted.blocks,
        "block": fitted.side,
        "never_excluded": [bundle.classes[position].name for position in fitted.never_excluded(choice)],
    } | reliability.set_figures()


def set_lines(sets: dict[str, Any] | None) -> list[str]:
    """Format coverage and size as lines for a terminal."""
    if sets is None:
        return []
    wanted = f"{sets['wanted']:.0%} of the pixels" + (" of each class" if sets["class_conditional"] else "")
    lines = [
        f"prediction sets for {wanted}: the set holds the class of {sets['coverage']:.1%} of the test samples; mean size "
        f"{sets['mean_size']:.2f}, one class for {sets['single_share']:.1%}"
    ]
    if sets["never_excluded"]:
        which = f"with {', '.join(sets['never_excluded'])}" if sets["class_conditional"] else "with validation pixels"
        lines.append(
            f"note: too few blocks {which} to exclude "
            f"{'these classes' if sets['class_conditional'] else 'any class'} from a set; see docs/labelling.md"
        )
    return lines
