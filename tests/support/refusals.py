"""Refused input: the message of a command or of the configuration loader."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.cli.common import app
from jobs.config.loader import load
from mibf.errors import InputError
from tests.support.scenes import SmallScene


def refused(scene: SmallScene, overrides: list[str] | None = None, *, command: str = "prepare", **changes: Any) -> str:
    """Run a command that must be refused and return its message, after checking that the folder is unchanged."""
    path = scene.write_config(**changes)
    before = {p: p.stat().st_mtime_ns for p in scene.folder.rglob("*")}
    arguments = [command, str(path)] + [part for o in overrides or [] for part in ("--set", o)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    after = {p: p.stat().st_mtime_ns for p in scene.folder.rglob("*") if p.is_file()}
    assert after == {p: t for p, t in before.items() if p.is_file()}, "no file is written, changed or deleted"
    assert {p for p in scene.folder.rglob("*") if p.is_dir()} <= set(before), "no folder is left behind"
    return str(result.stderr)


def load_error(scene: SmallScene, overrides: list[str] | None = None, **changes: Any) -> str:
    """Return the message with which the loader refuses a configuration."""
    with pytest.raises(InputError) as caught:
        load(str(scene.write_config(**changes)), overrides=overrides or [])
    return str(caught.value)
