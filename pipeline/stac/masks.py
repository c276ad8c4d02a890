"""Masks: rasters that say where a source, or one of its items, may be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from pipeline.rasters.header import RasterFile


@dataclass(frozen=True)
class Mask:
    """A raster that marks where a source may be used: by valid or invalid values, a limit, or bits that must not be set."""

    file: RasterFile
    valid: tuple[int, ...] = ()
    invalid: tuple[int, ...] = ()
    bits: tuple[int, ...] = ()
    above: float | None = None  #: the largest value, such as of a probability of clouds, with which it may be used
    chosen: bool = True  #: whether the configuration chooses the band; else the first is read
    dilate: int = 0  #: pixels of the reference grid by which the places where it may not be used are extended

    def passes(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Where mask values accept the source's pixel."""
        passed = np.isin(values, self.valid) if self.valid else ~np.isin(values, self.invalid)
        if self.bits:
            passed &= values.astype(np.int64) & sum(1 << bit for bit in self.bits) == 0
        if self.above is not None:
            passed &= values <= self.above
        return passed


def dilated(unclear: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Extend a mask (y, x) by a distance of up to so many pixels in every direction."""
    if pixels == 0 or not unclear.any():
        return unclear
    offsets = np.arange(-pixels, pixels + 1)
    disc = offsets[:, None] ** 2 + offsets[None] ** 2 <= pixels**2
    return np.asarray(binary_dilation(unclear, structure=disc))
