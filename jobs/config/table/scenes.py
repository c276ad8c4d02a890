"""Scenes from the rows of a table: each row's values are set in a copy of a template, which has what all scenes share.

A column is a key of a scene (`name`, `datetime`, `labels.attribute`, `sources.radar.url`), or the name of a source, which
stands for its `url`; `labels` and `area` stand for theirs.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.config.table.read import Table
from mibf.errors import InputError
from mibf.redaction import without_queries

#: Keys of a scene that a text value in a column stands for the `url` of.
FILES = ("labels", "area")
#: The keys of a source that name its files.
SOURCE_FILES = ("url", "urls", "tiles", "stac")
#: What `TableScenes.where` says of a cell without a value.
EMPTY = " is empty"
Path = tuple[str, ...]


class TableSection(BaseModel):
    """A table of scenes, in place of a list of them.

    `columns` are those to read, by default all. `template` holds the keys that all scenes share. With `sha256` the table
    must be the one of this SHA-256.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str = Field(min_length=1)
    columns: tuple[str, ...] | None = Field(default=None, min_length=1)
    template: dict[str, Any] = Field(default_factory=dict)
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


@dataclass(frozen=True)
class TableScenes:
    """The scenes of a table, before they are validated, and where each of their values comes from."""

    table: Table
    paths: dict[str, Path]  #: the key of a scene that each column sets
    files: dict[str, Path]  #: of columns that stand for a URL: its key below that
    scenes: list[dict[str, Any]]

    @classmethod
    def of(cls, table: Table, section: TableSection, *, name: str, keys: Collection[str]) -> TableScenes:
        """Make the scenes of a table.

        Args:
            table: as read.
            section: with the template.
            name: of the configuration, for messages.
            keys: the keys of a scene.

        Raises:
            InputError: a column is unknown or missing, a name is missing or not unique, or a URL has an unknown scheme; the
                message names row and column.
        """
        sources = _sources(section.template, name)
        paths = {column: _path(column, table, keys, sources) for column in table.columns}
        _check_sources(table, paths, sources)
        _check_names(table)
        template = section.template | ({"sources": sources} if sources else {})
        found = cls(table, paths, {column: _url_key(path, sources) for column, path in paths.items()}, [])
        found._check_schemes()
        found.scenes.extend(found._scene(number, template) for number in range(len(table.rows)))
        return found

    def _check_schemes(self) -> None:
        """Check the schemes of all URLs."""
        import fsspec  # not needed for configurations without a table

        known = set(fsspec.available_protocols())
        for number, cells in enumerate(self.table.rows):
            for column, value in cells.items():
                path = self._key(column, value)
                for url in value if isinstance(value, list) else [value]:
                    if path[-1] not in SOURCE_FILES or not isinstance(url, str) or "://" not in url:
                        continue
                    scheme = url.partition("://")[0]
                    if scheme not in known:
                        raise InputError(
                            f"{self.table.place(number, column)}: {without_queries(url)} cannot be read, the scheme "
                            f"{scheme!r} is unknown; give a path or a URL such as s3://BUCKET/FILE."
                        )

    def where(self, location: Sequence[int | str]) -> str:
        """Name the origin of a value of a scene, by its row, counted from 0, and its key: a cell, or the template."""
        row, key = int(location[0]), tuple(map(str, location[1:]))
        if not key:
            return self.table.place(row)
        cells = self.table.rows[row]
        keys = {column: self._key(column, cells.get(column)) for column in self.table.columns}
        matching = {c: path for c, path in keys.items() if all(a == b for a, b in zip(path, key, strict=False))}
        above = [column for column, path in matching.items() if column in cells and len(path) <= len(key)]
        empty = [column for column in matching if column not in cells]
        if above:
            return self.table.place(row, max(above, key=lambda column: len(matching[column])))
        if empty:
            return f"{self.table.place(row, empty[0])}{EMPTY}"
        return self.table.place(row, next(iter(matching))) if matching else ".".join(("scenes.template", *key))

    def _key(self, column: str, value: Any) -> Path:
        """The key of a scene that a value sets: of what consists of files, a mapping is all of it, anything else its URL."""
        return self.paths[column] if isinstance(value, dict) else self.paths[column] + self.files.get(column, ())

    def _scene(self, row: int, template: dict[str, Any]) -> dict[str, Any]:
        scene: dict[str, Any] = copy.deepcopy(template)
        cells = self.table.rows[row]
        for column, path in self.paths.items():
            if column not in cells:
                if path[0] in FILES and path[1:] in ((), ("url",)):
                    scene.pop(path[0], None)  # this scene has no labels, or no area
                continue
            *above, last = self._key(column, cells[column])
            section = scene
            for key in above:
                section = section.setdefault(key, {})
                if not isinstance(section, dict):
                    raise InputError(f"{self.table.place(row, column)}: {key!r} of the template has no keys below it.")
            section[last] = cells[column]
        return scene


def table_section(values: Mapping[str, Any], name: str) -> TableSection:
    """Validate the value of the key `scenes` of a configuration, which is no list.

    Raises:
        InputError: it is no table either; `name` is that of the configuration.
    """
    try:
        return TableSection.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, m['loc']))}: {m['msg']} (found {m['input']!r})" for m in error.errors()[:3])
        raise InputError(
            f"{name}: scenes: must be a list of scenes, or a table of them: {{table: scenes.parquet, template: {{grid: ..., "
            f"sources: ...}}}}, with `columns` and `sha256` if needed. {wrong}."
        ) from error


def _sources(template: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The sources of a template; one that states nothing but its name is empty."""
    sources = template.get("sources") or {}
    if not isinstance(sources, dict) or not all(isinstance(below, dict | None) for below in sources.values()):
        raise InputError(f"{name}: scenes.template.sources: must be a mapping of the sources' names to their keys.")
    return {str(source): {} if below is None else below for source, below in sources.items()}


def _path(column: str, table: Table, keys: Collection[str], sources: Collection[str]) -> Path:
    """The key of a scene that a column sets."""
    if column in sources and column not in keys:
        return "sources", column
    first, _, rest = column.partition(".")
    if first not in keys:
        known = [*keys, *sources]
        near = difflib.get_close_matches(column, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
        raise InputError(
            f"{table.name}: column {column!r} is neither a key of a scene nor a source of `scenes.template`; {hint} Rename "
            "or remove it, or list the columns to read in `scenes.columns`."
        )
    if first != "sources":
        return tuple(column.split("."))
    # The names of sources may contain dots.
    named = [source for source in sources if rest == source or rest.startswith(f"{source}.")]
    source = max(named, key=len, default=rest.partition(".")[0])
    below = rest.removeprefix(source).removeprefix(".")
    return ("sources", *([source] if source else []), *(below.split(".") if below else []))


def _url_key(path: Path, sources: Mapping[str, Any]) -> Path:
    """The key, below that of a column, of the URL for which a value of the column stands; empty if it stands for itself."""
    if len(path) == 1 and path[0] in FILES:
        return ("url",)
    if len(path) == 2 and path[0] == "sources":
        return ("stac", "url") if "stac" in sources.get(path[1], {}) else ("url",)
    return ()


def _check_sources(table: Table, paths: Mapping[str, Path], sources: Mapping[str, Any]) -> None:
    """Check that each source of the template has files, there or in a column."""
    for source, below in sources.items():
        if not any(below.get(key) for key in SOURCE_FILES) and not any(
            path[:2] in (("sources", source), ("sources",)) for path in paths.values()
        ):
            raise InputError(
                f"{table.name}: has no column {source!r} with the files of this source, and `scenes.template.sources."
                f"{source}` names none; its columns are {', '.join(table.columns)}."
            )


def _check_names(table: Table) -> None:
    """Check that there is a column of names and that no name occurs twice."""
    if "name" not in table.columns:
        raise InputError(f"{table.name}: has no column 'name'; its columns are {', '.join(table.columns)}.")
    rows: dict[str, int] = {}
    for number, row in enumerate(table.rows, 1):
        name = str(row.get("name", ""))
        if not name:
            raise InputError(f"{table.name}, row {number}, column 'name': is empty; give each scene a name.")
        if name in rows:
            raise InputError(
                f"{table.name}: rows {rows[name]} and {number} have the same name {name!r}; give each scene its own."
            )
        rows[name] = number
