"""Synthetic scenes of any size with complete ground truth. Computed with numpy; `synthetic_files` writes them.

By construction, *no single source determines the classes*. With n sources, a pixel's class is n bits, one from each of n
independent binary fields. Field k is visible in source k alone, together with noise and a smooth background that are
independent of the classes. So there are 2**n classes of about equal shares, and a model that reads one source, however
well, knows one bit of n: at best it classifies one pixel in 2**(n - 1) correctly (half of them with two sources). All
sources together determine nearly all pixels. A map above that bound has fused its sources.

Every value is a pure function of the seed and of its position: lattice values are hashed from (seed, field, row, column);
noise comes from a counter-based generator keyed by (seed, source), with its counter set to (band, row, column) of a block
anchored at the origin. With a sequential generator a pixel would depend on everything generated before it; here any window
can be computed alone, in any order, by any process, and equals that part of the complete scene to the last bit. Memory
therefore does not grow with the scene. Only integers are hashed, and floats are added and multiplied elementwise, never by
a matrix product, whose rounding depends on the shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.grid import Window
from pipeline.scenes.splitmix64 import GOLDEN, mix

#: Side of the blocks in which noise is generated and files are written, in source pixels.
BLOCK = 512
#: Value of source pixels without data; no valid pixel has it, see `SyntheticScene.values`.
NODATA = 0
#: Value of an unlabelled pixel in these scenes' label files; stores use another one, see `pipeline.codes`.
UNLABELLED = 0
#: Maximum number of sources; the class ids of more would not fit in a byte.
MAX_SOURCES = 7
# Components of a source's value, all in its units, reflectance times 10000.
BASE = (2200.0, 4200.0)  # range of the bands' means
CONTRAST = 600.0  # added or subtracted, by the source's bit
BACKGROUND = 300.0  # maximum that the smooth background adds or subtracts
NOISE = 240.0  # standard deviation; by construction, noise is at most 3.47 times this


@dataclass(frozen=True)
class SyntheticSource:
    """One source: its number of bands, and its pixels per reference pixel along an axis."""

    name: str
    bands: int
    scale: int = 1


@dataclass(frozen=True)
class SyntheticScene:
    """A scene as a function of position; values are computed only when a window is requested.

    `shape_yx` is the shape of the reference grid. `blob` is the spacing of the fields' lattice in reference pixels: along a
    row the bits change about every two blobs. `labelled` is the share of pixels with a label, `nodata` the share of pixels
    without data in each source after the first.
    """

    shape_yx: tuple[int, int]
    sources: tuple[SyntheticSource, ...]
    seed: int = 0
    blob: int = 24
    labelled: float = 0.2
    nodata: float = 0.0

    @property
    def class_ids(self) -> range:
        """The ids of all classes: 1 + the bits read as a binary number, the first source's bit leading."""
        return range(1, 2 ** len(self.sources) + 1)

    def class_bits(self, class_id: int) -> tuple[int, ...]:
        """A class's bit in each source's field."""
        return tuple((class_id - 1) >> k & 1 for k in reversed(range(len(self.sources))))

    def source_shape(self, source: int) -> tuple[int, int]:
        """Rows and columns of a source."""
        scale = self.sources[source].scale
        return self.shape_yx[0] * scale, self.shape_yx[1] * scale

    def bit(self, source: int, window: Window) -> NDArray[np.bool_]:
        """The binary field visible in this source alone, in a window of the reference grid: (y, x).

        The lattice values, and so all means of them, are distributed symmetrically around 1/2: 1/2 is the median, and each
        bit value covers half of the area.
        """
        return value_noise(self.seed, f"bit {source}", spacing=self.blob, window=window) > 0.5

    def truth(self, window: Window) -> NDArray[np.uint8]:
        """The class id of each pixel of a window of the reference grid: (y, x)."""
        classes = np.ones((window.height, window.width), np.uint8)
        for source in range(len(self.sources)):
            classes += self.bit(source, window).astype(np.uint8) << (len(self.sources) - 1 - source)
        return classes

    def labels(self, window: Window) -> NDArray[np.uint8]:
        """The class id where there is a label, 0 elsewhere: (y, x).

        Labels are scattered squares with sides of a third of a blob, like field plots.
        """
        side = max(1, self.blob // 3)
        rows, columns = (np.arange(a, a + n) // side for a, n in ((window.y, window.height), (window.x, window.width)))
        plots = _hashed(self.seed, "labels", np.arange(rows[0], rows[-1] + 1), np.arange(columns[0], columns[-1] + 1))
        chosen = (plots < self.labelled)[np.ix_(rows - rows[0], columns - columns[0])]
        return np.where(chosen, self.truth(window), np.uint8(UNLABELLED))

    def missing(self, source: int, window: Window) -> NDArray[np.bool_]:
        """Where a source has no data in a window of the reference grid: (y, x), in blobs independent of the classes."""
        if source == 0 or self.nodata == 0:
            return np.zeros((window.height, window.width), bool)
        field = value_noise(self.seed, f"missing {source}", spacing=self.blob, window=window)
        return field < _quantile(self.nodata)

    def values(self, source: int, window: Window) -> NDArray[np.uint16]:
        """A source's values in a window of its own pixels: (band, y, x).

        A band is its mean, plus or minus the contrast by the source's bit (the sign depends on the band), plus the source's
        background times the band's gain, plus noise: from 468 to 5932, so never `NODATA`.
        """
        declared = self.sources[source]
        bit, missing = (_finer(part, source, window, declared.scale) for part in (self.bit, self.missing))
        background = value_noise(
            self.seed, f"background {source}", spacing=4 * self.blob, window=window, scale=declared.scale
        )
        background = (background - np.float32(0.5)) * np.float32(2 * BACKGROUND)
        signal = np.where(bit, np.float32(CONTRAST), np.float32(-CONTRAST))
        traits = _hashed(self.seed, f"bands {source}", np.arange(declared.bands), np.arange(3))
        values = np.empty((declared.bands, window.height, window.width), np.uint16)
        for band, (base, gain, sign) in enumerate(traits.astype(np.float32)):
            plane = noise(self.seed, source, band, window)
            plane *= np.float32(NOISE)
            plane += background * (np.float32(0.5) + gain / 2)
            (np.add if sign < 0.5 else np.subtract)(plane, signal, out=plane)
            plane += np.float32(BASE[0]) + base * np.float32(BASE[1] - BASE[0])
            values[band] = plane
        values[:, missing] = NODATA
        return values


def _finer(part: Callable[[int, Window], NDArray[np.bool_]], source: int, window: Window, scale: int) -> NDArray[np.bool_]:
    """A field of the reference grid in a window of a finer grid: each pixel has the value of its reference pixel."""
    y, x = window.y // scale, window.x // scale
    below, right = -(-(window.y + window.height) // scale), -(-(window.x + window.width) // scale)
    coarse = part(source, Window(y, x, below - y, right - x))
    if scale == 1:
        return coarse
    fine = coarse.repeat(scale, axis=0).repeat(scale, axis=1)
    return fine[Window(window.y - y * scale, window.x - x * scale, window.height, window.width).slices]


def value_noise(seed: int, field: str, *, spacing: int, window: Window, scale: int = 1) -> NDArray[np.float32]:
    """A smooth field in 0 to 1 with median 1/2, in a window of pixels `scale` times finer than the reference grid: (y, x).

    Hashed values at the nodes of a lattice, `spacing` reference pixels apart and with a separate origin per field, are
    interpolated by 3 t**2 - 2 t**3 along y, then along x.
    """
    offset = _hashed(seed, f"{field} origin", np.arange(1), np.arange(2))[0]
    axes = []
    for start, length, shift in ((window.y, window.height, offset[0]), (window.x, window.width, offset[1])):
        position = (np.arange(start, start + length) + 0.5) / (scale * spacing) + shift
        node = np.floor(position).astype(np.int64)
        part = position - node
        axes.append((node, (part * part * (3 - 2 * part)).astype(np.float32)))
    (row, down), (column, along) = axes
    nodes = [np.arange(axis[0], axis[-1] + 2) for axis in (row, column)]
    lattice = _hashed(seed, field, *nodes).astype(np.float32)
    row, column = row - row[0], column - column[0]
    lines = lattice[row] + down[:, None] * np.diff(lattice, axis=0)[row]  # (y, lattice columns)
    field_values: NDArray[np.float32] = np.diff(lines, axis=1).take(column, axis=1)
    field_values *= along
    field_values += lines.take(column, axis=1)
    return field_values


def _hashed(seed: int, field: str, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number per lattice node, uniform over 0 to 1 and symmetric about 1/2: (rows, columns).

    It uses 24 bits of the hash, which float32 represents exactly.
    """
    state = np.array([seed], np.uint64)
    for letter in field.encode():
        state = mix(state + GOLDEN * np.array([letter], np.uint64))
    state = mix(state + GOLDEN * (rows[:, None].astype(np.uint64) + np.uint64(1)))
    state = mix(state + GOLDEN * (columns[None].astype(np.uint64) + np.uint64(1)))
    return ((state >> np.uint64(40)).astype(np.float64) + 0.5) / 2**24


@lru_cache
def _quantile(share: float) -> float:
    """The value below which a given share of all pixels of a smooth field lies.

    It is the same for all fields and spacings, and estimated from a sample: 4 x 4 points in each of 256 x 256 lattice cells.
    """
    return float(np.quantile(value_noise(0, "quantile", spacing=4, window=Window(0, 0, 1024, 1024)), share))


def noise(seed: int, source: int, band: int, window: Window) -> NDArray[np.float32]:
    """Noise of mean 0 and standard deviation 1 in a window of source pixels, independent in each: (y, x).

    The sum of four uniform 14-bit numbers: close enough to a normal distribution, and computed from integers alone, so no
    library version can change it, as it could change the method for normal random numbers.
    """
    plane = np.empty((window.height, window.width), np.float32)
    bottom, right = window.y + window.height, window.x + window.width
    for block_y in range(window.y // BLOCK, -(-bottom // BLOCK)):
        for block_x in range(window.x // BLOCK, -(-right // BLOCK)):
            top, left = block_y * BLOCK, block_x * BLOCK
            y, x = max(window.y, top), max(window.x, left)
            rows, columns = min(bottom, top + BLOCK) - y, min(right, left + BLOCK) - x
            part = _noise_block(seed, source, band, block_y, block_x)[Window(y - top, x - left, rows, columns).slices]
            plane[Window(y - window.y, x - window.x, rows, columns).slices] = part
    return plane


def _noise_block(seed: int, source: int, band: int, block_y: int, block_x: int) -> NDArray[np.float32]:
    # The counter's lowest word is left to the generator: a block uses 2**16 of its 2**64 values.
    key, counter = np.array([seed, source], np.uint64), np.array([0, band, block_y, block_x], np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(BLOCK * BLOCK)
    four = raw.astype("<u8", copy=False).view("<u2").reshape(4, BLOCK, BLOCK) >> 2
    total: NDArray[np.float32] = (four[0] + four[1] + four[2] + four[3]).astype(np.float32)  # 0 to 65532: fits in 16 bits
    total -= np.float32(32766)
    total *= np.float32((4 * (2**28 - 1) / 12) ** -0.5)
    return total
