"""Predict one tile: read it with its halo, normalize it, run the network. Independent of where results are written."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mibf.bundle.bundle import Bundle
from mibf.class_priors import PriorSetting
from mibf.device import Precision, best_device, means_no_memory, to_device
from mibf.errors import InputError
from mibf.inference.dense import MC_SAMPLES, Dense
from mibf.inference.outputs import RANKED, ProductName
from pipeline.codes import UNLABELLED
from pipeline.grid import Tile, Window
from pipeline.maps.products import Product, products_of_network
from pipeline.store.patch_store import PatchStore, scaled_window, usable
from pipeline.store.template import StoredSource

#: The products of a tile by name, each as codes (band, rows, columns), encoded as in `pipeline.maps.products`.
TileResult = dict[str, NDArray[Any]]
#: Which pixels are mapped. declared: by the rule of each source in the store; nodata: where all of the model's sources have
#: data; map: where at least one of them has data.
MissingDataPolicy = Literal["declared", "nodata", "map"]


@dataclass(frozen=True)
class TileInput:
    """Input of a tile: NumPy arrays only, so it can be read ahead in another thread."""

    sources: tuple[NDArray[np.float32], ...]  #: each (band, rows, columns) with its halo, normalized to [0, 1]
    wanted: NDArray[np.bool_]  #: (rows, columns), the pixels to map
    present: NDArray[Any]  #: (rows, columns), bit i where source i has data

    def to_bytes(self) -> bytes:
        """Serialize for transfer between machines."""
        file = io.BytesIO()
        np.savez(file, *self.sources, wanted=self.wanted, present=self.present)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> TileInput:
        """Deserialize the result of `to_bytes`."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            sources = tuple(arrays[f"arr_{i}"] for i in range(len(arrays.files) - 2))
            return cls(sources, arrays["wanted"], arrays["present"])


def check_sources(store: PatchStore, bundle: Bundle) -> None:
    """Check that a store has the sources that a model was trained on.

    Raises:
        InputError: names, order or numbers of bands differ.
    """
    wanted = [(s.name, s.bands, s.scale) for s in bundle.spec.sources]
    found = [(s.name, s.bands, s.scale) for s in store.sources if s.name in bundle.scaling]
    if wanted != found:
        listed = [", ".join(map(_describe_source, sources)) for sources in (found, wanted)]
        raise InputError(
            f"{store.url}: has the sources {listed[0]}; the model was trained on {listed[1]}. "
            "Provide the scene with the same sources and bands in the same order, or train a new model."
        )


def _describe_source(source: tuple[str, int, int]) -> str:
    name, bands, scale = source
    return f"{name} ({bands} bands{'' if scale == 1 else f', at {scale}x resolution'})"


def mappable_pixels(
    store: PatchStore, window: Window, *, sources: Collection[str], missing: MissingDataPolicy
) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Return which pixels (height, width) of a window a model of given sources maps, and the mask of their data.

    Bit i of the mask is set where the i-th of these sources, in the store's order, has data.
    """
    there = store.present(window)
    taken = [source for source in store.sources if source.name in sources]
    if missing == "declared":  # as for samples: by the rules of all sources, whether the model uses them or not
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
    """A model that maps tiles on a device, by default the best one here; `priors` chooses the class frequencies it assumes.

    The network is loaded with the first tile that is computed, so that what only reads tiles takes no device.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        products: Sequence[Product],
        precision: Precision,
        priors: PriorSetting = "trained",
        mc_samples: int = MC_SAMPLES,
        seed: int = 0,
        missing: MissingDataPolicy = "declared",
        device: torch.device | None = None,
    ) -> None:
        self.bundle = bundle
        self.products = tuple(products)
        self.missing: MissingDataPolicy = missing
        self._priors: PriorSetting = priors
        self._device = device or best_device()
        self._make_dense = partial(
            Dense, precision=precision, temperature=bundle.temperature, mc_samples=mc_samples, seed=seed
        )
        # The last entry is indexed by class -1, which means no result.
        self.ids = np.array([*(c.id for c in bundle.classes), UNLABELLED], np.uint8)

    @cached_property
    def dense(self) -> Dense:
        """The network on the device; replaced by one that takes fewer rows at a time after an out-of-memory error."""
        return self._make_dense(to_device(self.bundle.network(self._priors), self._device))

    @property
    def rows(self) -> int:
        """Rows of a cell computed at a time; reduced after an out-of-memory error."""
        return self.dense.rows

    def predict(self, store: PatchStore, tile: Tile) -> TileResult:
        """Compute the products of one tile; cells without pixels to map are skipped."""
        return self.compute(self.read(store, tile))

    def read(self, store: PatchStore, tile: Tile) -> TileInput:
        """Read the input of one tile. Thread-safe."""
        names = [source.name for source in self.bundle.spec.sources]
        wanted, present = mappable_pixels(store, tile.window, sources=names, missing=self.missing)
        sources = scaled_window(store, tile.window, self.bundle.scaling, halo=self.bundle.spec.halo)
        return TileInput(tuple(sources), wanted, present)

    def compute(self, tile: TileInput) -> TileResult:
        """Compute the products of one tile.

        After an out-of-memory error the tile is retried with half as many rows at a time, and the lower number is kept.
        The last bits of continuous products may then differ, as they may on another machine.

        Raises:
            MemoryError: or torch's equivalents: not enough memory for a single row.
        """
        while True:
            try:
                return self._compute(tile)
            except (MemoryError, RuntimeError) as error:
                if self.rows == 1 or not means_no_memory(error):
                    raise
            # Outside the except block: the exception's frames keep references to the allocated memory.
            self.dense = self.dense.with_rows(self.rows // 2)
            if self.dense.device.type == "cuda":
                torch.cuda.empty_cache()

    def _compute(self, tile: TileInput) -> TileResult:
        network_products = products_of_network(self.products)
        found: dict[ProductName, torch.Tensor] = {}
        if network_products:
            sources = [torch.from_numpy(values) for values in tile.sources]
            found = self.dense(sources, products=network_products, wanted=torch.from_numpy(tile.wanted))
        return {
            product.name: tile.present[None] if product.name == "sources" else self._layer(product, found[product.name])
            for product in self.products
        }

    def _layer(self, product: Product, values: torch.Tensor) -> NDArray[Any]:
        found = values.cpu().numpy()
        codes = self.ids[found] if product.name in RANKED else product.encode(found)
        return codes if codes.ndim == 3 else codes[None]
