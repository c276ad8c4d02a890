"""MkDocs hook: list all commands in `commands.md`, from the command line itself.

Commands import what they need when they run, so that only Typer and what the options need must be installed here.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page
from typer.core import TyperGroup
from typer.main import get_group

ROOT = Path(__file__).resolve().parents[2]
PAGE, MARK = "commands.md", "<!-- commands -->"

_CODE = re.compile(r"(`[^`]*`)")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the commands in place of the mark in `commands.md`."""
    del config, files
    if page.file.src_uri != PAGE:
        return markdown
    if MARK not in markdown:
        raise ValueError(f"docs/{PAGE} has no line {MARK}, in whose place the commands are listed")
    return markdown.replace(MARK, "\n".join(commands()))


def commands() -> Iterator[str]:
    """Lines of Markdown: a section for each panel of `mibf --help`, and below it one for each command."""
    sys.path.insert(0, str(ROOT))
    try:
        from jobs.cli import app
    finally:
        sys.path.remove(str(ROOT))
    group = get_group(app)
    context = group.make_context("mibf", ["--help"], resilient_parsing=True)
    shown = None
    for path, panel, command in _leaves("mibf", None, group, context):
        if panel != shown:
            shown = panel
            yield from (f"## {panel}", "")
        yield from _section(path, command, context)


def _leaves(path: str, panel: str | None, group: TyperGroup, context: Any) -> Iterator[tuple[str, str | None, Any]]:
    """The commands of a group and of the groups in it, with their panels, in the order of the help; without hidden ones."""
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        if isinstance(command, TyperGroup):
            yield from _leaves(f"{path} {name}", command.rich_help_panel, command, context)
        else:
            yield f"{path} {name}", command.rich_help_panel or panel, command


def _section(path: str, command: Any, context: Any) -> Iterator[str]:
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    yield from (f"### `{path}`", "", _text(command.help or ""), "", "```sh", usage, "```", "")
    records = [p.get_help_record(context) for p in command.get_params(context) if "--help" not in p.opts]
    rows = [(name, text) for name, text in filter(None, records)]
    if rows:
        yield from ("| argument or option | meaning |", "|---|---|")
        yield from (f"| `{name}` | {_text(text)} |" for name, text in rows)
        yield ""


def _text(help_text: str) -> str:
    """A help text as the text of a table's cell: one line, in which nothing but code in backticks is markup."""
    parts = _CODE.split(" ".join(help_text.split()))
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_|\[\]#])", r"\\\1", html.escape(text, quote=False))
