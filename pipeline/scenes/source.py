"""Sources as declared in the configuration, opened lazily on the reference grid and read window by window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from mibf.errors import InputError
from pipeline.codes import Missing
from pipeline.decoding.derived import derived_bands
from pipeline.decoding.encodings import decibels
from pipeline.decoding.expression import halo, parse
from pipeline.decoding.terrain import Terrain, check_ground
from pipeline.grid import Window, finer, padded
from pipeline.io.sidecars import Listings
from pipeline.rasters.header import RasterFile, stored_dtype
from pipeline.rasters.raster import AlignedFile, align_file, header, stamped
from pipeline.rasters.resample import overlaps
from pipeline.scenes.geometries import AreaMask
from pipeline.stac.assets import Skipped
from pipeline.stac.composite import COUNTS, WORKING_BYTES, Composite, Observed, combine_in_parts, mosaic
from pipeline.stac.gaps import close_gaps
from pipeline.stac.masks import Mask, dilated
from pipeline.stac.periods import OF_PERIOD, Gaps, Period
from pipeline.stac.series import check_scaled

#: Of several files or dates, the first one with data.
FIRST = Composite("first")


@dataclass(frozen=True)
class Source:
    """A sensor's raster as declared.

    `layers` hold its bands in order. Each layer is one file or a mosaic of several, where the first file with data is used.
    The files of a layer can be observations of several dates, which are combined; each then has a date and maybe a mask.
    Values become value * gain + offset; then derived bands, if any, are computed and appended.
    """

    name: str
    layers: tuple[tuple[RasterFile, ...], ...]
    resampling: str | None = None
    scale: int = 1
    gain: float = 1.0
    offset: float = 0.0
    mask: Mask | None = None
    missing: Missing = "exclude"
    notes: tuple[str, ...] = ()  #: for the user, on how its files were found
    band_names: tuple[str, ...] = ()  #: of the bands of its layers; empty if they have none
    derive: tuple[tuple[str, str], ...] = ()  #: names of derived bands, and their expressions on `band_names`
    keep: tuple[str, ...] = ()  #: names of the bands that the source consists of, in order; empty: all, derived ones last
    composite: Composite = FIRST
    dates: tuple[str, ...] = ()  #: of each file of a layer; files of one date are mosaicked; empty: all are of one
    masks: tuple[Mask, ...] = ()  #: of each file of a layer; empty: they have none
    skipped: tuple[Skipped, ...] = ()  #: items of dates that are left out, as files are missing or damaged
    periods: tuple[Period, ...] = ()  #: that are composites of their own, whose bands follow each other; empty: there is one
    gaps: Gaps = "exclude"  #: what becomes of a pixel without an observation in a period

    @property
    def files(self) -> list[RasterFile]:
        """All files that the source is read from, including scales and its mask."""
        files = [file for layer in self.layers for part in layer for file in part.files]
        return [*files, *(mask.file for mask in (*self.masks, *(() if self.mask is None else (self.mask,))))]

    @property
    def kept(self) -> tuple[str, ...]:
        """The names of the bands that the source consists of, such as `red` or `red@2024-06`; empty if they have none."""
        names = self.kept_of_period
        return tuple(f"{name}{OF_PERIOD}{p.name}" for p in self.periods for name in names) if self.periods else names

    @property
    def kept_of_period(self) -> tuple[str, ...]:
        """The names of the bands that each period consists of, without its own."""
        return self.keep or (*self.band_names, *(name for name, _ in self.derive))

    @property
    def halo(self) -> int:
        """How many of its pixels around a pixel are read for its derived bands."""
        return max((halo(parse(text, self.band_names)) for _, text in self.derive), default=0)

    @property
    def planes(self) -> int:
        """Number of periods, each with a count of clear dates; 0 without a composite of dates."""
        return len(self.periods) or int(bool(self.dates))


@dataclass(frozen=True)
class AlignedSource:
    """A source on the reference grid, `scale` times finer. Holds no pixels; instances can be sent to other machines."""

    declared: Source
    grid: GeoBox  #: the reference grid at the source's resolution
    layers: tuple[tuple[AlignedFile, ...], ...]
    mask: AlignedFile | None
    dtype: np.dtype[Any]  #: dtype in the store, lossless for integers of up to 16 bits
    area: AreaMask | None = None  #: on the reference grid; outside it there is no data, and nothing is read

    @property
    def bands(self) -> int:
        """Number of bands: those of all layers, or those that are kept of them and of the derived ones, of all periods."""
        return len(self.declared.kept) or self.bands_read

    @property
    def bands_read(self) -> int:
        """Number of bands of all layers."""
        return sum(layer[0].header.bands for layer in self.layers)

    @property
    def scale(self) -> int:
        """Source pixels per reference pixel along an axis."""
        return self.declared.scale

    @property
    def parts(self) -> list[AlignedFile]:
        """The files of all layers."""
        return [part for layer in self.layers for part in layer]

    @property
    def files(self) -> list[RasterFile]:
        """All files that the source is read from, including scales and its masks, with their stamps."""
        masks = [part.mask for part in self.layers[0] if part.mask is not None]
        masks += [] if self.mask is None else [self.mask]
        return [file for part in [*self.parts, *masks] for file in part.file.files]

    @property
    def left_out(self) -> list[str]:
        """What its files hold beside what is read from them, for the user."""
        heads = [part.header for part in [*self.parts, *([] if self.mask is None else [self.mask])]]
        found = [head.left_out for head in heads if head.left_out is not None]
        pairs = [(self.declared.mask, self.mask, "choose one with `mask.band`")]
        pairs += [
            (self.declared.masks[part.position], part.mask, "name one in `stac.mask.asset`")
            for part in self.layers[0]
            if part.mask is not None
        ]
        for mask, part, remedy in pairs:
            if mask is not None and part is not None and not mask.chosen and part.header.file_bands > 1:
                found.append(f"mask {mask.file} has {part.header.file_bands} bands, of which the first is used; {remedy}")
        return found

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes per reference pixel while it is read, with bands that are not kept, validity and counts of dates."""
        declared = self.declared
        bands = self.bands_read + len(declared.derive)
        bands = bands + self.bands if declared.periods else max(bands, self.bands)
        # Interpolation holds a mask and the next clear period.
        counts = declared.planes * (COUNTS.itemsize + (3 if declared.gaps == "interpolate" else 0))
        return (bands * self.dtype.itemsize + 1 + counts) * self.scale**2

    @property
    def how(self) -> list[str]:
        """How its files are aligned to the grid, and how dates are combined."""
        found = sorted({str(part.alignment) for part in self.parts})
        days = sorted({self.declared.dates[part.position] for part in self.parts}) if self.declared.dates else []
        if len(days) > 1:
            periods = f" in {len(self.declared.periods)} periods" if self.declared.periods else ""
            found.append(f"{self.declared.composite} of {len(days)} dates{periods} from {days[0]} to {days[-1]}")
        return found

    @property
    def dates_bytes(self) -> int:
        """Bytes, besides those of its pixels, for combining dates while a window is read."""
        return WORKING_BYTES if len(set(self.declared.dates)) > 1 else 0

    @cached_property
    def observed_dtype(self) -> np.dtype[Any]:
        """The dtype that holds the values of a date: where they are those of the files, theirs, which can be smaller."""
        changed = self.declared.gain != 1 or self.declared.offset != 0
        if changed or any(part.alignment.interpolates or part.file.decode == "db" for part in self.parts):
            return self.dtype
        own = stored_dtype([dtype for part in self.parts for dtype in part.header.dtypes])
        return own if own.kind in "iu" else self.dtype

    def read(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read the values and validity of a window of the reference grid.

        Returns:
            Values (band, height * scale, width * scale) in the stored dtype, 0 in all bands where there is no data; and
            validity (height * scale, width * scale): all bands that are read or derived are finite and the mask accepts
            the pixel.

        Raises:
            InputError: a file cannot be read; the message names it.
        """
        return self.observe(window)[:2]

    def observe(self, window: Window) -> Observed:
        """Read as `read`, with the number of clear dates (period, y, x): 0 where a period has no value, even if derived.

        Raises:
            InputError: a file cannot be read; the message names it.
        """
        side, planes = self.scale, self.declared.planes
        inside = None if self.area is None else self.area.inside(window)
        if inside is None or inside.all():
            return self._observe_files(window)
        shape = (window.height * side, window.width * side)
        values, valid = np.zeros((self.bands, *shape), self.dtype), np.zeros(shape, bool)
        counts = np.zeros((planes, *shape), COUNTS) if planes else None
        if inside.any():
            rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
            top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
            found = self._observe_files(Window(window.y + top, window.x + left, bottom - top, right - left))
            outside = ~inside[top:bottom, left:right].repeat(side, axis=0).repeat(side, axis=1)
            part = np.s_[top * side : bottom * side, left * side : right * side]
            for whole, own in zip((values, valid, counts), found, strict=True):
                if whole is not None and own is not None:
                    own[..., outside] = 0
                    whole[..., *part] = own
        return Observed(values, valid, counts)

    def _observe_files(self, window: Window) -> Observed:
        """Read a window, as `observe`, wherever the area is."""
        own = Window(*(v * self.scale for v in (window.y, window.x, window.height, window.width)))
        declared, by = self.declared, self.declared.halo
        around = Window(own.y - by, own.x - by, own.height + 2 * by, own.width + 2 * by)
        dates, usable = self._dates_of(around), self._usable(around)
        if not declared.periods:
            values, clear = self._read_dates(list(dates.values()), around, usable)
            clear = clear[None]
        else:
            each = self.bands // len(declared.periods)
            values = np.empty((self.bands, own.height, own.width), self.dtype)
            clear = np.empty((declared.planes, own.height, own.width), COUNTS)
            for at, period in enumerate(declared.periods):
                found = self._read_dates([items for day, items in dates.items() if day in period], around, usable)
                values[at * each : (at + 1) * each], clear[at] = found
        valid = close_gaps(values, clear, declared.periods, declared.gaps) if declared.periods else clear[0] > 0
        if not valid.all():
            values[:, ~valid] = 0
        return Observed(values, valid, clear.astype(COUNTS, copy=False) if declared.planes else None)

    def _usable(self, window: Window) -> NDArray[np.bool_] | None:
        """Where (y, x) the source's own mask, if it has one, accepts its pixels."""
        if self.mask is None:
            return None
        mask, there = self.mask.read(self.grid, window)
        assert self.declared.mask is not None
        return there & self.declared.mask.passes(mask[0])

    def _read_dates(
        self, dates: Sequence[Sequence[tuple[AlignedFile, ...]]], window: Window, usable: NDArray[np.bool_] | None
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """The bands (band, y, x) that a period consists of, of dates combined, and the number of clear dates (y, x).

        The window includes the halo of derived bands, and what is returned does not.
        """
        values, counts = combine_in_parts(
            self.declared.composite,
            dates,
            self._read_items,
            window,
            bands=self.bands_read,
            observed=self.observed_dtype,
            dtype=self.dtype,
        )
        counts = counts if usable is None else counts * usable
        declared, by = self.declared, self.declared.halo
        if not (declared.derive or declared.keep):
            return values, counts
        terrain = Terrain(self.grid, window, counts > 0) if by else None
        bands, there = derived_bands(declared.band_names, values, declared.derive, terrain)
        inner = np.s_[by : window.height - by, by : window.width - by]
        return np.stack([bands[name][inner] for name in declared.kept_of_period]), (counts * there)[inner]

    def _dates_of(self, window: Window) -> dict[str, list[tuple[AlignedFile, ...]]]:
        """The items that touch a window, each with a file for every layer, by date in the order of the dates."""
        # Opening a file takes longer than reading its part of a window, and a window touches few of many tiles.
        items = [parts for parts in zip(*self.layers, strict=True) if all(part.reaches(self.grid, window) for part in parts)]
        by_date: dict[str, list[tuple[AlignedFile, ...]]] = {}
        for parts in items:
            by_date.setdefault(self.declared.dates[parts[0].position] if self.declared.dates else "", []).append(parts)
        return {date: by_date[date] for date in sorted(by_date)}

    def _read_items(
        self, items: Sequence[tuple[AlignedFile, ...]], window: Window
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values (band, y, x) and validity (y, x) of a date."""
        return mosaic(items, self._read_item, window)

    def _read_item(self, parts: Sequence[AlignedFile], window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        read = [self._read_file(part, window) for part in parts]
        values = read[0][0] if len(read) == 1 else np.concatenate([each for each, _ in read])
        valid = np.logical_and.reduce([there for _, there in read])
        first = parts[0]
        if first.mask is not None:
            valid = valid & self._clear(first.mask, self.declared.masks[first.position], window)
        return values, valid

    def _read_file(self, part: AlignedFile, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        values, valid = part.read(self.grid, window)
        if part.file.decode == "db":
            # After resampling, because a coarser pixel would have measured the mean of powers, not of decibels. A kernel
            # with negative weights can give a power that is not above 0.
            values = decibels(values)
            valid = valid & np.isfinite(values).all(axis=0)
        return self._physical(values, valid)

    def _clear(self, part: AlignedFile, mask: Mask, window: Window) -> NDArray[np.bool_]:
        """Where (y, x) the mask of an item accepts its pixels."""
        # What is masked beyond the edge of the window, and of the grid, reaches into it.
        reach, margin = mask.dilate * self.scale, part.margin
        rows, columns = (size + margin for size in self.grid.shape)
        top, left = max(-margin, window.y - reach), max(-margin, window.x - reach)
        bottom, right = min(window.y + window.height + reach, rows), min(window.x + window.width + reach, columns)
        values, there = part.read(self.grid, Window(top, left, bottom - top, right - left))
        clear = there & ~dilated(there & ~mask.passes(values[0]), reach)
        y, x = window.y - top, window.x - left
        return clear[y : y + window.height, x : x + window.width]

    def _physical(self, values: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        dtype = self.observed_dtype
        if values.dtype == dtype and self.declared.gain == 1 and self.declared.offset == 0:
            return values, valid
        values = np.where(valid, values, 0)
        if dtype.kind in "iu":  # integers, although a warped GDAL view returns floats
            return np.rint(values).astype(dtype), valid
        with np.errstate(over="ignore"):
            physical = (values * np.float64(self.declared.gain) + self.declared.offset).astype(np.float32)
        return physical, valid & np.isfinite(physical).all(axis=0)


def open_source(
    source: Source, grid: GeoBox, *, like: RasterFile | None = None, area: AreaMask | None = None
) -> AlignedSource:
    """Open a source on the reference grid, which is that of the file `like`, if given.

    With an area, files of a mosaic that do not overlap the grid are left out.

    Raises:
        InputError: a file is missing, unreadable, outside the grid, or lacks a required CRS.
    """
    own, by = finer(grid, source.scale), source.halo
    if by:
        check_ground(source.name, own)
    listings = Listings()
    files = [[*enumerate(stamped(file, listings) for file in layer)] for layer in source.layers]
    masks = [stamped(mask.file, listings) for mask in source.masks]
    if area is not None:
        # An item has data where all its files have.
        own_files = [[file for _, file in layer] for layer in files] + ([masks] if masks else [])
        around = padded(own, by)
        inside = {i for i, item in enumerate(zip(*own_files, strict=True)) if all(overlaps(header(f), around) for f in item)}
        files = [[(at, file) for at, file in layer if at in inside] or layer for layer in files]
    # What is masked beyond the grid reaches into it; without a CRS, files have the very grid.
    reach = {at: source.masks[at].dilate * source.scale + by if own.crs else 0 for at, _ in files[0] if masks}
    aligned = {at: align_file(masks[at], own, "nearest", like, margin) for at, margin in reach.items()}
    # Repeated pixels would have no slope, and steps between them.
    method = source.resampling or ("bilinear" if by else None)
    layers = tuple(
        tuple(replace(align_file(file, own, method, like, by), position=at, mask=aligned.get(at)) for at, file in layer)
        for layer in files
    )
    for layer in layers:
        for part in layer[1:]:
            if part.header.bands != layer[0].header.bands:
                raise InputError(
                    f"source {source.name!r}: {part.file} has {part.header.bands} bands, but {layer[0].file} has "
                    f"{layer[0].header.bands}; the files of a mosaic must have the same bands."
                )
        check_scaled(source.name, [(part.file, part.header) for part in layer])
    parts = [part for layer in layers for part in layer]
    stepped = next((part for part in parts if by and part.alignment.repeats), None)
    if stepped is not None:
        raise InputError(
            f"source {source.name!r}: {stepped.file} is {stepped.alignment}, which repeats pixels and makes steps, so that "
            "`derive` would have wrong slopes; set `resampling: bilinear`, and put bands of classes into another source."
        )
    read = sum(layer[0].header.bands for layer in layers)
    if source.band_names and len(source.band_names) != read:
        raise InputError(
            f"source {source.name!r}: has {read} bands ({parts[0].file}), but {len(source.band_names)} names: "
            f"{', '.join(source.band_names[:12])}{', ...' if len(source.band_names) > 12 else ''}. Name each band that is "
            "read, in order, in `band_names`, or select them with `bands`."
        )
    decibel = any(part.file.decode == "db" for part in parts)
    changed = source.gain != 1 or source.offset != 0 or bool(source.derive) or decibel or not source.composite.keeps_dtype
    changed = changed or (bool(source.periods) and source.gaps == "interpolate")
    mask = None if source.mask is None else align_file(stamped(source.mask.file, listings), own, "nearest", like, by)
    interpolated = any(part.alignment.interpolates for part in parts)
    dtype = stored_dtype([dtype for part in parts for dtype in part.header.dtypes])
    return AlignedSource(source, own, layers, mask, np.dtype(np.float32) if changed or interpolated else dtype, area)
