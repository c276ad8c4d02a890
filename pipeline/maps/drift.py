"""Drift: the difference between a scene's values and those that a model was trained on, band by band.

A model's normalization holds three quantiles of every band over the training pixels: 0.5 %, median and 99.5 %. The same
quantiles are estimated for a scene, from windows spread evenly over it (`pipeline.store.scene_quantiles`), and compared in
units of the training range (99.5 % minus 0.5 %), by which a band is scaled for the network. The result does not depend on a
band's units or number of values.

It detects different units, gains and offsets, swapped bands, and nodata read as data. It does not detect ground that looks
different within the same range, nor whether the model is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mibf.errors import InputError
from mibf.normalization import MATCHED_AT, BandScaling, Scaling
from pipeline.grid import Window
from pipeline.store.patch_store import PatchStore
from pipeline.store.quantiles import HIGH, LOW, QuantileSketch
from pipeline.store.scene_quantiles import WINDOWS, spread_windows
from pipeline.store.template import StoredSource

#: The quantiles 0.5 %, median and 99.5 % of a band.
Quantiles = tuple[float, float, float]
#: Maximum number of bands, or ranges of bands, that are listed individually.
NAMED_BANDS = 5
#: A constant offset or factor explains a source's drift if it leaves at most this share of the distances.
EXPLAINED = 0.5


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

    `prepare` has kept the quantiles in the store; then no pixel is read, and `outside` is interpolated between 35 of them.
    In stores of earlier versions windows are read, one at a time, plus the histograms of one source (see
    `pipeline.store.quantiles`). Damaged windows are skipped.

    Args:
        store: the scene, with the model's sources and bands (`pipeline.maps.predictor.check_sources`).
        scaling: the model's normalization. Sources without one are skipped.
        windows: maximum number of windows to read, at least 1, where the store has no quantiles; the same ones each time. A
            smaller scene is read completely.
    """
    places = spread_windows(store.shape, windows)
    taken = [source for source in store.sources if source.name in scaling]
    return [drift for source in taken for drift in _source_drift(store, source, scaling[source.name], places)]


def unmatched(store: PatchStore, scaling: Scaling) -> Scaling:
    """Return the normalization of the sources that are not matched by quantiles in a scene: only their drift matters."""
    return {name: bands for name, bands in scaling.items() if bands.reference is None or store.quantiles.get(name) is None}


def matching_advice(found: Sequence[BandDrift], limit: float) -> str:
    """Name the configuration key that may remove a drift above `limit`; empty if none does.

    Matching by quantiles removes any monotonic change of a band, such as a gain, an offset or haze. It cannot help where a
    scene has no data or a band was constant in training.
    """
    sources = dict.fromkeys(drift.source for drift in found if limit < drift.distance < math.inf)
    return f"; `prepare.histogram_matching: [{', '.join(sources)}]` may help" if sources else ""


def _source_drift(
    store: PatchStore, source: StoredSource, training: BandScaling, places: Sequence[Window]
) -> list[BandDrift]:
    kept = None if store.spread_quantiles is None else store.spread_quantiles.get(source.name)
    if kept is None:
        return _compared(source, training, *_read_values(store, source, places))

    def outside(band: int, low: float, high: float) -> float:
        found = kept[band]
        assert found is not None  # it has data
        inside = np.interp(high, found, MATCHED_AT, right=1) - np.interp(low, found, MATCHED_AT, left=0)
        return 1 - max(0.0, float(inside))

    return _compared(source, training, [None if found is None else _three(found) for found in kept], outside)


def _three(found: Sequence[float]) -> Quantiles:
    """The three quantiles of a band, from those at `MATCHED_AT`, as `BandHistogram.limits` and `QuantileSketch.scaling`."""
    low, fill, high = (found[MATCHED_AT.index(share)] for share in (LOW, 0.5, HIGH))
    low, high = (low, high) if low < high else (found[0], found[-1])
    return float(np.float32(low)), float(np.float32(fill)), float(np.float32(high))


def _read_values(
    store: PatchStore, source: StoredSource, places: Sequence[Window]
) -> tuple[list[Quantiles | None], Callable[[int, float, float], float]]:
    """Read a source's windows: the three quantiles of each band, None without data, and the fraction beyond two limits."""
    sketch = QuantileSketch(source.bands, store.array(f"sources/{source.name}").dtype)
    for window in places:
        with suppress(InputError):  # damaged: the tiles that read it report it, and the others are mapped
            sketch.add(*store.read_source(source.name, window))
    found = [three if band.pixels else None for band, three in zip(sketch.bands, _quantiles(sketch.scaling()), strict=True)]
    return found, lambda band, low, high: sketch.bands[band].outside(low, high) / sketch.bands[band].pixels


def _compared(
    source: StoredSource,
    training: BandScaling,
    scene: Sequence[Quantiles | None],
    outside: Callable[[int, float, float], float],
) -> list[BandDrift]:
    trained = _quantiles(training)
    if not any(observed is not None for observed in scene):
        nothing = (math.nan,) * 3
        return [BandDrift(source.name, i, math.inf, math.nan, nothing, expected) for i, expected in enumerate(trained, 1)]
    return [
        BandDrift(
            source.name,
            band + 1,
            _distance(observed, expected),
            outside(band, expected[0], expected[2]),
            observed,
            expected,
        )
        for band, (observed, expected) in enumerate(zip(scene, trained, strict=True))
        if observed is not None  # of a period without observations, whose values are filled
    ]


def _quantiles(scaling: BandScaling) -> list[Quantiles]:
    """The three quantiles of every band, in ascending order."""
    return list(zip(scaling.low.tolist(), scaling.fill.tolist(), scaling.high.tolist(), strict=True))


def _distance(scene: Quantiles, training: Quantiles) -> float:
    """Largest difference of a quantile, in training ranges; 0 or infinite for a band that is constant in training."""
    differences = [abs(a - b) for a, b in zip(scene, training, strict=True)]
    span = training[2] - training[0]
    if span > 0:
        return max(differences) / span
    return math.inf if any(differences) else 0.0


def describe_drift(found: Sequence[BandDrift], limit: float, *, length: int = 200) -> str | None:
    """Describe the bands with a distance above `limit`, the worst source first; None if there are none.

    A constant offset or factor of a source is named. Sources that do not fit into `length` characters are counted; the worst
    one is described whatever its length.
    """
    by_source: dict[str, list[BandDrift]] = {}
    for drift in found:
        by_source.setdefault(drift.source, []).append(drift)
    worst = {name: max(drift.distance for drift in bands) for name, bands in by_source.items()}
    texts = [
        _describe_source(by_source[name], limit) for name in sorted(worst, key=lambda n: -worst[n]) if worst[name] > limit
    ]
    if not texts:
        return None
    text = texts[0]
    for count, more in enumerate(texts[1:], 1):
        rest = f"; {len(texts) - count} more sources"
        if len(text) + 2 + len(more) + (len(rest) if count < len(texts) - 1 else 0) > length:
            return text + (rest if count < len(texts) - 1 else "; 1 more source")
        text += f"; {more}"
    return text


def _describe_source(bands: Sequence[BandDrift], limit: float) -> str:
    """Describe the drift of a source with bands above `limit`."""
    far = sorted((drift for drift in bands if drift.distance > limit), key=lambda drift: -drift.distance)
    worst = far[0]
    numbers = list_bands([drift.band for drift in far])
    named = f"{worst.source} {'in ' if numbers[0].isdigit() else ''}{numbers}"
    if math.isnan(worst.outside):
        return f"{named} {'has' if len(far) == 1 else 'have'} no data"
    change = _constant_change(bands, far)
    if change is not None:
        return f"{named}: {change}"
    scene, training = (" / ".join(f"{value:.4g}" for value in values) for values in (worst.scene, worst.training))
    which = "" if len(far) == 1 else f"band {worst.band} "
    if math.isinf(worst.distance):
        return f"{named}: {which}was constant ({worst.training[1]:.4g}) in training, here {scene} (0.5 / 50 / 99.5 %)"
    return f"{named}: {which}is {worst.distance:.2f} training ranges off, {scene} (0.5 / 50 / 99.5 %), trained on {training}"


def list_bands(numbers: Sequence[int]) -> str:
    """Name bands: "band 3", "bands 1-4, 7", or their number, "12 bands", if these are many."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    if len(runs) > NAMED_BANDS:
        return f"{len(numbers)} bands"
    listed = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"band{'s' if len(numbers) > 1 else ''} {listed}"


def _constant_change(bands: Sequence[BandDrift], far: Sequence[BandDrift]) -> str | None:
    """Name the offset or factor that explains the drift of all bands of a source, or of the far ones; None if none does."""
    varying = [[band for band in group if band.training[2] > band.training[0]] for group in (bands, far)]
    for group in varying if varying[1] else []:
        scene, training = (np.array([getattr(band, name) for band in group]) for name in ("scene", "training"))
        span = training[:, 2:] - training[:, :1]
        offset, factor = _consistent(scene - training), None
        same_sign = scene * training > 0
        if 2 * same_sign.sum() > same_sign.size:
            factor = _consistent(np.log(scene[same_sign] / training[same_sign]), most=0.25)
        changes = {}
        if offset is not None:
            changes[f"constant offset of about {_rounded(offset, '+')}; check `offset`"] = scene - offset
        if factor is not None:
            changes[f"constant factor of about {_rounded(math.exp(factor))}; check `gain`"] = scene / math.exp(factor)
        left = {text: _mean_distance(undone, training, span) for text, undone in changes.items()}
        best = min(left, key=lambda text: left[text], default="")
        if best and left[best] <= EXPLAINED * _mean_distance(scene, training, span):
            return best
    return None


def _consistent(differences: NDArray[np.float64], *, most: float = math.inf) -> float | None:
    """The median of differences that are alike: half of them are within a quarter of it, and within `most`; else None."""
    median = float(np.median(differences))
    return median if np.median(abs(differences - median)) <= min(abs(median) / 4, most) else None


def _mean_distance(scene: NDArray[np.float64], training: NDArray[np.float64], span: NDArray[np.float64]) -> float:
    """Mean distance of bands, from their quantiles (band, 3) and training ranges (band, 1)."""
    return float((abs(scene - training) / span).max(axis=1).mean())


def _rounded(value: float, sign: str = "") -> str:
    """A number with three digits, thousands separated."""
    return f"{float(f'{value:.3g}'):{sign},g}"
