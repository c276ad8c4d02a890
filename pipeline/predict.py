"""Map one tile: read it with its halo, scale it, run the network cell by cell. Knows nothing of where tiles go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mibf.bundle import Bundle
from mibf.dense import CELL, cell_logits
from mibf.errors import InputError
from mibf.network import MIBFNet
from mibf.precision import Precision, best_device, place
from pipeline.batches import scaled_window
from pipeline.grid import Window
from pipeline.labels import UNLABELLED
from pipeline.store import PatchStore
from pipeline.tiles import Tile


@dataclass(frozen=True)
class TileResult:
    """The products of a tile, each (rows, columns) of its window."""

    class_id: NDArray[np.uint8]  #: `UNLABELLED` where no pixel was to be mapped
    confidence: NDArray[np.float32]  #: the softmax probability of that class; NaN where none was mapped


def check_sources(store: PatchStore, bundle: Bundle) -> None:
    """See that a store holds the sources that a model was trained on.

    Raises:
        InputError: names, order or numbers of bands differ.
    """
    wanted = [(s.name, s.bands) for s in bundle.spec.sources]
    found = [(s.name, s.bands) for s in store.sources]
    if wanted != found:
        listed = [", ".join(f"{name} ({bands} bands)" for name, bands in sources) for sources in (found, wanted)]
        raise InputError(
            f"{store.url}: has the sources {listed[0]}; the model was trained on {listed[1]}. "
            "Give the scene the same sources and bands in the same order, or train again."
        )


class TilePredictor:
    """A model ready to map tiles of stores, on the best device there is."""

    def __init__(self, bundle: Bundle, *, precision: Precision) -> None:
        self.bundle = bundle
        self.precision: Precision = precision
        self.device = best_device()
        self.network: MIBFNet = place(bundle.network(), self.device)
        self.ids = np.array([c.id for c in bundle.classes], np.uint8)

    def predict(self, store: PatchStore, tile: Tile) -> TileResult:
        """The products of one tile; cells without a pixel to map are not computed."""
        window = tile.window
        usable = store.usable(window)
        class_id = np.full(usable.shape, UNLABELLED, np.uint8)
        confidence = np.full(usable.shape, np.nan, np.float32)
        halo = self.bundle.spec.halo
        rows = -(-window.height // CELL) * CELL
        columns = -(-window.width // CELL) * CELL
        whole = Window(window.y, window.x, rows, columns)
        sources = scaled_window(store, whole, self.bundle.scaling, halo=halo)
        for cell in tile.cells():
            y, x = cell.y - window.y, cell.x - window.x
            inside = slice(y, min(y + CELL, window.height)), slice(x, min(x + CELL, window.width))
            if not usable[inside].any():
                continue
            around = slice(y, y + CELL + 2 * halo), slice(x, x + CELL + 2 * halo)
            best, probability = self._cell([source[:, around[0], around[1]] for source in sources])
            cut = slice(inside[0].stop - y), slice(inside[1].stop - x)
            class_id[inside] = np.where(usable[inside], self.ids[best[cut]], UNLABELLED)
            confidence[inside] = np.where(usable[inside], probability[cut], np.nan)
        return TileResult(class_id, confidence)

    def _cell(self, sources: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Class positions and their probabilities, (CELL, CELL) each."""
        windows = [torch.from_numpy(np.ascontiguousarray(source)) for source in sources]
        probabilities = cell_logits(self.network, windows, precision=self.precision).softmax(dim=0)
        confidence, position = probabilities.max(dim=0)
        return position.cpu().numpy(), confidence.cpu().numpy()
