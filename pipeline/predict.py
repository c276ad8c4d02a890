"""Map one tile: read it with its halo, scale it, run the network over it. Knows nothing of where tiles go."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mibf.bundle import Bundle
from mibf.dense import DRAWS, Dense
from mibf.errors import InputError
from mibf.precision import Precision, best_device, place
from mibf.priors import Choice
from mibf.products import ProductName
from pipeline.batches import scaled_window
from pipeline.labels import UNLABELLED
from pipeline.store import PatchStore
from pipeline.tiles import Tile

#: The products of a tile by name, (band, rows, columns) of its window each: class ids as uint8, `UNLABELLED` where
#: no pixel was to be mapped; the others float32, NaN there.
TileResult = dict[str, NDArray[Any]]


def check_sources(store: PatchStore, bundle: Bundle) -> None:
    """See that a store holds the sources that a model was trained on.

    Raises:
        InputError: names, order or numbers of bands differ.
    """
    wanted = [(s.name, s.bands, s.scale) for s in bundle.spec.sources]
    found = [(s.name, s.bands, s.scale) for s in store.sources if s.name in bundle.scaling]
    if wanted != found:
        listed = [", ".join(map(_told, sources)) for sources in (found, wanted)]
        raise InputError(
            f"{store.url}: has the sources {listed[0]}; the model was trained on {listed[1]}. "
            "Give the scene the same sources and bands in the same order, or train again."
        )


def _told(source: tuple[str, int, int]) -> str:
    name, bands, scale = source
    return f"{name} ({bands} bands{'' if scale == 1 else f', {scale} times as fine'})"


class TilePredictor:
    """A model ready to map tiles of stores, on the best device there is, for class frequencies as `priors` says."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        products: Collection[ProductName],
        precision: Precision,
        priors: Choice = "trained",
        draws: int = DRAWS,
        seed: int = 0,
    ) -> None:
        self.bundle = bundle
        self.products = tuple(products)
        network = place(bundle.network(priors), best_device())
        self.dense = Dense(network, precision=precision, temperature=bundle.temperature, draws=draws, seed=seed)
        # One more, the last: what class -1, no result, is found as.
        self.ids = np.array([*(c.id for c in bundle.classes), UNLABELLED], np.uint8)

    def predict(self, store: PatchStore, tile: Tile) -> TileResult:
        """The products of one tile; work without a pixel to map is left out."""
        halo = self.bundle.spec.halo
        wanted = torch.from_numpy(store.usable(tile.window))
        sources = [torch.from_numpy(x) for x in scaled_window(store, tile.window, self.bundle.scaling, halo=halo)]
        found = self.dense(sources, products=self.products, wanted=wanted)
        return {name: self._layer(name, values.cpu().numpy()) for name, values in found.items()}

    def _layer(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        if name == "class":
            values = self.ids[values]
        return values if values.ndim == 3 else values[None]
