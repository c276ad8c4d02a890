"""Read the drawn pixels of a subset: their features, classes and blocks, and the trained model's predictions of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from jobs.runtime.progress import warn
from mibf.bundle.bundle import Bundle
from mibf.class_priors import PriorSetting
from mibf.ensemble import mixture_log_probabilities
from mibf.normalization import Scaling
from pipeline.classifiers.pixel_features import pixel_features
from pipeline.codes import Subset
from pipeline.io.retry import call_with_retry
from pipeline.sampling.drawn_pixels import DrawnPixels, draw_pixels
from pipeline.sampling.sample_blocks import MOST_BLOCKS
from pipeline.sampling.sample_logits import SampleModel
from pipeline.store.patch_store import PatchStore
from pipeline.store.template import StoredSource

#: Windows of a subset that are always read, as far as there are some.
WINDOWS = 8


@dataclass(frozen=True)
class Samples:
    """The drawn pixels of a subset."""

    drawn: list[DrawnPixels]
    features: NDArray[np.float32]  #: (n, F), see `pipeline.classifiers.pixel_features`

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class positions (n,)."""
        return np.concatenate([d.labels for d in self.drawn])

    def part(self, chosen: NDArray[np.bool_]) -> Samples:
        """Return the chosen samples (n,); windows without any are left out."""
        ends = np.cumsum([len(d.rows) for d in self.drawn])
        drawn = []
        for d, own in zip(self.drawn, np.split(chosen, ends[:-1]), strict=True):
            if own.any():
                drawn.append(replace(d, rows=d.rows[own], columns=d.columns[own], labels=d.labels[own]))
        return Samples(drawn, self.features[chosen])

    def blocks(self, side: int) -> tuple[NDArray[np.int64], int, int]:
        """Assign the samples to square blocks anchored at the grid's origin.

        The side is doubled until at most `MOST_BLOCKS` blocks hold a sample.

        Returns:
            The block of each sample, from 0 (n,), the number of blocks, and their side in pixels.
        """
        store = np.concatenate([np.full(len(d.rows), d.store) for d in self.drawn])
        rows = np.concatenate([d.window.y + d.rows for d in self.drawn])
        columns = np.concatenate([d.window.x + d.columns for d in self.drawn])
        while True:
            found, block = np.unique(np.stack([store, rows // side, columns // side]), axis=1, return_inverse=True)
            if found.shape[1] <= max(MOST_BLOCKS, store.max() + 1):
                return block.reshape(-1), found.shape[1], side
            side *= 2


def read_samples(
    stores: Sequence[PatchStore],
    subset: Subset,
    sources: Sequence[StoredSource],
    *,
    limit: int,
    least: int,
    seed: int,
    enough: Callable[[], bool] = lambda: False,
    scaling: Scaling | None = None,
) -> Samples:
    """Draw pixels of a subset that holds some, and compute their features.

    With a `scaling` that matches scenes to the training distribution, the values of each scene are matched. Windows are read
    in a random order until it is `enough`, which is checked from the first `WINDOWS`; the samples are in the order of the
    grid.

    Raises:
        InputError: a store is damaged.
    """
    found: list[tuple[DrawnPixels, NDArray[np.float32]]] = []
    for pixels in draw_pixels(stores, subset, limit=limit, least=least, seed=seed, shuffled=True, report=warn):
        store = stores[pixels.store]

        def read(store: PatchStore = store, pixels: DrawnPixels = pixels) -> NDArray[np.float32]:
            return pixel_features(store, pixels.window, sources, scaling)[:, pixels.rows, pixels.columns].T

        found.append((pixels, call_with_retry(store.url, read, report=warn)))
        if len(found) >= WINDOWS and enough():
            break
    found.sort(key=lambda each: (each[0].store, each[0].window.y, each[0].window.x))
    return Samples([pixels for pixels, _ in found], np.concatenate([features for _, features in found]))


def model_probabilities(
    bundle: Bundle, priors: PriorSetting, stores: Sequence[PatchStore], samples: Samples
) -> tuple[NDArray[np.float64], float]:
    """Classify the drawn pixels with a trained model, at its temperatures and with these class priors, as the map does.

    Returns:
        The probabilities (n, classes), and the seconds that this took, without reading and without computing features.
    """
    model, correction = SampleModel(bundle, warn), bundle.correction(priors)
    temperatures, shares = [m.temperature for m in bundle.members], [m.share for m in bundle.members]
    found, seconds = [], 0.0
    for pixels in samples.drawn:
        given = model.read(stores[pixels.store], pixels)
        started = time.monotonic()
        for logits, _ in model.compute(given):
            likely = mixture_log_probabilities(logits, temperatures, shares, correction).exp()
            found.append(likely.double().cpu().numpy())
        seconds += time.monotonic() - started
    return np.concatenate(found), seconds
