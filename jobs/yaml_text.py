"""YAML that nobody vouches for, read within bounds: plain values alone, each key once, none too large, too deep or endless.

PyYAML's safe loader builds no Python objects. What it leaves open is closed here: a few lines whose aliases stand for
billions of values, brackets deeper than the interpreter's stack, dates and numbers that are none.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from mibf.errors import InputError

#: Bytes of a file: tens of thousands of scenes.
MOST_BYTES = 8 * 1024 * 1024
#: Values of a file, each alias counted as all that it stands for.
MOST_VALUES = 1_000_000
#: Lists and mappings within each other; the deepest that a configuration has is nine.
MOST_LEVELS = 50


def read_text(path: str) -> str:
    """The text of a configuration file, here or at a URL, which is never read beyond `MOST_BYTES`.

    Raises:
        InputError: it is not there, no text or too large.
    """
    try:
        content = _begin_of(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML configuration.") from error
    if len(content) > MOST_BYTES:
        raise InputError(
            f"{path}: is larger than {MOST_BYTES // 2**20} MiB, which no configuration is; give the path of a YAML "
            "configuration, or spread its scenes over several."
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a text file; give the path of a YAML configuration.") from error


def _begin_of(path: str) -> bytes:
    if "://" not in path:
        with Path(path).open("rb") as file:
            return file.read(MOST_BYTES + 1)
    from pipeline import storage  # it takes its time, which a configuration on a disk does without

    with storage.reached(path):
        try:
            return storage.read_at_most(path, MOST_BYTES)
        except FileNotFoundError as error:
            raise InputError(f"{storage.shown(path)}: cannot be read (no such file); mend the URL.") from error


def parse(text: str, *, name: str) -> Any:
    """The value of a YAML text; `name` is that of its file.

    Raises:
        yaml.YAMLError: it is no YAML, asks for Python objects, gives a key twice, is too deep, or stands for too much.
    """
    loader = _StrictLoader(text)
    loader.name = name
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node)
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError(_too_deep(None)) from error
    except ValueError as error:  # of a date or a number that looks like one
        raise yaml.YAMLError(f"a value is no date or number, {error}; put it in quotes if it is text") from error
    finally:
        loader.dispose()


def _too_deep(node: yaml.Node | None) -> str:
    place = "" if node is None else f" on line {node.start_mark.line + 1}"
    return f"lists and mappings lie more than {MOST_LEVELS} levels within each other{place}"


def _measure(root: yaml.Node) -> None:
    """See that a document is finite, of few levels, and of few values with every alias written out."""
    known: dict[int, int] = {}
    above: set[int] = set()

    def values(node: yaml.Node) -> int:
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if id(node) in above:
            raise yaml.YAMLError(f"an alias stands for what it is in itself, on line {node.start_mark.line + 1}")
        if len(above) >= MOST_LEVELS:
            raise yaml.YAMLError(_too_deep(node))
        if id(node) not in known:
            above.add(id(node))
            pairs = [child for pair in node.value for child in pair] if isinstance(node, yaml.MappingNode) else node.value
            known[id(node)] = 1 + sum(values(child) for child in pairs)
            above.remove(id(node))
        return known[id(node)]

    found = values(root)
    if found > MOST_VALUES:
        raise yaml.YAMLError(f"it stands for {found:,} values with its aliases written out; {MOST_VALUES:,} are allowed")


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key that is given twice instead of taking the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


def _refused(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    del loader
    raise yaml.constructor.ConstructorError(None, None, f"values of the kind {node.tag!r} are not taken", node.start_mark)


#: Kinds of values that no configuration needs, and that would pass for texts or lists unseen.
for _kind in ("binary", "set", "omap", "pairs"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _refused)
