"""mibf bench submit: overhead of a cluster job over the same command run directly.

The command is `mibf verify`, which only reads, so it can be repeated.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from jobs.bench.network import machine
from jobs.runtime.progress import info
from mibf.errors import InputError


@dataclass(frozen=True)
class Overhead:
    """Median times of a command in seconds, run directly and submitted as a job."""

    rounds: int
    direct: float
    submitted: float

    @property
    def seconds(self) -> float:
        """Time added by submitting."""
        return self.submitted - self.direct

    def lines(self) -> list[str]:
        """Format the overhead as lines of text."""
        return table(self).split("\n")

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"machine": machine(), **asdict(self), "overhead": self.seconds}


def bench_submit(config: str, address: str | None, *, rounds: int) -> Overhead:
    """Run `mibf verify` of a configuration alternately directly and as a job on the cluster at an address.

    Raises:
        InputError: the command failed in one of the two ways; the message quotes its last line.
    """
    where = [] if address is None else ["--address", address]
    direct, submitted = [], []
    for number in range(rounds):
        info(f"round {number + 1} of {rounds}")
        direct.append(_seconds("verify", config))
        submitted.append(_seconds("submit", "verify", config, *where))
    return Overhead(rounds, median(direct), median(submitted))


def _seconds(*arguments: str) -> float:
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-P", "-m", "jobs.cli", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise InputError(f"mibf {' '.join(arguments)}: exit status {done.returncode} ({''.join(last)}).")
    return time.monotonic() - started


def table(found: Overhead) -> str:
    """Format the result as text."""
    return "\n".join(
        [
            machine(),
            f"mibf verify: {found.direct:.1f} s directly, {found.submitted:.1f} s submitted, overhead {found.seconds:.1f} s "
            f"(medians of {found.rounds} rounds)",
        ]
    )
