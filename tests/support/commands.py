"""Run `mibf` commands in the process of a test."""

from __future__ import annotations

import json
from typing import Any

import torch
from typer.testing import CliRunner, Result

from jobs.cli.common import app
from tests.support import mapped_scene
from tests.support.scenes import SmallScene


def run(scene: SmallScene, *overrides: str, command: str = "prepare", status: int = 0, **changes: Any) -> Any:
    """Run a command; return its JSON summary, or the CLI result if a failure status is expected."""
    arguments = [command, str(scene.write_config(**changes)), "--json"] + [p for o in overrides for p in ("--set", o)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == status, result.output
    return json.loads(result.stdout) if status == 0 else result


def invoke(*arguments: str, status: int = 0) -> Result:
    """Run a command line, keeping torch's number of threads; check its exit status."""
    threads = torch.get_num_threads()
    try:
        result = CliRunner().invoke(app, list(arguments))
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == status, result.output
    return result


def mibf(*arguments: str) -> mapped_scene.Result:
    """Run a command line in this process, which is faster than starting another; failures inside mibf are raised."""
    threads = torch.get_num_threads()
    try:
        done = CliRunner().invoke(app, list(arguments))
    finally:
        torch.set_num_threads(threads)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return mapped_scene.Result(done.exit_code, done.stdout, done.stderr)
