"""Intervals of the metrics on held-out samples, from a bootstrap over spatial blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mibf.metrics.block_bootstrap import COVERAGE, REPLICATES, draw_blocks, interval
from pipeline.sampling.sample_blocks import Block, BlockSums, block_counts

#: Side in pixels of the blocks of the bootstrap where the split has none.
SQUARE = 64
#: Number of blocks below which intervals are too narrow to be relied on.
FEW_BLOCKS = 20
#: Number of blocks with samples of a class below which its F1 has no interval: replicates of one block are all the same.
CLASS_BLOCKS = 5


def block_intervals(found: Mapping[Block, BlockSums], *, side: int) -> dict[str, Any] | None:
    """Return the intervals of the metrics and of each class's F1 as JSON values; None with fewer than two blocks.

    That of a class in fewer than `CLASS_BLOCKS` blocks is NaN.

    Args:
        found: counts by block.
        side: of the blocks, in pixels.
    """
    if len(found) < 2:
        return None
    counts, drawn = block_counts(found), draw_blocks(len(found), seed=0)
    few = (counts.confusion.sum(axis=2) > 0).sum(axis=0) < CLASS_BLOCKS
    by_class = np.where(few, np.nan, counts.class_f1(drawn))
    return {
        "blocks": len(found),
        "block": side,
        "coverage": COVERAGE,
        "replicates": REPLICATES,
        "metrics": {name: list(interval(values)) for name, values in counts.replicates(drawn).items()},
        "class_f1": [list(interval(values)) for values in by_class.T],
    }


def interval_line(intervals: Mapping[str, Any] | None) -> str:
    """Say what the intervals are, for a terminal."""
    if intervals is None:
        return "no intervals: the test samples are in a single block"
    few = "; too narrow, for there are few blocks" if intervals["blocks"] < FEW_BLOCKS else ""
    return (
        f"intervals of {100 * intervals['coverage']:.0f} % from a bootstrap over {intervals['blocks']:,} blocks of "
        f"{intervals['block']:,} x {intervals['block']:,} pixels{few}"
    )
