"""The memory that dense inference takes for itself, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
from typing import Any

import psutil
import torch

from jobs.bench.memory import peak
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
    return peak() - before - sum(x.nbytes for x in result.values())
