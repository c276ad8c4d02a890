"""Griffe extension: read this project's comments and docstrings as the Markdown that MkDocs expects.

- A `#:` comment above an attribute, or after it, is the attribute's docstring.
- A doctest becomes a code block, also outside an `Examples:` section.
- Square brackets are text (an interval, a list), never a cross-reference.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

MARK = "#:"
_CODE = re.compile(r"(`+)(?:.+?)\1", re.DOTALL)
_BRACKET = re.compile(r"(?<!\\)\[")


class ProjectDocstrings(griffe.Extension):
    """Prepare the docstring of every object."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Find the docstring of an attribute if it has none, then convert it to Markdown."""
        if obj.docstring is None and obj.is_attribute and obj.lineno and obj.endlineno:
            lines = obj.lines_collection[obj.filepath]
            text = _trailing(lines[obj.endlineno - 1]) or _above(lines, obj.lineno - 1)
            if text:
                obj.docstring = griffe.Docstring(text, lineno=obj.lineno, parent=obj)
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(text: str) -> str:
    """Fence doctests and escape square brackets outside code."""
    prose: list[str] = []
    blocks: list[str] = []
    doctest: list[str] = []
    for line in [*text.split("\n"), ""]:
        if line.lstrip().startswith(">>>") or (doctest and line.strip()):
            doctest.append(line)
            continue
        if doctest:
            indent = re.match(" *", doctest[0])[0]
            prose.append(_escape("\n".join(blocks)))
            prose.append("\n".join([f"{indent}```pycon", *doctest, f"{indent}```"]))
            blocks, doctest = [], []
        blocks.append(line)
    prose.append(_escape("\n".join(blocks)))
    return "\n".join(prose).rstrip()


def _escape(text: str) -> str:
    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [_BRACKET.sub(r"\\[", text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _BRACKET.sub(r"\\[", text[end:])])


def _trailing(line: str) -> str:
    code, mark, comment = line.rpartition(MARK)
    return comment.strip() if mark and code.strip() else ""


def _above(lines: list[str], index: int) -> str:
    comment: list[str] = []
    while index > 0 and lines[index - 1].strip().startswith(MARK):
        index -= 1
        comment.insert(0, lines[index].strip().removeprefix(MARK).strip())
    return "\n".join(comment)
