"""Files cut short that GDAL reads in silence, taking what is missing as zeros or noise: raw rasters and JPEG 2000.

Other formats fail by themselves when a block is not there.
"""

from __future__ import annotations

import struct

import numpy as np
from rasterio.io import DatasetReader

from mibf.errors import InputError
from pipeline import storage

#: GDAL's drivers of files that are nothing but pixels, their shape being told beside them.
RAW = {"ENVI", "EHdr", "ISCE", "ROI_PAC", "RRASTER"}
JPEG_2000 = {"JP2OpenJPEG", "JP2KAK", "JP2ECW"}
#: How a codestream of JPEG 2000 begins, and the marker that ends it (ISO/IEC 15444-1, annex A).
BEGIN, END = b"\xff\x4f\xff\x51", b"\xff\xd9"


def check_whole(url: str, dataset: DatasetReader) -> None:
    """See that a raster file is as long as it says, as far as that can be told.

    Raises:
        InputError: it is cut short.
    """
    if dataset.driver in RAW:
        pixels = dataset.width * dataset.height * sum(np.dtype(dtype).itemsize for dtype in dataset.dtypes)
        filesystem, path = storage.open_url(url)
        _refuse_if(url, int(filesystem.size(path)), pixels)
    elif dataset.driver in JPEG_2000:
        _check_jpeg_2000(url)


def _refuse_if(url: str, found: int, wanted: int) -> None:
    if found < wanted:
        raise InputError(
            f"{storage.shown(url)}: has {found:,} bytes where its header tells of {wanted:,}; it is cut short. Get it again."
        )


def _check_jpeg_2000(url: str) -> None:
    """Walk over the boxes of a file (annex I) to its codestream, which has its length or goes to the end."""
    filesystem, path = storage.open_url(url)
    size = int(filesystem.size(path))
    place = 0
    while place + 16 <= size:
        head = filesystem.cat_file(path, start=place, end=place + 16)
        if head[:4] == BEGIN:
            break  # a bare codestream
        length, kind = struct.unpack(">I4s", head[:8])
        begin = 8
        if length == 1:
            length, begin = struct.unpack(">Q", head[8:16])[0], 16
        if kind == b"jp2c":
            if length:
                _refuse_if(url, size, place + length)
                return
            place += begin
            break
        if length < begin:
            return  # no box that we know of; GDAL has opened it
        place += length
    if place >= size or filesystem.cat_file(path, start=size - len(END), end=size) != END:
        raise InputError(f"{storage.shown(url)}: ends before its image does; it is cut short. Get it again.")
