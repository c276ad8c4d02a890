"""Write polygons to GeoPackage and GeoParquet, in batches. Files are local; whoever calls publishes them."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray

from mibf.errors import InputError

#: The layer of a GeoPackage.
LAYER = "polygons"
GEOPARQUET = "1.1.0"


@dataclass(frozen=True)
class PolygonBatch:
    """Polygons with their attributes, one entry each."""

    geometries: NDArray[np.object_]
    class_ids: NDArray[np.uint8]
    classes: Sequence[str]
    hectares: NDArray[np.float64]  #: NaN where the grid has no areas
    confidence: NDArray[np.float64]  #: NaN where there is none
    pixels: NDArray[np.int64]

    def columns(self) -> dict[str, Any]:
        """The attributes by column."""
        return {
            "class_id": self.class_ids,
            "class": list(self.classes),
            "area_ha": self.hectares,
            "confidence": self.confidence,
            "pixels": self.pixels,
        }


class VectorWriter(ABC):
    """Writes batches of polygons to one file, which is complete when it is closed."""

    @abstractmethod
    def write(self, batch: PolygonBatch) -> None:
        """Append polygons."""

    @abstractmethod
    def close(self) -> None:
        """Complete the file."""


class GeoPackageWriter(VectorWriter):
    """Writes a GeoPackage with the layer `polygons`."""

    def __init__(self, path: Path, crs: str | None, *, several: bool, facts: Mapping[str, str]) -> None:
        self._path, self._crs, self._kind, self._facts = path, crs, "MultiPolygon" if several else "Polygon", facts
        self._begun = False

    def write(self, batch: PolygonBatch) -> None:
        """Append polygons."""
        frame = geopandas.GeoDataFrame(batch.columns(), geometry=batch.geometries, crs=self._crs)
        metadata = {} if self._begun else {"layer_metadata": dict(self._facts)}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'crs' was not provided")  # the map may have none
            pyogrio.write_dataframe(
                frame,
                self._path,
                layer=LAYER,
                driver="GPKG",
                append=self._begun,
                geometry_type=self._kind,
                promote_to_multi=self._kind == "MultiPolygon",
                **metadata,
            )
        self._begun = True

    def close(self) -> None:
        """Complete the file."""


class GeoParquetWriter(VectorWriter):
    """Writes GeoParquet (https://geoparquet.org), one row group per batch."""

    def __init__(self, path: Path, crs: str | None, *, several: bool, facts: Mapping[str, str]) -> None:
        fields = [("class_id", pa.uint8()), ("class", pa.string()), ("area_ha", pa.float64())]
        fields += [("confidence", pa.float64()), ("pixels", pa.int64()), ("geometry", pa.binary())]
        self._schema = pa.schema(fields)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._crs = None if crs is None else pyproj.CRS.from_user_input(crs).to_json_dict()
        self._kinds, self._facts = ["Polygon", "MultiPolygon"] if several else ["Polygon"], dict(facts)
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])

    def write(self, batch: PolygonBatch) -> None:
        """Append polygons."""
        columns = batch.columns() | {"geometry": shapely.to_wkb(batch.geometries)}
        arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in self._schema]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        if len(batch.geometries):
            found = shapely.total_bounds(batch.geometries)
            self._bounds = np.concatenate([np.minimum(self._bounds[:2], found[:2]), np.maximum(self._bounds[2:], found[2:])])

    def close(self) -> None:
        """Complete the file."""
        column: dict[str, Any] = {"encoding": "WKB", "geometry_types": self._kinds, "crs": self._crs}
        if np.isfinite(self._bounds).all():
            column["bbox"] = self._bounds.tolist()
        geo = {"version": GEOPARQUET, "primary_column": "geometry", "columns": {"geometry": column}}
        self._writer.add_key_value_metadata({"geo": json.dumps(geo), **self._facts})
        self._writer.close()


#: The formats of vector files by suffix.
FORMATS: dict[str, type[GeoPackageWriter | GeoParquetWriter]] = {".gpkg": GeoPackageWriter, ".parquet": GeoParquetWriter}


def format_of(url: str) -> type[GeoPackageWriter | GeoParquetWriter]:
    """The writer of a file's format, by its suffix.

    Raises:
        InputError: no format has that suffix.
    """
    for suffix, writer in FORMATS.items():
        if url.lower().endswith(suffix):
            return writer
    raise InputError(f"--output {url}: must end in {' or '.join(FORMATS)}.")
