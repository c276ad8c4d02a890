"""mibf bench rerun: a fleet of small runs by `mibf rerun --all --parallel`, and the same runs one after the other.

Every run has a workspace of its own with one scene of random values, prepared, and a small model with random weights. All
commands are separate processes, so their times include starting Python and Ray.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.bench.harness.stub_workspace import stub_workspace
from jobs.bench.network import machine
from jobs.runtime.progress import info
from jobs.workflow.fingerprint import ALGORITHM_VERSIONS
from jobs.workflow.manifest import Manifest, StageName
from jobs.workflow.saved_config import save_map_config
from jobs.workflow.workspace import Workspace
from mibf.errors import InputError
from pipeline.io import storage

#: Side of the scenes and of their tiles, in pixels.
SIDE, TILE = 64, 64
#: Runs that are copied at a time.
COPIES = 16


@dataclass(frozen=True)
class RerunBench:
    """Seconds of the commands, whole processes."""

    runs: int
    parallel: int
    few: int  #: number of runs of the two ways in `commands` and `sequential`
    commands: float  #: per run, by one command each
    sequential: float  #: per run, by one `mibf rerun --all`
    together: float  #: per run, by one `mibf rerun --all --parallel`
    again: float  #: of that command once more, when nothing is left to do

    def lines(self) -> list[str]:
        """Format the times as lines of text."""
        per_run = {
            f"a command for each run ({self.few} runs)": self.commands,
            f"rerun --all ({self.few} runs)": self.sequential,
            f"rerun --all --parallel {self.parallel} ({self.runs} runs)": self.together,
        }
        width = max(map(len, per_run)) + 2
        rows = [f"{name:<{width}}{s:>8.2f} s a run {self.commands / s:>6.1f}x" for name, s in per_run.items()]
        return [machine(), *rows, f"the same once more, with nothing to do: {self.again:.1f} s"]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"machine": machine(), **asdict(self)}


def bench_rerun(url: str | None, *, runs: int, parallel: int, few: int) -> RerunBench:
    """Measure a fleet below a URL, by default in a temporary folder; what is written there is removed.

    Args:
        url: a folder or an object-store prefix.
        runs: number of runs that are mapped in parallel.
        parallel: number of runs at a time.
        few: number of runs that are mapped one after the other, each way.

    Raises:
        InputError: a command failed; the message has its last line.
    """
    with tempfile.TemporaryDirectory(prefix="mibf-bench-") as folder:
        root = storage.join(url or folder, f"bench-{uuid.uuid4().hex[:8]}")
        try:
            return _measured(Path(folder), root, runs=runs, parallel=parallel, few=few)
        finally:
            storage.remove(root)


def _measured(folder: Path, root: str, *, runs: int, parallel: int, few: int) -> RerunBench:
    files = _workspace(folder)
    fleets = {"commands": few, "sequential": few, "together": runs}
    urls = {kind: [storage.join(root, kind, f"area-{n:04d}") for n in range(count)] for kind, count in fleets.items()}
    info(f"writing {runs + 2 * few:,} workspaces of {len(files)} files")
    with ThreadPoolExecutor(COPIES) as pool:
        list(pool.map(lambda url: _write(url, files), [url for each in urls.values() for url in each]))
    info("a command for each run")
    commands = sum(
        _seconds("rerun", f"{url}/runs/main/map.yaml", "--set", f"workspace={url}")[0] for url in urls["commands"]
    )
    info("rerun --all")
    sequential = _rerun_all(storage.join(root, "sequential"), few)
    info(f"rerun --all --parallel {parallel}")
    together = _rerun_all(storage.join(root, "together"), runs, "--parallel", str(parallel))
    again = _rerun_all(storage.join(root, "together"), 0, "--parallel", str(parallel))
    return RerunBench(runs, parallel, few, commands / few, sequential / few, together / runs, again)


def _workspace(folder: Path) -> dict[str, bytes]:
    """The files of a workspace whose map was configured but never made, by their path."""
    config = stub_workspace(folder, shape_yx=(SIDE, SIDE), tile=TILE, filled=True)
    workspace = Workspace.of(config)
    finished = datetime.now(UTC).isoformat()
    stages: tuple[StageName, ...] = ("prepare", "train")
    for stage in stages:
        storage.write_json(
            workspace.manifest(stage),
            vars(Manifest(stage, "", finished, 0.0, 0, algorithm_version=ALGORITHM_VERSIONS[stage])),
        )
    save_map_config(config, workspace)
    top = Path(workspace.url)
    return {path.relative_to(top).as_posix(): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def _write(url: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        storage.write_bytes(storage.join(url, name), content)


def _rerun_all(url: str, runs: int, *options: str) -> float:
    """The seconds of a rerun of all runs below a URL, of which this many must be mapped."""
    seconds, printed = _seconds("rerun", "--all", url, "--json", *options)
    mapped = sum(each["done"] for each in json.loads(printed)["reruns"])
    if mapped != runs:
        raise InputError(f"{storage.redact_url(url)}: {mapped} runs were mapped instead of {runs}.")
    return seconds


def _seconds(*arguments: str) -> tuple[float, str]:
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-P", "-m", "jobs.cli", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise InputError(f"mibf {' '.join(arguments[:2])}: exit status {done.returncode} ({''.join(last)}).")
    return time.monotonic() - started, done.stdout
