"""What is under version control has a plain name and is a file of its own."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.paths import ROOT

PLAIN = re.compile(r"[A-Za-z0-9_./-]+")
LINK = "120000"


def test_tracked_files_have_plain_names_and_are_no_links() -> None:
    listed = subprocess.run(["git", "ls-files", "-s", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this copy of the sources is not a git checkout")
    entries = [entry.split(maxsplit=3) for entry in listed.stdout.split("\0") if entry]
    assert entries
    assert [path for *_, path in entries if not PLAIN.fullmatch(path)] == []
    assert [path for mode, *_, path in entries if mode == LINK] == []
