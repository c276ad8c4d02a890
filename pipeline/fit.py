"""Fit a scaling to training pixels alone, window by window. Histograms merge by addition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mibf.errors import InputError
from mibf.scaling import BandScaling, Scaling
from pipeline.store import PatchStore, training_pixels

#: Limits are these quantiles of a band over the training pixels, as in the paper's released code.
LOW, HIGH = 0.005, 0.995
#: Bins of a histogram: one a value for integers of up to 16 bits; for floats the bound on a quantile's
#: error is the band's range over this number.
BINS = 1 << 16


def fit_scaling(stores: Sequence[PatchStore], *, each: Callable[[], None] = lambda: None) -> Scaling:
    """The scaling of every source of some scenes, which share their sources; `each` is called once a source.

    The limits are the 0.5 % and 99.5 % quantiles, the fill value is the median: exact for integers of up
    to 16 bits, within a 65,536th of the band's range for floats.

    Raises:
        InputError: a source has no data at any training pixel.

    """
    scaling = {}
    for source in stores[0].sources:
        scaling[source.name] = _fit_source(stores, source.name, source.bands)
        each()
    return scaling


def _fit_source(stores: Sequence[PatchStore], name: str, bands: int) -> BandScaling:
    def parts() -> Iterable[NDArray[Any]]:
        return (part for store in stores for part in training_pixels(store, name) if part.size)

    low, high = np.full(bands, np.inf), np.full(bands, -np.inf)
    for part in parts():
        np.minimum(low, part.min(axis=1), out=low)
        np.maximum(high, part.max(axis=1), out=high)
    if not np.isfinite(low).all():
        raise InputError(f"source {name!r} has no data at any training pixel; check its extent and nodata value.")
    integers = all(store.array(f"sources/{name}").dtype.kind in "iu" for store in stores)
    step = np.where(high > low, (high - low) / (BINS - 1), 1.0)
    step = np.ones(bands) if integers else step
    histogram = np.zeros((bands, BINS), np.int64)
    for part in parts():
        position = np.rint((part - low[:, None]) / step[:, None]).astype(np.int64)
        for band in range(bands):
            histogram[band] += np.bincount(position[band], minlength=BINS)
    cumulative = histogram.cumsum(axis=1)

    def quantile(q: float) -> NDArray[np.float32]:
        """The smallest value that at least the share q of the pixels does not exceed."""
        wanted = np.ceil(q * cumulative[:, -1:]).clip(1)
        return np.asarray(low + (cumulative >= wanted).argmax(axis=1) * step, np.float32)

    return BandScaling(low=quantile(LOW), high=quantile(HIGH), fill=quantile(0.5))
