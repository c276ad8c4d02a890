"""Normalization: per-band limits that scale a source to [0, 1], stored with the model. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BandScaling:
    """Normalization of one source: a low and a high limit and a fill value per band, in the source's units.

    A constant band (high == low) is scaled to 0 everywhere: it carries no information, and 0 avoids a division by zero.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    fill: NDArray[np.float32]

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Mask of the bands that do not vary over the training pixels."""
        return np.asarray(self.high <= self.low)

    @property
    def filled(self) -> NDArray[np.float32]:
        """What `apply` returns where a source has no data, (band,)."""
        return self.apply(np.zeros((len(self.fill), 1, 1), np.float32), np.zeros((1, 1), bool))[:, 0, 0]

    def apply(self, values: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Scale (band, y, x) values to [0, 1], clipped; pixels that are not valid, (y, x), take each band's fill value."""
        bands = (slice(None), None, None)
        span = np.where(self.constant, 1, self.high - self.low).astype(np.float32)
        gain = np.where(self.constant, 0, 1 / span).astype(np.float32)
        filled = np.where(valid, values, self.fill[bands]).astype(np.float32)
        filled -= self.low[bands]
        filled *= gain[bands]
        return np.clip(filled, 0, 1, out=filled)

    def to_json(self) -> dict[str, list[float]]:
        """Return the limits as JSON values."""
        return {"low": self.low.tolist(), "high": self.high.tolist(), "fill": self.fill.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, list[float]]) -> BandScaling:
        """Read the limits that `to_json` wrote."""
        low, high, fill = (np.asarray(value[key], np.float32) for key in ("low", "high", "fill"))
        return cls(low=low, high=high, fill=fill)


#: The normalization of every source of a model, by source name.
Scaling = dict[str, BandScaling]


def scaling_to_json(scaling: Scaling) -> dict[str, Any]:
    """Return the normalization of all sources as JSON values."""
    return {name: bands.to_json() for name, bands in scaling.items()}


def scaling_from_json(value: dict[str, Any]) -> Scaling:
    """Read the normalization that `scaling_to_json` wrote."""
    return {name: BandScaling.from_json(bands) for name, bands in value.items()}
