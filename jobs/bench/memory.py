"""The most main memory that a process ever held."""

from __future__ import annotations

import platform
import resource
from pathlib import Path


def peak() -> int:
    """The most main memory that this process ever held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: getrusage there counts what the process had been before it became another program
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024
