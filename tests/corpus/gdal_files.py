"""Files that GDAL writes: a virtual raster states everything that a case declares, and each driver copies it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import rasterio
import rasterio.shutil

from pipeline.rasters.header import RasterFile
from tests.corpus.case import COLUMNS, CRSS, INTEGERS, NODATA, ORIENTATIONS, ROWS, Case, Truth

ALL = (*INTEGERS, "float32", "float64")
#: GDAL's names of the types that differ from numpy's by more than their first letter.
GDAL_TYPES = {"uint8": "Byte", "uint16": "UInt16", "uint32": "UInt32", "uint64": "UInt64", "complex64": "CFloat32"}
BY_DATASET = tuple(kind for kind in NODATA if kind != "per-band")
PLAIN = ("none", "in-range", "lowest", "highest", "unmatched", "nan", "undeclared-nan", "user")
AS_ONE = ("utm", "degrees", "south")


@dataclass(frozen=True)
class Format:
    """What a driver can store, with its creation options by layout."""

    driver: str
    suffix: str
    layouts: Mapping[str, Mapping[str, str]]
    dtypes: tuple[str, ...] = ALL
    nodata: tuple[str, ...] = BY_DATASET
    orientations: tuple[str, ...] = tuple(ORIENTATIONS)
    crss: tuple[str, ...] = tuple(CRSS)
    scalings: tuple[str, ...] = ("plain", "kept", "unscale")
    bands: int = 2
    only: Mapping[str, str] = field(default_factory=dict)  #: options of all layouts


TILED = {"TILED": "YES", "BLOCKXSIZE": "16", "BLOCKYSIZE": "16"}
FORMATS = {
    "gtiff": Format(
        "GTiff",
        ".tif",
        {
            "strips": {"BLOCKYSIZE": "2"},
            "tiled": TILED,
            "planar": {"INTERLEAVE": "BAND"},
            "tiled-planar-lzw": {**TILED, "INTERLEAVE": "BAND", "COMPRESS": "LZW"},
            "deflate": {"COMPRESS": "DEFLATE"},
            "bigtiff": {"BIGTIFF": "YES"},
            "big-endian": {"ENDIANNESS": "BIG"},
            "point": {},
        },
    ),
    "cog": Format("COG", ".tif", {"cog": {"BLOCKSIZE": "128"}}),
    "vrt": Format("VRT", ".vrt", {"vrt": {}}, nodata=NODATA),
    "envi": Format(
        "ENVI",
        ".img",
        {name: {"INTERLEAVE": name.upper()} for name in ("bsq", "bil", "bip")},
        tuple(d for d in ALL if d != "int8"),
        tuple(kind for kind in BY_DATASET if kind != "alpha"),
        ("north-up", "rotated"),
    ),
    "hfa": Format(
        "HFA",
        ".img",
        {"hfa": {}, "compressed": {"COMPRESSED": "YES"}},
        tuple(d for d in ALL if "64" not in d or d == "float64"),
        PLAIN,
        ("north-up", "south-up", "rotated"),
        ("utm", "custom", "none"),
    ),
    "nitf": Format(
        "NITF",
        ".ntf",
        {"nitf": {}},
        ("uint8", "uint16", "int16", "int32", "float32"),
        PLAIN,
        ("north-up",),
        ("utm", "degrees", "none"),
    ),
    "rraster": Format(
        "RRASTER",
        ".grd",
        {"bil": {}, "bip": {"INTERLEAVE": "BIP"}},
        ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64"),
        PLAIN,
        ("north-up",),
        AS_ONE,
        ("plain",),
    ),
    "ehdr": Format(
        "EHdr",
        ".bil",
        {"bil": {}},
        ("uint8", "uint16", "int16", "int32", "float32"),
        ("none", "in-range", "user", "unmatched"),
        ("north-up",),
        AS_ONE,
    ),
    "png": Format(
        "PNG",
        ".png",
        {"png": {}},
        ("uint8", "uint16"),
        ("none", "in-range", "lowest", "user", "mask", "alpha"),
        ("north-up", "south-up", "mirrored"),
        bands=3,
    ),
    "jp2": Format(
        "JP2OpenJPEG",
        ".jp2",
        {"jp2": {}},
        ("uint8", "uint16", "int16"),
        ("none", "in-range", "lowest", "user", "unmatched", "mask"),
        ("north-up",),
        tuple(name for name in CRSS if name != "none"),
        bands=3,
        only={"QUALITY": "100", "REVERSIBLE": "YES"},
    ),
    "gpkg": Format(
        "GPKG",
        ".gpkg",
        {"png": {"TILE_FORMAT": "PNG", "BLOCKSIZE": "8"}},
        ("uint8",),
        ("none", "user"),
        ("north-up",),
        ("utm", "degrees", "mercator"),
        ("plain",),
        bands=3,
    ),
    "gpkg-grid": Format(
        "GPKG",
        ".gpkg",
        {"tiff": {"TILE_FORMAT": "TIFF", "BLOCKSIZE": "8"}},
        ("float32",),
        ("none", "in-range", "user"),
        ("north-up",),
        ("utm", "degrees", "mercator"),
        ("plain",),
        bands=1,
    ),
    "saga": Format(
        "SAGA",
        ".sdat",
        {"saga": {}},
        ("uint8", "int16", "uint16", "int32", "float32", "float64"),
        ("in-range", "user"),
        ("north-up",),
        AS_ONE,
        ("plain",),
        bands=1,
    ),
    "ascii": Format(
        "AAIGrid",
        ".asc",
        {"ascii": {}},
        ("int32", "float32"),
        ("none", "in-range", "user"),
        ("north-up",),
        AS_ONE,
        ("plain",),
        bands=1,
    ),
    "bmp": Format("BMP", ".bmp", {"bmp": {}}, ("uint8",), ("none", "user"), ("north-up",), ("utm", "none"), bands=3),
}


def write_gdal(folder: Path, case: Case, truth: Truth) -> RasterFile:
    """Write a case with its GDAL driver, and return it as declared in a configuration."""
    chosen = FORMATS[case.container]
    virtual = _write_virtual(folder, case, truth)
    path = virtual
    if chosen.driver != "VRT":
        path = folder / f"a{chosen.suffix}"
        options = {**chosen.layouts[case.layout], **chosen.only}
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=case.layout != "planar"):
            rasterio.shutil.copy(virtual, path, driver=chosen.driver, strict=False, **options)
    bands = tuple(range(1, case.bands + 1)) if case.nodata == "alpha" else None
    return RasterFile(str(path), bands=bands, nodata=truth.user, unscale=case.scaling == "unscale")


def _write_virtual(folder: Path, case: Case, truth: Truth) -> Path:
    pixels = truth.raw
    if case.nodata == "alpha":
        pixels = np.concatenate([pixels, np.where(truth.mask, 200, 0)[None].astype(truth.dtype)])
    _write_tiff(folder / "pixels.tif", pixels)
    _write_tiff(folder / "mask.tif", np.where(truth.mask, 255, 0)[None].astype(np.uint8))
    kind = GDAL_TYPES.get(case.dtype, case.dtype.capitalize())
    bands = "".join(_band(case, truth, kind, number) for number in range(1, len(pixels) + 1))
    place = "" if case.crs == "none" else f"<GeoTransform>{','.join(map(repr, case.affine.to_gdal()))}</GeoTransform>"
    mask = f"<MaskBand>{_source('Byte', 'mask.tif', 1)}</MaskBand>" if case.nodata == "mask" else ""
    if case.layout == "point":  # the header places the centres of pixels
        place = f'<Metadata><MDI key="AREA_OR_POINT">Point</MDI></Metadata>{place}'
    path = folder / "a.vrt"
    path.write_text(
        f'<VRTDataset rasterXSize="{COLUMNS}" rasterYSize="{ROWS}"><SRS dataAxisToSRSAxisMapping="1,2">'
        f"{escape(case.wkt or '')}</SRS>{place}{bands}{mask}</VRTDataset>"
    )
    return path


def _band(case: Case, truth: Truth, kind: str, number: int) -> str:
    if number > case.bands:
        return _source(kind, "pixels.tif", number, "<ColorInterp>Alpha</ColorInterp>")
    declared = truth.declared[number - 1]
    inside = "" if declared is None else f"<NoDataValue>{declared!r}</NoDataValue>"
    if case.scaling != "plain":
        inside += f"<Offset>{case.offsets[number - 1]}</Offset><Scale>{case.gains[number - 1]}</Scale>"
    return _source(kind, "pixels.tif", number, inside)


def _source(kind: str, name: str, band: int, inside: str = "") -> str:
    return (
        f'<VRTRasterBand dataType="{kind}" band="{band}">{inside}<SimpleSource><SourceFilename relativeToVRT="1">{name}'
        f"</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
    )


def _write_tiff(path: Path, values: np.ndarray) -> None:
    count, rows, columns = values.shape
    with rasterio.open(path, "w", driver="GTiff", count=count, height=rows, width=columns, dtype=values.dtype) as dataset:
        dataset.write(values)
