"""Sources as a person declares them, opened lazily on the reference grid: what a window of the grid holds of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.align import Alignment, align, read_aligned
from pipeline.grid import Window
from pipeline.raster import Header, RasterFile, header, open_raster

#: What becomes of a pixel where this source has no data: left out, or taken with the training median.
Missing = Literal["exclude", "fill"]


@dataclass(frozen=True)
class Mask:
    """A raster that tells where a source may be used: by values that are valid or not, or by bits that must not be set."""

    file: RasterFile
    valid: tuple[int, ...] = ()
    invalid: tuple[int, ...] = ()
    bits: tuple[int, ...] = ()

    def passes(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Where values let a source's pixel pass."""
        passed = np.isin(values, self.valid) if self.valid else ~np.isin(values, self.invalid)
        if self.bits:
            passed &= values.astype(np.int64) & sum(1 << bit for bit in self.bits) == 0
        return passed


@dataclass(frozen=True)
class Source:
    """A sensor's raster as declared.

    `layers` are its bands in order, each from one file or from several side by side, of which the first with data counts.
    Values become value * gain + offset.
    """

    name: str
    layers: tuple[tuple[RasterFile, ...], ...]
    resampling: str | None = None
    scale: int = 1
    gain: float = 1.0
    offset: float = 0.0
    mask: Mask | None = None
    missing: Missing = "exclude"

    @property
    def files(self) -> list[RasterFile]:
        """Every file that it is read from, its mask included."""
        files = [file for layer in self.layers for file in layer]
        return files if self.mask is None else [*files, self.mask.file]


@dataclass(frozen=True)
class Part:
    """One file of a source and how it comes to the grid."""

    file: RasterFile
    header: Header
    alignment: Alignment


@dataclass(frozen=True)
class OpenSource:
    """A source on the reference grid, `scale` times as fine; nothing of it is in memory. Values travel to other machines."""

    declared: Source
    grid: GeoBox  #: the reference grid in pixels of the source
    layers: tuple[tuple[Part, ...], ...]
    mask: Part | None
    dtype: np.dtype[Any]  #: what its values are stored as, without loss where they are integers of up to 16 bits

    @property
    def bands(self) -> int:
        """Bands of all layers together."""
        return sum(layer[0].header.bands for layer in self.layers)

    @property
    def scale(self) -> int:
        """Its pixels along one of the reference grid's."""
        return self.declared.scale

    @property
    def parts(self) -> list[Part]:
        """The files of all layers."""
        return [part for layer in self.layers for part in layer]

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes of a pixel of the reference grid, its validity included."""
        return (self.bands * self.dtype.itemsize + 1) * self.scale**2

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The values and validity of a window of the reference grid.

        Returns:
            Values (band, height * scale, width * scale) in the stored dtype, 0 in all bands where there is no data; and
            where (height * scale, width * scale) there is: all bands hold finite numbers and the mask lets the pixel pass.

        Raises:
            InputError: a file cannot be read; it is named.
        """
        own = Window(*(v * self.scale for v in (window.y, window.x, window.height, window.width)))
        parts = [self._read_layer(layer, own) for layer in self.layers]
        values = parts[0][0] if len(parts) == 1 else np.concatenate([part for part, _ in parts])
        valid = np.logical_and.reduce([there for _, there in parts])
        if self.mask is not None:
            told, there = _read_part(self.mask, self.grid, own)
            assert self.declared.mask is not None
            valid &= there & self.declared.mask.passes(told[0])
        if not valid.all():
            values[:, ~valid] = 0
        return values, valid

    def _read_layer(self, layer: Sequence[Part], window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """A layer's values (band, y, x), and where (y, x) they are data: of the first file that has some."""
        values, valid = self._physical(*_read_part(layer[0], self.grid, window))
        for part in layer[1:]:
            if valid.all():
                break
            others, there = self._physical(*_read_part(part, self.grid, window))
            news = there & ~valid
            values[:, news] = others[:, news]
            valid = valid | there
        return values, valid

    def _physical(self, values: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        if values.dtype == self.dtype and self.declared.gain == 1 and self.declared.offset == 0:
            return values, valid
        values = np.where(valid, values, 0)
        if self.dtype.kind in "iu":  # whole numbers, though a view of GDAL's gave them as floats
            return np.rint(values).astype(self.dtype), valid
        with np.errstate(over="ignore"):
            physical = (values * np.float64(self.declared.gain) + self.declared.offset).astype(np.float32)
        return physical, valid & np.isfinite(physical).all(axis=0)


def _read_part(part: Part, grid: GeoBox, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    with open_raster(part.file) as raster:
        return read_aligned(raster, part.alignment, grid, window)


def reference_grid(like: Source) -> GeoBox:
    """The grid of a source's first file; of a source of scale s, the one that has s x s of its pixels in each."""
    own = header(like.layers[0][0]).grid
    if like.scale == 1:
        return own
    rows, columns = own.shape
    if rows % like.scale or columns % like.scale:
        raise InputError(
            f"{like.layers[0][0]}: is {rows} x {columns} pixels, which are not whole reference pixels of {like.scale} x "
            f"{like.scale}; let `grid` be like another source, or give its crs, resolution and bounds."
        )
    return GeoBox((rows // like.scale, columns // like.scale), own.affine * Affine.scale(like.scale), own.crs)


def finer(grid: GeoBox, scale: int) -> GeoBox:
    """A grid with scale x scale pixels in each of another's."""
    return GeoBox((grid.shape[0] * scale, grid.shape[1] * scale), grid.affine * Affine.scale(1 / scale), grid.crs)


def open_source(source: Source, grid: GeoBox) -> OpenSource:
    """Open a source on the reference grid.

    Raises:
        InputError: a file is missing, unreadable, without a CRS where one is needed, or elsewhere.
    """
    own = finer(grid, source.scale)
    layers = tuple(tuple(_part(file, own, source.resampling) for file in layer) for layer in source.layers)
    for layer in layers:
        for part in layer[1:]:
            if part.header.bands != layer[0].header.bands:
                raise InputError(
                    f"source {source.name!r}: {part.file} has {part.header.bands} bands, {layer[0].file} beside it has "
                    f"{layer[0].header.bands}; files side by side hold the same bands."
                )
    parts = [part for layer in layers for part in layer]
    changed = source.gain != 1 or source.offset != 0
    mask = None if source.mask is None else _part(source.mask.file, own, "nearest")
    interpolated = any(part.alignment.interpolates for part in parts)
    dtype = stored_dtype([dtype for part in parts for dtype in part.header.dtypes])
    return OpenSource(source, own, layers, mask, np.dtype(np.float32) if changed or interpolated else dtype)


def _part(file: RasterFile, grid: GeoBox, resampling: str | None) -> Part:
    head = header(file)
    return Part(file, head, align(file, head, grid, resampling=resampling))


def stored_dtype(dtypes: Sequence[str]) -> np.dtype[Any]:
    """The type that holds values of all these types: integers of up to 16 bits as they are, everything else as float32."""
    common = np.result_type(*dtypes)
    if common.kind == "b":
        return np.dtype(np.uint8)
    return common if common.kind in "iu" and common.itemsize <= 2 else np.dtype(np.float32)
