"""The memory that dense inference takes for itself, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import platform
import resource
from pathlib import Path
from typing import Any

import psutil
import torch

from mibf.dense import Dense
from mibf.network import MIBFNet
from mibf.precision import Precision
from mibf.spec import NetworkSpec


def working_set(spec: NetworkSpec, side: int, precision: Precision) -> int:
    """Bytes of main memory at the most beyond network, tile and result, for a tile of `side` pixels on the CPU."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_grown, (spec.to_json(), side, precision))


def _grown(spec: dict[str, Any], side: int, precision: Precision) -> int:
    dense = Dense(MIBFNet(NetworkSpec.from_json(spec)).eval(), precision=precision)
    reach = side + 2 * dense.spec.halo
    tile = [torch.rand(s.bands, reach * s.scale, reach * s.scale) for s in dense.spec.sources]
    before = psutil.Process().memory_info().rss
    result = dense(tile)
    return _peak() - before - sum(x.nbytes for x in result.values())


def _peak() -> int:
    """The most main memory that this process ever held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: getrusage there counts what the process had been before it became another program
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024
