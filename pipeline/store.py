"""The patch store: a scene's sources, validity, labels and split as one sharded Zarr v3 group.

Pixels are stored once; patches are cut when they are read. The driver lays the template down,
tasks fill whole shards, readers take windows with a halo.

    sources/NAME  (band, y, x)  the source's own integers, or float32; of a source of scale s on s x s pixels for each
    valid/NAME    (y, x)        whether the source has data in all its bands, on the same pixels
    labels        (y, x)        class ids, 255 where there is none
    split         (y, x)        the subset that a pixel is a sample of: 1 train, 2 validation, 3 test, 0 none
    samples       (subset, class, y, x)  samples of each subset and class in each `CHUNK` x `CHUNK` window

A shard covers the same ground in every array but `samples`. Every chunk carries a CRC32C, which is checked when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import product
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from zarr.codecs import BloscCodec, Crc32cCodec

from mibf.bundle import ClassName
from mibf.errors import InputError
from pipeline import storage
from pipeline.grid import Window, grid_from_json, grid_to_json, reflected, windows
from pipeline.labels import UNLABELLED
from pipeline.scene import Missing, finer
from pipeline.split import CODES, SUBSETS, Subset

#: Side in reference pixels of the unit that is read. The unit that is written, a shard, is some of these wide.
CHUNK = 128
#: Side of that unit in the arrays without bands, which are small: fewer, larger pieces are quicker to read and to write.
PLANE_CHUNK = 512
#: Sides that a shard may have, and the bytes of all arrays that one is to hold at the most.
SHARDS, SHARD_BYTES = (128, 256, 512, 1024), 48 << 20
#: A scene is written in this many shards at least, as far as the smaller sides allow, so that cores share the work.
FEWEST_SHARDS = 16
FORMAT = 2
#: Chosen by `mibf bench prepare --codecs` on real scenes: see docs/performance.md.
COMPRESSOR = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")


@dataclass(frozen=True)
class StoredSource:
    """What a store says of a source: its name, number of bands, rule for missing data, pixels along a reference pixel."""

    name: str
    bands: int
    missing: Missing
    scale: int = 1


@dataclass(frozen=True)
class Template:
    """What a store is laid down by."""

    grid: GeoBox
    sources: tuple[StoredSource, ...]
    dtypes: tuple[np.dtype[Any], ...]  #: of the sources
    classes: tuple[ClassName, ...]
    shard: int  #: side in reference pixels

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes that all arrays hold of a reference pixel, uncompressed."""
        of_sources = (
            (s.bands * dtype.itemsize + 1) * s.scale**2 for s, dtype in zip(self.sources, self.dtypes, strict=True)
        )
        return sum(of_sources) + 2  # labels and split

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the reference grid."""
        rows, columns = self.grid.shape
        return rows, columns


def shard_side(shape_yx: tuple[int, int], bytes_per_pixel: int) -> int:
    """The side of a scene's shards: as large as `SHARD_BYTES` allow, smaller for a small scene."""
    fitting = [side for side in SHARDS if side * side * bytes_per_pixel <= SHARD_BYTES]
    side = max(fitting, default=SHARDS[0])
    while side > SHARDS[1] and -(-shape_yx[0] // side) * -(-shape_yx[1] // side) < FEWEST_SHARDS:
        side //= 2
    return side


class ClosedSubsetError(Exception):
    """Samples of a subset were asked for that the store was opened without."""


class PatchStore:
    """A patch store opened for reading.

    Opened without a subset it tells nothing of that one's samples, neither where nor of what class they are: training
    opens it without the test subset.
    """

    def __init__(self, url: str, *, without: tuple[Subset, ...] = ()) -> None:
        self.url = url
        self.without = without
        try:
            self.group = storage.open_whole(url)
        except (FileNotFoundError, zarr.errors.GroupNotFoundError) as error:
            raise InputError(f"{url}: no patch store; run `mibf prepare` first.") from error
        found = self.group.attrs.get("mibf:format")
        if found != FORMAT:
            raise InputError(f"{url}: store format {found}, this version reads {FORMAT}; run `mibf prepare` again.")

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
        """The sources in the order in which the network takes them."""
        stored = cast(list[dict[str, Any]], self.group.attrs["mibf:sources"])
        return tuple(StoredSource(**s) for s in stored)

    @cached_property
    def classes(self) -> tuple[ClassName, ...]:
        """The declared classes, in the order of the network's logits."""
        stored = cast(list[dict[str, Any]], self.group.attrs["mibf:classes"])
        return tuple(ClassName(**c) for c in stored)

    def source(self, name: str) -> StoredSource:
        """What the store says of a source."""
        return next(s for s in self.sources if s.name == name)

    def array(self, name: str) -> zarr.Array[Any]:
        """One of the group's arrays by its path."""
        if name not in self._arrays:  # opening one reads its metadata again
            self._arrays[name] = cast("zarr.Array[Any]", self.group[name])
        return self._arrays[name]

    @cached_property
    def _arrays(self) -> dict[str, zarr.Array[Any]]:
        return {}

    def read_source(self, name: str, window: Window, *, halo: int = 0) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values and validity of a window with a halo of reference pixels, mirrored at the scene's edges.

        The window itself may reach beyond the grid too.

        Returns:
            (band, (height + 2 halo) * scale, (width + 2 halo) * scale) and the same without bands.

        Raises:
            InputError: a chunk does not have its checksum; the store is damaged.
        """
        scale = self.source(name).scale
        rows = reflected(window.y - halo, window.y + window.height + halo, self.shape[0], scale=scale)
        columns = reflected(window.x - halo, window.x + window.width + halo, self.shape[1], scale=scale)
        box = slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1)
        values = self._read(f"sources/{name}", (slice(None), *box))
        valid = self._read(f"valid/{name}", box).astype(bool)
        if _in_row(rows) and _in_row(columns):
            return values, valid
        at = np.ix_(rows - box[0].start, columns - box[1].start)
        return values[:, at[0], at[1]], valid[at]

    def _read(self, name: str, box: tuple[slice, ...]) -> NDArray[Any]:
        try:
            return np.asarray(self.array(name)[box])
        except (ValueError, RuntimeError) as error:
            raise InputError(
                f"{self.url}/{self._broken(name, box)}: is damaged ({error}). `mibf verify` names all that is; "
                "`mibf prepare` writes it anew."
            ) from error

    def _broken(self, name: str, box: tuple[slice, ...]) -> str:
        """The first shard of an array that cannot be read where a box touches it, by its key; the array, if all can."""
        array, cut = self.array(name), box[-2:]
        assert array.shards is not None
        sides = array.shards[-2:]
        spans = [range(part.start // side, -(-part.stop // side)) for part, side in zip(cut, sides, strict=True)]
        for row, column in product(*spans):
            y, x = (
                slice(max(part.start, place * side), min(part.stop, (place + 1) * side))
                for part, place, side in zip(cut, (row, column), sides, strict=True)
            )
            try:
                array[..., y, x]
            except (ValueError, RuntimeError):
                return f"{name}/c/{'0/' * (array.ndim - 2)}{row}/{column}"
        return name

    def present(self, window: Window) -> dict[str, NDArray[np.bool_]]:
        """Where each source has data, by its name: the reference pixels (height, width) of a window; see `present`."""
        found = {}
        for s in self.sources:
            box = tuple(slice(part.start * s.scale, part.stop * s.scale) for part in window.slices)
            found[s.name] = present(s, self._read(f"valid/{s.name}", box).view(bool))
        return found

    def usable(self, window: Window) -> NDArray[np.bool_]:
        """The pixels (height, width) of a window that may be a sample: see `usable`, by each source's own rule."""
        return usable(self.sources, self.present(window))

    def samples(self, window: Window) -> dict[Subset, NDArray[np.uint8]]:
        """Class ids of each open subset's samples in a window, `UNLABELLED` elsewhere."""
        ids, codes = self.labelled(window)
        return {s: np.where(codes == CODES[s], ids, np.uint8(UNLABELLED)) for s in SUBSETS if s not in self.without}

    def labelled(self, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Class ids (height, width) of a window, and the code of the subset that each pixel is a sample of, 0 for none.

        Of a store that was opened without a subset only samples of the others have an id and a code.
        """
        ids, codes = self._read("labels", window.slices), self._read("split", window.slices)
        if self.without:
            open_ = np.isin(codes, [CODES[s] for s in SUBSETS if s not in self.without])
            return np.where(open_, ids, np.uint8(UNLABELLED)), np.where(open_, codes, np.uint8(0))
        return ids, codes

    def windows_with_samples(self, subset: Subset) -> list[tuple[Window, NDArray[np.int64]]]:
        """The `CHUNK`-sided windows that hold samples of a subset, with the number of each class.

        Raises:
            ClosedSubsetError: the store was opened without that subset.
        """
        if subset in self.without:
            raise ClosedSubsetError(f"{self.url}: was opened without the {subset} subset")
        counts = np.asarray(self.array("samples")[CODES[subset] - 1]).reshape(len(self.classes), -1).T
        return [(w, n) for w, n in zip(windows(self.shape, CHUNK), counts, strict=True) if n.any()]


def present(source: StoredSource, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The reference pixels (y, x) where a source has data: of a finer one, on all its pixels that lie in one."""
    s = source.scale
    return valid if s == 1 else np.asarray(valid.reshape(len(valid) // s, s, -1, s).all(axis=(1, 3)))


def usable(
    sources: Sequence[StoredSource],
    there: Mapping[str, NDArray[np.bool_]],
    *,
    required: Collection[str] | None = None,
) -> NDArray[np.bool_]:
    """The reference pixels (y, x) where every required source has data, and at least one of the sources has.

    Args:
        sources: one at the least.
        there: where each has data, by its name, from `present`.
        required: the names of those that must have data; those whose rule is "exclude" unless given.
    """
    if required is None:
        required = [source.name for source in sources if source.missing == "exclude"]
    found = np.logical_or.reduce([there[source.name] for source in sources])
    return np.asarray(np.logical_and.reduce([found, *(there[name] for name in required)]))


def _in_row(indices: NDArray[np.int64]) -> bool:
    """Whether indices are one after another."""
    return bool((np.diff(indices) == 1).all())


def lay_down(target: storage.Recorder, template: Template, *, fingerprint: str) -> None:
    """Lay a store's template down: every array with its shape, shards and attributes, no pixel yet.

    Whatever was there is gone afterwards.
    """
    group = zarr.open_group(store=target, mode="w")
    for name in ("sources", "valid"):
        group.create_group(name)
    for source, dtype in zip(template.sources, template.dtypes, strict=True):
        _create(group, f"sources/{source.name}", template, dtype, 0, bands=source.bands, scale=source.scale)
        _create(group, f"valid/{source.name}", template, np.dtype(np.uint8), 0, scale=source.scale)
    _create(group, "labels", template, np.dtype(np.uint8), UNLABELLED)
    _create(group, "split", template, np.dtype(np.uint8), 0)
    rows, columns = template.shape
    counted = (len(SUBSETS), len(template.classes), -(-rows // CHUNK), -(-columns // CHUNK))
    group.create_array(
        "samples",
        shape=counted,
        chunks=counted,
        dtype=np.int32,
        fill_value=0,
        dimension_names=("subset", "class", "window_y", "window_x"),
    )
    group.attrs.update(
        grid_to_json(template.grid)
        | {
            "mibf:format": FORMAT,
            "mibf:fingerprint": fingerprint,
            "mibf:shard": template.shard,
            "mibf:classes": [vars(c) for c in template.classes],
            "mibf:sources": [asdict(s) for s in template.sources],
        }
    )


def _create(
    group: zarr.Group,
    name: str,
    template: Template,
    dtype: np.dtype[Any],
    fill: int,
    *,
    bands: int | None = None,
    scale: int = 1,
) -> None:
    rows, columns = (size * scale for size in template.shape)
    shard = template.shard * scale
    chunk = CHUNK * scale if bands else math.gcd(PLANE_CHUNK, shard)
    above = () if bands is None else (bands,)
    # Sources of other pixels have axes of other names: xarray wants axes of one name to be of one length.
    at_scale = "" if scale == 1 else f"_{scale}"
    group.create_array(
        name,
        shape=(*above, rows, columns),
        chunks=(*above, chunk, chunk),
        shards=(*above, shard, shard),
        dtype=dtype,
        fill_value=fill,
        compressors=[COMPRESSOR, Crc32cCodec()],
        dimension_names=(*(() if bands is None else (f"{name.split('/')[-1]}_band",)), f"y{at_scale}", f"x{at_scale}"),
        attributes={} if scale == 1 else grid_to_json(finer(template.grid, scale)),
    )


class ShardWriter:
    """Fills whole shards of a store that is laid down; for as many threads as like."""

    def __init__(self, target: storage.Recorder) -> None:
        self.target = target
        self.group = zarr.open_group(store=target, mode="r+")
        self.side = int(cast(int, self.group.attrs["mibf:shard"]))
        self._arrays: dict[str, zarr.Array[Any]] = {}

    def write(self, window: Window, arrays: dict[str, NDArray[Any]]) -> dict[str, tuple[int, str]]:
        """Fill one shard of every array named, from (..., height * scale, width * scale) each.

        Returns:
            The size and SHA-256 of every object that was written, by its key.

        Raises:
            ValueError: the window is not a whole shard. Two writers in one shard would overwrite each other's pixels in
                silence.
        """
        written = {}
        for name, values in arrays.items():
            array, side = self._array(name), self.side
            assert array.shards is not None
            scale = array.shards[-1] // side
            rows, columns = array.shape[-2] // scale, array.shape[-1] // scale
            whole = (min(side, rows - window.y), min(side, columns - window.x))
            if window.y % side or window.x % side or (window.height, window.width) != whole:
                raise ValueError(f"{name}: {window} is not a whole shard of {side} x {side} pixels")
            y, x = (slice(part.start * scale, part.stop * scale) for part in window.slices)
            array[..., y, x] = values
            above = "0/" * (array.ndim - 2)
            key = f"{name}/c/{above}{window.y // side}/{window.x // side}"
            written[key] = self.target.written.pop(key)
        return written

    def _array(self, name: str) -> zarr.Array[Any]:
        if name not in self._arrays:
            array = cast("zarr.Array[Any]", self.group[name])
            # Empty or not: a shard that is not there is one that was not written.
            self._arrays[name] = array.with_config({"write_empty_chunks": True})
        return self._arrays[name]


def write_samples(target: storage.Recorder, samples: NDArray[np.int32]) -> None:
    """Write the number of samples (subset, class, window y, window x)."""
    array = cast("zarr.Array[Any]", zarr.open_group(store=target, mode="r+")["samples"])
    array.with_config({"write_empty_chunks": True})[...] = samples
