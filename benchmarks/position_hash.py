"""Compare SplitMix64 with numpy's Philox for one random number per pixel: `python benchmarks/position_hash.py`.

A pixel's number must not depend on the window in which it is read. Philox is counter-based too, but in numpy a generator
draws consecutive values only: one generator per row of a window, each with its counter set to the row's first pixel.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.grid import Window
from pipeline.scenes.split import pixel_keys

#: Columns of the grid: a multiple of 4, the number of values that a counter of Philox gives, so that rows begin at one.
COLUMNS = 100_000

WINDOWS = (Window(2048, 4096, 512, 512), Window(2048, 4096, 64, 64), Window(2048, 4096, 2048, 1))

REPEATS = 20


def splitmix_keys(window: Window) -> NDArray[np.uint64]:
    """The keys as splits use them."""
    return pixel_keys(window, columns=COLUMNS, seed=0, scene=0)


def philox_keys(window: Window) -> NDArray[np.uint64]:
    """Keys with the same independence of the window, from Philox."""
    rows = np.empty((window.height, window.width), np.uint64)
    key = np.zeros(2, np.uint64)
    for row, values in enumerate(rows):
        block, skipped = divmod((window.y + row) * COLUMNS + window.x, 4)
        counter = np.array([block, 0, 0, 0], np.uint64)
        values[:] = np.random.Philox(key=key, counter=counter).random_raw(skipped + window.width)[skipped:]
    return rows


def shortest_seconds(work: Callable[[Window], object], window: Window) -> float:
    """The shortest of several runs."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work(window)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Print nanoseconds per pixel of both, and their ratio, for square windows and a single column."""
    whole, part = Window(8, 4, 20, 30), Window(12, 9, 5, 7)
    for keys in (splitmix_keys, philox_keys):
        inside = keys(whole)[part.y - whole.y :, part.x - whole.x :][: part.height, : part.width]
        assert np.array_equal(inside, keys(part)), f"{keys.__name__} depends on the window"
    for window in WINDOWS:
        pixels = window.height * window.width
        own, philox = (shortest_seconds(keys, window) / pixels * 1e9 for keys in (splitmix_keys, philox_keys))
        size = f"{window.height} x {window.width}"
        print(f"{size}: SplitMix64 {own:.1f} ns, Philox {philox:.1f} ns per pixel, {philox / own:.1f} x")


if __name__ == "__main__":
    main()
