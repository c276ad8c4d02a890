"""Logits of every member of a model for single pixels, patch by patch: what evaluation and baselines need of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mibf.bundle.bundle import Bundle
from mibf.device import best_device, ieee_float32, to_device
from mibf.network.mibfnet import MIBFNet
from mibf.training.batch import BatchPlacer, PatchTables, WindowBatch
from mibf.transfer import pinned
from pipeline.classifiers.pixel_features import pixel_features
from pipeline.classifiers.reading import Classifier, read_classifiers
from pipeline.io.retry import call_with_retry
from pipeline.sampling.drawn_pixels import DrawnPixels, cut_patches
from pipeline.sampling.shuffle_buffer import PatchLayout, ShuffleBuffer
from pipeline.store.patch_store import PatchStore, scaled_window
from pipeline.store.template import StoredSource

#: Patches that a network classifies at a time.
BATCH = 1024


@dataclass(frozen=True)
class SampleInput:
    """What the members of a model need of a window's pixels."""

    pixels: DrawnPixels
    sources: list[NDArray[np.float32]]  #: the window with its halo, as of `scaled_window`; empty without networks
    buffer: ShuffleBuffer | None  #: the same for a GPU, which gathers the patches; None for a CPU, or without networks
    features: NDArray[np.float32] | None  #: of the pixels (n, F); None where no member needs them


@dataclass(frozen=True)
class SampleModel:
    """A model's members, ready to compute logits of pixels; with the class priors of training."""

    bundle: Bundle
    report: Callable[[str], None] = lambda line: None
    device: torch.device = field(default_factory=best_device)  #: of the networks, and of the logits

    @cached_property
    def _networks(self) -> list[MIBFNet]:
        count = len(self.bundle.networks)
        return [to_device(self.bundle.network(position=position), self.device) for position in range(count)]

    @cached_property
    def _sends_windows(self) -> bool:
        """Whether the device gathers patches of the windows that it gets, as in training."""
        return self.device.type == "cuda"

    @cached_property
    def _placer(self) -> BatchPlacer:
        return BatchPlacer(self.device)

    @cached_property
    def _layout(self) -> PatchLayout:
        spec = self.bundle.spec
        return PatchLayout(tuple(StoredSource(s.name, s.bands, "exclude", s.scale) for s in spec.sources), spec.patch)

    @cached_property
    def _tables(self) -> PatchTables:
        return self._layout.tables()

    @cached_property
    def _classifiers(self) -> list[Classifier]:
        return read_classifiers(self.bundle)

    def batches(self, store: PatchStore, pixels: DrawnPixels) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Yield logits of each member, in the bundle's order of members, (n, classes) each, and class positions (n,).

        Raises:
            InputError: a chunk of the store is damaged.
        """
        yield from self.compute(self.read(store, pixels))

    def read(self, store: PatchStore, pixels: DrawnPixels) -> SampleInput:
        """Read the input of some pixels of a window.

        Raises:
            InputError: a chunk of the store is damaged.
        """

        def read() -> SampleInput:
            sources, buffer, features = list[NDArray[np.float32]](), None, None
            if self._networks:
                sources = scaled_window(store, pixels.window, self.bundle.scaling, halo=self.bundle.spec.halo)
            if self._classifiers:
                taken = [store.source(source.name) for source in self.bundle.spec.sources]
                features = pixel_features(store, pixels.window, taken, self.bundle.scaling)[:, pixels.rows, pixels.columns].T
            if sources and self._sends_windows:
                sources, buffer = [], self._buffered(sources, pixels)
            return SampleInput(pixels, sources, buffer, features)

        return call_with_retry(store.url, read, report=self.report)

    def _buffered(self, sources: list[NDArray[np.float32]], pixels: DrawnPixels) -> ShuffleBuffer:
        """Put a window, or the patches of its pixels if these are fewer, into memory from which a GPU copies."""
        number = len(pixels.rows)
        buffer = ShuffleBuffer(self._layout, self._layout.pixels(number), allocate=pinned)
        times = np.ones(number, np.int64)
        buffer.add(sources, rows=pixels.rows, columns=pixels.columns, labels=pixels.labels, times=times)
        buffer.arrange()
        return buffer

    def compute(self, given: SampleInput) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Yield what `batches` yields, from what was read."""
        for start in range(0, len(given.pixels.rows), BATCH):
            part = slice(start, start + BATCH)
            yield self._logits(given, part), torch.from_numpy(given.pixels.labels[part]).to(self.device)

    def _logits(self, given: SampleInput, part: slice) -> list[Tensor]:
        patches = self._patches(given, part)
        networks, classifiers = iter(self._networks), iter(self._classifiers)
        found = []
        with torch.inference_mode(), ieee_float32(self.device):
            for member in self.bundle.members:
                if member.kind == "network":
                    found.append(next(networks)(patches).logits.double())
                else:
                    assert given.features is not None
                    found.append(torch.from_numpy(next(classifiers).scores(given.features[part])).to(self.device))
        return found

    def _patches(self, given: SampleInput, part: slice) -> list[Tensor]:
        """Return the patches of some pixels on the device, by source; none without networks."""
        rows, columns, patch = given.pixels.rows[part], given.pixels.columns[part], self.bundle.spec.patch
        if given.buffer is not None:
            places = given.buffer.places(part.start, part.start + len(rows))
            batch = WindowBatch(self._tables, ((given.buffer.pixels, len(rows)),), places)
            return self._placer.place(batch).patches(0, len(rows))
        return [
            torch.from_numpy(cut_patches(values, rows, columns, patch=patch, scale=s.scale)).to(self.device)
            for values, s in zip(given.sources, self.bundle.spec.sources, strict=False)  # no sources without networks
        ]
