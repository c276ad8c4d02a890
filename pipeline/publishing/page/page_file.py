"""The files of a map's page, and how the map's STAC item lists them.

The page reads the item, and the map's GeoTIFFs by ranges, from its own folder; so it has no content of the map itself,
and works in any folder server or bucket. The libraries are files of their own, not part of `index.html`: browsers cache
them, a map that is replaced keeps them, and the page's content security policy allows no other scripts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import resources
from typing import Any

#: The page itself, and the list of tiles that failed.
INDEX, TILES = "index.html", "tiles.json"
#: Static files of the page: their titles, and the files of this package that they consist of. Few files, because each costs
#: several requests when a map is published in a bucket.
STATIC = {
    INDEX: ("Page that shows the map", (INDEX,)),
    "view.css": ("Style of the page", ("ol.css", "view.css")),
    "view.js": ("Script of the page", ("raster.js", "view.js", "panel.js")),
    "libraries.js": ("OpenLayers and geotiff.js, which the page uses", ("licenses.txt", "ol.js", "geotiff.js")),
}
#: Media types by extension.
TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "json": "application/json",
    "png": "image/png",
    "webp": "image/webp",
}
#: Names of pictures: of the labels, the split, and each source by its number.
_PICTURES = re.compile(r"overview_(labels|split|source\d+)\.(png|webp)")


@dataclass(frozen=True)
class PageFile:
    """A file of a page; `fields` are further fields of its asset in the item."""

    name: str
    title: str
    content: bytes
    fields: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the content."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def media_type(self) -> str:
        """Media type, by the name's extension."""
        return TYPES[self.name.rpartition(".")[2]]


@cache
def static_files() -> tuple[PageFile, ...]:
    """The files that are the same for every map."""
    return tuple(PageFile(name, title, _joined(parts)) for name, (title, parts) in STATIC.items())


def _joined(names: Sequence[str]) -> bytes:
    """Join files of this package to one script or style; licences become a comment."""
    folder = resources.files(__package__) / "static"
    parts = []
    for name in names:
        text = (folder / name).read_text("utf-8")
        text = re.sub(r"^//# sourceMappingURL=.*$", "", text, flags=re.MULTILINE)  # the maps are not published
        parts.append(f"/*\n{text}*/\n" if name.endswith(".txt") else text)
    return "\n".join(parts).encode()


def is_page_file(name: str) -> bool:
    """Whether a file of a map's folder belongs to its page, by its name."""
    return name in STATIC or name == TILES or _PICTURES.fullmatch(name) is not None


def with_page(item: Mapping[str, Any], files: Sequence[PageFile], class_pixels: Mapping[int, int]) -> dict[str, Any]:
    """Add the files of a page to an item: assets with sizes and checksums, whose keys are their names, and a link.

    Args:
        item: the item of a map.
        files: the files; without any the item stays as it is.
        class_pixels: number of pixels by class id, for the legend; empty without classes.
    """
    if not files:
        return dict(item)
    counts = {str(code): pixels for code, pixels in class_pixels.items()}
    properties = item["properties"] | ({"mibf:class_pixels": counts} if counts else {})
    assets = {
        file.name: {
            "href": f"./{file.name}",
            "type": file.media_type,
            "title": file.title,
            "file:size": len(file.content),
            "file:checksum": f"1220{file.sha256}",  # the prefix of a SHA-256 multihash
            **file.fields,
            "roles": ["overview" if file.name == INDEX else "metadata"],
        }
        for file in files
    }
    link = {"rel": "alternate", "href": f"./{INDEX}", "type": TYPES["html"], "title": STATIC[INDEX][0]}
    changed = {"properties": properties, "assets": {**item["assets"], **assets}, "links": [*item["links"], link]}
    return dict(item) | changed
