"""Safe loading of untrusted YAML: plain values only, no duplicate keys, bounded size and depth, no recursive aliases.

PyYAML's safe loader builds no Python objects. This module closes its remaining gaps: aliases that expand to billions of
values, nesting deeper than the interpreter's stack, invalid dates and numbers.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from mibf.errors import InputError

#: Maximum file size in bytes: enough for tens of thousands of scenes.
MAX_BYTES = 8 * 1024 * 1024
#: Maximum number of values in a file, with aliases expanded.
MAX_VALUES = 1_000_000
#: How much larger the file of a run may be: aliases are expanded there, and earlier versions wrote every default.
SAVED = 8
#: Maximum nesting depth of lists and mappings; a valid configuration needs at most nine.
MAX_DEPTH = 50


def read_text(path: str, *, saved: bool = False) -> str:
    """Read a configuration file from a path or URL, never more than `MAX_BYTES` + 1 bytes; `SAVED` times that of a run.

    Raises:
        InputError: the file is missing, not UTF-8 text or too large.
    """
    limit = MAX_BYTES * (SAVED if saved else 1)
    try:
        content = _read_start(path, limit)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML configuration.") from error
    if len(content) > limit:
        raise InputError(
            f"{path}: is larger than {limit // 2**20} MiB, the limit for a configuration; give the path of a YAML "
            "configuration, or split its scenes over several files."
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a text file; give the path of a YAML configuration.") from error


def _read_start(path: str, limit: int) -> bytes:
    if "://" not in path:
        with Path(path).open("rb") as file:
            return file.read(limit + 1)
    from pipeline.io import storage  # slow import, not needed for local files

    with storage.as_input_errors(path):
        try:
            return storage.read_at_most(path, limit)
        except FileNotFoundError as error:
            raise InputError(f"{storage.redact_url(path)}: cannot be read (no such file); check the URL.") from error


def parse(text: str, *, name: str, saved: bool = False) -> Any:
    """Parse a YAML text; `name` is the file name used in error messages, `saved` whether a run wrote it.

    Raises:
        yaml.YAMLError: invalid YAML, a Python object tag, a duplicate key, or too many levels or values.
    """
    loader = _StrictLoader(text)
    loader.name = name
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, MAX_VALUES * (SAVED if saved else 1))
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError(_too_deep(None)) from error
    except ValueError as error:  # from an invalid date or number
        raise yaml.YAMLError(
            f"a value looks like a date or number but is invalid ({error}); if it is text, put it in quotes"
        ) from error
    finally:
        loader.dispose()


def _too_deep(node: yaml.Node | None) -> str:
    where = "" if node is None else f" on line {node.start_mark.line + 1}"
    return f"lists and mappings are nested more than {MAX_DEPTH} levels deep{where}"


def _measure(root: yaml.Node, limit: int) -> None:
    """Check the document's nesting depth and its number of values with aliases expanded; refuse recursive aliases."""
    known: dict[int, int] = {}
    above: set[int] = set()

    def values(node: yaml.Node) -> int:
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if id(node) in above:
            raise yaml.YAMLError(f"an alias refers to a node that contains it, on line {node.start_mark.line + 1}")
        if len(above) >= MAX_DEPTH:
            raise yaml.YAMLError(_too_deep(node))
        if id(node) not in known:
            above.add(id(node))
            pairs = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
            known[id(node)] = 1 + sum(values(child) for child in pairs)
            above.remove(id(node))
        return known[id(node)]

    found = values(root)
    if found > limit:
        raise yaml.YAMLError(f"it has {found:,} values with aliases expanded; at most {limit:,} are allowed")


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which here raises on duplicate keys instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        duplicates = [key for key, count in Counter(keys).items() if count > 1]
        if duplicates:
            raise yaml.constructor.ConstructorError(None, None, f"key {duplicates[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _refused(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    del loader
    raise yaml.constructor.ConstructorError(
        None, None, f"values with the tag {node.tag!r} are not supported", node.start_mark
    )


#: Tags that no configuration needs and that would otherwise silently load as strings or lists.
for _kind in ("binary", "set", "omap", "pairs"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _refused)
