"""Draw the samples of trials into memory: patches, features and positions of train and validation pixels, no test pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from jobs.runtime.progress import warn
from mibf.errors import InputError
from mibf.normalization import Scaling
from mibf.transfer import pinned
from pipeline.classifiers.pixel_features import pixel_features
from pipeline.codes import Subset
from pipeline.io.retry import call_with_retry
from pipeline.sampling.drawn_pixels import DrawnPixels, cut_patches, draw_pixels, share_out
from pipeline.sampling.store_catalog import sample_table
from pipeline.store.patch_store import PatchStore, scaled_window
from pipeline.store.template import StoredSource

#: The subsets that trials use.
SUBSETS: tuple[Subset, Subset] = ("train", "validation")
#: Samples at most, and bytes of their patches at most.
LIMIT, PATCH_BYTES = 20_000, 512 << 20
#: Samples of each class at least, in each subset, as far as there are some.
LEAST = 50


@dataclass(frozen=True)
class TrialSamples:
    """Drawn train and validation pixels of all stores in memory: n samples, those of training first."""

    sources: tuple[StoredSource, ...]  #: of the patches and features
    patches: tuple[NDArray[np.float32], ...]  #: by source, normalized (n, C, patch * scale, patch * scale)
    features: NDArray[np.float32]  #: (n, F), see `pixel_features`
    labels: NDArray[np.int64]  #: class positions (n,)
    store: NDArray[np.int64]  #: position of the store (n,)
    row: NDArray[np.int64]  #: in the store's reference grid (n,)
    column: NDArray[np.int64]  #: likewise (n,)
    is_validation: NDArray[np.bool_]  #: (n,)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def pixels(self) -> tuple[NDArray[np.float32], ...]:
        """The pixels of the patches by source, patch by patch (n * side * side, C), in memory from which GPUs copy."""
        found = []
        for patches in self.patches:
            number, bands, *sides = patches.shape
            own = pinned((number * sides[0] * sides[1], bands))
            own.reshape(number, *sides, bands)[...] = patches.transpose(0, 2, 3, 1)
            found.append(own)
        return tuple(found)

    @property
    def positions(self) -> NDArray[np.int64]:
        """Store, row and column of each sample (n, 3)."""
        return np.column_stack([self.store, self.row, self.column])


def read_trial_samples(
    stores: Sequence[PatchStore],
    scaling: Scaling,
    *,
    patch: int,
    seed: int,
    limit: int = LIMIT,
    patch_bytes: int = PATCH_BYTES,
) -> TrialSamples:
    """Draw train and validation pixels, stratified by class, as many of both as their shares of all pixels.

    Memory is bounded by `limit` and `patch_bytes`, whatever the size of the scenes.

    Args:
        stores: opened without the test subset.
        scaling: of the sources that are used.
        patch: side in reference pixels.
        seed: decides which pixels are drawn.
        limit: number of samples at most.
        patch_bytes: bytes of all patches at most.

    Raises:
        InputError: there is no training pixel, or a store is damaged.
        ValueError: a store was opened with its test subset.
    """
    if any("test" not in store.without for store in stores):
        raise ValueError("a store is open with its test subset, which trials must not read")
    sources = tuple(source for source in stores[0].sources if source.name in scaling)
    sample_bytes = 4 * patch**2 * sum(source.bands * source.scale**2 for source in sources)
    limit = min(limit, max(1, patch_bytes // sample_bytes))
    available = np.array([_available(stores, subset) for subset in SUBSETS])
    if not available[0]:
        raise InputError(f"{stores[0].url}: no samples in the subset 'train'; check labels and split.")
    limits = share_out(available, limit=limit, least=limit // 4)
    drawn = [
        list(draw_pixels(stores, subset, limit=int(most), least=LEAST, seed=seed, report=warn)) if most else []
        for subset, most in zip(SUBSETS, limits, strict=True)
    ]
    return _read(stores, scaling, sources, drawn[0], drawn[1], patch=patch)


def _available(stores: Sequence[PatchStore], subset: Subset) -> int:
    """Number of samples of a subset in all stores."""
    return int(sample_table(stores, subset, report=warn).counts.sum())


def _read(
    stores: Sequence[PatchStore],
    scaling: Scaling,
    sources: tuple[StoredSource, ...],
    train: list[DrawnPixels],
    validation: list[DrawnPixels],
    *,
    patch: int,
) -> TrialSamples:
    """Read the patches and features of drawn pixels, window by window."""
    drawn = [*train, *validation]
    number = sum(len(d.labels) for d in drawn)
    sides = [patch * source.scale for source in sources]
    # Filled in place: arrays of all windows, then joined, would take twice the memory.
    patches = [np.empty((number, source.bands, side, side), np.float32) for source, side in zip(sources, sides, strict=True)]
    features, begin = [], 0
    for pixels in drawn:
        part = slice(begin, begin + len(pixels.labels))
        begin = part.stop
        values, own = _window(stores[pixels.store], scaling, sources, pixels, halo=patch // 2)
        for source, window, out in zip(sources, values, patches, strict=True):
            out[part] = cut_patches(window, pixels.rows, pixels.columns, patch=patch, scale=source.scale)
        features.append(own)
    return TrialSamples(
        sources=sources,
        patches=tuple(patches),
        features=np.concatenate(features),
        labels=np.concatenate([d.labels for d in drawn]),
        store=np.concatenate([np.full(len(d.labels), d.store) for d in drawn]),
        row=np.concatenate([d.window.y + d.rows for d in drawn]),
        column=np.concatenate([d.window.x + d.columns for d in drawn]),
        is_validation=np.arange(number) >= sum(len(d.labels) for d in train),
    )


def _window(
    store: PatchStore, scaling: Scaling, sources: Sequence[StoredSource], pixels: DrawnPixels, *, halo: int
) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    """Read the normalized window with halo of every source, and the features (n, F) of the drawn pixels."""

    def read() -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
        values = scaled_window(store, pixels.window, scaling, halo=halo)
        return values, pixel_features(store, pixels.window, sources, scaling)[:, pixels.rows, pixels.columns].T

    return call_with_retry(store.url, read, report=warn)
