"""Encodings of stored values, decoded window by window: embeddings in int8, and radar's power as decibels.

Every value is a function of the stored value at its own pixel alone, so that a window equals the same part of the whole.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

#: `alphaearth`: sign(v) * (v / 127.5)^2 of int8; `tessera`: int8 times a factor of the pixel; `db`: 10 * log10 of power.
Encoding = Literal["alphaearth", "tessera", "db"]
ENCODINGS: tuple[Encoding, ...] = ("alphaearth", "tessera", "db")
#: Encodings of int8 values. They are decoded before resampling; power is averaged first and is decibels afterwards.
INT8_ENCODINGS: tuple[Encoding, ...] = ("alphaearth", "tessera")
#: AlphaEarth's value for no data.
ALPHAEARTH_NODATA = -128

_INT8 = np.arange(-128, 128).astype(np.int8)
#: The decoded value of each int8, at the position of its bits read as uint8.
_ALPHAEARTH = np.empty(256, np.float32)
_ALPHAEARTH[_INT8.view(np.uint8)] = np.sign(_INT8) * (_INT8 / np.float64(127.5)) ** 2


def alphaearth(stored: NDArray[np.int8]) -> NDArray[np.float32]:
    """Decode AlphaEarth's embeddings to float32 from -1 to 1; of `ALPHAEARTH_NODATA`, the result has no meaning."""
    return np.asarray(_ALPHAEARTH[stored.view(np.uint8)])


def tessera(stored: NDArray[np.int8], scales: NDArray[Any]) -> NDArray[np.float32]:
    """Multiply TESSERA's embeddings (band, y, x) by their scales (1 or band, y, x), in float32."""
    with np.errstate(over="ignore", invalid="ignore"):  # of scales without data
        return np.asarray(np.multiply(stored, scales, dtype=np.float32, casting="unsafe"))


def decibels(power: NDArray[Any]) -> NDArray[np.float32]:
    """Convert linear power to decibels, computed in float64; not finite where the power is not above 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(10 * np.log10(power, dtype=np.float64), np.float32)
