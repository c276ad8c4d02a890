"""Working memory of dense inference, measured in a separate process."""

from __future__ import annotations

import platform
import resource
from pathlib import Path
from typing import Any

import psutil
import torch

from jobs.bench.harness.processes import run_in_subprocess
from mibf.device import Precision
from mibf.inference.dense import Dense
from mibf.network.mibfnet import MIBFNet
from mibf.network.spec import NetworkSpec


def working_set(spec: NetworkSpec, side: int, precision: Precision) -> int:
    """Return the peak memory in bytes in addition to network, tile and result, for a tile of `side` pixels on the CPU."""
    return run_in_subprocess(_grown, spec.to_json(), side, precision)


def _grown(spec: dict[str, Any], side: int, precision: Precision) -> int:
    dense = Dense(MIBFNet(NetworkSpec.from_json(spec)).eval(), precision=precision)
    reach = side + 2 * dense.spec.halo
    tile = [torch.rand(s.bands, reach * s.scale, reach * s.scale) for s in dense.spec.sources]
    before = psutil.Process().memory_info().rss
    result = dense(tile)
    return peak() - before - sum(x.nbytes for x in result.values())


def peak() -> int:
    """Return the peak resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: getrusage there includes the memory of the process before exec
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024
