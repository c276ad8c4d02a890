"""Two data-parallel workers for tests: separate processes in a gloo process group."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def two_workers(work: Callable[[int], dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Return the results of `work`, a module-level function, for ranks 0 and 1: tensors, numbers and mappings of them.

    `work` must release everything that it creates before it returns. Freeing a DistributedDataParallel after its
    process group destroys the group while holding the GIL, which the group's own thread may be waiting for: a deadlock
    in torch 2.13.
    """
    torch.multiprocessing.spawn(_joined, (work, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def _joined(rank: int, work: Callable[[int], dict[str, Any]], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(work(rank), f"{folder}/{rank}.pt")
    gc.collect()
    dist.destroy_process_group()
