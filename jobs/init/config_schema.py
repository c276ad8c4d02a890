"""JSON Schema of the configuration file, for editors and other tools."""

from __future__ import annotations

import json
from typing import Any

from jobs.config.config import Config
from jobs.config.table.scenes import TableSection

DIALECT = "https://json-schema.org/draft/2020-12/schema"
#: A URN, because no server publishes the schema.
IDENTIFIER = "urn:mibf:config"
#: Name of the definition that stands for an environment variable in the place of a value.
VARIABLE = "Variable"
#: A variable with text around it is accepted as well: variables are expanded before values are checked.
VARIABLE_PATTERN = r"\$\{\w+\}"
#: What validators check and types do not say, by section and key: JSON Schema keywords that are added to the key.
KEY_RULES: dict[str, dict[str, dict[str, Any]]] = {
    "ModelSection": {"patch": {"enum": [5, 7, 9, 11, 13, 15]}},
    "PrepareSection": {"shard": {"minimum": 128, "maximum": 4096, "multipleOf": 128}},
    "MapSection": {"tile_size": {"minimum": 64, "multipleOf": 64}, "block": {"minimum": 512, "multipleOf": 512}},
}
#: The sets of keys of which a section has exactly one.
ALTERNATIVES: dict[str, tuple[tuple[str, ...], ...]] = {
    "GridSection": (("like",), ("crs", "resolution")),
    "SourceSection": (("url",), ("urls",), ("tiles",), ("stac",)),
    "StacSection": (("url",), ("search",)),
}
#: The sections of a scene that may be incomplete in the template of a table.
TEMPLATES = ("SceneSection", "GridSection", "SourceSection", "StacSection", "LabelsSection", "AreaSection")
#: The text form of `bands`, for example `1-3, 8`.
BAND_RANGES = r"^\s*[0-9]+\s*(-\s*[0-9]+\s*)?(,\s*[0-9]+\s*(-\s*[0-9]+\s*)?)*$"


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a configuration file as it is written, before variables are expanded.

    It accepts `${NAME}` where a number, a choice or a pattern is expected, and the short forms that the loader accepts
    (`bands: 1-3, 8`; `split` without `method`). Rules that relate several sections, such as unique class ids, are left to
    the loader.
    """
    generated = Config.model_json_schema()
    sections = {name: _section(name, section) for name, section in generated.pop("$defs").items()}
    root = _section("Config", generated)
    bands = sections["SourceSection"]["properties"]["bands"]
    bands["anyOf"] += [{"type": "string", "pattern": BAND_RANGES}, {"$ref": f"#/$defs/{VARIABLE}"}]
    sections |= _table_sections(sections)
    listed = root["properties"]["scenes"]
    title = {"title": listed.pop("title")}
    root["properties"]["scenes"] = title | {"anyOf": [listed, {"$ref": "#/$defs/TableSection"}]}
    root["properties"]["split"].pop("discriminator", None)  # OpenAPI's keyword; `oneOf` says the same
    sections[VARIABLE] = {
        "title": "Environment variable",
        "description": "`${NAME}` stands for the environment variable of that name.",
        "type": "string",
        "pattern": VARIABLE_PATTERN,
    }
    described = {
        "title": "mibf configuration",
        "description": "The configuration file of mibf: land-cover maps from several co-registered sensors.",
    }
    return {"$schema": DIALECT, "$id": IDENTIFIER, **root, **described, "$defs": dict(sorted(sections.items()))}


def _table_sections(sections: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas of a table of scenes: the section, and templates of the sections whose keys columns may set."""
    templates = {f"#/$defs/{name}": f"#/$defs/{name}Template" for name in TEMPLATES}

    def changed(value: Any) -> Any:
        if isinstance(value, list):
            return [changed(below) for below in value]
        if not isinstance(value, dict):
            return value
        return {k: templates.get(v, v) if k == "$ref" else changed(v) for k, v in value.items()}

    found = {}
    for name in TEMPLATES:
        kept = {key: value for key, value in sections[name].items() if key not in ("required", "oneOf")}
        found[f"{name}Template"] = changed(kept)
    sources = found["SceneSectionTemplate"]["properties"]["sources"]
    sources.pop("minProperties", None)
    for pattern, source in sources["patternProperties"].items():
        sources["patternProperties"][pattern] = {"anyOf": [source, {"type": "null"}]}
    table = _section("TableSection", TableSection.model_json_schema())
    table["properties"]["template"] = {"$ref": "#/$defs/SceneSectionTemplate"}
    return found | {"TableSection": table}


def config_schema_text() -> str:
    """Return the schema as indented JSON that ends with a newline."""
    return json.dumps(config_schema(), indent=1, ensure_ascii=False) + "\n"


def _section(name: str, section: dict[str, Any]) -> dict[str, Any]:
    """Return a section's schema with what its validators add, and with variables in the place of values."""
    properties = section["properties"]
    for key, rules in KEY_RULES.get(name, {}).items():
        for value in _numbers(properties[key]):
            value.update(rules)
    changed = section | {"properties": {key: _with_variables(value) for key, value in properties.items()}}
    if name in ALTERNATIVES:
        changed["oneOf"] = [{"required": list(keys)} for keys in ALTERNATIVES[name]]
    return changed


def _numbers(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the schemas of whole numbers among the alternatives of a key."""
    return [part for part in schema.get("anyOf", [schema]) if part.get("type") == "integer"]


def _with_variables(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a value's schema that also accepts a variable, at every level of lists and mappings."""
    if "anyOf" in schema:
        kinds = [_with_variables(part) for kind in schema["anyOf"] for part in kind.get("oneOf", [kind])]
        # One alternative for variables is enough.
        flat = [part for kind in kinds for part in (kind.get("anyOf") or [kind])]
        return schema | {"anyOf": [part for i, part in enumerate(flat) if part not in flat[:i]]}
    changed = dict(schema)
    if isinstance(schema.get("items"), dict):
        changed["items"] = _with_variables(schema["items"])
    if "prefixItems" in schema:
        changed["prefixItems"] = [_with_variables(item) for item in schema["prefixItems"]]
    if "patternProperties" in schema:  # a mapping by names, which the pattern limits
        values = schema["patternProperties"]
        changed["patternProperties"] = {pattern: _with_variables(value) for pattern, value in values.items()}
        changed["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        changed["additionalProperties"] = _with_variables(schema["additionalProperties"])
    return _or_variable(changed) if _needs_alternative(schema) else changed


def _needs_alternative(schema: dict[str, Any]) -> bool:
    """Whether a value is neither plain text nor a section, list or mapping, so that a variable would be refused."""
    if "const" in schema:  # by which the kinds of a section are distinguished
        return False
    return schema.get("type") in ("integer", "number", "boolean") or "enum" in schema or "pattern" in schema


def _or_variable(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that accepts a value or a variable; title and default stay at the top, where editors look."""
    outer = {key: schema[key] for key in ("title", "description", "default") if key in schema}
    inner = {key: value for key, value in schema.items() if key not in outer}
    return outer | {"anyOf": [inner, {"$ref": f"#/$defs/{VARIABLE}"}]}
