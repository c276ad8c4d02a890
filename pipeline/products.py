"""What a map consists of: each product's pixel type, nodata value and scale. Values only; no arrays' places, no files.

Measures are stored as whole numbers, code = value / scale, and the file says the scale: a map takes a quarter to a half
of what it takes in float32, and compresses far better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mibf.bundle import ClassName
from mibf.products import PRODUCT_NAMES, ProductName
from pipeline.labels import UNLABELLED

MapProductName = Literal[
    "class", "second", "confidence", "probabilities", "entropy", "information", "rate", "gate", "sources"
]
MAP_PRODUCTS: tuple[MapProductName, ...] = get_args(MapProductName)
#: How measures are stored. Classes and the mask of sources have a type of their own.
MapDtype = Literal["uint16", "uint8", "float32"]
Bands = Literal["one", "classes", "sources"]
Overviews = Literal["mode", "nearest", "average"]

#: What the layers of class ids are.
CLASS_PRODUCTS: frozenset[MapProductName] = frozenset({"class", "second"})
#: Measures by name: their bands, their unit ("nat", or none of a share), and the scale of a code in uint16 and uint8.
_MEASURES: Mapping[str, tuple[Bands, str, float, float | None]] = {
    "confidence": ("one", "", 1e-4, 0.004),
    "probabilities": ("classes", "", 1e-4, 0.004),
    "entropy": ("one", "nat", 1e-4, 0.025),
    "information": ("one", "nat", 1e-4, 0.025),
    # Has no upper bound: beyond 6553.4 nats, far from all that training has seen, uint16 says no more than that. What
    # matters of it is the range below 10 as well as that of hundreds, and 254 even steps cannot show both.
    "rate": ("one", "nat", 0.1, None),
    "gate": ("sources", "", 1e-4, 0.004),
}


@dataclass(frozen=True)
class Product:
    """One raster of a map: its name, and how its pixels and overviews are stored.

    A pixel's value is its code times `scale`, in `unit`; there is none where the code is `nodata`.
    """

    name: MapProductName
    dtype: str
    nodata: float
    overviews: Overviews
    predictor: int  #: of the compression, as TIFF numbers them: 2 differences of integers, 3 of floats
    bands: Bands = "one"
    scale: float = 1.0
    unit: str = ""

    def band_names(self, classes: Sequence[ClassName], sources: Sequence[str]) -> list[str]:
        """What each of its bands is of: the product itself, a class or a source."""
        if self.bands == "classes":
            return [c.name for c in classes]
        return list(sources) if self.bands == "sources" else [self.name]

    def encode(self, values: ArrayLike) -> NDArray[Any]:
        """Values, NaN where there is none, as codes: rounded half to even, clipped to the codes that are not nodata."""
        found = np.asarray(values)
        codes = np.empty(found.shape, self.dtype)
        if codes.dtype.kind == "f":
            codes[...] = found
            return codes
        top = int(self.nodata) - 1 if self.nodata else np.iinfo(codes.dtype).max
        # In float64, where every code is exact; plane by plane, so that not all bands are held so.
        for plane in np.ndindex(found.shape[:-2]):
            code = np.clip(np.rint(found[plane].astype(np.float64) / self.scale), 0 if self.nodata else 1, top)
            codes[plane] = np.where(np.isnan(code), self.nodata, code)
        return codes

    def decode(self, codes: ArrayLike) -> NDArray[Any]:
        """Codes as values, NaN where there is none: float64, those of a float32 product as they are."""
        found = np.asarray(codes)
        return found if found.dtype.kind == "f" else np.where(self.present(found), found * self.scale, np.nan)

    def present(self, codes: NDArray[Any]) -> NDArray[np.bool_]:
        """Where codes are values."""
        return np.asarray(~np.isnan(codes) if np.isnan(self.nodata) else codes != self.nodata)


def product(name: MapProductName, dtype: MapDtype = "uint16", *, sources: int = 8) -> Product:
    """A product of a map whose measures are stored as `dtype`, of a model that takes this number of sources.

    `sources` is a mask, bit i set where source i has data, in the smallest unsigned integer that has a bit for each: 0,
    its nodata value, is where none has. `rate` has no form in uint8 and is float32 there.
    """
    if name in CLASS_PRODUCTS:
        return Product(name, "uint8", UNLABELLED, "mode", 2)
    if name == "sources":
        return Product(name, str(np.min_scalar_type((1 << sources) - 1)), 0, "nearest", 2)
    bands, unit, fine, coarse = _MEASURES[name]
    scale = {"uint16": fine, "uint8": coarse, "float32": None}[dtype]
    if scale is None:
        return Product(name, "float32", np.nan, "average", 3, bands, unit=unit)
    return Product(name, dtype, np.iinfo(dtype).max, "average", 2, bands, scale, unit)


def of_network(products: Sequence[Product]) -> tuple[ProductName, ...]:
    """The names of those that the network gives; `sources` comes from where the sources have data."""
    return tuple(cast(ProductName, p.name) for p in products if p.name in PRODUCT_NAMES)
