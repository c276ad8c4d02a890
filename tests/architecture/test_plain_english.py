"""Texts are plain English: words and phrases that were retired do not come back.

A word list is enough here, and a spell checker's dictionary is not: most entries are phrases. Add what you would have to
explain to a colleague, with what to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.prose
#: Patterns of retired words, and what to write instead. Case is ignored.
RETIRED = {
    r"(?<!\w)told\b": "reported, printed, says",
    r"\btells?\b": "reports, prints, says, distinguishes",
    r"\bfor ever\b": "endlessly",
    r"\bmend(s|ed|ing)?\b": "fix, repair",
    r"\banew\b": "again, from scratch",
    r"\b(goes|gone|went) on\b": "continues, resumes",
    r"\bsee that (the|a|an|it|its|they|no|every|all|there)\b": "check that",
    r"\b(lays|laid|laying) down\b": "creates, lays out",
    r"\bstrangers?\b": "untrusted, unknown",
    r"\b(is|are|was|were|be|been|not) whole\b(?! numbers?\b)": "complete, intact",
    r"\bput down\b": "record",
    r"\b(gang|crew)\b": "workers",
    r"\bin work\b(?!\.\w)": "in progress",
    r"\bthe very same\b": "the same",
    r"\bto be had\b": "available",
    r"\bgoes by\b": "is identified by",
    r"\b(dies|died) of its own\b": "exits by itself, fails",
    r"\bside by side\b": "in parallel, mosaicked",
    r"\btold apart\b": "distinguished",
    r"\blie[sd]? beside\b": "is next to",
    r"\bof late\b": "recent",
    r"\bno longer there\b": "missing",
    r"\bat the (most|least)\b": "at most, at least",
    r"\bso (many|much) (of|a|the)\b": "this many, N",
    r"(?<!stopping )\bpatience\b": "timeout",
    r"\b(anybody|nobody)\b": "anyone, no one; better: the user, the process, the run",
    r"\bthat (is|are) no\b(?! longer\b)": "that is not a, non-, invalid",
    # "Read on a grid" and "read on the network" are fine.
    r"\bread on\b(?! (a|an|the|its|their|local|every|each|another|one|two)\b)": "go next, continue",
}
#: Flags and keys of JSON and configuration, which keep their names (or are refused under their old ones).
FORMATS = re.compile(r"--anew\b|\btrain\.patience\b|\brows_in_work\b|\bside_by_side\b")
FOLDERS = ("mibf", "pipeline", "jobs", "infra", "tests", "docs", "examples", "benchmarks", ".ci", ".")
SUFFIXES = {".py", ".md", ".ipynb", ".yaml", ".yml", ".jinja", ".sh", ".toml", ".cff", ".json"}
#: Files without a suffix: the scripts of .ci and the build files.
NAMES = {"run", "audit", "Makefile", "Dockerfile"}
#: This file lists the words, and the changelog the old names of keys.
EXEMPT = {Path(__file__).resolve(), ROOT / "CHANGELOG.md"}


def texts() -> Iterator[tuple[Path, int, str]]:
    """Every line of every text of the repository, with its file and number."""
    for folder in FOLDERS:
        paths = (ROOT / folder).glob("*") if folder == "." else (ROOT / folder).rglob("*")
        for path in sorted(paths):
            checked = path.suffix in SUFFIXES or path.name in NAMES
            if path.is_file() and checked and path not in EXEMPT and "golden" not in path.stem:
                for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                    yield path, number, line


def joined_texts() -> Iterator[tuple[Path, int, str]]:
    """Every line with the next one of its file, so that a phrase that is wrapped is found too."""
    for (path, number, line), (following, _, after) in pairwise([*texts(), (ROOT, 0, "")]):
        continued = after.strip().removeprefix("#").lstrip(":\"' ") if following == path else ""
        yield path, number, f"{line.rstrip(chr(34) + chr(39) + ' ')} {continued}"


def test_texts_use_no_retired_words() -> None:
    pattern = re.compile("|".join(f"({word})" for word in RETIRED), re.IGNORECASE)
    found = []
    for path, number, line in joined_texts():
        # Underscores separate the words of names, so that names are held to the list too.
        for match in pattern.finditer(FORMATS.sub("", line).replace("_", " ")):
            instead = next(new for word, new in RETIRED.items() if re.search(word, match[0], re.IGNORECASE))
            found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]!r}; write: {instead}")
    assert not found, "\n".join(found)


def test_markdown_wraps_at_120_columns() -> None:
    found = []
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "infra").rglob("*.md")]:
        fenced = False
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            fenced ^= line.lstrip().startswith("```")
            unbreakable = "|" in line or " " not in line.strip() or "](" in line
            if len(line) > 120 and not fenced and not line.lstrip().startswith("```") and not unbreakable:
                found.append(f"{path.relative_to(ROOT)}:{number}: {len(line)} columns")
    assert not found, "\n".join(found)
