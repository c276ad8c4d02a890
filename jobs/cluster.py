"""Ray, as it is found: the cluster that RAY_ADDRESS names, or one that starts by itself on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

import ray

#: Object store of a Ray that we start: tiles and samples do not pass through it, only small rows do.
OBJECT_STORE_BYTES = 128 << 20


def ensure(*, workers: int) -> None:
    """Connect to Ray, starting it here unless RAY_ADDRESS names a cluster; once for all stages of a command."""
    if ray.is_initialized():
        return
    # A report from each epoch waits for the next health check; the default of 2 s would be felt.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level="warning", log_to_driver=False)
        return
    ray.init(
        num_cpus=max(workers, os.cpu_count() or 1),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        logging_level="error",
        log_to_driver=False,
    )


def close() -> None:
    """Leave Ray; one that was started here ends with it."""
    if ray.is_initialized():
        ray.shutdown()


@dataclass(frozen=True)
class Share:
    """What each of some workers may take of the cluster: whole CPUs, and a GPU where there are any."""

    workers: int
    cpus: int
    gpus: int

    @property
    def resources(self) -> dict[str, int]:
        """The share as Ray asks for it."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def __str__(self) -> str:
        workers = "1 worker" if self.workers == 1 else f"{self.workers} workers"
        device = "a GPU" if self.gpus else f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}"
        return f"{workers} with {device} each"


def share(workers: int) -> Share:
    """Share the cluster, as it is now, among workers."""
    resources = ray.cluster_resources()
    return Share(workers, max(1, int(resources.get("CPU", 1)) // workers), int(resources.get("GPU", 0) >= 1))
