"""mibf bench submit: what a job of a cluster takes beyond the same command run directly.

The command is `mibf verify`, which reads what is there and changes nothing, so that it can be done again and again.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from jobs.bench.network import machine
from jobs.progress import say
from mibf.errors import InputError


@dataclass(frozen=True)
class Overhead:
    """Seconds of a command in two ways, medians."""

    rounds: int
    direct: float
    submitted: float

    @property
    def seconds(self) -> float:
        """What submitting adds."""
        return self.submitted - self.direct


def bench_submit(config: str, address: str | None, *, rounds: int) -> Overhead:
    """Do `mibf verify` of a configuration by turns directly and as a job of the cluster at an address.

    Raises:
        InputError: it does not end well in one of the ways; its own words are told.
    """
    where = [] if address is None else ["--address", address]
    direct, submitted = [], []
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        direct.append(_seconds("verify", config))
        submitted.append(_seconds("submit", "verify", config, *where))
    return Overhead(rounds, median(direct), median(submitted))


def _seconds(*arguments: str) -> float:
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "jobs.cli", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise InputError(f"mibf {' '.join(arguments)}: ended with status {done.returncode} ({''.join(last)}).")
    return time.monotonic() - begun


def table(found: Overhead) -> str:
    """It for a person."""
    return "\n".join(
        [
            machine(),
            f"mibf verify directly {found.direct:.1f} s, submitted {found.submitted:.1f} s: {found.seconds:.1f} s more "
            f"(medians of {found.rounds})",
        ]
    )


def as_json(found: Overhead) -> dict[str, Any]:
    """It for machines."""
    return {"machine": machine(), **asdict(found), "overhead": found.seconds}
