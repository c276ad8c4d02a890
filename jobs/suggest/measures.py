"""What a published map says about where labels are missing: how uncertain pixels are, and how the model's parts disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.suggest.places import Rank
from mibf.errors import InputError
from pipeline.grid import Window
from pipeline.io import storage
from pipeline.maps.products import MapProductName, Product
from pipeline.publishing.published_map import PublishedMap
from pipeline.publishing.stac_item_reader import PublishedItem

#: Products of uncertainty, of which the first that a map has is used.
UNCERTAINTY: tuple[MapProductName, ...] = ("entropy", "confidence")
#: Products that say more where a map has them.
OTHERS: tuple[MapProductName, ...] = ("mutual_information", "kl", "gate")
#: What a high value of each means.
MEANINGS: Mapping[str, str] = {
    "entropy": "uncertain",
    "confidence": "uncertain",
    "mutual_information": "the model's members, or draws of its code, disagree",
    "kl": "unlike the training pixels",
    "gate": "the sources are weighed unlike elsewhere",
}
#: The command that adds what a map may lack.
REMEDY = "`mibf map CONFIG --set 'map.products=[class, second_class, confidence, entropy]'`"
#: Side of the decimated map from which ranks are taken, in pixels.
SAMPLE = 512


@dataclass(frozen=True)
class MapMeasures:
    """The measures of one published map."""

    published: PublishedMap
    products: Mapping[str, Product]  #: all that it has
    names: tuple[str, ...]  #: of the measures, which are those of products
    mean_gate: NDArray[np.float64] | None  #: (N,) over the map

    @classmethod
    def of(cls, folder: str, item: PublishedItem) -> MapMeasures:
        """Open a map's measures.

        Raises:
            InputError: it has no classes or nothing that says how uncertain they are.
        """
        products: dict[str, Product] = {product.name: product for product in item.products}
        uncertainty = next((name for name in UNCERTAINTY if name in products), None)
        if "class" not in products or uncertainty is None:
            raise InputError(
                f"{storage.redact_url(folder)}: the map has {', '.join(products)}; places to label are found from `class` "
                f"and `entropy` or `confidence`. Map again with them: {REMEDY}."
            )
        names = (uncertainty, *(name for name in OTHERS if name in products))
        published, mean = PublishedMap(folder), None
        if "gate" in names:
            gate = _decoded(published, products["gate"], *_decimated(item.shape_yx))
            known = gate[:, np.isfinite(gate[0])].astype(np.float64)
            mean = known.mean(axis=1) if known.shape[1] else None
        return cls(published, products, names if mean is not None else tuple(n for n in names if n != "gate"), mean)

    def read(self, window: Window, shape_yx: tuple[int, int] | None = None) -> dict[str, NDArray[np.float64]]:
        """Read the measures (H, W) of a window, NaN where the map has no data; decimated to `shape_yx` if given."""
        return {name: self._measure(name, window, shape_yx) for name in self.names}

    def read_codes(self, name: MapProductName, window: Window) -> NDArray[Any] | None:
        """Read the codes (H, W) of a product of one band; None if the map does not have it."""
        return self.published.read(self.products[name], window)[0] if name in self.products else None

    def sample(self, shape_yx: tuple[int, int]) -> dict[str, NDArray[np.float64]]:
        """Read the measures of the map at a few pixels, spread evenly."""
        return self.read(*_decimated(shape_yx))

    def _measure(self, name: str, window: Window, shape_yx: tuple[int, int] | None) -> NDArray[np.float64]:
        values = _decoded(self.published, self.products[name], window, shape_yx).astype(np.float64)
        if name == "confidence":
            return np.asarray(1 - values[0])
        if name == "gate":
            assert self.mean_gate is not None
            return np.asarray(abs(values - self.mean_gate[:, None, None]).sum(axis=0) / 2)
        return np.asarray(values[0])


def _decoded(
    published: PublishedMap, product: Product, window: Window, shape_yx: tuple[int, int] | None = None
) -> NDArray[Any]:
    return product.decode(published.read(product, window, shape_yx=shape_yx))


def _decimated(shape_yx: tuple[int, int]) -> tuple[Window, tuple[int, int]]:
    rows, columns = shape_yx
    step = max(1, -(-max(shape_yx) // SAMPLE))
    return Window(0, 0, rows, columns), (-(-rows // step), -(-columns // step))


def ranks_of(samples: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, Rank]:
    """Return the rank of each measure over the maps of all scenes, which have the same measures."""
    return {name: Rank.of(np.concatenate([sample[name].ravel() for sample in samples])) for name in samples[0]}


def reason(shares: Mapping[str, float]) -> str:
    """Say why a place was chosen, from the ranks of its central pixel: the measures in the top quarter, or the highest."""
    order = sorted(shares, key=lambda name: -shares[name])
    high = [name for name in order if shares[name] >= 0.75] or order[:1]
    return "; ".join(f"{MEANINGS[name]} ({name}: above {shares[name]:.0%} of the map)" for name in high)
