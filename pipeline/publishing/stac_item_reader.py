"""Read the item of a published map: its files, products, tiles and model.

With it a map can be verified against its own metadata, whatever has changed in the configuration since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np

from mibf.errors import InputError
from pipeline.codes import RENAMED_PRODUCTS
from pipeline.io import checksums, storage
from pipeline.io.retry import call_with_retry
from pipeline.maps.predictor import MissingDataPolicy
from pipeline.maps.products import MAP_PRODUCTS, MASKS, MapDtype, MapProductName, Product, product
from pipeline.publishing.published_map import ITEM
from pipeline.publishing.stac_item import BLOCK, CLASS_LAYERS, SHA256, InvalidItemError

#: Bits per byte: a mask has one bit per source or class.
_BITS = 8


@dataclass(frozen=True)
class ItemFile:
    """A file of a map, in the same folder as its item."""

    name: str
    bytes: int
    sha256: str
    pixels: Mapping[int, int] | None = None  #: number of pixels of each class id, where the item has it


@dataclass(frozen=True)
class PublishedItem:
    """A published map, as described by its item."""

    item: Mapping[str, Any]
    files: tuple[ItemFile, ...]
    products: tuple[Product, ...]  #: in the order of publication, which is that of a tile's checksum
    shape_yx: tuple[int, int]
    tile: int  #: side of its tiles, in pixels
    missing: MissingDataPolicy  #: which pixels were mapped
    model: str  #: digest of the bundle
    created: str

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> PublishedItem:
        """Parse the item of a map.

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
            cause = f"{type(error).__name__}: {error}"
            raise InvalidItemError(f"not the item of a map ({cause})") from error
        if not found.products or found.tile < 1 or found.missing not in get_args(MissingDataPolicy):
            raise InvalidItemError("not the item of a map (check products, mibf:tile and mibf:missing)")
        return found

    def rasters(self, product: Product) -> tuple[str, ...]:
        """Names of the files to read for a product: its GeoTIFF, or the VRT over several; empty if the item lists none."""
        wanted = (f"{product.name}.tif", f"{product.name}.vrt")
        return tuple(file.name for file in self.files if file.name in wanted)


def is_class_raster(asset: Mapping[str, Any]) -> bool:
    """Whether an asset of a map's item is its class raster, or a block of it."""
    name = str(asset["href"]).removeprefix("./")
    return name.endswith(".tif") and (name == "class.tif" or name.startswith("class_y"))


def class_digest(items: Mapping[str, PublishedItem]) -> str:
    """Digest of the class rasters of scenes' maps, by name: equal ones have the same class at every pixel."""
    found = []
    for name, each in items.items():
        rasters = [asset for asset in each.item["assets"].values() if is_class_raster(asset)]
        found.append([name, sorted((str(asset["href"]), str(asset["file:checksum"])) for asset in rasters)])
    return checksums.digest(found)


def read_item(folder: str) -> PublishedItem | None:
    """Read the description of the map published in a folder (URL); None if no map is published there.

    Raises:
        InvalidItemError: the file is not the item of a map.
        StorageUnavailableError: the object store does not respond.
    """
    url = storage.join(folder, ITEM)
    try:
        content = call_with_retry(url, lambda: storage.read_bytes(url))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return PublishedItem.of(_parsed(content))


def require_item(folder: str) -> PublishedItem:
    """Read the description of the map published in a folder (URL).

    Raises:
        InputError: no map is published there, its item is not valid, or it cannot be read.
    """
    name = storage.redact_url(folder)
    with storage.as_input_errors(folder):
        try:
            found = read_item(folder)
        except InvalidItemError as error:
            raise InputError(
                f"{name}/{ITEM}: {error}; `mibf verify` checks the map, `mibf map` publishes it again."
            ) from error
    if found is None:
        raise InputError(f"{name}: no map is published there ({ITEM} is missing); run `mibf map` first.")
    return found


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise InvalidItemError(f"not valid JSON ({error})") from error


def _file(asset: Mapping[str, Any]) -> ItemFile:
    name, checksum = str(asset["href"]).removeprefix("./"), str(asset["file:checksum"])
    if "/" in name or not checksum.startswith(SHA256):
        raise ValueError(f"{name} is not in the item's folder, or has no SHA-256 checksum")
    classes = asset.get("classification:classes", [])
    counted = {int(c["value"]): int(c["count"]) for c in classes if "count" in c}
    return ItemFile(name, int(asset["file:size"]), checksum.removeprefix(SHA256), counted or None)


def _products(listed: Mapping[str, Mapping[str, Any]]) -> tuple[Product, ...]:
    """The products of the listed rasters, each once; the name of a block's file begins with that of its product."""
    found: dict[str, Product] = {}
    for key, asset in listed.items():
        name = BLOCK.sub("", key)
        if "data" in asset["roles"] and name not in found:
            found[name] = _product(name, str(asset["data_type"]))
    return tuple(found.values())


def _product(name: str, dtype: str) -> Product:
    if name in RENAMED_PRODUCTS:
        raise ValueError(f"{name} is the old name of {RENAMED_PRODUCTS[name]}; run `mibf map` to publish the map again")
    if name not in MAP_PRODUCTS:
        raise ValueError(f"{name} is not a known product")
    known: MapProductName = name
    if known in CLASS_LAYERS:
        return product(known)
    if known in MASKS:
        bits = _BITS * np.dtype(dtype).itemsize
        return product(known, sources=bits, classes=bits)
    if known == "set_size":
        return product(known)
    if dtype not in get_args(MapDtype):
        raise ValueError(f"{name} is stored as {dtype}")
    return product(known, cast(MapDtype, dtype))
