"""Map one tile: read it with its halo, scale it, run the network over it. Knows nothing of where tiles go."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mibf.bundle import Bundle
from mibf.dense import DRAWS, Dense
from mibf.errors import InputError
from mibf.precision import Precision, best_device, place
from mibf.priors import Choice
from mibf.products import RANKED, ProductName
from pipeline.batches import scaled_window
from pipeline.grid import Window
from pipeline.labels import UNLABELLED
from pipeline.products import Product, of_network
from pipeline.store import PatchStore, StoredSource, usable
from pipeline.tiles import Tile

#: The products of a tile by name, codes (band, rows, columns) of its window each, as `pipeline.products` stores them.
TileResult = dict[str, NDArray[Any]]

#: Which pixels are mapped: as each source's rule in the store says, only those where all sources that the model takes
#: have data, or those where at least one of them has.
MissingChoice = Literal["declared", "nodata", "map"]

#: What torch says, in an error of no class of its own, when memory does not suffice.
_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED")


@dataclass(frozen=True)
class TileInput:
    """What a tile is computed from; arrays of numpy alone, which may be read ahead in another thread."""

    sources: tuple[NDArray[np.float32], ...]  #: each (band, rows, columns) with its halo, scaled to [0, 1]
    wanted: NDArray[np.bool_]  #: (rows, columns), the pixels to map
    present: NDArray[Any]  #: (rows, columns), bit i where source i has data

    def to_bytes(self) -> bytes:
        """It as it travels between machines."""
        file = io.BytesIO()
        np.savez(file, *self.sources, wanted=self.wanted, present=self.present)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> TileInput:
        """What `to_bytes` gave."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            sources = tuple(arrays[f"arr_{i}"] for i in range(len(arrays.files) - 2))
            return cls(sources, arrays["wanted"], arrays["present"])


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


def to_map(
    store: PatchStore, window: Window, *, sources: Collection[str], missing: MissingChoice
) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """The pixels (height, width) of a window to be mapped by a model of some sources, and the mask of their data.

    Bit i of the mask is set where the i-th of these sources, in the store's order, has data.
    """
    there = store.present(window)
    taken = [source for source in store.sources if source.name in sources]
    if missing == "declared":  # as for samples: by the rules of all sources, whether the model takes them or not
        wanted = usable(store.sources, there)
    else:
        wanted = usable(taken, there, required=sources if missing == "nodata" else ())
    return wanted, _mask(taken, there)


def _mask(sources: Sequence[StoredSource], there: Mapping[str, NDArray[np.bool_]]) -> NDArray[Any]:
    dtype = np.min_scalar_type((1 << len(sources)) - 1)
    mask = np.zeros(there[sources[0].name].shape, dtype)
    for bit, source in enumerate(sources):
        mask |= there[source.name].astype(dtype) << dtype.type(bit)
    return mask


class TilePredictor:
    """A model ready to map tiles of stores, on the best device there is, for class frequencies as `priors` says."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        products: Sequence[Product],
        precision: Precision,
        priors: Choice = "trained",
        draws: int = DRAWS,
        seed: int = 0,
        missing: MissingChoice = "declared",
    ) -> None:
        self.bundle = bundle
        self.products = tuple(products)
        self.missing: MissingChoice = missing
        network = place(bundle.network(priors), best_device())
        self.dense = Dense(network, precision=precision, temperature=bundle.temperature, draws=draws, seed=seed)
        # One more, the last: what class -1, no result, is found as.
        self.ids = np.array([*(c.id for c in bundle.classes), UNLABELLED], np.uint8)

    @property
    def rows(self) -> int:
        """Rows of a cell that are in work at a time; fewer than at first where memory did not suffice for these."""
        return self.dense.rows

    def predict(self, store: PatchStore, tile: Tile) -> TileResult:
        """The products of one tile; work without a pixel to map is left out."""
        return self.compute(self.read(store, tile))

    def read(self, store: PatchStore, tile: Tile) -> TileInput:
        """What one tile is computed from; for any thread."""
        names = [source.name for source in self.bundle.spec.sources]
        wanted, present = to_map(store, tile.window, sources=names, missing=self.missing)
        sources = scaled_window(store, tile.window, self.bundle.scaling, halo=self.bundle.spec.halo)
        return TileInput(tuple(sources), wanted, present)

    def compute(self, tile: TileInput) -> TileResult:
        """The products of one tile.

        Where memory does not suffice it is tried again with half as many rows in work, and they stay as few: the last
        bits of measures may be others then, as those of another machine may.

        Raises:
            MemoryError: or torch's own errors that mean it: memory does not suffice for a single row.
        """
        while True:
            try:
                return self._compute(tile)
            except (MemoryError, RuntimeError) as error:
                if self.rows == 1 or not _means_no_memory(error):
                    raise
            # Not where the error is at hand, whose frames hold on to what was allocated.
            self.dense = self.dense.with_rows(self.rows // 2)
            if self.dense.device.type == "cuda":
                torch.cuda.empty_cache()

    def _compute(self, tile: TileInput) -> TileResult:
        asked = of_network(self.products)
        found: dict[ProductName, torch.Tensor] = {}
        if asked:
            sources = [torch.from_numpy(values) for values in tile.sources]
            found = self.dense(sources, products=asked, wanted=torch.from_numpy(tile.wanted))
        return {
            product.name: tile.present[None] if product.name == "sources" else self._layer(product, found[product.name])
            for product in self.products
        }

    def _layer(self, product: Product, values: torch.Tensor) -> NDArray[Any]:
        found = values.cpu().numpy()
        codes = self.ids[found] if product.name in RANKED else product.encode(found)
        return codes if codes.ndim == 3 else codes[None]


def _means_no_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(part in str(error) for part in _NO_MEMORY)
