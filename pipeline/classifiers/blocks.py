"""Compute rows of features block by block, on several threads. Standard library and the count of CPUs only."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from pipeline.parallel.cpu_count import cpu_count

#: Rows that are computed at a time: enough that numpy's overhead of a call is small, few enough to fit a core's cache.
BLOCK = 16_384


def for_each_block(rows: int, compute: Callable[[slice], None], *, threads: int | None = None) -> None:
    """Call `compute` with every block of rows.

    Args:
        rows: their number.
        compute: writes the results of its block alone.
        threads: by default, as many as this process has CPUs.
    """
    blocks = [slice(start, start + BLOCK) for start in range(0, rows, BLOCK)]
    threads = min(threads or cpu_count(), len(blocks))
    if threads <= 1:
        for block in blocks:
            compute(block)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(compute, blocks))
