"""What the item of a published map says of it, read back: its files, its products, its tiles, the model that made it.

So a map can be checked by what it says of itself, whatever the configuration has become since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np

from pipeline import storage
from pipeline.item import OF_CLASSES, OF_SOURCES, SHA256, InvalidItemError
from pipeline.patience import patiently
from pipeline.predict import MissingChoice
from pipeline.products import MAP_PRODUCTS, MapDtype, MapProductName, Product, product
from pipeline.publish import ITEM

#: Bits of a byte: the mask of sources has one for each of them.
_BITS = 8


@dataclass(frozen=True)
class DescribedFile:
    """A file of a map, beside its item."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Described:
    """A published map in its item's words."""

    item: Mapping[str, Any]
    files: tuple[DescribedFile, ...]
    products: tuple[Product, ...]  #: in the order in which they were published, which is that of a tile's checksum
    shape_yx: tuple[int, int]
    tile: int  #: side of its tiles
    missing: MissingChoice  #: which pixels were mapped
    model: str  #: digest of the bundle
    created: str

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> Described:
        """A map, given its item.

        Raises:
            InvalidItemError: it is not the item of a map.
        """
        try:
            properties = item["properties"]
            listed = {key: asset for key, asset in item["assets"].items() if "file:size" in asset}
            rows, columns = properties["proj:shape"]
            found = cls(
                item,
                tuple(_file(asset) for asset in listed.values()),
                _products(listed),
                (int(rows), int(columns)),
                int(properties["mibf:tile"]),
                properties["mibf:missing"],
                next(link["mibf:digest"] for link in item["links"] if "mibf:digest" in link),
                properties["created"],
            )
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
            told = f"{type(error).__name__}: {error}"
            raise InvalidItemError(f"it is not the item of a map ({told})") from error
        if not found.products or found.tile < 1 or found.missing not in get_args(MissingChoice):
            raise InvalidItemError("it is not the item of a map (products, mibf:tile or mibf:missing)")
        return found

    def rasters(self, product: Product) -> tuple[str, ...]:
        """The file of a product that is read: its GeoTIFF, or the VRT over its pieces; none where the item lists none."""
        wanted = (f"{product.name}.tif", f"{product.name}.vrt")
        return tuple(file.name for file in self.files if file.name in wanted)


def read_described(folder: str) -> Described | None:
    """The map that is published in a folder, any URL; None where none is.

    Raises:
        InvalidItemError: what is there is not the item of a map.
        AwayError: the object store does not answer.
    """
    url = storage.join(folder, ITEM)
    try:
        content = patiently(url, lambda: storage.read_bytes(url))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Described.of(_parsed(content))


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise InvalidItemError(f"it is no JSON ({error})") from error


def _file(asset: Mapping[str, Any]) -> DescribedFile:
    name, checksum = str(asset["href"]).removeprefix("./"), str(asset["file:checksum"])
    if "/" in name or not checksum.startswith(SHA256):
        raise ValueError(f"{name} is no file beside the item, or has no SHA-256")
    return DescribedFile(name, int(asset["file:size"]), checksum.removeprefix(SHA256))


def _products(listed: Mapping[str, Mapping[str, Any]]) -> tuple[Product, ...]:
    """The products of the rasters that are listed, each once; a piece's name begins with its product's."""
    found: dict[str, Product] = {}
    for key, asset in listed.items():
        name = key.partition("_")[0]
        if "data" in asset["roles"] and name not in found:
            found[name] = _product(name, str(asset["data_type"]))
    return tuple(found.values())


def _product(name: str, dtype: str) -> Product:
    if name not in MAP_PRODUCTS:
        raise ValueError(f"{name} is no product")
    known: MapProductName = name
    if known in OF_CLASSES:
        return product(known)
    if known == OF_SOURCES:
        return product(known, sources=_BITS * np.dtype(dtype).itemsize)
    if dtype not in get_args(MapDtype):
        raise ValueError(f"{name} is stored as {dtype}")
    return product(known, cast(MapDtype, dtype))
