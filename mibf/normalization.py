"""Normalization: per-band limits that scale a source to [0, 1], stored with the model. Numpy only.

Optionally the values of each scene are first matched to the training distribution, band by band and by quantiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: The shares of pixels at whose quantiles distributions are matched: 32 equal steps, and the shares of the limits.
MATCHED_AT = (0.0, 0.005, *(step / 32 for step in range(1, 32)), 0.995, 1.0)

#: Returns an uninitialized array of a shape.
Allocator = Callable[[tuple[int, ...]], NDArray[np.float32]]


def empty(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return an uninitialized array in ordinary memory."""
    return np.empty(shape, np.float32)


def match_quantiles(
    values: NDArray[Any], *, scene: NDArray[np.float64], reference: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Map the values (band, y, x) of a scene to a reference distribution, piecewise linear between quantiles.

    The map does not decrease. Values beyond the scene's quantiles take the outermost reference values; NaN stays NaN. A
    value that several quantiles of the scene share takes the middle of theirs in the reference; a band that is constant in
    the scene takes the reference median. A band whose quantiles equal those of the reference is unchanged.

    Args:
        values: of the scene, in the source's units.
        scene: quantiles (band, `MATCHED_AT`) of the entire scene, ascending.
        reference: quantiles (band, `MATCHED_AT`) to map to.
    """
    matched = np.array(values, np.float32)
    for band, (own, wanted) in enumerate(zip(scene, reference, strict=True)):
        if np.array_equal(own, wanted):
            continue
        at, first, counts = np.unique(own, return_index=True, return_counts=True)
        if len(at) == 1:
            matched[band] = np.where(np.isnan(matched[band]), np.nan, wanted[MATCHED_AT.index(0.5)])
        else:
            matched[band] = np.interp(values[band], at, (wanted[first] + wanted[first + counts - 1]) / 2)
    return matched


@dataclass(frozen=True)
class BandScaling:
    """Normalization of one source: a low and a high limit and a fill value per band, in the source's units.

    A constant band (high == low) is scaled to 0 everywhere: it carries no information, and 0 avoids a division by zero.
    With `reference`, quantiles (band, `MATCHED_AT`) of the training distribution, each scene is matched to it first.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    fill: NDArray[np.float32]
    reference: NDArray[np.float64] | None = None

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Mask of the bands that do not vary over the training pixels."""
        return np.asarray(self.high <= self.low)

    @property
    def filled(self) -> NDArray[np.float32]:
        """What `apply` returns where a source has no data, (band,)."""
        return self.apply(np.zeros((len(self.fill), 1, 1), np.float32), np.zeros((1, 1), bool))[:, 0, 0]

    def apply(
        self,
        values: NDArray[Any],
        valid: NDArray[np.bool_],
        *,
        scene: NDArray[np.float64] | None = None,
        allocate: Allocator = empty,
    ) -> NDArray[np.float32]:
        """Scale (band, y, x) values to [0, 1], clipped; pixels that are not valid, (y, x), take each band's fill value.

        Validity may also be that of each band, (band, y, x).

        With the quantiles (band, `MATCHED_AT`) of the values' `scene`, they are first matched to `reference`, if there is
        one. `allocate` returns the array of the result for its shape.
        """
        values = self.matched(values, scene=scene)
        span = np.where(self.constant, 1, self.high - self.low).astype(np.float32)
        gain = np.where(self.constant, 0, 1 / span).astype(np.float32)
        missing = None if valid.all() else np.broadcast_to(~valid, values.shape)
        scaled = allocate(values.shape)
        for band, target in enumerate(scaled):  # one after the other: a band stays in the processor's cache
            np.copyto(target, values[band], casting="same_kind")
            if missing is not None:
                np.copyto(target, self.fill[band], where=missing[band])
            target -= self.low[band]
            target *= gain[band]
            np.clip(target, 0, 1, out=target)
        return scaled

    def matched(self, values: NDArray[Any], *, scene: NDArray[np.float64] | None) -> NDArray[Any]:
        """Match (band, y, x) values of a scene with these quantiles to `reference`; as they are without either of them."""
        if self.reference is None or scene is None:
            return values
        return match_quantiles(values, scene=scene, reference=self.reference)

    def to_json(self) -> dict[str, Any]:
        """Return the limits, and the reference if there is one, as JSON values."""
        limits = {"low": self.low.tolist(), "high": self.high.tolist(), "fill": self.fill.tolist()}
        return limits if self.reference is None else limits | {"reference": self.reference.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> BandScaling:
        """Read what `to_json` wrote.

        Raises:
            ValueError: the reference does not fit the bands, is not finite or decreases.
        """
        low, high, fill = (np.asarray(value[key], np.float32) for key in ("low", "high", "fill"))
        if value.get("reference") is None:
            return cls(low=low, high=high, fill=fill)
        reference = np.asarray(value["reference"], np.float64)
        if reference.shape != (len(low), len(MATCHED_AT)) or not np.isfinite(reference).all():
            raise ValueError(f"the reference quantiles are not {len(low)} x {len(MATCHED_AT)} finite numbers")
        if (np.diff(reference) < 0).any():
            raise ValueError("the reference quantiles decrease")
        return cls(low=low, high=high, fill=fill, reference=reference)


#: The normalization of every source of a model, by source name.
Scaling = dict[str, BandScaling]


def scaling_to_json(scaling: Scaling) -> dict[str, Any]:
    """Return the normalization of all sources as JSON values."""
    return {name: bands.to_json() for name, bands in scaling.items()}


def scaling_from_json(value: dict[str, Any]) -> Scaling:
    """Read the normalization that `scaling_to_json` wrote."""
    return {name: BandScaling.from_json(bands) for name, bands in value.items()}
