"""Fit a scaling to training pixels alone, window by window. Histograms merge by addition."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mibf.errors import InputError
from mibf.scaling import BandScaling, Scaling
from pipeline.store import PatchStore, training_pixels

#: Limits are these quantiles of a band over the training pixels, as in the paper's released code.
LOW, HIGH = 0.005, 0.995
#: Bins of a histogram: one for each value of half a 32-bit key.
BINS = 1 << 16


def fit_scaling(stores: Sequence[PatchStore], *, each: Callable[[], None] = lambda: None) -> Scaling:
    """The scaling of every source of some scenes, which share their sources; `each` is called once a source.

    The limits are the 0.5 % and 99.5 % quantiles, the fill value is the median; each is exactly the smallest
    value that at least that share of the pixels does not exceed.

    Raises:
        InputError: a source has no data at any training pixel.
    """
    scaling = {}
    for source in stores[0].sources:
        scaling[source.name] = _fit_source(stores, source.name, source.bands)
        each()
    return scaling


def _fit_source(stores: Sequence[PatchStore], name: str, bands: int) -> BandScaling:
    """Quantiles by two histograms: of the upper halves of the values' keys, then of the lower halves where it matters."""

    def keys() -> Iterator[NDArray[np.uint32]]:
        return (_keys(part) for store in stores for part in training_pixels(store, name) if part.size)

    upper = np.zeros((bands, BINS), np.int64)
    for part in keys():
        for band in range(bands):
            upper[band] += np.bincount(part[band] >> 16, minlength=BINS)
    pixels = upper.sum(axis=1)
    if not pixels.all():
        raise InputError(f"source {name!r} has no data at any training pixel; check its extent and nodata value.")
    quantiles = (LOW, HIGH, 0.5)
    ranks = np.ceil(np.outer(quantiles, pixels)).clip(1).astype(np.int64)  # (quantiles, bands), counted from 1
    heads = np.empty_like(ranks)
    for q, band in np.ndindex(*ranks.shape):
        cumulative = upper[band].cumsum()
        heads[q, band] = np.searchsorted(cumulative, ranks[q, band])
        ranks[q, band] -= cumulative[heads[q, band]] - upper[band, heads[q, band]]  # the rank within its bin
    lower = np.zeros((len(quantiles), bands, BINS), np.int32)
    for part in keys():
        for q, band in np.ndindex(*ranks.shape):
            inside = part[band][part[band] >> 16 == heads[q, band]]
            lower[q, band] += np.bincount(inside & (BINS - 1), minlength=BINS).astype(np.int32)
    tails = np.array([np.searchsorted(lower[i].cumsum(), ranks[i]) for i in np.ndindex(*ranks.shape)])
    low, high, fill = _values((heads << 16 | tails.reshape(ranks.shape)).astype(np.uint32))
    return BandScaling(low=low, high=high, fill=fill)


def _keys(values: NDArray[Any]) -> NDArray[np.uint32]:
    """Keys in the order of the values, which are taken as float32: integers of up to 16 bits are so without loss.

    The bits of a float in IEEE 754 are in its order but for the sign: set it for positive numbers, turn all bits of
    negative ones.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))


def _values(keys: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The values of some keys."""
    bits = np.where(keys >> 31, keys & np.uint32((1 << 31) - 1), ~keys)
    return bits.astype(np.uint32).view(np.float32)
