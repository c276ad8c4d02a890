"""Resources of workers and drivers. Imports neither Ray nor torch at once, so that commands can run without them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jobs.config.config import ResourcesSection
from mibf.errors import InputError

if TYPE_CHECKING:
    import torch

#: Environment variable that Ray sets in the drivers of submitted jobs.
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: Parts of a GPU that Ray counts.
GPU_PARTS = 10_000


class GpusUnavailableError(Exception):
    """A cluster did not provide the GPUs that `resources.gpus` asks for in time."""


def hide_unassigned_gpus() -> None:
    """Hide the node's GPUs from this process if it is the driver of a submitted job for which none was reserved (`--gpus`).

    Ray shows all of them to such a driver; they belong to workers. Call it before torch looks for GPUs.
    """
    if JOB in os.environ:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def own_device(wanted: ResourcesSection) -> torch.device:
    """Return the device of a stage that computes in this process.

    Raises:
        InputError: it must be a GPU, and this process has none.
    """
    import torch

    from mibf.device import best_device, missing_gpu

    device = torch.device("cpu") if wanted.gpus is False else best_device()
    if wanted.gpus is True and device.type == "cpu":
        raise InputError(
            "resources.gpus is true, but this process, which computes the stage itself (`workers: 0`), has no GPU "
            f"({missing_gpu()}); submit it with `--gpus 1`, use workers on nodes with GPUs, or set resources.gpus to auto."
        )
    return device


@dataclass(frozen=True)
class WorkerResources:
    """Resources per worker: CPUs without fractions, and a GPU or an equal share of one if available.

    With 0 workers, the resources of the command's own process.
    """

    workers: int
    cpus: int
    gpus: int
    per_gpu: int = 1  #: workers that share a GPU

    @property
    def gpu_share(self) -> float:
        """The part of a GPU that a worker takes, 0 for none; rounded down to Ray's precision, so that all fit."""
        return self.gpus * (GPU_PARTS // self.per_gpu) / GPU_PARTS

    @property
    def resources(self) -> dict[str, float]:
        """The resources as a Ray resource request."""
        return {"CPU": self.cpus} | ({"GPU": self.gpu_share} if self.gpus else {})

    @property
    def devices(self) -> int:
        """Number of devices of all workers: GPUs, or as many CPU devices as workers."""
        return -(-self.workers // self.per_gpu) if self.gpus else self.workers

    def without_device(self) -> WorkerResources:
        """What is left after the loss of a device, whose workers may move to the others as far as these have room."""
        return replace(self, workers=min(self.workers - 1, (self.devices - 1) * self.per_gpu))

    def __str__(self) -> str:
        gpu = "a GPU" if self.per_gpu == 1 else f"1/{self.per_gpu} of a GPU"
        device = gpu if self.gpus else f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}"
        if self.workers == 0:
            return f"{device} in this process"
        return f"{'1 worker' if self.workers == 1 else f'{self.workers} workers'} with {device} each"


@dataclass(frozen=True)
class Node:
    """CPUs and GPUs of a cluster node that are available to workers."""

    cpus: int
    gpus: int = 0

    def without(self, taken: Node) -> Node:
        """Return what is left when something is taken."""
        return Node(self.cpus - taken.cpus, max(0, self.gpus - taken.gpus))


def cpus_each(
    nodes: Sequence[Node],
    workers: int,
    *,
    driver: Sequence[int] = (),
    driver_gpus: int = 0,
    reserved_cpus: int = 0,
    on_gpus: bool = False,
    per_gpu: int = 1,
) -> int:
    """Return the most whole CPUs per worker, each worker fitting on one node; 1 if they do not fit.

    Args:
        nodes: the nodes of the cluster.
        workers: number of workers.
        driver: indices of the nodes on one of which the driver takes a CPU; empty if it takes none.
        driver_gpus: GPUs that the driver takes there.
        reserved_cpus: CPUs reserved for other processes.
        on_gpus: whether each worker also takes a GPU, or a share of one.
        per_gpu: workers that share a GPU.
    """
    if driver:
        own = Node(1, driver_gpus)
        left = [[node.without(own) if p == taken else node for p, node in enumerate(nodes)] for taken in driver]
        return min(cpus_each(rest, workers, reserved_cpus=reserved_cpus, on_gpus=on_gpus, per_gpu=per_gpu) for rest in left)
    for each in range(max((node.cpus for node in nodes), default=1), 1, -1):
        room = sum(min(node.cpus // each, node.gpus * per_gpu) if on_gpus else node.cpus // each for node in nodes)
        if room >= workers and sum(node.cpus for node in nodes) - each * workers >= reserved_cpus:
            return each
    return 1
