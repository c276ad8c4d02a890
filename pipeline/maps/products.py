"""Map products: pixel type, nodata value and scale of each. Defines values only, independent of stores and files.

Continuous values are stored as integers, code = value / scale, and the file carries the scale: a map takes a quarter to
half of its size in float32, and compresses far better. Codes are computed on the device that has the values, by one rule
for all devices, and come back to the host as the integers that are stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mibf.bundle.classes import ClassName
from mibf.errors import InputError
from mibf.inference.outputs import PRODUCT_NAMES, ProductName
from pipeline.codes import UNLABELLED

MapProductName = Literal[
    "class",
    "second_class",
    "confidence",
    "probabilities",
    "entropy",
    "mutual_information",
    "kl",
    "gate",
    "sources",
    "set_size",
    "prediction_set",
]
MAP_PRODUCTS: tuple[MapProductName, ...] = get_args(MapProductName)
#: How continuous products are stored. Class ids and the source mask have fixed types.
MapDtype = Literal["uint16", "uint8", "float32"]
Bands = Literal["one", "classes", "sources"]
Overviews = Literal["mode", "nearest", "average"]
#: Products that hold class ids.
CLASS_PRODUCTS: frozenset[MapProductName] = frozenset({"class", "second_class"})
#: Products of prediction sets, which need their thresholds.
SET_PRODUCTS: frozenset[MapProductName] = frozenset({"set_size", "prediction_set"})
#: Products whose bits are sources, or classes.
MASKS: frozenset[MapProductName] = frozenset({"sources", "prediction_set"})
#: Bits of the widest integer that holds a mask.
MOST_BITS = 64
#: Continuous products by name: their bands, unit ("nat"; empty for fractions), and the scale of a code in uint16 and uint8.
_MEASURES: Mapping[str, tuple[Bands, str, float, float | None]] = {
    "confidence": ("one", "", 1e-4, 0.004),
    "probabilities": ("classes", "", 1e-4, 0.004),
    "entropy": ("one", "nat", 1e-4, 0.025),
    "mutual_information": ("one", "nat", 1e-4, 0.025),
    # The KL term has no upper bound: uint16 saturates at 6553.4 nats, far beyond anything seen in training. Both the range
    # below 10 and that of hundreds matter, and 254 equal steps cannot resolve both.
    "kl": ("one", "nat", 0.1, None),
    "gate": ("sources", "", 1e-4, 0.004),
}
#: Torch types with the bits of the types that are stored: on devices, torch computes little with unsigned ones.
_SAME_BITS = {
    "uint8": torch.uint8,
    "uint16": torch.int16,
    "uint32": torch.int32,
    "uint64": torch.int64,
    "float32": torch.float32,
}


@dataclass(frozen=True)
class Product:
    """One raster of a map: its name, and how its pixels and overviews are stored.

    A pixel's value is its code times `scale`, in `unit`; the code `nodata` means no value.
    """

    name: MapProductName
    dtype: str
    nodata: float
    overviews: Overviews
    predictor: int  #: TIFF compression predictor: 2 integer differences, 3 floating point
    bands: Bands = "one"
    scale: float = 1.0
    unit: str = ""

    def band_names(self, classes: Sequence[ClassName], sources: Sequence[str]) -> list[str]:
        """Names of the bands: the product itself, the classes or the sources."""
        if self.bands == "classes":
            return [c.name for c in classes]
        return list(sources) if self.bands == "sources" else [self.name]

    def encode(self, values: ArrayLike) -> NDArray[Any]:
        """Encode values, NaN for no value: rounded half to even and clipped to the codes other than nodata."""
        return self.stored(self.codes(torch.from_numpy(np.require(values, requirements="W"))))

    def codes(self, values: Tensor) -> Tensor:
        """Encode values as `encode` does, on their device; the codes have the type of `bits`."""
        if self.dtype == "float32":
            return values.to(torch.float32)
        found = torch.empty(values.shape, dtype=_SAME_BITS[self.dtype], device=values.device)
        low, top = (0, int(self.nodata) - 1) if self.nodata else (1, int(np.iinfo(self.dtype).max))
        # A tensor on the device: a GPU multiplies by the reciprocal of a Python number, which rounds differently.
        scale = torch.full((), self.scale, dtype=torch.float64, device=values.device)
        # In float64, which represents every code exactly; plane by plane, to limit memory.
        for plane in np.ndindex(values.shape[:-2]):
            code = values[plane].to(torch.float64, copy=True).div_(scale).round_()  # half to even
            nodata = torch.isnan(code)
            found[plane] = code.clamp_(low, top).masked_fill_(nodata, self.nodata).to(torch.int32)
        return found

    def bits(self, codes: Tensor) -> Tensor:
        """Convert codes of any integer type to the type of the same size as the one that is stored, with its bits."""
        return codes.to(_SAME_BITS[self.dtype])

    def stored(self, codes: Tensor) -> NDArray[Any]:
        """View codes of the type of `bits`, which are on the host, as the type that is stored."""
        return codes.numpy().view(self.dtype)

    def decode(self, codes: ArrayLike) -> NDArray[Any]:
        """Decode codes to values, NaN for no value: float64, except float32 products, which are returned as they are."""
        found = np.asarray(codes)
        return found if found.dtype.kind == "f" else np.where(self.present(found), found * self.scale, np.nan)

    def present(self, codes: NDArray[Any]) -> NDArray[np.bool_]:
        """Where codes are not nodata."""
        return np.asarray(~np.isnan(codes) if np.isnan(self.nodata) else codes != self.nodata)


def product(name: MapProductName, dtype: MapDtype = "uint16", *, sources: int = 8, classes: int = 8) -> Product:
    """Create a product; `dtype` is the type of continuous products, the numbers are of the model's sources and classes.

    The product `sources` is a mask, bit i set where source i has data, in the smallest unsigned integer with enough bits;
    its nodata value, 0, means that no source has data. So is `prediction_set`, with a bit for each class in their order; no
    set is empty. With uint8 the KL term (`kl`) is stored as float32.

    Raises:
        InputError: a prediction set has more classes than an integer has bits.
    """
    if name in CLASS_PRODUCTS:
        return Product(name, "uint8", UNLABELLED, "mode", 2)
    if name == "set_size":
        return Product(name, "uint8", 0, "mode", 2)
    if name == "prediction_set" and classes > MOST_BITS:
        raise InputError(
            f"map.products contains prediction_set, which has a bit for each class, at most {MOST_BITS}; the model has "
            f"{classes} classes. Map set_size or probabilities instead."
        )
    if name in MASKS:
        return Product(name, mask_dtype(sources if name == "sources" else classes), 0, "nearest", 2)
    bands, unit, fine, coarse = _MEASURES[name]
    scale = {"uint16": fine, "uint8": coarse, "float32": None}[dtype]
    if scale is None:
        return Product(name, "float32", np.nan, "average", 3, bands, unit=unit)
    return Product(name, dtype, np.iinfo(dtype).max, "average", 2, bands, scale, unit)


def mask_dtype(bits: int) -> str:
    """Return the smallest unsigned integer with this many bits, at most 64."""
    return str(np.min_scalar_type((1 << bits) - 1))


def products_of_network(products: Sequence[Product]) -> tuple[ProductName, ...]:
    """Names of the products computed by the network.

    `sources` is computed from the sources' validity instead, and prediction sets from the probabilities.
    """
    names = [cast(ProductName, p.name) for p in products if p.name in PRODUCT_NAMES]
    if any(p.name in SET_PRODUCTS for p in products) and "probabilities" not in names:
        names.append("probabilities")
    return tuple(names)
