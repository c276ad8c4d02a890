"""Measure mapping with boosted trees on pixels in memory: features, trees, and both.

Run `python benchmarks/boosting.py`, or with a prepared store, whose training samples and pixels are then used:
`python benchmarks/boosting.py WORKSPACE/stores/SCENE.zarr`. On a machine that others use too, only the rates per second of
processor time mean something.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from jobs.baseline.samples import read_samples
from pipeline.classifiers.pixel_features import REACH, features_of, read_values
from pipeline.classifiers.trees import LabelledFeatures, fit_trees
from pipeline.grid import Window
from pipeline.parallel.cpu_count import cpu_count
from pipeline.store.patch_store import PatchStore

BANDS, CLASSES, SIDE, REPEATS = (12, 2, 1), 4, 512, 3
SAMPLES, ROUNDS = 20_000, (50, 300)
Values = tuple[NDArray[np.float32], ...]


def synthetic() -> tuple[Values, LabelledFeatures, int]:
    """Smooth bands with noise, and classes that follow from them with 20 % wrong labels."""
    generator = np.random.default_rng(0)
    side = SIDE + 2 * REACH
    smooth = [gaussian_filter(generator.normal(size=(side, side)), 12) for _ in range(sum(BANDS))]
    bands = np.stack([s / s.std() for s in smooth]).astype(np.float32)
    classes = bands[: 2 * CLASSES].reshape(2, CLASSES, side, side).sum(axis=0).argmax(axis=0)[REACH:-REACH, REACH:-REACH]
    wrong = generator.random(classes.shape) < 0.2
    classes = np.where(wrong, generator.integers(0, CLASSES, classes.shape), classes)
    noisy = np.round(1000 * bands + 500 * generator.normal(size=bands.shape)).astype(np.float32)
    values = tuple(np.split(noisy, np.cumsum(BANDS)[:-1]))
    drawn = generator.permutation(classes.size)[:SAMPLES]
    features = features_of(values).reshape(3 * len(bands), -1).T[drawn]
    return values, LabelledFeatures(features, classes.reshape(-1)[drawn]), CLASSES


def stored(url: str) -> tuple[Values, LabelledFeatures, int]:
    """The first pixels of a prepared store, and its training samples."""
    store = PatchStore(url, without=("validation", "test"))
    rows, columns = (min(SIDE, size) for size in store.shape)
    samples = read_samples([store], "train", store.sources, limit=SAMPLES, least=1, seed=0)
    labelled = LabelledFeatures(samples.features, samples.labels)
    return read_values(store, Window(0, 0, rows, columns), store.sources), labelled, len(store.classes)


def rates(work: Callable[[], object], pixels: int) -> str:
    """Pixels per second, and per second of processor time: medians of some runs after a first one."""
    work()
    found = []
    for _ in range(REPEATS):
        wall, processor = time.perf_counter(), time.process_time()
        work()
        found.append((pixels / (time.perf_counter() - wall), pixels / (time.process_time() - processor)))
    wall, processor = np.median(found, axis=0)
    return f"{wall:>12,.0f} px/s {processor:>12,.0f} per core"


def main() -> None:
    """Print the rates."""
    values, samples, classes = stored(sys.argv[1]) if len(sys.argv) > 1 else synthetic()
    features = features_of(values).reshape(samples.features.shape[1], -1).T
    pixels = len(features)
    print(f"{features.shape[1]} features, {classes} classes, {pixels:,} pixels, {cpu_count()} cores")
    print(f"features, one thread {rates(lambda: features_of(values), pixels)}")
    for rounds in ROUNDS:
        trees = fit_trees(samples.features, samples.labels, classes=classes, rounds=rounds)
        for name, work in (
            ("trees, one thread", partial(trees.scores, features, threads=1)),
            ("trees", partial(trees.scores, features)),
            ("features, trees", lambda trees=trees: trees.scores(features_of(values).reshape(trees.features, -1).T)),
        ):
            print(f"{trees.rounds:>3} rounds: {name:<20}{rates(work, pixels)}")


if __name__ == "__main__":
    main()
