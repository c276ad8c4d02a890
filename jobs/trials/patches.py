"""Batches of a trial's samples in the form that suits a device, as in training: patches for a CPU, places for a GPU.

A GPU gets the pixels of all samples once, and gathers the patches of each batch there, turned and mirrored on the way.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.trials.samples import TrialSamples
from mibf.training.batch import Batch, PatchTables, WindowBatch, WindowPixels
from pipeline.sampling.shuffle_buffer import NONE, PATCHES, SYMMETRIES, PatchLayout


@dataclass(frozen=True)
class TrialPatches:
    """The patches of samples of the sources that a network uses."""

    patches: tuple[NDArray[np.float32], ...]  #: by source (n, C, patch * scale, patch * scale)
    labels: NDArray[np.int64]  #: class positions (n,)
    windows: tuple[PatchTables, WindowPixels] | None  #: the same pixels, for a device that gathers patches

    @classmethod
    def of(cls, samples: TrialSamples, names: Collection[str], *, patch: int, as_places: bool) -> TrialPatches:
        """Return the patches of some sources; with `as_places` its batches are places in the pixels of all samples."""
        taken = [i for i, source in enumerate(samples.sources) if source.name in names]
        windows = None
        if as_places:
            tables = PatchLayout(tuple(samples.sources[i] for i in taken), patch).tables()
            windows = tables, WindowPixels(tuple(samples.pixels[i] for i in taken))
        return cls(tuple(samples.patches[i] for i in taken), samples.labels, windows)

    def batch(self, chosen: NDArray[np.int64], turns: NDArray[np.int64] | None = None) -> Batch | WindowBatch:
        """Return a batch of samples (m,), each with its own symmetry of the square (m,), by default as they are."""
        labels = self.labels[chosen]
        if self.windows is None:
            own = (p[chosen] for p in self.patches)
            return Batch(tuple(own if turns is None else (turned(p, turns) for p in own)), labels)
        tables, pixels = self.windows
        forms = PATCHES * SYMMETRIES + (np.zeros_like(chosen) if turns is None else turns)
        starts = [chosen * (tables.patch * scale) ** 2 for scale in sorted(tables.offsets)]
        return WindowBatch(tables, ((pixels, len(chosen)),), np.stack([labels, forms, np.full_like(chosen, NONE), *starts]))


def turned(patches: NDArray[np.float32], symmetries: NDArray[np.int64]) -> NDArray[np.float32]:
    """Turn and mirror each patch (n, C, side, side) by its own symmetry of the square (n,): quarter turns, then mirrored."""
    found = np.empty_like(patches)
    for symmetry in range(SYMMETRIES):
        own = symmetries == symmetry
        changed = np.rot90(patches[own], symmetry % 4, axes=(2, 3))
        found[own] = changed[..., ::-1] if symmetry >= 4 else changed
    return found
