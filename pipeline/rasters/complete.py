"""Detect truncated rasters in the formats whose readers do not.

GDAL silently reads the missing part of such a file as zeros or noise: raw rasters, JPEG 2000 and PNG. Other formats fail
by themselves when their missing part is read.
"""

from __future__ import annotations

import gzip
import struct
import zlib

import numpy as np
from rasterio.io import DatasetReader

from mibf.errors import InputError
from pipeline.io import storage

#: GDAL drivers of files that contain only pixels; a sidecar file states their shape.
RAW = {"ENVI", "EHdr", "ISCE", "ROI_PAC", "RRASTER"}
JPEG_2000 = {"JP2OpenJPEG", "JP2KAK", "JP2ECW"}
#: First bytes of a JPEG 2000 codestream, and the marker that ends it (ISO/IEC 15444-1, annex A).
BEGIN, END = b"\xff\x4f\xff\x51", b"\xff\xd9"
#: Type and checksum of the chunk that ends a PNG file (ISO/IEC 15948, 11.2.5), and where it is searched for: other bytes may
#: follow it.
PNG_END, PNG_TAIL = b"IEND\xae\x42\x60\x82", 1 << 16


def check_complete(url: str, dataset: DatasetReader) -> None:
    """Check that a raster file is as long as its header declares, for formats where this is known.

    Raises:
        InputError: the file is truncated.
    """
    if dataset.driver in RAW:
        envi = dataset.tags(ns="ENVI")
        wanted = dataset.width * dataset.height * sum(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
        wanted += int(envi.get("header_offset", 0))
        # An R raster is opened by its header; the pixels are in another file.
        where = f"{url[:-4]}.gri" if dataset.driver == "RRASTER" else url
        filesystem, path = storage.open_url(where)
        compressed = envi.get("file_compression") == "1"  # with gzip; GDAL reads its missing part as zeros, too
        _refuse_if(where, _unpacked_size(url, wanted) if compressed else int(filesystem.size(path)), wanted)
    elif dataset.driver in JPEG_2000:
        _check_jpeg_2000(url)
    elif dataset.driver == "PNG":
        _check_png(url)


def _unpacked_size(url: str, expected: int) -> int:
    """The bytes that a gzip file holds: as its last four bytes state (RFC 1952) if they are as expected, else counted."""
    filesystem, path = storage.open_url(url)
    size = int(filesystem.size(path))
    if int.from_bytes(filesystem.cat_file(path, start=max(0, size - 4), end=size), "little") == expected % (1 << 32):
        return expected
    found = 0
    try:
        with filesystem.open(path, "rb") as handle, gzip.open(handle) as unpacked:
            while content := unpacked.read(storage.CHUNK_BYTES):
                found += len(content)
    except (OSError, EOFError, zlib.error):
        pass  # what comes after the damage is lost
    return found


def _refuse_if(url: str, found: int, wanted: int) -> None:
    if found < wanted:
        raise InputError(
            f"{storage.redact_url(url)}: has {found:,} bytes, but its header declares {wanted:,}; it is truncated. "
            "Copy or download it again."
        )


def _check_jpeg_2000(url: str) -> None:
    """Walk the boxes of a file (annex I) to its codestream, which has a length or extends to the end of the file."""
    filesystem, path = storage.open_url(url)
    size = int(filesystem.size(path))
    offset = 0
    while offset + 16 <= size:
        head = filesystem.cat_file(path, start=offset, end=offset + 16)
        if head[:4] == BEGIN:
            break  # a bare codestream
        length, kind = struct.unpack(">I4s", head[:8])
        begin = 8
        if length == 1:
            length, begin = struct.unpack(">Q", head[8:16])[0], 16
        if kind == b"jp2c":
            if length:
                _refuse_if(url, size, offset + length)
                return
            offset += begin
            break
        if length < begin:
            return  # not a known box; GDAL has opened the file
        offset += length
    if offset >= size or filesystem.cat_file(path, start=size - len(END), end=size) != END:
        raise InputError(
            f"{storage.redact_url(url)}: ends before its image does; it is truncated. Copy or download it again."
        )


def _check_png(url: str) -> None:
    filesystem, path = storage.open_url(url)
    size = int(filesystem.size(path))
    if PNG_END not in filesystem.cat_file(path, start=max(0, size - PNG_TAIL), end=size):
        raise InputError(
            f"{storage.redact_url(url)}: ends before its image does; it is truncated. Copy or download it again."
        )
