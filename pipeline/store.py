"""The patch store: a scene's sources, validity, labels and split as one sharded Zarr v3 group.

Pixels are stored once; patches are cut when they are read. The driver lays the template down,
Dask fills whole shards, readers take windows with a halo.

    sources/NAME  (band, y, x)  the source's own integers, or float32
    valid/NAME    (y, x)        whether the source has data in all its bands
    labels        (y, x)        class ids, 255 where there is none
    split         (y, x)        1 train, 2 validation, 3 test, 0 unused
    samples       (subset, class, wy, wx)  samples of each subset and class in each `CHUNK` x `CHUNK` window
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import dask
import dask.array as da
import numpy as np
import zarr
from dask.delayed import Delayed
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from mibf.bundle import ClassName
from mibf.errors import InputError
from pipeline import storage
from pipeline.grid import Window, grid_from_json, grid_to_json, reflected, windows
from pipeline.labels import UNLABELLED
from pipeline.scene import Missing, OpenSource, validity
from pipeline.split import CODES, SUBSETS, Subset, near_any

#: Side in pixels of the unit that is written and of the unit that is read.
SHARD, CHUNK = 512, 128
FORMAT = 1


@dataclass(frozen=True)
class StoredSource:
    """What a store says of a source: its name, number of bands, rule for missing data, and scale.

    The scale is the number of pixels of the source along one reference pixel: 1, 2 or 4.
    """

    name: str
    bands: int
    missing: Missing
    scale: int = 1


class PatchStore:
    """A patch store opened for reading, or for filling by `fill`."""

    def __init__(self, url: str, *, mode: storage.ZarrMode = "r") -> None:
        self.url = url
        try:
            self.group = storage.open_zarr(url, mode=mode)
        except (FileNotFoundError, zarr.errors.GroupNotFoundError) as error:
            raise InputError(f"{url}: no patch store; run `mibf prepare` first.") from error
        found = self.group.attrs.get("mibf:format")
        if found != FORMAT:
            raise InputError(f"{url}: store format {found}, this version reads {FORMAT}; run `mibf prepare` again.")

    @cached_property
    def grid(self) -> GeoBox:
        """The reference grid."""
        return grid_from_json(dict(self.group.attrs))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the reference grid."""
        rows, columns = self.grid.shape
        return rows, columns

    @cached_property
    def sources(self) -> tuple[StoredSource, ...]:
        """The sources in the order in which the network takes them."""
        stored = cast(list[dict[str, Any]], self.group.attrs["mibf:sources"])
        return tuple(StoredSource(**s) for s in stored)

    @cached_property
    def classes(self) -> tuple[ClassName, ...]:
        """The declared classes, in the order of the network's logits."""
        stored = cast(list[dict[str, Any]], self.group.attrs["mibf:classes"])
        return tuple(ClassName(**c) for c in stored)

    def array(self, name: str) -> zarr.Array[Any]:
        """One of the group's arrays by its path."""
        return cast("zarr.Array[Any]", self.group[name])

    def read_source(self, name: str, window: Window, *, halo: int = 0) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values (band, rows, columns) and validity (rows, columns) of a window, mirrored at the scene's edges.

        Window and halo are of the reference grid, and may reach beyond it; rows are (height + 2 halo) * scale
        and columns (width + 2 halo) * scale of the source's own pixels.
        """
        s = next(source.scale for source in self.sources if source.name == name)
        rows = reflected((window.y - halo) * s, (window.y + window.height + halo) * s, self.shape[0] * s)
        columns = reflected((window.x - halo) * s, (window.x + window.width + halo) * s, self.shape[1] * s)
        box = slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1)
        at = np.ix_(rows - box[0].start, columns - box[1].start)
        values = np.asarray(self.array(f"sources/{name}")[:, box[0], box[1]])
        valid = np.asarray(self.array(f"valid/{name}")[box])
        return values[:, at[0], at[1]], valid[at].astype(bool)

    def usable(self, window: Window) -> NDArray[np.bool_]:
        """The pixels of a window that may be a sample or be mapped.

        Every source whose rule is "exclude" has data there, and at least one source has data.
        """
        required = np.ones((window.height, window.width), bool)
        any_data = np.zeros_like(required)
        for source in self.sources:
            valid = np.asarray(self.array(f"valid/{source.name}")[window.slices]).astype(bool)
            any_data |= valid
            if source.missing == "exclude":
                required &= valid
        return required & any_data

    def samples(self, window: Window) -> dict[Subset, NDArray[np.uint8]]:
        """Class ids of each subset's samples in a window, `UNLABELLED` elsewhere."""
        labels = np.where(self.usable(window), np.asarray(self.array("labels")[window.slices]), UNLABELLED)
        split = np.asarray(self.array("split")[window.slices])
        return {s: np.where(split == CODES[s], labels, UNLABELLED).astype(np.uint8) for s in SUBSETS}

    def windows_with_samples(self, subset: Subset) -> list[tuple[Window, NDArray[np.int64]]]:
        """The `CHUNK`-sided windows that hold samples of a subset, with the number of each class (class,)."""
        counts = np.asarray(self.array("samples")[CODES[subset] - 1])
        per_window = counts.reshape(len(self.classes), -1).T
        return [(w, n) for w, n in zip(windows(self.shape, CHUNK), per_window, strict=True) if n.any()]


def lay_down(
    url: str, *, grid: GeoBox, sources: Mapping[str, OpenSource], classes: tuple[ClassName, ...], fingerprint: str
) -> PatchStore:
    """Lay a store's template down: every array with its shape, shards and attributes, no pixel yet.

    Whatever was at the URL is gone afterwards.
    """
    storage.remove(url)
    group = storage.open_zarr(url, mode="w")
    rows, columns = grid.shape
    plane: dict[str, Any] = {
        "shape": (rows, columns),
        "chunks": (CHUNK, CHUNK),
        "shards": (SHARD, SHARD),
        "dimension_names": ("y", "x"),
    }
    for name, source in sources.items():
        bands = source.values.sizes["band"]
        group.create_array(
            f"sources/{name}",
            shape=(bands, rows, columns),
            chunks=(bands, CHUNK, CHUNK),
            shards=(bands, SHARD, SHARD),
            dtype=source.dtype,
            fill_value=0,
            dimension_names=(f"{name}_band", "y", "x"),
        )
        group.create_array(f"valid/{name}", dtype=np.uint8, fill_value=0, **plane)
    group.create_array("labels", dtype=np.uint8, fill_value=UNLABELLED, **plane)
    group.create_array("split", dtype=np.uint8, fill_value=0, **plane)
    counted = (len(SUBSETS), len(classes), -(-rows // CHUNK), -(-columns // CHUNK))
    group.create_array(
        "samples",
        shape=counted,
        chunks=counted,
        dtype=np.int64,
        fill_value=0,
        dimension_names=("subset", "class", "wy", "wx"),
    )
    group.attrs.update(
        grid_to_json(grid)
        | {
            "mibf:format": FORMAT,
            "mibf:fingerprint": fingerprint,
            "mibf:classes": [vars(c) for c in classes],
            "mibf:sources": [
                {"name": n, "bands": s.values.sizes["band"], "missing": s.declared.missing} for n, s in sources.items()
            ],
        }
    )
    return PatchStore(url, mode="r+")


def fill(store: PatchStore, *, sources: Mapping[str, OpenSource], labels: da.Array, split: da.Array) -> list[Delayed]:
    """The Dask tasks that fill a store, one a shard: each reads its window of every source once and writes it.

    Raises:
        ValueError: an array's chunks are not the store's shards. Two tasks in one shard would
            overwrite each other's pixels in silence.
    """
    rows, columns = store.shape
    starts = [(w.y, w.x) for w in windows((rows, columns), SHARD)]
    tasks: list[list[Delayed]] = [[] for _ in starts]

    def add(name: str, blocks: da.Array) -> None:
        if any(chunk != SHARD for sizes in blocks.chunks[-2:] for chunk in sizes[:-1]):
            raise ValueError(f"{name}: chunks {blocks.chunks[-2:]} are not whole shards of {SHARD} pixels")
        # Not optimised apart: a source's values and validity come from one read of its window.
        for position, block in enumerate(blocks.to_delayed(optimize_graph=False).ravel()):
            y, x = starts[position]
            tasks[position].append(dask.delayed(_write)(store.array(name), block, y, x))

    for name, source in sources.items():
        values = source.values.data
        valid = validity(values)
        kept = da.where(valid[None], values, 0)
        if source.dtype.kind in "iu":
            kept = da.rint(kept)
        add(f"sources/{name}", kept.astype(source.dtype))
        add(f"valid/{name}", valid.astype(np.uint8))
    add("labels", labels)
    add("split", split)
    return [dask.delayed(_together)(shard) for shard in tasks]


def _write(target: zarr.Array[Any], block: NDArray[Any], y: int, x: int) -> None:
    target[..., y : y + block.shape[-2], x : x + block.shape[-1]] = block


def _together(_: list[None]) -> None:
    """The end of one shard: nothing is left to do once its arrays are written."""


def count_samples(
    store: PatchStore, *, patch: int, each: Callable[[], None] = lambda: None
) -> tuple[dict[Subset, dict[str, int]], float]:
    """Count the samples of each subset and class and write the store's `samples`.

    Returns:
        The counts by subset and class name, and the share of test samples whose patch overlaps the
        patch of a training sample (NaN without test samples).
    """
    counts = {subset: {c.name: 0 for c in store.classes} for subset in SUBSETS}
    per_window = np.zeros(store.array("samples").shape, np.int64)
    tests = overlapping = 0
    for window in windows(store.shape, CHUNK):
        samples = store.samples(window)
        for position, subset in enumerate(SUBSETS):
            ids = samples[subset]
            found = np.bincount(ids.ravel(), minlength=256)
            for number, c in enumerate(store.classes):
                counts[subset][c.name] += int(found[c.id])
                per_window[position, number, window.y // CHUNK, window.x // CHUNK] = found[c.id]
        test = samples["test"] != UNLABELLED
        if test.any():
            tests += int(test.sum())
            overlapping += int((test & _near_training(store, window, patch - 1)).sum())
        each()
    store.array("samples")[:] = per_window
    return counts, overlapping / tests if tests else float("nan")


def _near_training(store: PatchStore, window: Window, reach: int) -> NDArray[np.bool_]:
    """Where in a window a training sample lies within `reach` rows and columns."""
    rows, columns = store.shape
    y, x = max(0, window.y - reach), max(0, window.x - reach)
    bottom, right = min(rows, window.y + window.height + reach), min(columns, window.x + window.width + reach)
    training = store.samples(Window(y, x, bottom - y, right - x))["train"] != UNLABELLED
    before = (reach - (window.y - y), reach - (window.x - x))
    after = (reach - (bottom - window.y - window.height), reach - (right - window.x - window.width))
    return near_any(np.pad(training, ((before[0], after[0]), (before[1], after[1]))), reach)


def training_pixels(store: PatchStore, source: str) -> Iterator[NDArray[Any]]:
    """The values (bands, pixels) of a source at the training samples where it has data, window by window."""
    for window, _ in store.windows_with_samples("train"):
        values, valid = store.read_source(source, window)
        chosen = valid & (store.samples(window)["train"] != UNLABELLED)
        yield values[:, chosen]
