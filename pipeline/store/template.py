"""The layout of a patch store, created once before tasks fill whole shards."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import zarr
from odc.geo.geobox import GeoBox
from zarr.codecs import BloscCodec, Crc32cCodec

from mibf.bundle.classes import ClassName
from pipeline.codes import SUBSETS, UNLABELLED, Missing
from pipeline.grid import finer, geozarr_attributes
from pipeline.io import zarr_store
from pipeline.stac.composite import COUNTS
from pipeline.stac.periods import Gaps

#: Side in reference pixels of a chunk, the unit that is read. A shard, the unit that is written, is one or more chunks wide.
CHUNK = 128
#: Side of a chunk in the arrays without bands, which are small: fewer, larger chunks are faster to read and write.
PLANE_CHUNK = 512
#: Sides that a shard may have, and the maximum bytes of all arrays in one shard.
SHARDS, SHARD_BYTES = (128, 256, 512, 1024), 48 << 20
#: Minimum number of shards of a scene, as far as the smaller sides allow, so that cores share the work.
FEWEST_SHARDS = 16
FORMAT = 2
#: Chosen by `mibf bench prepare --codecs` on real scenes: see docs/performance.md.
COMPRESSOR = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")


@dataclass(frozen=True)
class StoredSource:
    """A source as the store describes it: name, bands, rule for missing data, pixels per reference pixel along an axis."""

    name: str
    bands: int
    missing: Missing
    scale: int = 1
    band_names: tuple[str, ...] = ()  #: empty if the bands have no names
    periods: int = 0  #: each with a plane of counts of clear dates; 0: it is not a composite of dates
    gaps: Gaps = "exclude"  #: what becomes of a pixel without an observation in a period

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values, without names and periods that there are not."""
        values = asdict(self) | {"band_names": list(self.band_names)}
        absent = {"band_names": not self.band_names, "periods": not self.periods, "gaps": self.gaps == "exclude"}
        return {key: value for key, value in values.items() if not absent.get(key)}

    @property
    def is_filled(self) -> bool:
        """Whether a pixel may have data in some of its bands only: those of the periods in which it was observed."""
        return self.gaps == "fill"

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> StoredSource:
        """Convert from JSON values."""
        return cls(**values | {"band_names": tuple(values.get("band_names", ()))})


@dataclass(frozen=True)
class Template:
    """What a store is created from."""

    grid: GeoBox
    sources: tuple[StoredSource, ...]
    dtypes: tuple[np.dtype[Any], ...]  #: of the sources
    classes: tuple[ClassName, ...]
    shard: int  #: side in reference pixels

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes of all arrays per reference pixel, uncompressed."""
        per_source = (
            (s.bands * dtype.itemsize + 1 + s.periods * COUNTS.itemsize) * s.scale**2
            for s, dtype in zip(self.sources, self.dtypes, strict=True)
        )
        return sum(per_source) + 2  # labels and split

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the reference grid."""
        rows, columns = self.grid.shape
        return rows, columns


def shard_side(shape_yx: tuple[int, int], bytes_per_pixel: int) -> int:
    """The side of a scene's shards: as large as `SHARD_BYTES` allows, smaller for a small scene."""
    fitting = [side for side in SHARDS if side * side * bytes_per_pixel <= SHARD_BYTES]
    side = max(fitting, default=SHARDS[0])
    while side > SHARDS[1] and -(-shape_yx[0] // side) * -(-shape_yx[1] // side) < FEWEST_SHARDS:
        side //= 2
    return side


def create_store(
    target: zarr_store.ChecksumStore, template: Template, *, fingerprint: str, outline: dict[str, Any] | None = None
) -> None:
    """Create a store from its template: every array with its shape, shards and attributes, but no pixels.

    `outline` is that of the scene's area in degrees, for the footprint of its map.
    Whatever was there is removed.
    """
    group = zarr.open_group(store=target, mode="w")
    for name in ("sources", "valid", *(["counts"] if any(source.periods for source in template.sources) else [])):
        group.create_group(name)
    for source, dtype in zip(template.sources, template.dtypes, strict=True):
        _create_array(group, f"sources/{source.name}", template, dtype, 0, bands=source.bands, scale=source.scale)
        _create_array(group, f"valid/{source.name}", template, np.dtype(np.uint8), 0, scale=source.scale)
        if source.periods:
            _create_array(group, f"counts/{source.name}", template, COUNTS, 0, bands=source.periods, scale=source.scale)
    _create_array(group, "labels", template, np.dtype(np.uint8), UNLABELLED)
    _create_array(group, "split", template, np.dtype(np.uint8), 0)
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
        geozarr_attributes(template.grid)
        | {
            "mibf:format": FORMAT,
            "mibf:fingerprint": fingerprint,
            "mibf:shard": template.shard,
            "mibf:classes": [vars(c) for c in template.classes],
            "mibf:sources": [s.to_json() for s in template.sources],
        }
        | ({} if outline is None else {"mibf:area": outline})
    )


def _create_array(
    group: zarr.Group,
    name: str,
    template: Template,
    dtype: np.dtype[Any],
    fill: int,
    *,
    bands: int | None = None,
    scale: int = 1,
) -> None:
    """Create an array (bands, y, x), or (y, x) without bands, that holds `fill` everywhere; `scale` is its source's."""
    rows, columns = (size * scale for size in template.shape)
    shard = template.shard * scale
    chunk = CHUNK * scale if bands else math.gcd(PLANE_CHUNK, shard)
    above = () if bands is None else (bands,)
    # Sources of different scales get different axis names: xarray requires axes of one name to have one length.
    at_scale = "" if scale == 1 else f"_{scale}"
    dimensions = (f"y{at_scale}", f"x{at_scale}")
    grid = template.grid if scale == 1 else finer(template.grid, scale)
    kind, _, source = name.partition("/")
    axis = f"{source}_{'period' if kind == 'counts' else 'band'}"
    group.create_array(
        name,
        shape=(*above, rows, columns),
        chunks=(*above, chunk, chunk),
        shards=(*above, shard, shard),
        dtype=dtype,
        fill_value=fill,
        compressors=[COMPRESSOR, Crc32cCodec()],
        dimension_names=(*(() if bands is None else (axis,)), *dimensions),
        attributes=geozarr_attributes(grid, dimensions=dimensions),
    )
