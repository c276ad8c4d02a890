"""Read a configuration file, apply overrides, and explain errors in it."""

from __future__ import annotations

import difflib
import inspect
import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from jobs.config.config import Config
from jobs.config.renamed import RENAMED_KEYS, RENAMED_RECIPES, translate
from jobs.config.scene import MOST_SOURCES, SceneSection
from jobs.config.split import BlocksSection, RandomSplitSection, RasterSplitSection, ScenesSplitSection
from jobs.config.stac import IN_BRACES
from jobs.config.table.read import read_table
from jobs.config.table.scenes import EMPTY, TableScenes, table_section
from jobs.config.variables import check_texts, expand_variables
from jobs.config.yaml_loader import parse, read_text
from mibf.errors import InputError
from pipeline.codes import RENAMED_PRODUCTS

#: Plain messages for the most common pydantic errors.
ERROR_MESSAGES = {
    "string_pattern_mismatch": "may contain only letters, digits, `_`, `-` and `.`",
    "string_type": "must be text; put it in quotes",
    "int_parsing": "must be an integer",
    "float_parsing": "must be a number",
    "too_short": "has too few entries: at least one source per scene, two classes, one entry in any other list",
    "too_long": f"has too many entries: at most {MOST_SOURCES} sources per scene; stack the bands of a sensor in one source",
    "tuple_type": "must be a list in brackets, such as [a, b]",
    "model_type": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
}
_ADDRESS = "must begin with https:// or http://, without a query and a user's name, as it is published"
#: Messages for texts of another form than that of `ERROR_MESSAGES`, by key.
FORMS = {
    "color": "must be written #rrggbb, such as #1c5f2c",
    "license": "must be an SPDX identifier such as CC-BY-4.0, or `other` with the text at `license_url`",
    "license_url": _ADDRESS,
    "url": _ADDRESS,
}
#: Hints for missing keys whose value is not obvious.
MISSING = {
    "grid": "; give the reference grid as {like: SOURCE}, {crs: EPSG:..., resolution: ..., bounds: [...]} or, with an "
    "area, {crs: auto, resolution: ...}",
    "sources": "; name one or more, each with the `url` of its file",
}


#: Most mistakes that are listed.
MOST_LISTED = 20
#: The sections of the split by method.
SPLITS: dict[str, type[BaseModel]] = {
    "blocks": BlocksSection,
    "raster": RasterSplitSection,
    "random": RandomSplitSection,
    "scenes": ScenesSplitSection,
}


def load(url: str, *, overrides: Sequence[str] = (), saved: bool = False) -> Config:
    """Read a configuration file, apply `key.path=value` overrides, substitute environment variables and validate it.

    Args:
        url: its path or URL.
        overrides: values that replace those of the file.
        saved: whether the file was saved by a run: old names of keys and products are then accepted.

    Raises:
        InputError: the file is missing or not YAML, a `${VARIABLE}` is not set, a key is unknown, or a
            value is not allowed. All errors of the last two kinds are reported together.
    """
    text = read_text(url, saved=saved)
    try:
        values = parse(text, name=url, saved=saved)
    except yaml.YAMLError as error:
        raise InputError(
            f"{url}: is not valid YAML ({error}). Check the indentation, and quote values that contain # or :."
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"{url}: is not a configuration (a YAML mapping); see examples/ for complete ones.")
    if saved:
        values = _with_own_table(translate(values), url)
    return configure(values, name=url, overrides=overrides)


def _with_own_table(values: dict[str, Any], url: str) -> dict[str, Any]:
    """The values of a configuration that a run saved, with the table that was saved beside it, wherever both are now."""
    scenes = values.get("scenes")
    if not isinstance(scenes, dict) or not isinstance(scenes.get("table"), str):
        return values
    folder, table = posixpath.dirname(url), posixpath.basename(scenes["table"])
    return values | {"scenes": scenes | {"table": posixpath.join(folder, table)}}


def configure(values: dict[str, Any], *, name: str, overrides: Sequence[str] = ()) -> Config:
    """Apply `key.path=value` overrides to the values of a configuration, substitute variables and validate it.

    Args:
        values: as parsed from YAML; the overrides are applied in place.
        name: of the configuration, for messages.
        overrides: values that replace others.

    Raises:
        InputError: as `load`.
    """
    for override in overrides:
        _override(values, override)
    values = expand_variables(values, name)
    refused = list(check_texts(values))
    if refused:
        raise _refused(name, refused)
    table = _table_scenes(values["scenes"], name) if isinstance(values.get("scenes"), dict) else None
    if table is not None:
        values = values | {"scenes": table.scenes}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise _refused(name, _explained(error, table)) from error


def _refused(name: str, lines: Iterable[str]) -> InputError:
    """The error that lists the mistakes of a configuration, each once: one of a template is one of every scene."""
    distinct = list(dict.fromkeys(lines))
    more = [f"and {len(distinct) - MOST_LISTED:,} more"] if len(distinct) > MOST_LISTED else []
    return InputError(f"{name}:\n" + "\n".join(f"  {line}" for line in [*distinct[:MOST_LISTED], *more]))


def _table_scenes(values: dict[str, Any], name: str) -> TableScenes:
    """Read the table of a configuration; variables are substituted in its cells as well."""
    section = table_section(values, name)
    table = read_table(section.table, columns=section.columns, sha256=section.sha256)
    table = replace(table, rows=expand_variables(table.rows, table.name))
    refused = [
        line
        for number, row in enumerate(table.rows)
        for column, value in row.items()
        for line in check_texts(value, table.place(number, column))
    ]
    if refused:
        raise _refused(name, refused)
    return TableScenes.of(table, section, name=name, keys=tuple(SceneSection.model_fields))


def _override(values: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise InputError(f"--set {override}: must be key.path=value, for example train.epochs=5.")
    *parents, last = path.split(".")
    container: Any = values
    for key in parents:
        container = _child(container, key, override)
    try:
        parsed = parse(value, name="--set")
    except yaml.YAMLError as error:
        raise InputError(f"--set {override}: the value is not valid YAML.") from error
    if isinstance(container, list):
        container[_index(container, last, override)] = parsed
    else:
        container[last] = parsed


def _child(container: Any, key: str, override: str) -> Any:
    if isinstance(container, list):
        return container[_index(container, key, override)]
    child = container.setdefault(key, {})
    if child is None:
        child = container[key] = {}
    if not isinstance(child, dict | list):
        raise InputError(f"--set {override}: {key!r} is a scalar and has no keys below it.")
    return child


def _index(container: list[Any], key: str, override: str) -> int:
    if not key.isdecimal() or int(key) >= len(container):
        raise InputError(
            f"--set {override}: {key!r} is not a valid index into a list of length {len(container)}; indices start at 0."
        )
    return int(key)


def _explained(error: ValidationError, table: TableScenes | None) -> list[str]:
    """Format one line per error: location, problem, and for an unknown key the nearest known one."""
    lines = []
    mistakes = error.errors()
    for mistake in mistakes:
        if mistake["type"] == "too_short" and any(
            m["loc"][: len(mistake["loc"])] == mistake["loc"] and m is not mistake for m in mistakes
        ):
            continue  # too few only because the entries themselves are invalid
        location = _without_inserted(mistake["loc"])
        in_table = table is not None and len(location) > 1 and location[0] == "scenes"
        where = table.where(location[1:]) if table is not None and in_table else ".".join(map(str, location))
        if mistake["type"] == "extra_forbidden":
            lines.append(_unknown_key(where, mistake["loc"]))
        elif mistake["type"] == "missing":
            hint = MISSING.get(str(mistake["loc"][-1]), "")
            lines.append(f"{where}." if where.endswith(EMPTY) else f"{where}: is missing{hint}.")
        else:
            message = ERROR_MESSAGES.get(mistake["type"], mistake["msg"].removeprefix("Value error, "))
            if mistake["type"] == "string_pattern_mismatch":
                message = FORMS.get(str(mistake["loc"][-1]), message)
            renamed = RENAMED_PRODUCTS.get(str(mistake["input"]))
            if mistake["loc"][:2] == ("map", "products") and renamed is not None:
                message = f"this product is now called `{renamed}`"
            recipe = RENAMED_RECIPES.get(str(mistake["input"]))
            if mistake["loc"] == ("train", "recipe") and recipe is not None:
                message = f"this recipe is now called `{recipe}`; rename it"
            value = "" if isinstance(mistake["input"], dict | list) else f" (found {mistake['input']!r})"
            lines.append(f"{where + ': ' if where else ''}{message}{value}.")
    return lines


def _without_inserted(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """A key's location without what pydantic inserts: the method of the split, and the kind of a section."""
    location = tuple(part for part in location if part != IN_BRACES)
    inserted = location[:1] == ("split",) and len(location) > 1 and location[1] in SPLITS
    return location[:1] + location[2:] if inserted else location


def _unknown_key(where: str, location: tuple[int | str, ...]) -> str:
    if where in RENAMED_KEYS:
        return f"{where}: this key is now called `{RENAMED_KEYS[where]}`; rename it."
    section: Any = Config
    for part in location[:-1]:
        section = _section_below(section, part) or section
    known = list(section.model_fields)
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}."
    return f"{where}: unknown key; {hint}"


def _section_below(section: type[BaseModel], part: int | str) -> type[BaseModel] | None:
    """Return the section type under a key, looking through lists, mappings and the split methods."""
    if section in SPLITS.values() and part in SPLITS:
        return SPLITS[str(part)]
    found = section.model_fields.get(str(part))
    return None if found is None else _model_in(found.annotation)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        below = _model_in(argument)
        if below is not None:
            return below
    return None
