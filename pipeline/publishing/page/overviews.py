"""Small pictures of a scene for the page of its map: its sources, its labels and their subsets.

The sources themselves may be private, larger than the map, or in formats that no browser reads. A picture of at most
`SIDE` x `SIDE` pixels shows what the map was made from, at a size that does not grow with the scene.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from pipeline.codes import CODES, UNLABELLED, Subset
from pipeline.geotiff.cog import color_table
from pipeline.grid import windows
from pipeline.publishing.page.page_file import PageFile
from pipeline.store.patch_store import PatchStore
from pipeline.store.template import CHUNK, StoredSource

#: Side of a picture in pixels, at most; and of that of sources in chunks of the store, all of which may have to be read.
SIDE, CHUNKS = 1024, 256
#: Side of the windows in which labels are read, in pixels.
READ = 4096
#: Share of values outside the stretch of a picture, at each end.
CLIPPED = 0.02
#: Names of bands in true colour, by what names may be called.
_TRUE_COLOR = (("red", "b04", "b4"), ("green", "b03", "b3"), ("blue", "b02", "b2"))
#: Colours of the subsets.
SUBSET_COLORS: Mapping[Subset, tuple[int, int, int]] = {
    "train": (31, 119, 180),
    "validation": (255, 127, 14),
    "test": (214, 39, 40),
}


def overview_step(shape_yx: tuple[int, int], side: int = SIDE) -> int:
    """Pixels of the grid along a picture's pixel: a power of two.

    >>> overview_step((700, 1024)), overview_step((1025, 8)), overview_step((16384, 16384))
    (1, 2, 16)
    """
    return 1 << max(0, (-(-max(shape_yx) // side) - 1).bit_length())


def scene_overviews(store: PatchStore) -> list[PageFile]:
    """Draw the pictures of a scene. Memory does not grow with the scene; labels are all read, sources as far as needed."""
    return [*_labels(store), *(_source(store, number, source) for number, source in enumerate(store.sources))]


def display_bands(source: StoredSource) -> list[int]:
    """The bands to show as red, green and blue, or one in grey: by their names, else 3, 2, 1 of three or four, or spread."""
    names = [name.lower() for name in source.band_names]
    named = [next((i for i, name in enumerate(names) if name in wanted), None) for wanted in _TRUE_COLOR]
    found = [band for band in named if band is not None]
    if len(found) == len(_TRUE_COLOR):
        return found
    if source.bands < len(_TRUE_COLOR):
        return [0]
    if source.bands <= 4:
        return [2, 1, 0]
    return [round(share * (source.bands - 1)) for share in (0.75, 0.5, 0.25)]


def _labels(store: PatchStore) -> list[PageFile]:
    """Pictures of labels and subsets; where a picture's pixel covers several labelled ones, it shows the first of them."""
    step = overview_step(store.shape)
    rows, columns = (-(-side // step) for side in store.shape)
    ids, codes = np.full((rows, columns), UNLABELLED, np.uint8), np.zeros((rows, columns), np.uint8)
    for window in windows(store.shape, READ):
        labels, split = store.labelled(window)
        y, x = window.y // step, window.x // step
        first = _first_labelled(labels, step)
        height, width = first.shape
        ids[y : y + height, x : x + width] = np.append(labels.ravel(), UNLABELLED)[first]
        codes[y : y + height, x : x + width] = np.append(np.where(labels == UNLABELLED, 0, split).ravel(), 0)[first]
    if (ids == UNLABELLED).all():
        return []
    colors = {CODES[subset]: (*color, 255) for subset, color in SUBSET_COLORS.items()}
    subsets = dict.fromkeys(range(256), (0, 0, 0, 0)) | colors
    return [
        _picture("labels", "labels", "png", [ids], step, palette=color_table(store.classes)),
        _picture("split", "split", "png", [codes], step, palette=subsets),
    ]


def _first_labelled(labels: NDArray[np.uint8], step: int) -> NDArray[np.int64]:
    """For each square of `step` pixels, the position of its first label in the raveled window; their number if none."""
    rows, columns = labels.shape
    height, width = -(-rows // step), -(-columns // step)
    positions = np.where(labels != UNLABELLED, np.arange(labels.size).reshape(labels.shape), labels.size)
    padded = np.full((height * step, width * step), labels.size)
    padded[:rows, :columns] = positions
    return np.asarray(padded.reshape(height, step, width, step).min(axis=(1, 3)))


def _source(store: PatchStore, number: int, source: StoredSource) -> PageFile:
    """The picture of a source: every n-th pixel, stretched by its own values, transparent without data."""
    step = overview_step(store.shape)
    if max(store.shape) > CHUNKS * CHUNK:  # then a pixel is read of some chunks only
        step = overview_step(store.shape, CHUNKS)
    rows, columns = (_middles(side, step) * source.scale for side in store.shape)
    bands = np.array(display_bands(source))
    values = np.asarray(store.array(f"sources/{source.name}").oindex[bands, rows, columns], np.float32)
    valid = np.asarray(store.array(f"valid/{source.name}").oindex[rows, columns]).astype(bool)
    valid &= np.isfinite(values).all(axis=0)
    layers = [_stretched(layer, valid) for layer in values]
    alpha = np.where(valid, 255, 0).astype(np.uint8)
    return _picture(f"source{number}", "source", "webp", [*(layers * 3)[:3], alpha], step, title=source.name)


def _middles(side: int, step: int) -> NDArray[np.int64]:
    """The pixel in the middle of each `step` pixels of a side."""
    return np.minimum(np.arange(0, side, step) + step // 2, side - 1)


def _stretched(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    if not valid.any():
        return np.zeros(values.shape, np.uint8)
    low, high = np.quantile(values[valid], [CLIPPED, 1 - CLIPPED])
    scaled = (np.where(valid, values, low) - low) / (high - low if high > low else 1)
    return np.asarray(np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8))


def _picture(
    name: str,
    kind: str,
    extension: str,
    layers: Sequence[NDArray[np.uint8]],
    step: int,
    *,
    title: str = "",
    palette: Mapping[int, tuple[int, int, int, int]] | None = None,
) -> PageFile:
    rows, columns = layers[0].shape
    options: dict[str, Any] = {"driver": extension.upper(), "height": rows, "width": columns, "dtype": "uint8"}
    options |= {"zlevel": 9} if extension == "png" else {"quality": 85}
    with MemoryFile() as file:
        with file.open(**options, count=len(layers)) as picture:
            picture.write(np.stack(layers))
            if palette is not None:
                picture.write_colormap(1, palette)
        content = bytes(file.read())
    fields = {"mibf:overview": kind, "mibf:step": step, "proj:shape": [rows, columns]}
    return PageFile(f"overview_{name}.{extension}", title or f"Overview of the {kind}", content, fields)
