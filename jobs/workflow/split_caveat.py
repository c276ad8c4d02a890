"""What the measured overlap of test and training patches says about metrics, whatever the method of the split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def split_caveat(split: Mapping[str, Any]) -> str | None:
    """Return the caveat that metrics on a split need; None if no test patch shares a pixel with a training patch.

    Args:
        split: the figures of `prepare` in split.json. `overlap` is the share of test patches per scene that overlap a
            training patch, `source_overlap` per scene and source the share that hold a pixel of its files that a training
            patch holds.
    """
    patches = max(_known(split["overlap"]), default=0.0)
    if split["method"] == "random":
        return (
            f"the split is random and leaks: up to {patches:.0%} of a scene's test patches overlap a training patch, so "
            "these metrics can compare methods but do not measure map accuracy"
        )
    if patches > 0:
        return (
            f"the {split['method']} split leaks: up to {format_share(patches)} of a scene's test patches overlap a training "
            "patch, so these metrics may be too high for ground that the model has not seen"
        )
    shares = [(share, name) for scene in _source_overlap(split) for name, share in scene.items() if share]
    if not shares:
        return None
    share, name = max(shares)
    return (
        f"up to {format_share(share)} of a scene's test patches hold a pixel of source {name!r} that a training patch "
        "holds, so these metrics may be too high for ground that the model has not seen"
    )


def is_apart(split: Mapping[str, Any]) -> bool:
    """Return whether it was measured that no test patch shares a pixel, or a source's pixel, with a training patch."""
    return "source_overlap" in split and split_caveat(split) is None


def format_share(share: float) -> str:
    """Format a share above 0 as percent, with as many digits as show that it is not 0."""
    return f"{share:.0%}" if share >= 0.01 else f"{100 * share:.1g}%"


def _source_overlap(split: Mapping[str, Any]) -> list[dict[str, float]]:
    return [
        {name: share for name, share in scene.items() if share is not None and math.isfinite(share)}
        for scene in split.get("source_overlap", {}).values()
    ]


def _known(shares: Mapping[str, float | None]) -> list[float]:
    return [share for share in shares.values() if share is not None and math.isfinite(share)]
