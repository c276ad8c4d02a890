"""How far the values of a scene lie from those that a model was trained on, band by band.

A model's scaling holds three quantiles of every band over the training pixels: 0.5 %, median and 99.5 %. The same ones
are taken of a scene, from windows spread evenly over it, and compared in training ranges, 99.5 % less 0.5 %: what scales a
band before the network sees it. Neither the units of a band nor its number of values matter then.

It tells of other units, gains and offsets, exchanged bands, and nodata taken for data. It does not tell of ground that
looks otherwise within the same range, nor whether the model is right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from mibf.errors import InputError
from mibf.scaling import BandScaling, Scaling
from pipeline.fit import Sketch
from pipeline.grid import Window, windows
from pipeline.store import CHUNK, PatchStore, StoredSource

#: Windows of a scene that are read at the most, of `CHUNK` x `CHUNK` pixels: 4.2 million pixels.
WINDOWS = 256
#: Bands that are told of one by one.
TOLD = 5


@dataclass(frozen=True)
class BandDrift:
    """How far a band of a scene lies from its training.

    `distance` is the largest difference of a quantile in training ranges; infinite where the scene has no data, or where
    the band does not vary in training and the scene has other values. `outside` is the share of the scene's pixels beyond
    the training limits, 1 % without drift. The quantiles are 0.5 %, median and 99.5 %, in the source's units; those of the
    scene, and `outside`, are NaN where it has no data.
    """

    source: str
    band: int  #: counted from 1
    distance: float
    outside: float
    scene: tuple[float, float, float]
    training: tuple[float, float, float]


def drifts(store: PatchStore, scaling: Scaling, *, windows: int = WINDOWS) -> list[BandDrift]:
    """The drift of every band that a model takes, in the order of the store's sources.

    One window is in memory at a time; of a source its counts are (see `pipeline.fit`). A window that is damaged is left out.

    Args:
        store: the scene, which has the sources and bands of the model (`pipeline.predict.check_sources`).
        scaling: of the model. A source without one is left out.
        windows: that are read at the most, 1 or more; all of a scene that has no more. The same ones each time.
    """
    places = spread(store.shape, windows)
    taken = [source for source in store.sources if source.name in scaling]
    return [drift for source in taken for drift in _of_source(store, source, scaling[source.name], places)]


def spread(shape_yx: tuple[int, int], most: int) -> list[Window]:
    """So many of a grid's `CHUNK`-sided windows at the most, spread evenly: some of their rows, and some of each row.

    Rows and columns are thinned alike, so that no direction is seen less than the other.
    """
    high, wide = (-(-size // CHUNK) for size in shape_yx)
    rows = min(high, max(1, round(math.sqrt(most * high / wide))), most)
    columns = min(wide, most // rows)
    rows = min(high, most // columns)
    every = windows(shape_yx, CHUNK)
    return [every[y * wide + x] for y in _some(high, rows) for x in _some(wide, columns)]


def _some(size: int, number: int) -> list[int]:
    """So many of the positions 0 to size - 1, the middles of equal parts."""
    return [(2 * i + 1) * size // (2 * number) for i in range(number)]


def _of_source(store: PatchStore, source: StoredSource, training: BandScaling, places: Sequence[Window]) -> list[BandDrift]:
    sketch = Sketch(source.bands, store.array(f"sources/{source.name}").dtype)
    for window in places:
        with suppress(InputError):  # damaged: the tiles that read it say so, and the others are mapped
            sketch.add(*store.read_source(source.name, window))
    trained = _quantiles(training)
    if not all(band.pixels for band in sketch.bands):
        nothing = (math.nan,) * 3
        return [BandDrift(source.name, i, math.inf, math.nan, nothing, there) for i, there in enumerate(trained, 1)]
    found = []
    for number, (band, here, there) in enumerate(zip(sketch.bands, _quantiles(sketch.scaling()), trained, strict=True), 1):
        low, _, high = there
        outside = band.outside(low, high) / band.pixels
        found.append(BandDrift(source.name, number, _distance(here, there), outside, here, there))
    return found


def _quantiles(scaling: BandScaling) -> list[tuple[float, float, float]]:
    """The three quantiles of every band, ascending."""
    return list(zip(scaling.low.tolist(), scaling.fill.tolist(), scaling.high.tolist(), strict=True))


def _distance(scene: tuple[float, float, float], training: tuple[float, float, float]) -> float:
    """The largest difference of a quantile in training ranges; of a band that does not vary in training 0 or infinite."""
    differences = [abs(here - there) for here, there in zip(scene, training, strict=True)]
    span = training[2] - training[0]
    if span > 0:
        return max(differences) / span
    return math.inf if any(differences) else 0.0


def told(found: Sequence[BandDrift], limit: float) -> str | None:
    """The bands that lie farther than `limit` from their training, in words, the worst first; None where none does."""
    far = sorted((drift for drift in found if drift.distance > limit), key=lambda drift: -drift.distance)
    if not far:
        return None
    more = [f"and {len(far) - TOLD} more"] if len(far) > TOLD else []
    return "; ".join([*map(_told, far[:TOLD]), *more])


def _told(drift: BandDrift) -> str:
    name = f"{drift.source} band {drift.band}"
    if math.isnan(drift.outside):
        return f"{name} has no data"
    here, there = (" / ".join(f"{value:.6g}" for value in quantiles) for quantiles in (drift.scene, drift.training))
    far = f"lies {drift.distance:.2f} training ranges off" if math.isfinite(drift.distance) else "was constant in training"
    return f"{name} {far}: {here} (0.5 % / median / 99.5 %), in training {there}, {drift.outside:.0%} of its pixels outside"
