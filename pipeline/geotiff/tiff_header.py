"""The header of a cloud-optimised GeoTIFF whose tiles are encoded already: its directories, before all pixels.

The tags come from a template that GDAL writes; the sizes and the places of the tiles are filled in here. GDAL itself can
only encode all tiles of a file in one process. Layout: TIFF 6.0 (Adobe, 1992), BigTIFF, and GDAL's COG driver
(https://gdal.org/en/stable/drivers/raster/cog.html), whose readers use the size before each tile and the bytes repeated
after it.

Shapes: R, C are rows and columns of tiles of a level, B bands.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.geotiff.tile_codec import TILE

#: Tags whose values depend on the size of the image and on its tiles.
WIDTH, LENGTH, TILE_OFFSETS, TILE_BYTE_COUNTS = 256, 257, 324, 325
#: Field types, and the bytes of a value of each type.
_LONG, _LONG8 = 4, 16
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
#: What readers may rely on. The blank at the end is where GDAL would note that the file was changed afterwards.
_LAYOUT = (
    b"LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\nBLOCK_TRAILER=LAST_4_BYTES_REPEATED\n"
    b"KNOWN_INCOMPATIBLE_EDITION=NO\n "
)
_STRUCTURE = b"GDAL_STRUCTURAL_METADATA_SIZE=%06d bytes\n" % len(_LAYOUT) + _LAYOUT
_STRUCTURE += b"\0" * (len(_STRUCTURE) % 2)  # directories begin at even offsets
#: Bytes before and after each tile.
LEADER, TRAILER = 4, 4
#: Files that could exceed this have 64-bit offsets.
_CLASSIC_BYTES = 2**32 - 1
#: Tags that differ between images of other sizes.
_OF_SIZE = (WIDTH, LENGTH, TILE_OFFSETS, TILE_BYTE_COUNTS)
#: More than a raster's directories can be: each overview has half the side.
_MOST_DIRECTORIES = 64


@dataclass(frozen=True)
class _Field:
    """One field of a directory: values as stored, little-endian."""

    tag: int
    kind: int
    count: int
    values: bytes

    def numbers(self) -> NDArray[np.int64]:
        """The values of a field of whole numbers."""
        return np.frombuffer(self.values, {3: "<u2", 4: "<u4", 16: "<u8"}[self.kind]).astype(np.int64)


Directory = tuple[_Field, ...]


@dataclass(frozen=True)
class _Widths:
    """The formats of a file with 32-bit or with 64-bit offsets."""

    big: bool

    @property
    def counter(self) -> str:
        """Number of fields of a directory."""
        return "<Q" if self.big else "<H"

    @property
    def entry(self) -> str:
        """A field: tag, type, count, and the values or their offset."""
        return "<HHQ8s" if self.big else "<HHI4s"

    @property
    def link(self) -> str:
        """An offset in the file."""
        return "<Q" if self.big else "<I"


def read_directories(file: BinaryIO) -> list[Directory]:
    """Read the directories of a little-endian TIFF.

    Raises:
        ValueError: the file is not one, or is damaged.
    """
    head = _read(file, 0, 16)
    if head[:4] not in (b"II*\0", b"II+\0"):
        raise ValueError("not a little-endian TIFF")
    width = _Widths(big=head[2:3] == b"+")
    (place,) = struct.unpack_from(width.link, head, 8 if width.big else 4)
    found: list[Directory] = []
    while place:
        if len(found) == _MOST_DIRECTORIES:
            raise ValueError("its directories form a loop")
        (count,) = struct.unpack(width.counter, _read(file, place, struct.calcsize(width.counter)))
        start, size = place + struct.calcsize(width.counter), struct.calcsize(width.entry)
        entries = _read(file, start, count * size + struct.calcsize(width.link))
        found.append(tuple(_field(file, width, entries[size * number : size * (number + 1)]) for number in range(count)))
        (place,) = struct.unpack_from(width.link, entries, count * size)
    return found


def _field(file: BinaryIO, width: _Widths, entry: bytes) -> _Field:
    tag, kind, count, value = struct.unpack(width.entry, entry)
    size = count * _BYTES[kind]
    if size <= len(value):
        return _Field(tag, kind, count, value[:size])
    return _Field(tag, kind, count, _read(file, struct.unpack(width.link, value)[0], size))


def _read(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    content = file.read(size)
    if len(content) != size:
        raise ValueError("it is truncated")
    return content


def same_description(directories: Sequence[Directory], template: Sequence[Directory]) -> bool:
    """Whether a file has the tags of a template in all its directories, apart from size and tiles."""

    def described(directory: Directory) -> list[_Field]:
        return [field for field in directory if field.tag not in _OF_SIZE]

    return all(described(directory) == described(template[min(number, 1)]) for number, directory in enumerate(directories))


def tiles_of(directory: Directory, bands: int) -> tuple[tuple[int, int], NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of an image in pixels, and the offset and size of its tiles, (R, C, B), stored band by band."""
    fields = {field.tag: field for field in directory}
    rows, columns = (int(fields[tag].numbers()[0]) for tag in (LENGTH, WIDTH))
    shape = (bands, -(-rows // TILE), -(-columns // TILE))
    offsets, sizes = (np.moveaxis(fields[tag].numbers().reshape(shape), 0, -1) for tag in (TILE_OFFSETS, TILE_BYTE_COUNTS))
    return (rows, columns), offsets, sizes


def make_header(
    template: Sequence[Directory], shapes_yx: Sequence[tuple[int, int]], sizes: Sequence[NDArray[Any]]
) -> tuple[bytes, list[NDArray[np.int64]]]:
    """Make the header of a file.

    Tiles follow it in this order: the coarsest level first, row by row, the bands of a tile one after the other; each
    preceded by its size (`LEADER` bytes) and followed by its last four bytes again (`TRAILER`).

    Args:
        template: the directories of the full resolution and of an overview, as GDAL writes them for any size.
        shapes_yx: rows and columns of each level in pixels, the full resolution first.
        sizes: bytes of the tiles of each level, (R, C, B).

    Returns:
        The header, and the offset in the file of each tile of each level, (R, C, B).
    """
    stored = sum(int(level.sum(dtype=np.int64)) + (LEADER + TRAILER) * level.size for level in sizes)
    empty = [np.zeros(level.shape, np.int64) for level in sizes]
    big = len(_assemble(template, shapes_yx, sizes, empty, big=False)) + stored > _CLASSIC_BYTES
    start = len(_assemble(template, shapes_yx, sizes, empty, big=big))
    offsets: list[NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(sizes)
    for number in reversed(range(len(sizes))):
        spans = sizes[number].astype(np.int64).ravel() + LEADER + TRAILER
        ends = start + np.cumsum(spans)
        offsets[number] = (ends - spans + LEADER).reshape(sizes[number].shape)
        start = int(ends[-1])
    return _assemble(template, shapes_yx, sizes, offsets, big=big), offsets


def _assemble(
    template: Sequence[Directory],
    shapes_yx: Sequence[tuple[int, int]],
    sizes: Sequence[NDArray[Any]],
    offsets: Sequence[NDArray[Any]],
    *,
    big: bool,
) -> bytes:
    """The header for tiles at these offsets; its length does not depend on them."""
    first = (16 if big else 8) + len(_STRUCTURE)
    start = struct.pack("<2sHHHQ", b"II", 43, 8, 0, first) if big else struct.pack("<2sHI", b"II", 42, first)
    parts, place = [start, _STRUCTURE], first
    for number, (shape, size, offset) in enumerate(zip(shapes_yx, sizes, offsets, strict=True)):
        fields = _filled(template[min(number, 1)], shape, size, offset, big=big)
        directory = _directory(fields, place, _Widths(big), last=number == len(sizes) - 1)
        parts.append(directory)
        place += len(directory)
    return b"".join(parts)


def _filled(
    directory: Directory, shape_yx: tuple[int, int], sizes: NDArray[Any], offsets: NDArray[Any], *, big: bool
) -> list[_Field]:
    """A template's fields with the size and the tiles of an image. TIFF lists all tiles of the first band first."""
    by_band = [np.moveaxis(values, -1, 0).ravel() for values in (offsets, sizes)]
    kind, dtype = (_LONG8, "<u8") if big else (_LONG, "<u4")
    changed = {
        WIDTH: _Field(WIDTH, _LONG, 1, struct.pack("<I", shape_yx[1])),
        LENGTH: _Field(LENGTH, _LONG, 1, struct.pack("<I", shape_yx[0])),
        TILE_OFFSETS: _Field(TILE_OFFSETS, kind, sizes.size, by_band[0].astype(dtype).tobytes()),
        TILE_BYTE_COUNTS: _Field(TILE_BYTE_COUNTS, _LONG, sizes.size, by_band[1].astype("<u4").tobytes()),
    }
    return [changed.get(field.tag, field) for field in directory]


def _directory(fields: Sequence[_Field], place: int, width: _Widths, *, last: bool) -> bytes:
    """A directory at a place in the file, followed by the values that do not fit into its entries."""
    inline = struct.calcsize(width.link)
    entries, values = [], []
    end = place + struct.calcsize(width.counter) + struct.calcsize(width.entry) * len(fields) + inline
    for field in fields:
        content = field.values
        if len(content) > inline:
            values.append(content + b"\0" * (len(content) % 2))
            content = struct.pack(width.link, end)
            end += len(values[-1])
        entries.append(struct.pack(width.entry, field.tag, field.kind, field.count, content))
    following = struct.pack(width.link, 0 if last else end)
    return b"".join([struct.pack(width.counter, len(fields)), *entries, following, *values])
