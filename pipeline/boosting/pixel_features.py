"""Features of single pixels for learners without convolutions: values, and means and deviations of their neighborhoods.

All features are on the reference grid. The value of a finer source is the mean of its pixels within the reference pixel.
Only pixels with data count, and none beyond the scene's edges; a feature without any is NaN. Every sum is taken in the same
order wherever the pixel is in the window, so a pixel's features do not depend on the window.

Legend for shapes: F features, B bands of a source.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.grid import Window
from pipeline.store.patch_store import PatchStore
from pipeline.store.template import StoredSource

#: Side of the neighborhood in reference pixels, that of the paper's patches.
NEIGHBORHOOD = 7
_REACH = NEIGHBORHOOD // 2


def pixel_features(store: PatchStore, window: Window, sources: Sequence[StoredSource]) -> NDArray[np.float32]:
    """Compute the features of every pixel of a window within the grid, (F, height, width).

    The first features are the values of all bands of all sources, in the sources' units; then come the means and then the
    population standard deviations of the same bands over the neighborhood of `NEIGHBORHOOD` x `NEIGHBORHOOD` pixels.

    Raises:
        InputError: a chunk of the store is damaged.
    """
    values, means, deviations = [], [], []
    for source in sources:
        padded = _values_with_halo(store, source, window)
        mean, deviation = _neighborhood(padded)
        values.append(padded[:, _REACH:-_REACH, _REACH:-_REACH])
        means.append(mean)
        deviations.append(deviation)
    return np.concatenate([*values, *means, *deviations]).astype(np.float32)


def value_features(sources: Sequence[StoredSource]) -> slice:
    """Return where the values are among the features."""
    return slice(0, sum(source.bands for source in sources))


def _values_with_halo(store: PatchStore, source: StoredSource, window: Window) -> NDArray[np.float64]:
    """Values (B, height + 2 reach, width + 2 reach) at the reference grid; NaN without data and beyond the grid."""
    rows, columns = store.shape
    y, x = max(0, window.y - _REACH), max(0, window.x - _REACH)
    bottom = min(rows, window.y + window.height + _REACH)
    right = min(columns, window.x + window.width + _REACH)
    inside = at_reference_grid(*store.read_source(source.name, Window(y, x, bottom - y, right - x)), scale=source.scale)
    padded = np.full((source.bands, window.height + 2 * _REACH, window.width + 2 * _REACH), np.nan)
    top, left = y - window.y + _REACH, x - window.x + _REACH
    padded[:, top : top + bottom - y, left : left + right - x] = inside
    return padded


def at_reference_grid(values: NDArray[np.generic], valid: NDArray[np.bool_], *, scale: int) -> NDArray[np.float64]:
    """Average the valid pixels of a source within each reference pixel; NaN where there are none.

    Args:
        values: (B, rows * scale, columns * scale).
        valid: the same without bands.
        scale: pixels per reference pixel along an axis.
    """
    bands, fine_rows, fine_columns = values.shape
    if scale == 1:
        return np.where(valid, values, np.nan).astype(np.float64)
    shape = (fine_rows // scale, scale, fine_columns // scale, scale)
    known = np.where(valid, values, 0).astype(np.float64).reshape(bands, *shape).sum(axis=(2, 4))
    return _divide(known, valid.reshape(shape).sum(axis=(1, 3)))


def _neighborhood(padded: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population standard deviation (B, height, width) of the known values around each pixel."""
    known = np.isfinite(padded[0])  # a source has data in all its bands, or in none
    count = _box_sum(known.astype(np.float64))
    filled = np.where(known, padded, 0)
    total, squares = _box_sum(filled), _box_sum(filled**2)
    # Exact for integers up to 16 bits, so that equal values have a deviation of 0.
    variance = _divide(np.maximum(count * squares - total**2, 0), count**2)
    return _divide(total, count), np.sqrt(variance)


def _box_sum(padded: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over the square around each pixel, (..., height + 2 reach, width + 2 reach) -> (..., height, width)."""
    height, width = (size - 2 * _REACH for size in padded.shape[-2:])
    columns = padded[..., :height, :].copy()
    for offset in range(1, NEIGHBORHOOD):
        columns += padded[..., offset : offset + height, :]
    total = columns[..., :width].copy()
    for offset in range(1, NEIGHBORHOOD):
        total += columns[..., offset : offset + width]
    return total


def _divide(total: NDArray[np.float64], count: NDArray[np.number]) -> NDArray[np.float64]:
    """Divide sums (B, height, width) by counts (height, width); NaN where the count is 0."""
    found: NDArray[np.float64] = np.divide(
        total, count, out=np.full(total.shape, np.nan), where=np.broadcast_to(count > 0, total.shape)
    )
    return found
