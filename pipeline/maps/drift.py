"""Drift: the difference between a scene's values and those that a model was trained on, band by band.

A model's normalization holds three quantiles of every band over the training pixels: 0.5 %, median and 99.5 %. The same
quantiles are estimated for a scene, from windows spread evenly over it, and compared in units of the training range (99.5 %
minus 0.5 %), by which a band is scaled for the network. The result does not depend on a band's units or number of values.

It detects different units, gains and offsets, swapped bands, and nodata read as data. It does not detect ground that looks
different within the same range, nor whether the model is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from mibf.errors import InputError
from mibf.normalization import BandScaling, Scaling
from pipeline.grid import Window, windows
from pipeline.store.patch_store import PatchStore
from pipeline.store.quantiles import QuantileSketch
from pipeline.store.template import CHUNK, StoredSource

#: Maximum number of windows of `CHUNK` x `CHUNK` pixels that are read per scene: 4.2 million pixels.
WINDOWS = 256
#: Maximum number of bands listed individually.
REPORTED_BANDS = 5


@dataclass(frozen=True)
class BandDrift:
    """Drift of one band of a scene.

    `distance` is the largest difference of a quantile, in training ranges; infinite if the scene has no data, or if the
    band is constant in training and the scene has other values. `outside` is the fraction of the scene's pixels beyond
    the training limits, 1 % without drift. The quantiles are 0.5 %, median and 99.5 %, in the source's units; those of the
    scene, and `outside`, are NaN if it has no data.
    """

    source: str
    band: int  #: counted from 1
    distance: float
    outside: float
    scene: tuple[float, float, float]
    training: tuple[float, float, float]


def measure_drift(store: PatchStore, scaling: Scaling, *, windows: int = WINDOWS) -> list[BandDrift]:
    """Compute the drift of every band that a model uses, in the order of the store's sources.

    Only one window is in memory at a time, plus the histograms of one source (see `pipeline.store.quantiles`). Damaged
    windows are skipped.

    Args:
        store: the scene, with the model's sources and bands (`pipeline.maps.predictor.check_sources`).
        scaling: the model's normalization. Sources without one are skipped.
        windows: maximum number of windows to read, at least 1; the same ones each time. A smaller scene is read completely.
    """
    places = spread_windows(store.shape, windows)
    taken = [source for source in store.sources if source.name in scaling]
    return [drift for source in taken for drift in _source_drift(store, source, scaling[source.name], places)]


def spread_windows(shape_yx: tuple[int, int], most: int) -> list[Window]:
    """Select up to `most` of a grid's `CHUNK`-sided windows, spread evenly: some of the rows, and some windows of each.

    Rows and columns are subsampled equally, so that neither direction is favoured.
    """
    high, wide = (-(-size // CHUNK) for size in shape_yx)
    rows = min(high, max(1, round(math.sqrt(most * high / wide))), most)
    columns = min(wide, most // rows)
    rows = min(high, most // columns)
    every = windows(shape_yx, CHUNK)
    return [every[y * wide + x] for y in _spread_positions(high, rows) for x in _spread_positions(wide, columns)]


def _spread_positions(size: int, number: int) -> list[int]:
    """Select `number` of the positions 0 to size - 1: the midpoints of equal parts."""
    return [(2 * i + 1) * size // (2 * number) for i in range(number)]


def _source_drift(
    store: PatchStore, source: StoredSource, training: BandScaling, places: Sequence[Window]
) -> list[BandDrift]:
    sketch = QuantileSketch(source.bands, store.array(f"sources/{source.name}").dtype)
    for window in places:
        with suppress(InputError):  # damaged: the tiles that read it report it, and the others are mapped
            sketch.add(*store.read_source(source.name, window))
    trained = _quantiles(training)
    if not all(band.pixels for band in sketch.bands):
        nothing = (math.nan,) * 3
        return [BandDrift(source.name, i, math.inf, math.nan, nothing, expected) for i, expected in enumerate(trained, 1)]
    found = []
    for number, (band, observed, expected) in enumerate(
        zip(sketch.bands, _quantiles(sketch.scaling()), trained, strict=True), 1
    ):
        low, _, high = expected
        outside = band.outside(low, high) / band.pixels
        found.append(BandDrift(source.name, number, _distance(observed, expected), outside, observed, expected))
    return found


def _quantiles(scaling: BandScaling) -> list[tuple[float, float, float]]:
    """The three quantiles of every band, in ascending order."""
    return list(zip(scaling.low.tolist(), scaling.fill.tolist(), scaling.high.tolist(), strict=True))


def _distance(scene: tuple[float, float, float], training: tuple[float, float, float]) -> float:
    """Largest difference of a quantile, in training ranges; 0 or infinite for a band that is constant in training."""
    differences = [abs(a - b) for a, b in zip(scene, training, strict=True)]
    span = training[2] - training[0]
    if span > 0:
        return max(differences) / span
    return math.inf if any(differences) else 0.0


def describe_drift(found: Sequence[BandDrift], limit: float) -> str | None:
    """Describe the bands with a distance above `limit`, worst first; None if there are none."""
    far = sorted((drift for drift in found if drift.distance > limit), key=lambda drift: -drift.distance)
    if not far:
        return None
    more = [f"and {len(far) - REPORTED_BANDS} more"] if len(far) > REPORTED_BANDS else []
    return "; ".join([*map(_describe_band, far[:REPORTED_BANDS]), *more])


def _describe_band(drift: BandDrift) -> str:
    name = f"{drift.source} band {drift.band}"
    if math.isnan(drift.outside):
        return f"{name} has no data"
    scene, training = (" / ".join(f"{value:.6g}" for value in values) for values in (drift.scene, drift.training))
    far = f"is {drift.distance:.2f} training ranges off" if math.isfinite(drift.distance) else "was constant in training"
    quantiles = f"{scene} (0.5 % / median / 99.5 %), {training} in training"
    return f"{name} {far}: {quantiles}, {drift.outside:.0%} of pixels out of range"
