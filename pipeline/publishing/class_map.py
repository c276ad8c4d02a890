"""A published class map at any URL, as its item describes it: grid, classes, class ids and confidence."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from mibf.bundle.classes import ClassName
from mibf.errors import InputError
from pipeline.grid import Window, grid_from_json
from pipeline.io import storage
from pipeline.io.retry import call_with_retry
from pipeline.maps.products import Product
from pipeline.publishing.published_map import ITEM, PublishedMap
from pipeline.publishing.stac_item import InvalidItemError
from pipeline.publishing.stac_item_reader import PublishedItem, read_item, require_item


class MapReplacedError(RuntimeError):
    """Another map was published while this one was read."""


@dataclass(frozen=True)
class ClassMap:
    """A published map with the product `class`."""

    folder: str  #: URL
    name: str  #: id of its item
    grid: GeoBox
    classes: tuple[ClassName, ...]  #: in ascending order of ids
    class_product: Product
    confidence: Product | None  #: None if the map has no such product
    fingerprint: str
    _files: PublishedMap

    @classmethod
    def open(cls, url: str) -> ClassMap:
        """Open the map in a folder; the URL may also be that of its item.

        Raises:
            InputError: no map is published there, it cannot be read, or it has no product `class`.
        """
        folder = url.rstrip("/").removesuffix(f"/{ITEM}")
        name = storage.redact_url(folder)
        found = require_item(folder)
        products = {product.name: product for product in found.products}
        if "class" not in products:
            raise InputError(f"{name}: the map has no product `class`; add it to `map.products` and run `mibf map` again.")
        try:
            return cls(
                folder,
                str(found.item["id"]),
                _grid(found),
                _classes(found.item),
                products["class"],
                products.get("confidence"),
                str(found.item["properties"]["mibf:fingerprint"]),
                PublishedMap(folder),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{name}: {ITEM} is not that of a map ({error!r}); run `mibf map` again.") from error

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.grid.shape
        return rows, columns

    def name_of(self, class_id: int) -> str:
        """The name of a class.

        Raises:
            InputError: the item does not describe it.
        """
        for found in self.classes:
            if found.id == class_id:
                return found.name
        raise InputError(
            f"{storage.redact_url(self.folder)}: the map has class {class_id}, which its item does not describe; run "
            "`mibf map` again."
        )

    def read_classes(self, window: Window) -> NDArray[np.uint8]:
        """Read the class ids of a window, (height, width); 255 without data.

        Raises:
            StorageUnavailableError: the object store does not respond.
        """
        return self._read(self.class_product, window)

    def read_confidence(self, window: Window) -> NDArray[Any]:
        """Read the codes of the confidence of a window, (height, width)."""
        assert self.confidence is not None
        return self._read(self.confidence, window)

    def _read(self, product: Product, window: Window) -> NDArray[Any]:
        codes: NDArray[Any] = call_with_retry(self.folder, lambda: self._files.read(product, window))[0]
        return codes

    def check_unchanged(self) -> None:
        """Check that the map is still the one that was opened.

        Raises:
            MapReplacedError: it is not.
        """
        try:
            now = read_item(self.folder)
        except InvalidItemError:
            now = None
        if now is None or now.item["properties"].get("mibf:fingerprint") != self.fingerprint:
            raise MapReplacedError(
                f"{storage.redact_url(self.folder)}: another map was published there while this one was read; nothing was "
                "written. Run the command again."
            )


def _grid(found: PublishedItem) -> GeoBox:
    properties = found.item["properties"]
    return grid_from_json(
        {
            "spatial:shape": found.shape_yx,
            "spatial:transform": properties["proj:transform"][:6],
            "proj:wkt2": properties.get("proj:wkt2"),
        }
    )


def _classes(item: Any) -> tuple[ClassName, ...]:
    """The classes of the product `class`, from the first of its files."""
    described = "classification:classes"
    assets = item["assets"].items()
    asset = next(asset for key, asset in assets if key.startswith("class") and described in asset)
    named = [entry for entry in asset[described] if not entry.get("nodata")]
    found = [ClassName(int(entry["value"]), str(entry["title"]), f"#{entry['color_hint']}".lower()) for entry in named]
    if not found:
        raise ValueError(json.dumps(asset[described]))
    return tuple(sorted(found, key=lambda entry: entry.id))
