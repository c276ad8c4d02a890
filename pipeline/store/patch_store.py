"""The patch store: a scene's sources, validity, labels and split as one sharded Zarr v3 group.

Pixels are stored once; patches are cut when they are read. The driver creates the store from a template,
tasks fill whole shards, readers take windows with a halo.

    sources/NAME  (band, y, x)  the source's own integers, or float32; s x s pixels per reference pixel at scale s
    valid/NAME    (y, x)        whether the source has data in all its bands, on the same pixels
    counts/NAME   (period, y, x)  number of clear dates, of sources that are composites of dates: one plane a period
    labels        (y, x)        class ids, 255 where unlabelled
    split         (y, x)        the subset that a pixel is a sample of: 1 train, 2 validation, 3 test, 0 none
    samples       (subset, class, y, x)  number of samples of each subset and class in each `CHUNK` x `CHUNK` window

A shard covers the same ground in every array except `samples`. Every chunk carries a CRC32C, which is checked on reading.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from mibf.bundle.classes import ClassName
from mibf.errors import InputError
from mibf.normalization import Allocator, BandScaling, Scaling, empty
from pipeline.codes import CODES, SUBSETS, UNLABELLED, Subset
from pipeline.grid import Window, grid_from_json, reflected, windows
from pipeline.io import zarr_store
from pipeline.io.chunk_cache import ChunkCache, ChunkedArray
from pipeline.store.template import CHUNK, FORMAT, StoredSource

#: Attribute of a store with the quantiles of its matched sources (`pipeline.store.scene_quantiles`).
QUANTILES = "mibf:quantiles"
#: Attribute of a store with the quantiles of its sources in windows spread over the scene; see the same module.
VALUES = "mibf:values"
#: Chunks that reads of overlapping windows share, of all stores that this process has open.
_CHUNKS = ChunkCache()


class SubsetHiddenError(LookupError):
    """Samples were requested of a subset that the store was opened without."""


class PatchStore:
    """A patch store opened for reading.

    Opened without a subset, it reveals neither the locations nor the classes of that subset's samples: training opens it
    without the test subset.
    """

    def __init__(self, url: str, *, without: tuple[Subset, ...] = (), metadata: Mapping[str, bytes] | None = None) -> None:
        """Open a store; `metadata` holds its metadata objects by key if they are known, so that none is read.

        Raises:
            InputError: there is no store, or it has another format.
        """
        self.url = url
        self.without = without
        try:
            self.group = zarr_store.open_strict(url, metadata)
        except (FileNotFoundError, zarr.errors.GroupNotFoundError) as error:
            raise InputError(f"{url}: no patch store; run `mibf prepare` first.") from error
        found = self.group.attrs.get("mibf:format")
        if found != FORMAT:
            raise InputError(f"{url}: store format {found}, but this version reads {FORMAT}; run `mibf prepare` again.")

    @cached_property
    def grid(self) -> GeoBox:
        """The reference grid."""
        return grid_from_json(dict(self.group.attrs))

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the reference grid."""
        rows, columns = self.grid.shape
        return rows, columns

    @cached_property
    def shard(self) -> int:
        """Side of a shard in reference pixels."""
        return int(cast(int, self.group.attrs["mibf:shard"]))

    @cached_property
    def sources(self) -> tuple[StoredSource, ...]:
        """The sources in the order of the network's inputs."""
        stored = cast(list[dict[str, Any]], self.group.attrs["mibf:sources"])
        return tuple(StoredSource.from_json(s) for s in stored)

    @cached_property
    def classes(self) -> tuple[ClassName, ...]:
        """The declared classes, in the order of the network's logits."""
        stored = cast(list[dict[str, Any]], self.group.attrs["mibf:classes"])
        return tuple(ClassName(**c) for c in stored)

    @cached_property
    def outline(self) -> dict[str, Any] | None:
        """The outline of the scene's area in degrees, a GeoJSON geometry in one piece; None if it has no area."""
        return cast("dict[str, Any] | None", self.group.attrs.get("mibf:area"))

    @cached_property
    def quantiles(self) -> dict[str, NDArray[np.float64] | None]:
        """Quantiles (band, `MATCHED_AT`) of the scene's matched sources; None for a source with too few pixels."""
        stored = cast(dict[str, Any], self.group.attrs.get(QUANTILES, {}))
        return {name: None if found is None else np.array(found, np.float64) for name, found in stored.items()}

    @cached_property
    def spread_quantiles(self) -> dict[str, list[list[float] | None]] | None:
        """By source, the quantiles (`MATCHED_AT`) of each band in windows spread over the scene, None without data.

        None in stores of earlier versions.
        """
        return cast("dict[str, list[list[float] | None]] | None", self.group.attrs.get(VALUES))

    def source(self, name: str) -> StoredSource:
        """The store's description of a source."""
        return next(s for s in self.sources if s.name == name)

    def array_names(self) -> list[str]:
        """The paths of all arrays."""
        names = [f"{kind}/{s.name}" for s in self.sources for kind in ("sources", "valid")]
        return [*names, *(f"counts/{s.name}" for s in self.sources if s.periods), "labels", "split", "samples"]

    def array(self, name: str) -> zarr.Array[Any]:
        """Return one of the group's arrays by its path."""
        if name not in self._arrays:  # opening an array reads its metadata every time
            self._arrays[name] = cast("zarr.Array[Any]", self.group[name])
        return self._arrays[name]

    @cached_property
    def _arrays(self) -> dict[str, zarr.Array[Any]]:
        return {}

    def read_source(
        self, name: str, window: Window, *, halo: int = 0, random: bool = False
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read values and validity of a window with a halo of reference pixels, mirrored at the scene's edges.

        The window itself may extend beyond the grid. Chunks are kept for overlapping windows, if there is a halo.

        Args:
            name: name of the source.
            window: the window without halo.
            halo: in reference pixels.
            random: whether windows are read in random order: then the borders of chunks are kept longer.

        Returns:
            (band, (height + 2 halo) * scale, (width + 2 halo) * scale), and the same without bands; with bands if the source
            may have data in some periods only (`StoredSource.is_filled`).

        Raises:
            InputError: a chunk fails its checksum; the store is damaged.
        """
        source = self.source(name)
        scale = source.scale
        rows = reflected(window.y - halo, window.y + window.height + halo, self.shape[0], scale=scale)
        columns = reflected(window.x - halo, window.x + window.width + halo, self.shape[1], scale=scale)
        box = slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1)
        keep, border = halo > 0, halo * scale if random else 0
        values = self._read(f"sources/{name}", (slice(None), *box), keep=keep, border=border)
        valid = self._read(f"valid/{name}", box, keep=keep).astype(bool)
        if source.is_filled:
            counts = self._read(f"counts/{name}", (slice(None), *box), keep=keep, border=border)
            valid = known_bands(source, valid, counts)
        for axis, indices, cut in ((-2, rows, box[0]), (-1, columns, box[1])):
            if not _in_row(indices):  # one axis after the other: bands stay one behind the other in memory
                values, valid = (each.take(indices - cut.start, axis=axis) for each in (values, valid))
        return values, valid

    def read_counts(self, name: str, window: Window) -> NDArray[np.uint16]:
        """Read the number of clear dates (period, height * scale, width * scale) of a window of a source.

        Raises:
            LookupError: the source is not a composite of dates.
            InputError: a chunk fails its checksum; the store is damaged.
        """
        source = self.source(name)
        if not source.periods:
            raise LookupError(f"{self.url}: source {name!r} is not a composite of dates, so it has no counts of them")
        rows, columns = (slice(part.start * source.scale, part.stop * source.scale) for part in window.slices)
        return self._read(f"counts/{name}", (slice(None), rows, columns))

    def _read(self, name: str, box: tuple[slice, ...], *, keep: bool = False, border: int = 0) -> NDArray[Any]:
        """Read a box; `keep` its chunks and, `border` pixels wide, their borders for other boxes that overlap them."""
        try:
            if keep:
                return ChunkedArray(self.array(name), _CHUNKS).read(*box[-2:], border=border)
            return np.asarray(self.array(name)[box])
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"{self.url}/{self._unreadable_key(name, box)}: is damaged ({error}). `mibf verify` lists all damage; "
                "`mibf prepare` rewrites the store."
            ) from error

    def _unreadable_key(self, name: str, box: tuple[slice, ...]) -> str:
        """Key of the first unreadable shard of an array that overlaps a box; the array's name if all can be read."""
        array, cut = self.array(name), box[-2:]
        assert array.shards is not None
        sides = array.shards[-2:]
        spans = [range(part.start // side, -(-part.stop // side)) for part, side in zip(cut, sides, strict=True)]
        for row, column in product(*spans):
            y, x = (
                slice(max(part.start, index * side), min(part.stop, (index + 1) * side))
                for part, index, side in zip(cut, (row, column), sides, strict=True)
            )
            try:
                array[..., y, x]
            except (ValueError, RuntimeError):
                return f"{name}/c/{'0/' * (array.ndim - 2)}{row}/{column}"
        return name

    def present(self, window: Window, *, keep: bool = False) -> dict[str, NDArray[np.bool_]]:
        """Where each source has data, by its name: reference pixels (height, width) of a window; see `present` below.

        `keep` the chunks for windows nearby.
        """
        found = {}
        for s in self.sources:
            box = tuple(slice(part.start * s.scale, part.stop * s.scale) for part in window.slices)
            found[s.name] = present(s, self._read(f"valid/{s.name}", box, keep=keep).view(bool))
        return found

    def usable(self, window: Window) -> NDArray[np.bool_]:
        """The pixels (height, width) of a window that may be samples, by each source's own rule; see `usable` below."""
        return usable(self.sources, self.present(window))

    def samples(self, window: Window) -> dict[Subset, NDArray[np.uint8]]:
        """Class ids of each open subset's samples in a window, `UNLABELLED` elsewhere."""
        ids, codes = self.labelled(window, keep=True)
        return {s: np.where(codes == CODES[s], ids, np.uint8(UNLABELLED)) for s in SUBSETS if s not in self.without}

    def labelled(self, window: Window, *, keep: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Class ids (height, width) of a window, and the code of the subset that each pixel is a sample of, 0 for none.

        `keep` the chunks for windows nearby.
        In a store opened without a subset, only samples of the other subsets have an id and a code.
        """
        ids, codes = (self._read(name, window.slices, keep=keep) for name in ("labels", "split"))
        if self.without:
            visible = np.isin(codes, [CODES[s] for s in SUBSETS if s not in self.without])
            return np.where(visible, ids, np.uint8(UNLABELLED)), np.where(visible, codes, np.uint8(0))
        return ids, codes

    def windows_with_samples(self, subset: Subset) -> list[tuple[Window, NDArray[np.int64]]]:
        """The `CHUNK`-sided windows that hold samples of a subset, with the number of samples per class.

        Raises:
            SubsetHiddenError: the store was opened without that subset.
        """
        if subset in self.without:
            raise SubsetHiddenError(f"{self.url}: was opened without the {subset} subset")
        counts = self.sample_counts(subset).astype(np.int64).reshape(len(self.classes), -1).T
        return [(w, n) for w, n in zip(windows(self.shape, CHUNK), counts, strict=True) if n.any()]

    def sample_counts(self, subset: Subset | None = None) -> NDArray[np.int32]:
        """Number of samples of each window (class, y, x) of a subset, or of all subsets (subset, class, y, x)."""
        array = self.array("samples")
        return np.asarray(array[...] if subset is None else array[CODES[subset] - 1])


def known_bands(source: StoredSource, valid: NDArray[np.bool_], counts: NDArray[Any]) -> NDArray[np.bool_]:
    """Where each band (band, y, x) of a source has data: where the source has (y, x), in periods with clear dates.

    Args:
        source: with `is_filled`.
        valid: where it has data in any band (y, x).
        counts: number of clear dates (period, y, x).
    """
    return valid & np.repeat(counts > 0, source.bands // source.periods, axis=0)


def present(source: StoredSource, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The reference pixels (y, x) where a source has data; a finer source needs it on all its pixels within one."""
    s = source.scale
    return valid if s == 1 else np.asarray(valid.reshape(len(valid) // s, s, -1, s).all(axis=(1, 3)))


def usable(
    sources: Sequence[StoredSource],
    there: Mapping[str, NDArray[np.bool_]],
    *,
    required: Collection[str] | None = None,
) -> NDArray[np.bool_]:
    """The reference pixels (y, x) where every required source has data, and at least one source does.

    Args:
        sources: at least one.
        there: where each source has data, by its name, from `present`.
        required: the names of the sources that must have data; by default those whose rule is "exclude".
    """
    if required is None:
        required = [source.name for source in sources if source.missing == "exclude"]
    found = np.logical_or.reduce([there[source.name] for source in sources])
    return np.asarray(np.logical_and.reduce([found, *(there[name] for name in required)]))


def _in_row(indices: NDArray[np.int64]) -> bool:
    """Whether indices are consecutive."""
    return bool((np.diff(indices) == 1).all())


def scaled_window(
    store: PatchStore,
    window: Window,
    scaling: Scaling,
    *,
    halo: int,
    random: bool = False,
    allocate: Allocator = empty,
) -> list[NDArray[np.float32]]:
    """Read every source's window with halo, normalized to [0, 1].

    This is what the network sees of a scene, in training and mapping alike: mirrored beyond the scene's edges, the
    training median where a source has no data, matched to the training distribution if the model asks for it. A source
    without a normalization is not an input of the network. `random` is as for `PatchStore.read_source`, `allocate` as for
    `BandScaling.apply`.

    Returns:
        (band, (height + 2 halo) * scale, (width + 2 halo) * scale) for each source.
    """
    taken = [source.name for source in store.sources if source.name in scaling]
    return [
        scaling[name].apply(
            *store.read_source(name, window, halo=halo, random=random),
            scene=quantiles_to_match(store, name, scaling[name]),
            allocate=allocate,
        )
        for name in taken
    ]


def quantiles_to_match(store: PatchStore, name: str, bands: BandScaling) -> NDArray[np.float64] | None:
    """Return the quantiles with which a source of a scene is matched; None if the model or the scene does not allow it.

    Raises:
        InputError: the model matches this source, but the store holds no quantiles of it.
    """
    if bands.reference is None:
        return None
    if name not in store.quantiles:
        raise InputError(
            f"{store.url}: the model matches source {name!r} of every scene to its training distribution, but the store has "
            f"no quantiles of it; add {name!r} to `prepare.histogram_matching` and run `mibf prepare`."
        )
    return store.quantiles[name]


def check_matching(store: PatchStore, scaling: Scaling) -> None:
    """Check that a store has the quantiles that a model's normalization needs.

    Raises:
        InputError: see `quantiles_to_match`.
    """
    for source in store.sources:
        if source.name in scaling:
            quantiles_to_match(store, source.name, scaling[source.name])
