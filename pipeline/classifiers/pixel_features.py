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

from mibf.normalization import BandScaling, Scaling
from pipeline.grid import Window
from pipeline.store.patch_store import PatchStore, quantiles_to_match
from pipeline.store.template import StoredSource

#: Side of the neighborhood in reference pixels, that of the paper's patches.
NEIGHBORHOOD = 7
REACH = NEIGHBORHOOD // 2
#: Pixels that are computed at a time, so that the float64 sums of one band of them fit a core's cache: 1024 x 1024 pixels of
#: 15 bands took 0.45 s, and 0.80 s in one piece.
STRIP = 32_768


def pixel_features(
    store: PatchStore, window: Window, sources: Sequence[StoredSource], scaling: Scaling | None = None
) -> NDArray[np.float32]:
    """Compute the features of every pixel of a window within the grid, (F, height, width); see `features_of`.

    Raises:
        InputError: a chunk of the store is damaged.
    """
    return features_of(read_values(store, window, sources, scaling))


def read_values(
    store: PatchStore, window: Window, sources: Sequence[StoredSource], scaling: Scaling | None = None
) -> tuple[NDArray[np.float32], ...]:
    """Read what the features of a window within the grid are computed from.

    Args:
        store: of the scene.
        window: within the grid.
        sources: to read.
        scaling: matches the scene's values to the training distribution, for the sources for which it holds one.

    Returns:
        The values of each source at the reference grid, in the source's units (B, height + 2 `REACH`, width + 2 `REACH`);
        NaN without data and beyond the grid.

    Raises:
        InputError: a chunk of the store is damaged.
    """
    return tuple(_values_with_halo(store, source, window, (scaling or {}).get(source.name)) for source in sources)


def features_of(values: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Compute the features (F, height, width) from the result of `read_values`.

    The first features are the values of all bands of all sources, in the sources' units; then come the means and then the
    population standard deviations of the same bands over the neighborhood of `NEIGHBORHOOD` x `NEIGHBORHOOD` pixels.
    """
    bands = sum(len(source) for source in values)
    height, width = (size - 2 * REACH for size in values[0].shape[1:])
    features = np.empty((3, bands, height, width), np.float32)
    rows = max(1, STRIP // width)
    first = 0
    for source in values:
        own = features[:, first : first + len(source)]
        first += len(source)
        own[0] = source[:, REACH:-REACH, REACH:-REACH]
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            _neighborhood(source[:, top : bottom + 2 * REACH], own[1:, :, top:bottom])
    return features.reshape(-1, height, width)


def value_features(sources: Sequence[StoredSource]) -> slice:
    """Return where the values are among the features."""
    return slice(0, sum(source.bands for source in sources))


def _values_with_halo(
    store: PatchStore, source: StoredSource, window: Window, bands: BandScaling | None
) -> NDArray[np.float32]:
    """Values (B, height + 2 reach, width + 2 reach) at the reference grid; NaN without data and beyond the grid."""
    rows, columns = store.shape
    y, x = max(0, window.y - REACH), max(0, window.x - REACH)
    bottom = min(rows, window.y + window.height + REACH)
    right = min(columns, window.x + window.width + REACH)
    values, valid = store.read_source(source.name, Window(y, x, bottom - y, right - x))
    if bands is not None:
        values = bands.matched(values, scene=quantiles_to_match(store, source.name, bands))
    inside = at_reference_grid(values, valid, scale=source.scale)
    shape = (source.bands, window.height + 2 * REACH, window.width + 2 * REACH)
    if inside.shape == shape:
        return inside
    padded = np.full(shape, np.nan, np.float32)
    top, left = y - window.y + REACH, x - window.x + REACH
    padded[:, top : top + bottom - y, left : left + right - x] = inside
    return padded


def at_reference_grid(values: NDArray[np.generic], valid: NDArray[np.bool_], *, scale: int) -> NDArray[np.float32]:
    """Average the valid pixels of a source within each reference pixel; NaN where there are none.

    Args:
        values: (B, rows * scale, columns * scale).
        valid: the same, or without bands.
        scale: pixels per reference pixel along an axis.
    """
    if scale == 1:
        found: NDArray[np.float32] = values.astype(np.float32)
        np.copyto(found, np.float32(np.nan), where=~valid)
        return found
    bands, fine_rows, fine_columns = values.shape
    shape = (fine_rows // scale, scale, fine_columns // scale, scale)
    known = np.where(valid, values, 0).astype(np.float64).reshape(bands, *shape).sum(axis=(2, 4))
    counts = valid.reshape(*valid.shape[:-2], *shape).sum(axis=(-3, -1))
    found = (known / _or_nan(counts)).astype(np.float32)
    return found


def _neighborhood(padded: NDArray[np.float32], found: NDArray[np.float32]) -> None:
    """Compute mean and population standard deviation of the known values around each pixel of a source.

    Args:
        padded: (B, height + 2 reach, width + 2 reach).
        found: where the means and deviations are written (2, B, height, width).
    """
    known: NDArray[np.bool_] | None = None
    for band, mean, deviation in zip(padded, *found, strict=True):
        own = np.isfinite(band)
        if known is None or not np.array_equal(own, known):  # bands of one period have data at the same pixels
            known = own
            complete = bool(known.all())
            count = np.float64(NEIGHBORHOOD**2) if complete else _or_nan(_box_sum(known.astype(np.float64)))
        filled = band.astype(np.float64)
        if not complete:
            np.copyto(filled, 0, where=~known)
        total = _box_sum(filled)
        mean[:] = total / count
        # Exact for integers up to 16 bits, so that equal values have a deviation of 0.
        variance = _box_sum(np.multiply(filled, filled, out=filled))
        variance *= count
        variance -= np.multiply(total, total, out=total)
        np.maximum(variance, 0, out=variance)
        variance /= count**2
        deviation[:] = np.sqrt(variance, out=variance)


def _box_sum(padded: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over the square around each pixel, (height + 2 reach, width + 2 reach) -> (height, width)."""
    return _sum_of_rows(_sum_of_rows(padded).T).T


def _sum_of_rows(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum each `NEIGHBORHOOD` successive rows: in pairs and fours, which takes four additions instead of six."""
    two = values[:-1] + values[1:]
    four = two[:-2] + two[2:]
    total: NDArray[np.float64] = four[:-3] + two[4:-1]
    total += values[6:]
    return total


def _or_nan(count: NDArray[np.number]) -> NDArray[np.float64]:
    """Replace counts of 0 by NaN, for division."""
    return np.where(count > 0, count, np.nan)
