"""One combination of the corpus, and the picture that a reader must return for it: known before any file is written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyproj
from affine import Affine
from odc.geo.geobox import GeoBox

ROWS, COLUMNS = 5, 7
#: Scale and offset of each band, in files that have them.
GAINS, OFFSETS = (0.5, 2.0, 0.25), (-1.0, 3.0, 10.0)
CRSS: dict[str, str | None] = {
    "utm": "EPSG:32633",
    "degrees": "EPSG:4326",
    "mercator": "EPSG:3857",
    "south": "EPSG:32719",
    "custom": pyproj.CRS("+proj=laea +lat_0=45 +lon_0=12 +x_0=100 +y_0=-200 +ellps=GRS80 +units=m +no_defs").to_wkt(
        "WKT1_GDAL"
    ),
    "none": None,
}
ORIENTATIONS = {
    "north-up": Affine.identity(),
    "south-up": Affine.translation(0, ROWS) * Affine.scale(1, -1),
    "mirrored": Affine.translation(COLUMNS, 0) * Affine.scale(-1, 1),
    "rotated": Affine.rotation(30),
}
#: Containers whose scale and offset are those of an array, not of a band.
ARRAYS = ("zarr", "netcdf", "netcdf3")
INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
FLOATS = ("float32", "float64")
#: How a file marks pixels without data; `Truth` gives the meaning of each.
NODATA = (
    "none", "in-range", "lowest", "highest", "beyond-53-bits", "unmatched", "rounded", "nan", "undeclared-nan", "per-band",
    "user", "mask", "alpha",
)  # fmt: skip  # a list of names: one per line would fill a page
_FEASIBLE = {
    "beyond-53-bits": ("uint64", "int64"),
    "unmatched": INTEGERS,
    "rounded": ("float32",),
    "nan": FLOATS,
    "undeclared-nan": FLOATS,
    "alpha": ("uint8", "uint16"),
}


@dataclass(frozen=True)
class Case:
    """A file of the corpus: `layout` is the variant of its container, such as the order of an array's axes."""

    container: str
    layout: str
    dtype: str
    nodata: str = "none"
    orientation: str = "north-up"
    crs: str = "utm"
    scaling: str = "plain"  #: no scale and offset; `kept`: in the file, not applied; `unscale`: applied
    bands: int = 2

    def __str__(self) -> str:
        return "-".join((self.container, self.layout, self.dtype, self.nodata, self.orientation, self.crs, self.scaling))

    @property
    def feasible(self) -> bool:
        """Whether a file can have this combination of type and nodata value, and of orientation and CRS."""
        if self.dtype not in _FEASIBLE.get(self.nodata, (self.dtype,)):
            return False
        if self.crs == "none":  # an image has no orientation; GeoTIFF states that pixels are points in an unnamed CRS
            return self.orientation == "north-up" and self.layout != "point"
        # ENVI's driver writes no rotation in this projection.
        return self.orientation == "north-up" or (self.container, self.crs) != ("envi", "mercator")

    @property
    def wkt(self) -> str | None:
        """The CRS as WKT."""
        found = CRSS[self.crs]
        return None if found is None else pyproj.CRS(found).to_wkt("WKT1_GDAL")

    @property
    def affine(self) -> Affine:
        """The transform of the file's pixels."""
        if self.crs == "none":
            return Affine.identity()
        placed = Affine.translation(13, 52) * Affine.scale(0.1, -0.1)
        if self.crs != "degrees":
            placed = Affine.translation(400000, 5800000) * Affine.scale(10, -10)
        return placed * ORIENTATIONS[self.orientation]

    @property
    def grid(self) -> GeoBox:
        """The grid that a reader must return, but for flips."""
        return GeoBox((ROWS, COLUMNS), self.affine, self.wkt)

    @property
    def gains(self) -> tuple[float, ...]:
        """The scale of each band in the file."""
        if self.scaling == "plain":
            return (1.0,) * self.bands
        return (GAINS[0],) * self.bands if self.container in ARRAYS else GAINS[: self.bands]

    @property
    def offsets(self) -> tuple[float, ...]:
        """The offset of each band in the file."""
        if self.scaling == "plain":
            return (0.0,) * self.bands
        return (OFFSETS[0],) * self.bands if self.container in ARRAYS else OFFSETS[: self.bands]


class Truth:
    """The pixels of a case (band, y, x), where they are valid (y, x), and how the file declares it."""

    def __init__(self, case: Case) -> None:
        self.case, self.dtype = case, np.dtype(case.dtype)
        self.raw = _picture(self.dtype, case.bands)
        self.declared: tuple[Any, ...] = (None,) * case.bands  #: the nodata value of each band in the file
        self.user: Any = None  #: the nodata value in the configuration
        self.mask = np.ones((ROWS, COLUMNS), bool)  #: the mask or alpha band of the file
        self._declare(case.nodata)
        self.valid = self.mask.copy()
        for band, declared in zip(self.raw, self.declared, strict=True):
            absent = declared if self.user is None else self.user
            if absent is not None and (self.dtype.kind == "f" or case.nodata != "unmatched"):
                self.valid &= band != np.array(absent, self.dtype)
        if self.dtype.kind == "f":
            self.valid &= np.isfinite(self.raw).all(axis=0)

    def _declare(self, kind: str) -> None:
        floating, bands = self.dtype.kind == "f", self.case.bands
        limits: Any = np.finfo(self.dtype) if floating else np.iinfo(self.dtype)
        lowest, highest = (float if floating else int)(limits.min), (float if floating else int)(limits.max)
        value = {
            "in-range": 7, "user": 7, "lowest": lowest, "highest": highest, "beyond-53-bits": 2**53 + 1, "rounded": 0.1,
            "nan": np.nan,
        }.get(kind)  # fmt: skip  # a short table
        if value is not None:
            self.declared = (value,) * bands
            self.raw[0, 1, 1] = self.raw[-1, 3, 5] = value
        if kind == "user":
            self.user = 9
            self.raw[0, 2, 4] = 9
        elif kind == "unmatched":
            self.user = -9999 if self.dtype.itemsize == 1 or self.dtype.kind == "u" else 0.5
        elif kind == "undeclared-nan":
            self.raw[0, 1, 1], self.raw[-1, 2, 2] = np.nan, np.inf
        elif kind == "per-band":
            self.declared = (7, 36, 50)[:bands]
            self.raw[0, 1, 1], self.raw[-1, 3, 5] = self.declared[0], self.declared[-1]
            if bands > 1:  # the nodata value of one band is data in another
                self.raw[0, 2, 3], self.raw[1, 2, 2] = 36, 7
        elif kind in ("mask", "alpha"):
            self.mask[1, 1:3] = self.mask[4, 0] = False

    @cached_property
    def values(self) -> np.ndarray:
        """What a reader must return where pixels are valid: physical values (float32) if the case is unscaled."""
        if self.case.scaling != "unscale":
            return self.raw
        gains, offsets = (np.array(v)[:, None, None] for v in (self.case.gains, self.case.offsets))
        return np.asarray(self.raw.astype(np.float64) * gains + offsets, np.float32)


def _picture(dtype: np.dtype[Any], bands: int) -> np.ndarray:
    """Pixels that all differ, so that no flip or transposition goes unseen, with the extremes of the type."""
    values = np.arange(1, bands * ROWS * COLUMNS + 1).reshape(bands, ROWS, COLUMNS).astype(dtype)
    if dtype.kind == "f":
        return np.asarray(values + dtype.type(0.25))
    limits = np.iinfo(dtype)
    values[0, 0, 1], values[0, 0, 2] = limits.min, limits.max - 2  # one less is NetCDF's own fill value
    if dtype.itemsize == 8:
        values[0, 0, 3], values[0, 0, 4] = 2**53, 2**53 + 2
    return values
